"""Laws given by formulas: roles, derivatives, and the shipped ones against their sources."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from llem.scaling.errors import OptionError
from llem.scaling.fit import fit_law
from llem.scaling.fitting.estimator import Estimator
from llem.scaling.fitting.minimiser import minimise
from llem.scaling.fitting.problem import Problem
from llem.scaling.fitting.solve import solve
from llem.scaling.flops import FlopsModel
from llem.scaling.laws.chinchilla import CHINCHILLA
from llem.scaling.laws.formula import FormulaLaw
from llem.scaling.laws.law import Law
from llem.scaling.laws.parser import FormulaError
from llem.scaling.laws.registry import get_law, law_names
from llem.scaling.laws.shipped import (
    CHINCHILLA_TIED,
    COMPUTE_POWER_LAW,
    DATA_CONSTRAINED,
    REPEATED_TOKENS,
    SHIPPED,
)
from llem.scaling.observations import Observations, check_observations

from .campaigns import campaign
from .data_sets import load, shared_table

FloatArray = NDArray[np.float64]
CROSS = FormulaLaw.parse("E + A/N^alpha + B/D^beta + G/(N^a*D^b)")
POWER_OF_SUM = FormulaLaw.parse(
    "E + (A/N^alpha + B/D^beta)^rho",
    positive={"A": (1.0, 1e8), "B": (1.0, 1e8)},
    shapes={"rho": (0.2, 5.0)},
)
WITH_OFFSET = FormulaLaw.parse(
    "E + A/(N + K)^alpha + B/D^beta - F*log(D)/100", positive={"K": (1e3, 1e8)}
)
KINKED = FormulaLaw.parse("E + max(A/N^alpha, B/D^beta)")
GENERIC = FormulaLaw.parse("L(N, D) = E + A/N^alpha + B/D^beta")
LAWS = (*SHIPPED, CROSS, POWER_OF_SUM, WITH_OFFSET, KINKED, GENERIC)

TRUTH = {"E": 1.87, "A": 521.0, "B": 1488.0, "alpha": 0.353, "beta": 0.36, "Rd": 15.4, "Rn": 5.3}
TRUTH |= {"K": 2e4, "gamma": 0.15, "rho": 0.9, "G": 800.0, "a": 0.25, "b": 0.2, "F": 0.4}


def runs(rows: int, seed: int = 1) -> tuple[FloatArray, FloatArray, FloatArray]:
    """N, D and unique tokens; two thirds of the runs repeat their data."""
    rng = np.random.default_rng(seed)
    params = np.exp(rng.uniform(np.log(2e7), np.log(4e9), rows))
    unique = np.exp(rng.uniform(np.log(1e8), np.log(2e10), rows))
    epochs = np.exp(rng.choice([0, 0, 1, 2, 3, 4], rows) * rng.uniform(0.5, 1.0, rows))
    return params, unique * epochs, unique


def observe(law: Law, *, rows: int = 120, noise: float = 0.0, seed: int = 1) -> Observations:
    params, tokens, unique = runs(rows, seed)
    truth = {p: TRUTH[p] for p in law.parameter_names}
    flops = 6 * params * tokens
    loss = law.predict(truth, params, tokens, flops=flops, unique_tokens=unique)
    loss = loss * np.exp(noise * np.random.default_rng(seed).standard_normal(rows))
    return check_observations(params, tokens, loss, unique_tokens=unique, flops=flops)


def fitted(law: Law, data: Observations, estimator: Estimator) -> dict[str, float]:
    problem = law.bind(data)
    return law.named(problem.natural(solve(problem, data.weight, estimator).theta))


def near_truth(law: Law, problem: Problem, count: int, scatter: float) -> FloatArray:
    theta = problem.centred(law.natural({p: TRUTH[p] for p in law.parameter_names}))
    rng = np.random.default_rng(5)
    return np.asarray(theta + scatter * rng.standard_normal((count, theta.size)))


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.name[:24])
@pytest.mark.parametrize("delta", [0.02, np.inf])
def test_gradient_hessian_and_jacobian_are_those_of_finite_differences(
    law: FormulaLaw, delta: float
) -> None:
    data = observe(law, rows=60, noise=0.02)
    problem = law.bind(data)
    theta = near_truth(law, problem, 1, 0.03)[0]
    weight = np.random.default_rng(3).integers(0, 3, (1, 60)).astype(float)
    deltas, rows, h = np.array([delta]), slice(0, 60), 1e-5
    steps = h * np.eye(theta.size)

    def at(point: FloatArray) -> tuple[float, FloatArray]:
        local = problem.evaluate(point[None], weight, deltas, rows)
        return float(local.value[0]), local.gradient[0]

    exact = problem.evaluate(theta[None], weight, deltas, rows)
    ends = [(at(theta - s), at(theta + s)) for s in steps]
    gradient = np.array([(high[0] - low[0]) / (2 * h) for low, high in ends])
    hessian = np.array([(high[1] - low[1]) / (2 * h) for low, high in ends])
    scale = np.abs(hessian).max()
    np.testing.assert_allclose(exact.gradient[0], gradient, atol=1e-7 * scale)
    np.testing.assert_allclose(exact.hessian[0], hessian, atol=1e-7 * scale)
    jacobian = [
        (problem.residuals(theta - s) - problem.residuals(theta + s))[0] / (2 * h) for s in steps
    ]
    np.testing.assert_allclose(problem.jacobian(theta), np.array(jacobian).T, atol=1e-7)
    residual = problem.residuals(theta)[0]
    value = weight[0] @ Estimator(delta=delta).rho(residual)
    assert float(exact.value[0]) == pytest.approx(float(value), rel=1e-12)
    bent = Estimator(delta=delta).psi(residual) / residual * weight[0]
    metric = (problem.jacobian(theta).T * bent) @ problem.jacobian(theta)
    np.testing.assert_allclose(exact.metric[0], metric, rtol=1e-10, atol=1e-10 * scale)


@pytest.mark.parametrize("delta", [1e-3, 0.1, np.inf])
def test_chinchilla_as_a_formula_is_the_law_with_its_own_kernel(delta: float) -> None:
    data = observe(CHINCHILLA, rows=200, noise=0.02)
    mine, theirs = GENERIC.bind(data), CHINCHILLA.bind(data)
    assert GENERIC.parameters == CHINCHILLA.parameters
    np.testing.assert_array_equal(mine.lower, theirs.lower)
    np.testing.assert_array_equal(mine.upper, theirs.upper)
    theta = near_truth(CHINCHILLA, theirs, 40, 0.3)
    weight = np.random.default_rng(0).integers(0, 3, (40, 200)).astype(float)
    for part in (slice(0, 200), slice(30, 90)):
        a = mine.evaluate(theta, weight[:, part], np.full(40, delta), part)
        b = theirs.evaluate(theta, weight[:, part], np.full(40, delta), part)
        for name in ("value", "gradient", "hessian", "metric"):
            x, y = getattr(a, name), getattr(b, name)
            np.testing.assert_allclose(x, y, rtol=0, atol=1e-13 * np.abs(y).max())
    np.testing.assert_allclose(mine.natural(theta), theirs.natural(theta), rtol=1e-15)
    np.testing.assert_allclose(mine.residuals(theta), theirs.residuals(theta), atol=1e-14)
    ones = np.ones(200)
    np.testing.assert_allclose(
        mine.seeds(ones, Estimator(), count=16), theirs.seeds(ones, Estimator(), count=16)
    )


@pytest.mark.parametrize("name", ["epoch", "kyo", "rpj"])
@pytest.mark.parametrize("delta", [1e-3, 1e-4])
def test_the_formula_finds_the_minimum_of_the_specialised_law(name: str, delta: float) -> None:
    columns = load(name)
    data = check_observations(columns.params, columns.tokens, columns.loss)
    estimator = Estimator(delta=delta)
    mine = solve(GENERIC.bind(data), data.weight, estimator)
    theirs = solve(CHINCHILLA.bind(data), data.weight, estimator)
    assert mine.objective == pytest.approx(theirs.objective, rel=1e-12)
    np.testing.assert_allclose(mine.theta, theirs.theta, atol=1e-9)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.name[:24])
def test_centred_and_natural_coordinates_are_inverses_and_free_of_units(law: FormulaLaw) -> None:
    data = observe(law, rows=60)
    problem = law.bind(data)
    theta = near_truth(law, problem, 50, 0.5)
    np.testing.assert_allclose(problem.centred(problem.natural(theta)), theta, atol=1e-12)
    natural = problem.natural(theta)
    predicted = law.loss(
        natural[:, None],
        np.log(data.params),
        np.log(data.tokens),
        log_flops=np.log(data.flops),
        log_unique=np.log(data.unique_tokens) if data.unique_tokens is not None else None,
    )
    fine = predicted > 0
    residual = problem.residuals(theta)
    expected = np.log(data.loss) - np.log(np.where(fine, predicted, 1.0))
    np.testing.assert_allclose(residual[fine], expected[fine], atol=1e-11)
    part = problem.only(np.arange(3, 40))
    np.testing.assert_allclose(part.residuals(theta), residual[:, 3:40], atol=1e-15)
    np.testing.assert_array_equal(part.lower, problem.lower)


def test_roles_follow_from_the_formula() -> None:
    roles = {p.name: (p.role, p.constant) for p in CROSS.parameters}
    assert roles == {
        "E": ("amplitude", True),
        "A": ("amplitude", False),
        "B": ("amplitude", False),
        "G": ("amplitude", False),
        "alpha": ("shape", False),
        "beta": ("shape", False),
        "a": ("shape", False),
        "b": ("shape", False),
    }
    # Linear in each of two, not in both: the first is the amplitude.
    product = FormulaLaw.parse("E + A*(1 + k*log(N))/N^alpha")
    assert [(p.name, p.role) for p in product.parameters] == [
        ("E", "amplitude"),
        ("A", "amplitude"),
        ("k", "shape"),
        ("alpha", "shape"),
    ]
    assert COMPUTE_POWER_LAW.variables == ("C",)
    assert not COMPUTE_POWER_LAW.has_optimum
    assert GENERIC.has_optimum
    assert DATA_CONSTRAINED.variables == ("N", "D", "U")


def test_bounds_and_fixed_values_are_part_of_the_formula_which_alone_makes_the_law_again() -> None:
    law = FormulaLaw.parse(
        "E + A/(N + K)^alpha + B/D^beta",
        shapes={"beta": (0.1, 0.9)},
        positive={"K": (1e3, 1e8)},
        fixed={"alpha": 0.35},
    )
    assert law.parameter_names == ("E", "A", "B", "K", "beta")
    assert "alpha = 0.35" in law.formula
    assert FormulaLaw.parse(law.formula) == law
    assert get_law(law.formula) == law
    by_hand = FormulaLaw.parse("E + A/(N + K)^0.35 + B/D^beta where log K in [1e3, 1e8]")
    values = {"E": 1.8, "A": 500.0, "B": 1500.0, "K": 3e6, "beta": 0.4}
    assert float(law.predict(values, 1e8, 1e10)) == pytest.approx(
        float(by_hand.predict(values, 1e8, 1e10)), rel=1e-14
    )
    problem = law.bind(observe(law, rows=40))
    assert problem.lower[3:].tolist() == pytest.approx([np.log(1e3), 0.1])
    assert problem.upper[3:].tolist() == pytest.approx([np.log(1e8), 0.9])


def test_options_that_name_no_parameter_are_refused() -> None:
    with pytest.raises(FormulaError, match="did you mean 'alpha'"):
        FormulaLaw.parse("E + A/N^alpha", shapes={"alpa": (0.1, 1.0)})
    with pytest.raises(FormulaError, match="never used"):
        FormulaLaw.parse("E + A/N^alpha", fixed={"beta": 0.3})
    with pytest.raises(OptionError, match="no amplitude"):
        FormulaLaw.parse("E + A/N^alpha", centring={"alpha": "N"})


def test_a_loss_that_is_not_positive_makes_the_minimiser_step_elsewhere() -> None:
    law = FormulaLaw.parse("E - A/D^beta")
    data = observe(CHINCHILLA, rows=60)
    problem = law.bind(data)
    theta = np.array([[0.5, 3.0, 0.3], [1.5, 0.0, 0.1]])
    local = problem.evaluate(theta, np.ones((1, 60)), np.full(2, 0.1), slice(0, 60))
    assert local.value[0] == np.inf
    assert np.isfinite(local.value[1])
    assert all(
        np.isfinite(getattr(local, name)).all() for name in ("gradient", "hessian", "metric")
    )
    starts = np.random.default_rng(0).normal([1.0, 0.0, 0.3], 0.5, (20, 3))
    ones = np.ones((1, 60))
    first = problem.evaluate(starts, ones, np.full(20, 0.1), slice(0, 60)).value
    fine = np.isfinite(first)
    assert 0 < np.count_nonzero(fine) < 20
    ends = minimise(problem, starts, ones, delta=0.1)
    assert np.all(ends.objective[fine] <= first[fine])
    assert not ends.converged[~fine].any()


@pytest.mark.parametrize("law", [*SHIPPED, CROSS], ids=lambda law: law.name[:24])
@pytest.mark.parametrize("estimator", [Estimator(), Estimator(loss="squares")], ids=["h", "s"])
def test_planted_parameters_come_back(law: FormulaLaw, estimator: Estimator) -> None:
    found = fitted(law, observe(law), estimator)
    tolerance = 1e-3 if law is CROSS else 1e-6  # a cross term is nearly a sum of the others
    for name, value in found.items():
        assert value == pytest.approx(TRUTH[name], rel=tolerance), name


@pytest.mark.parametrize("law", [REPEATED_TOKENS, DATA_CONSTRAINED], ids=lambda law: law.name)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_with_noise_the_fit_is_at_or_below_the_planted_truth(law: FormulaLaw, seed: int) -> None:
    data = observe(law, noise=0.005, seed=seed)
    problem = law.bind(data)
    solution = solve(problem, data.weight, Estimator())
    truth = problem.centred(law.natural({p: TRUTH[p] for p in law.parameter_names}))
    at_truth = float(Estimator().rho(problem.residuals(truth)).sum())
    assert solution.converged
    assert solution.objective < at_truth
    # Nothing better lies where the search begins at the truth.
    from_truth = minimise(problem, truth[None], data.weight[None], delta=1e-3)
    assert solution.objective <= float(from_truth.objective[0]) * (1 + 1e-9)
    found = law.named(problem.natural(solution.theta))
    assert found["Rd"] == pytest.approx(TRUTH["Rd"], rel=0.25)
    assert found["alpha"] == pytest.approx(TRUTH["alpha"], rel=0.15)


def test_without_repetition_the_law_of_repeated_tokens_is_chinchillas() -> None:
    params, tokens, _ = runs(200)
    truth = {p: TRUTH[p] for p in CHINCHILLA.parameter_names}
    plain = CHINCHILLA.predict(truth, params, tokens)
    repeated = truth | {"Rd": 15.4}
    for unique in (tokens, 10 * tokens, None):
        found = REPEATED_TOKENS.predict(repeated, params, tokens, unique_tokens=unique)
        np.testing.assert_allclose(found, plain, rtol=1e-14)
    noisy = plain * np.exp(0.005 * np.random.default_rng(0).standard_normal(200))
    data = check_observations(params, tokens, noisy, unique_tokens=tokens)
    problem = REPEATED_TOKENS.bind(data)
    solution = solve(problem, data.weight, Estimator())
    alone = solve(CHINCHILLA.bind(data), data.weight, Estimator())
    assert solution.objective == pytest.approx(alone.objective, rel=1e-9)
    # Rd moves nothing: a direction without any curvature, which is how "not identified" shows.
    assert abs(solution.smallest_eigenvalue) < 1e-12
    assert np.abs(problem.jacobian(solution.theta)[:, 3]).max() < 1e-12


def test_the_data_constrained_law_is_chinchillas_below_the_size_that_unique_tokens_can_use() -> (
    None
):
    params, tokens, unique = runs(300)
    truth = {p: TRUTH[p] for p in DATA_CONSTRAINED.parameter_names}
    plain = {p: TRUTH[p] for p in CHINCHILLA.parameter_names}
    a, b, alpha, beta = (truth[p] for p in ("A", "B", "alpha", "beta"))
    usable = (alpha * a / (beta * b)) ** (1 / alpha) * tokens ** (beta / alpha)
    # `usable` is the compute-optimal size for these tokens.
    at = CHINCHILLA.optimum(CHINCHILLA.natural(plain), 6 * usable[0] * tokens[0], FlopsModel())
    assert float(at[0]) == pytest.approx(np.log(usable[0]), rel=1e-12)
    found = DATA_CONSTRAINED.predict(truth, params, tokens)
    expected = CHINCHILLA.predict(plain, params, tokens)
    small = params <= usable
    assert 20 < np.count_nonzero(small) < 280
    np.testing.assert_allclose(found[small], expected[small], rtol=1e-13)
    assert np.all(found[~small] > expected[~small])
    # The published form, written out anew.
    unique = np.minimum(unique, tokens)
    base = np.minimum(params, (alpha * a / (beta * b)) ** (1 / alpha) * unique ** (beta / alpha))
    d = unique * (1 + 15.4 * (1 - np.exp(-(tokens / unique - 1) / 15.4)))
    n = base * (1 + 5.3 * (1 - np.exp(-(params / base - 1) / 5.3)))
    written = truth["E"] + a / n**alpha + b / d**beta
    found = DATA_CONSTRAINED.predict(truth, params, tokens, unique_tokens=unique)
    np.testing.assert_allclose(found, written, rtol=1e-12)


def test_an_unknown_number_of_unique_tokens_means_no_repetition() -> None:
    params, tokens, unique = runs(50)
    some = np.where(np.arange(50) % 2 == 0, np.nan, unique)
    truth = {p: TRUTH[p] for p in REPEATED_TOKENS.parameter_names}
    found = REPEATED_TOKENS.predict(truth, params, tokens, unique_tokens=some)
    filled = np.where(np.isnan(some), tokens, some)
    expected = REPEATED_TOKENS.predict(truth, params, tokens, unique_tokens=filled)
    np.testing.assert_array_equal(found, expected)
    data = check_observations(params, tokens, expected, unique_tokens=some)
    problem = REPEATED_TOKENS.bind(data)
    theta = problem.centred(REPEATED_TOKENS.natural(truth))
    assert np.abs(problem.residuals(theta)).max() < 1e-13


def test_the_optimum_of_the_tied_law_is_the_searched_one() -> None:
    natural = CHINCHILLA_TIED.natural({p: TRUTH[p] for p in CHINCHILLA_TIED.parameter_names})
    model = FlopsModel(5.0, 0.93, "observations")
    closed = CHINCHILLA_TIED.optimum(natural, 1e22, model)
    searched = Law.optimum(CHINCHILLA_TIED, natural, 1e22, model)
    assert float(closed[0]) == pytest.approx(float(searched[0]), abs=1e-6)
    assert float(closed[1]) == pytest.approx(float(searched[1]), abs=1e-6)
    a, b = CHINCHILLA_TIED.exponents(natural, model, flops=1e22)
    assert 0.93 * float(a) + float(b) == pytest.approx(1.0)
    slope = Law.exponents(CHINCHILLA_TIED, natural, model, flops=1e22)[0]
    assert float(a) == pytest.approx(float(slope), abs=1e-6)


def test_shipped_laws_are_known_by_their_names() -> None:
    for law in SHIPPED:
        assert get_law(law.name) is law
        assert law.name in law_names()


SMALL = ("d=96_l=8_h=4", "d=512_l=8_h=4", "d=576_l=24_h=8", "d=1024_l=24_h=8")


def small_runs(training_set: str) -> list[dict[str, str]]:
    """The five runs that the authors fit: four sizes at M = 20, the smallest at M = 320 too."""
    found = [
        row
        for row in shared_table("gadre_overtrain/data.csv")
        if row["dataset"] == training_set
        and (
            (row["model"] in SMALL and float(row["cc_mult"]) == 1)
            or (row["model"] == SMALL[0] and float(row["cc_mult"]) == 16)
        )
    ]
    assert len(found) == 5
    return found


def least_squares_of_the_loss(law: Law, rows: list[dict[str, str]]) -> dict[str, float]:
    """The authors' estimator: squares of the loss itself, not of its log."""
    n, d, loss = (np.array([float(r[c]) for r in rows]) for c in ("N", "D", "loss_c4_val"))
    judge = Estimator(loss="squares", space="loss")
    return fit_law(n, d, loss, law=law, estimator=judge, bootstrap=0).params


def test_squares_of_the_loss_are_least_at_the_minimum() -> None:
    c = campaign(noise=0.02)
    judge = Estimator(loss="squares", space="loss")
    fit = fit_law(c.params, c.tokens, c.loss, estimator=judge, bootstrap=0)

    def half_squares(params: dict[str, float]) -> float:
        residual = c.loss - CHINCHILLA.predict(params, c.params, c.tokens)
        return float(0.5 * np.sum(residual**2))

    assert fit.objective == pytest.approx(half_squares(fit.params), rel=1e-9)
    for name in fit.params:
        for factor in (0.999, 1.001):
            moved = fit.params | {name: factor * fit.params[name]}
            assert half_squares(moved) > fit.objective


@pytest.mark.parametrize(
    ("training_set", "published"),
    [
        ("rpj", (166.211, 366.687, -0.272851, 1.836648)),
        ("c4_original", (113.693, 189.516, -0.242472, 1.508261)),
    ],
)
def test_the_published_over_training_fits_come_back(
    training_set: str, published: tuple[float, float, float, float]
) -> None:
    found = least_squares_of_the_loss(CHINCHILLA_TIED, small_runs(training_set))
    a, c, b, e = published
    assert found["A"] == pytest.approx(a, abs=6e-4)
    assert found["B"] * 6 ** (found["alpha"] / 2) == pytest.approx(c, abs=6e-4)
    assert -found["alpha"] == pytest.approx(b, abs=6e-7)
    assert found["E"] == pytest.approx(e, abs=6e-7)


def test_the_published_errors_of_the_over_trained_predictions_come_back() -> None:
    found = least_squares_of_the_loss(CHINCHILLA_TIED, small_runs("rpj"))
    errors = {}
    for row in shared_table("gadre_overtrain/data.csv"):
        if row["name"] in ("rpj-open_lm_1b-32.0", "rpj-open_lm_7b-1.0"):
            predicted = float(CHINCHILLA_TIED.predict(found, float(row["N"]), float(row["D"])))
            errors[row["name"]] = 100 * abs(predicted / float(row["loss_c4_val"]) - 1)
    assert errors["rpj-open_lm_1b-32.0"] == pytest.approx(0.7103, abs=6e-5)
    assert errors["rpj-open_lm_7b-1.0"] == pytest.approx(0.7320, abs=6e-5)
