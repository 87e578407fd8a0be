"""The parts under the fit, each against an independent computation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar, nnls

from llem.scaling import CHINCHILLA, FlopsModel, fit_flops_model
from llem.scaling.fitting.estimator import Estimator
from llem.scaling.fitting.minimiser import derivatives, minimise, solve_spd
from llem.scaling.fitting.nonnegative import solve_normal
from llem.scaling.laws.chinchilla import ChinchillaProblem

from .campaigns import TRUTH, campaign


@settings(max_examples=40, deadline=None)
@given(
    coefficient=st.floats(2.0, 20.0),
    exponent=st.floats(0.7, 1.2),
    alpha=st.floats(0.1, 1.0),
    beta=st.floats(0.1, 1.0),
    log10_c=st.floats(12, 26),
)
def test_the_closed_form_of_the_optimum_is_the_numerical_one(
    coefficient: float, exponent: float, alpha: float, beta: float, log10_c: float
) -> None:
    natural = CHINCHILLA.natural(TRUTH | {"alpha": alpha, "beta": beta})
    model = FlopsModel(coefficient, exponent, "observations")
    flops = 10.0**log10_c
    log_n, log_d = CHINCHILLA.optimum(natural, flops, model)

    def reducible(x: float) -> float:
        tokens = float(model.tokens(np.exp(x), flops))
        # Without E, whose digits would hide the minimum; in logs, which keep the place of it.
        value = CHINCHILLA.loss(natural - np.array([1e3, 0, 0, 0, 0]), x, np.log(tokens))
        return float(np.log(value))

    found = minimize_scalar(
        reducible, bracket=(float(log_n) - 3, float(log_n) + 4), method="brent", tol=1e-12
    )
    assert float(log_n) == pytest.approx(found.x, abs=1e-5)
    assert float(model.flops(np.exp(log_n), np.exp(log_d))) == pytest.approx(flops, rel=1e-10)


def test_the_exponents_are_the_slopes_of_the_optimum() -> None:
    natural, model = CHINCHILLA.natural(TRUTH), FlopsModel(5.0, 0.93, "observations")
    n0, d0 = CHINCHILLA.optimum(natural, 1e20, model)
    n1, d1 = CHINCHILLA.optimum(natural, 1e21, model)
    a, b = CHINCHILLA.exponents(natural, model, flops=1e20)
    assert float(n1 - n0) / np.log(10) == pytest.approx(float(a))
    assert float(d1 - d0) / np.log(10) == pytest.approx(float(b))
    assert 0.93 * a + b == pytest.approx(1.0)


@pytest.mark.parametrize("delta", [1e-2, np.inf])
def test_gradient_and_hessian_are_those_of_the_objective(delta: float) -> None:
    c = campaign(noise=0.02)
    problem = ChinchillaProblem.of(c.params, c.tokens, c.loss)
    weight = np.arange(1.0, c.loss.size + 1)
    theta = np.array([0.6, 0.5, 0.4, 0.3, 0.4])

    def value(t: np.ndarray) -> float:
        r = problem.residuals(t)[0]
        psi = np.clip(r, -delta, delta)
        return float(np.sum(weight * psi * (r - psi / 2)))

    def slope_at(t: np.ndarray) -> np.ndarray:
        return derivatives(problem, t, weight, delta=delta)[0].gradient[0]

    local, stopped = derivatives(problem, theta, weight, delta=delta)
    gradient, hessian = local.gradient[0], local.hessian[0]
    assert not stopped.any()
    assert local.value[0] == pytest.approx(value(theta), rel=1e-12)
    step = 1e-6
    eye = np.eye(5) * step
    slope = [(value(theta + d) - value(theta - d)) / (2 * step) for d in eye]
    assert gradient == pytest.approx(slope, rel=1e-5, abs=1e-6)
    bend = [(slope_at(theta + d) - slope_at(theta - d)) / (2 * step) for d in eye]
    assert hessian == pytest.approx(np.array(bend), rel=1e-4, abs=1e-4)


def test_a_batch_gives_what_each_problem_gives_alone() -> None:
    c = campaign(noise=0.01)
    problem = ChinchillaProblem.of(c.params, c.tokens, c.loss)
    rng = np.random.default_rng(0)
    weight = rng.integers(0, 4, size=(900, c.loss.size)).astype(float)
    start = np.tile([0.5, 0.5, 0.5, 0.35, 0.35], (900, 1))
    together = minimise(problem, start, weight, delta=1e-2)
    for i in (0, 450, 899):
        alone = minimise(problem, start[i : i + 1], weight[i : i + 1], delta=1e-2)
        assert together.objective[i] == pytest.approx(alone.objective[0], rel=1e-10)


def test_a_matrix_that_is_not_positive_is_flagged_alone() -> None:
    good = np.array([[4.0, 1.0], [1.0, 3.0]])
    bad = np.array([[1.0, 2.0], [2.0, 1.0]])
    x, positive = solve_spd(np.stack([good, bad, good]), np.ones((3, 2)))
    assert positive.tolist() == [True, False, True]
    assert good @ x[0] == pytest.approx([1.0, 1.0])
    assert x[2] == pytest.approx(x[0])


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), sign=st.sampled_from([-1.0, 0.0, 1.0]))
def test_batched_nonnegative_least_squares_agrees_with_scipy(seed: int, sign: float) -> None:
    rng = np.random.default_rng(seed)
    design = rng.random((9, 3)) * np.array([1.0, 1e6, 1e-5])
    target = rng.standard_normal(9) + 2 * sign
    expected, _ = nnls(design / np.array([1.0, 1e6, 1e-5]), target)
    got = solve_normal((design.T @ design)[None], (design.T @ target)[None])[0]
    assert got * np.array([1.0, 1e6, 1e-5]) == pytest.approx(expected, abs=1e-7)


def test_flops_per_token_are_fitted_where_they_are_known() -> None:
    params, tokens = np.geomspace(1e6, 1e9, 8), np.geomspace(1e9, 1e10, 8)
    flops = 7.5 * params**0.97 * tokens
    flops[3] = np.nan
    model = fit_flops_model(params, tokens, flops, weight=np.ones(8))
    assert model.source == "observations"
    assert model.coefficient == pytest.approx(7.5)
    assert model.exponent == pytest.approx(0.97)
    assert fit_flops_model(params, tokens, None, weight=np.ones(8)) == FlopsModel()


@pytest.mark.parametrize("delta", [1e-1, 1e-3, 1e-6])
def test_the_ladder_of_deltas_ends_at_the_wanted_one(delta: float) -> None:
    ladder = Estimator(delta=delta).ladder(0.004, 240)
    assert ladder[-1] == pytest.approx(delta)
    assert list(ladder) == sorted(ladder, reverse=True)
    assert len(ladder) == {1e-1: 1, 1e-3: 1, 1e-6: 9}[delta]
