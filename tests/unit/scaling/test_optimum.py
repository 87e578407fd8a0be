"""The answer at a target: against independent minimisers, closed forms and plain arithmetic."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from llem.scaling.answers.allowance import (
    EXPONENT_ERROR,
    Widening,
    sd_of_log_loss,
    sd_of_log_params,
)
from llem.scaling.answers.cost import CostLaw, Term
from llem.scaling.answers.features import FEATURES, Layout
from llem.scaling.answers.optimum import Ensemble, Optimum, Prices, Target
from llem.scaling.errors import OptionError
from llem.scaling.fit import fit_law
from llem.scaling.flops import FlopsModel
from llem.scaling.laws.chinchilla import CHINCHILLA
from llem.scaling.laws.law import Law, Parameter

from .data_sets import load

TRUTH = {"E": 1.82, "A": 480.0, "B": 2100.0, "alpha": 0.348, "beta": 0.366}
NATURAL = CHINCHILLA.natural(TRUTH)
MODEL = FlopsModel()


def cost_law(unit: str = "J", layout: Layout | None = None, **prices: float) -> CostLaw:
    terms = tuple(Term(name, price, unit, FEATURES[name].formula) for name, price in prices.items())
    quantity = {"J": "energy_j", "s": "gpu_seconds"}[unit]
    return CostLaw(quantity, unit, terms, 40, (), 0.02, layout=layout or Layout())


ENERGY = cost_law(start=5e3, per_token=2e-3, per_flop=3e-12)
SECONDS = cost_law("s", start=60.0, per_token=4e-6, per_flop=1e-14)


def resamples(count: int, *, seed: int = 0) -> np.ndarray:
    """Parameters that differ as those of a bootstrap do: A and alpha together, B and beta."""
    rng = np.random.default_rng(seed)
    out = np.tile(NATURAL, (count, 1))
    out[:, 0] += 0.005 * rng.standard_normal(count)
    for exponent, amplitude, centre in ((3, 1, 19.0), (4, 2, 23.0)):
        step = 0.01 * rng.standard_normal(count)
        out[:, exponent] += step
        out[:, amplitude] += centre * step
    return out


def ensemble(count: int = 200, **options: Any) -> Ensemble:
    rng = np.random.default_rng(1)
    given: dict[str, Any] = {
        "law": CHINCHILLA,
        "natural": NATURAL,
        "flops_model": MODEL,
        "costs": {"energy_j": ENERGY, "gpu_seconds": SECONDS},
        "largest_flops": 1e20,
        "level": 0.95,
        "samples": resamples(count),
        "cost_samples": {
            law.quantity: law.coefficients * np.exp(0.03 * rng.standard_normal((count, 3)))
            for law in (ENERGY, SECONDS)
        },
    }
    return Ensemble(**(given | options))


@settings(max_examples=25, deadline=None)
@given(
    per_token=st.floats(1e-5, 1e-1),
    per_param=st.floats(0.0, 1e-10),
    exponent=st.floats(0.8, 1.1),
    log10_budget=st.floats(5.0, 11.0),
)
def test_the_optimum_of_a_budget_is_that_of_a_constrained_minimiser(
    per_token: float, per_param: float, exponent: float, log10_budget: float
) -> None:
    model = FlopsModel(6.0, exponent, "observations")
    layout = Layout(8.0, 1.0, 1.0)
    law = cost_law(
        layout=layout, start=1e3, per_token=per_token, per_flop=3e-12, all_reduce=per_param / 7
    )
    budget = 10.0**log10_budget
    told = ensemble(0, costs={"energy_j": law}, flops_model=model, cost_samples={}).at(
        Target(budget, "J")
    )

    def spent(x: np.ndarray) -> float:
        n, d = np.exp(x)
        flops = float(model.flops(n, d))
        return 8e3 + per_token * d + 3e-12 * flops + per_param * n * d

    scale = float(CHINCHILLA.loss(NATURAL, np.log(told.params), np.log(told.tokens)))
    found = minimize(
        lambda x: float(CHINCHILLA.loss(NATURAL, x[0], x[1])) / scale,
        np.log([told.params * 2.0, told.tokens / 2.0]),
        constraints={"type": "eq", "fun": lambda x: math.log(spent(x) / budget)},
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 500},
    )
    assert spent(np.log([told.params, told.tokens])) == pytest.approx(budget, rel=1e-9)
    assert told.loss <= found.fun * scale * (1 + 1e-12)
    assert math.log(told.params) == pytest.approx(found.x[0], abs=2e-3)


def test_no_point_of_a_fine_grid_beats_the_optimum_of_a_budget() -> None:
    told = ensemble(0, cost_samples={}).at(Target(100, "kWh"))
    n = told.params * np.exp(np.linspace(-0.5, 0.5, 20001))
    d = (100 * 3.6e6 - 5e3) / (2e-3 + 3e-12 * 6 * n)
    loss = CHINCHILLA.loss(NATURAL, np.log(n), np.log(d))
    assert told.loss <= loss.min() * (1 + 1e-14)
    assert told.params == pytest.approx(n[np.argmin(loss)], rel=1e-4)


def test_where_only_flops_cost_the_optimum_is_the_flop_optimal_one() -> None:
    told = ensemble(50, costs={"energy_j": cost_law(per_flop=3e-12)}, cost_samples={}).at(
        Target(3e8, "J")
    )
    expected = ensemble(50).at(1e20)
    assert told.flops == pytest.approx(1e20)
    assert told.params == pytest.approx(expected.params, rel=1e-6)
    assert told.ci["params"] == pytest.approx(expected.ci["params"], rel=1e-6)
    assert told.flop_optimal is not None
    assert told.flop_optimal["params_ratio"] == pytest.approx(1.0, rel=1e-6)
    assert told.flop_optimal["loss_difference"] == pytest.approx(0.0, abs=1e-12)


def test_tokens_that_cost_make_the_energy_optimum_larger_than_the_flop_optimum() -> None:
    told = ensemble().at(Target(30, "kWh"))
    flop = told.flop_optimal
    assert flop is not None
    assert flop["energy_j"] == pytest.approx(told.energy_j, rel=1e-9)
    assert flop["params"] < 0.9 * told.params
    assert flop["params"] / told.params == pytest.approx(flop["params_ratio"])
    assert flop["loss_difference"] == pytest.approx(flop["loss"] - told.loss, rel=1e-6)
    low, high = flop["ci"]["loss_difference"]
    assert 0 < low < flop["loss_difference"] < high
    # Paired: far narrower than the loss's own interval.
    assert high - low < 0.1 * (told.ci["loss"][1] - told.ci["loss"][0])
    on_path = ensemble().at(flop["flops"])
    assert on_path.params == pytest.approx(flop["params"], rel=1e-9)


def test_equal_loss_is_reached_with_less_energy() -> None:
    told = ensemble().at(3e18)
    same = told.equal_loss
    assert same is not None
    assert same["loss"] == pytest.approx(told.loss, rel=1e-9)
    assert same["energy_j"] == pytest.approx(told.energy_j * (1 - same["energy_saving"]))
    low, high = same["ci"]["energy_saving"]
    assert 0 < low < same["energy_saving"] < high < 1
    # By brute force: tokens for that loss at each size, then the least energy.
    n = same["params"] * np.exp(np.linspace(-1, 1, 4001))
    rest = told.loss - TRUTH["E"] - TRUTH["A"] * n ** -TRUTH["alpha"]
    d = (TRUTH["B"] / np.where(rest > 0, rest, np.nan)) ** (1 / TRUTH["beta"])
    energy = 5e3 + 2e-3 * d + 3e-12 * 6 * n * d
    assert same["energy_j"] == pytest.approx(np.nanmin(energy), rel=1e-6)
    assert same["params"] == pytest.approx(n[np.nanargmin(energy)], rel=2e-3)


def test_there_is_no_equal_loss_without_an_energy_law() -> None:
    assert ensemble(costs={"gpu_seconds": SECONDS}).at(1e20).equal_loss is None


def test_there_is_no_equal_loss_where_size_costs_nothing() -> None:
    law = cost_law(per_token=1e-3)
    assert ensemble(costs={"energy_j": law}, cost_samples={}).at(1e20).equal_loss is None


def test_gpu_hours_and_money_are_budgets_too() -> None:
    prices = Prices(per_kwh=0.3, per_gpu_hour=2.0, currency="EUR", pue=1.4)
    e = ensemble(prices=prices)
    hours = e.at(Target(500, "GPUh"))
    assert hours.gpu_hours == pytest.approx(500)
    money = e.at(Target(1000, "EUR"))
    paid = 0.3 * 1.4 * money.energy_j / 3.6e6 + 2.0 * money.gpu_hours
    assert paid == pytest.approx(1000)
    assert (money.money, money.currency) == (pytest.approx(1000), "EUR")
    assert e.at(Target(1000, "money")).params == pytest.approx(money.params)


def test_energy_is_what_the_site_pays_for() -> None:
    told = ensemble(prices=Prices(pue=1.5)).at(Target(30, "kWh"))
    assert told.energy_j == pytest.approx(30 * 3.6e6 / 1.5)


@pytest.mark.parametrize(
    ("target", "options", "words"),
    [
        (Target(1000, "EUR"), {}, "pass per_kwh, per_gpu_hour or both"),
        (Target(1000, "EUR"), {"prices": Prices(0.3, currency="USD")}, "the prices in USD"),
        (Target(5, "kWh"), {"costs": {}}, "energy_j was not given"),
        (
            Target(9, "EUR"),
            {"prices": Prices(per_gpu_hour=2.0, currency="EUR"), "costs": {"energy_j": ENERGY}},
            "gpu_seconds was not given",
        ),
        (
            Target(5, "kWh"),
            {"costs": {"energy_j": cost_law(per_token=1e-3)}, "cost_samples": {}},
            "no size of a model is the best for 5 kWh",
        ),
        (
            Target(5, "kWh"),
            {"costs": {"energy_j": cost_law(start=1e3)}, "cost_samples": {}},
            "gives size or tokens no price",
        ),
        (Target(1e-3, "kWh"), {}, "the fixed cost of a run (0.00139 kWh) uses up the target"),
    ],
)
def test_a_target_without_an_answer_says_what_is_missing(
    target: Target, options: dict[str, Any], words: str
) -> None:
    told = ensemble(**options).at(target)
    assert math.isnan(told.params)
    assert math.isnan(told.loss)
    assert all(math.isnan(v) for pair in told.ci.values() for v in pair)
    assert words in told.warnings[0]


@pytest.mark.parametrize(("value", "unit"), [(1.0, "parsec"), (0.0, "J"), (math.inf, "FLOP")])
def test_a_target_that_means_nothing_is_refused(value: float, unit: str) -> None:
    with pytest.raises(OptionError, match="target"):
        Target(value, unit)


@pytest.mark.parametrize("prices", [{"per_kwh": -1.0}, {"pue": 0.9}])
def test_prices_that_mean_nothing_are_refused(prices: dict[str, float]) -> None:
    with pytest.raises(OptionError, match="prices"):
        Prices(**prices)  # type: ignore[arg-type]


def test_a_layout_of_more_ranks_costs_more_and_is_told() -> None:
    law = cost_law(layout=Layout(8, 2, 2.0**20), start=50.0, per_flop=3e-12, all_reduce=1e-8)
    few = ensemble(costs={"energy_j": law}, cost_samples={}).at(1e20)
    many = ensemble(
        costs={"energy_j": law}, cost_samples={}, layout=Layout(64, 8, 2.0**20)
    ).at(1e20)  # fmt: skip
    assert few.layout["text"] == (
        "costs are those of a training on 8 ranks (2 nodes), the largest layout seen"
    )
    steps = few.tokens / 2.0**20
    assert few.energy_j == pytest.approx(400 + 3e8 + 1e-8 * few.params * steps * 7)
    assert many.energy_j == pytest.approx(3200 + 3e8 + 1e-8 * few.params * steps * 63)
    assert any("64 ranks; 8 were the most" in text for text in many.warnings)


def test_the_law_may_bend_beyond_the_data_and_the_interval_allows_for_it() -> None:
    near, far = ensemble().at(1e21), ensemble().at(1e22)
    assert near.allowance is None
    assert near.ci == near.ci_parameters
    assert not near.warnings
    assert far.allowance is not None
    assert far.allowance["decades"] == pytest.approx(2.0)
    sd = EXPONENT_ERROR * math.log(100)
    assert far.allowance["sd_log_params"] == pytest.approx(sd)
    assert far.allowance["sd_log_tokens"] == pytest.approx(sd)
    gamma = 0.348 * 0.366 / (0.348 + 0.366)
    assert far.allowance["sd_log_reducible_loss"] == pytest.approx(sd * gamma / 0.5, rel=1e-4)
    assert far.allowance["loss_floor"] == pytest.approx(1.82)
    for name in ("params", "tokens", "loss", "energy_j"):
        wide, narrow = far.ci[name], far.ci_parameters[name]
        assert wide[0] < narrow[0] < narrow[1] < wide[1]
    low, high = (math.log(v / far.params) for v in far.ci_parameters["params"])
    extra = 1.959963985 * sd
    assert far.ci["params"][0] == pytest.approx(far.params * math.exp(-math.hypot(low, extra)))
    assert far.ci["params"][1] == pytest.approx(far.params * math.exp(math.hypot(high, extra)))
    assert f"may be off by {EXPONENT_ERROR:g}" in far.allowance["text"]
    assert any("100 times the largest compute" in text for text in far.warnings)


@pytest.mark.parametrize("times", [30, 100, 300])
def test_the_allowance_covers_what_small_runs_missed_of_the_published_ones(times: float) -> None:
    data = load("epoch")
    flops = 6 * data.params * data.tokens
    some = flops < flops.max() / times
    everything = fit_law(data.params, data.tokens, data.loss, bootstrap=0)
    truth = everything.ensemble.at(flops.max(), brief=True).params
    fit = fit_law(data.params[some], data.tokens[some], data.loss[some], bootstrap=400)
    told = fit.ensemble.at(flops.max(), brief=True)
    assert not told.ci_parameters["params"][0] < truth < told.ci_parameters["params"][1]
    assert told.ci["params"][0] < truth < told.ci["params"][1]


def test_the_allowance_is_switched_off_by_an_error_of_zero() -> None:
    told = ensemble(exponent_error=0.0).at(1e24)
    assert told.allowance is None
    assert told.ci == told.ci_parameters
    assert any("times the largest compute" in text for text in told.warnings)


def test_without_resamples_there_is_no_interval_to_widen() -> None:
    told = ensemble(0, cost_samples={}).at(1e23)
    assert all(math.isnan(v) for pair in told.ci.values() for v in pair)
    assert told.cloud == {"params": [], "tokens": [], "loss": []}
    assert told.allowance is not None


def test_widening_is_in_quadrature_on_each_side() -> None:
    widen = Widening(0.6826894921370859)  # one standard deviation
    low, high = widen.log((math.exp(-3.0), math.exp(0.0)), 1.0, 4.0)
    assert (math.log(low), math.log(high)) == pytest.approx((-5.0, 4.0))
    low, high = widen.loss((1.9, 2.3), 2.0, 1.5, 0.2)
    assert low == pytest.approx(2.0 - math.hypot(0.1, 0.5 * (1 - math.exp(-0.2))))
    assert high == pytest.approx(2.0 + math.hypot(0.3, 0.5 * (math.exp(0.2) - 1)))
    assert widen.log((1.0, 2.0), 1.5, 0.0) == (1.0, 2.0)
    assert sd_of_log_params(0.02, 10.0) == 0.0
    assert sd_of_log_params(0.02, 1000.0) == pytest.approx(0.02 * math.log(1000))
    assert sd_of_log_loss(0.02, 1000.0, 0.25) == pytest.approx(0.01 * math.log(1000))


def test_the_rule_of_the_intervals_can_be_chosen() -> None:
    seen = []

    def rule(samples: np.ndarray, estimate: float, level: float) -> tuple[float, float]:
        seen.append((samples.size, level))
        return estimate - 1.0, estimate + 1.0

    told = ensemble(interval=rule).at(1e20)
    assert told.ci["params"] == pytest.approx((told.params / math.e, told.params * math.e))
    assert set(seen) == {(200, 0.95)}


def test_a_brief_answer_is_the_same_with_less() -> None:
    for target in (Target(1e22), Target(30, "kWh")):
        whole, brief = ensemble().at(target), ensemble().at(target, brief=True)
        assert (brief.params, brief.energy_j) == (whole.params, whole.energy_j)
        for name in ("params", "tokens", "loss"):
            assert brief.ci[name] == whole.ci[name]
        assert brief.cloud == {}
        assert brief.flop_optimal is brief.equal_loss is None


@pytest.mark.filterwarnings("error")
def test_resamples_with_an_absurd_size_are_told_of_and_not_drawn() -> None:
    """Two exponents next to zero put N* at e^4000: no point of a plot, and no silent infinity."""
    drawn = resamples(200)
    drawn[:10, 3:] = 0.003
    told = ensemble(200, samples=drawn).at(1e20)
    assert len(told.cloud["params"]) == 190
    assert all(math.isfinite(v) for values in told.cloud.values() for v in values)
    assert any("5 % of the resamples put N* below 1 or above" in text for text in told.warnings)
    assert not any("of the resamples" in text for text in ensemble(200).at(1e20).warnings)


def test_the_cloud_is_thinned_and_always_the_same() -> None:
    cloud = ensemble(4000).at(1e20).cloud
    assert {len(v) for v in cloud.values()} == {400}
    assert cloud == ensemble(4000).at(1e20).cloud
    few = ensemble(30).at(1e20)
    assert len(few.cloud["params"]) == 30
    spent = 6 * np.array(few.cloud["params"]) * np.array(few.cloud["tokens"])
    assert spent == pytest.approx(1e20, rel=1e-4)


@dataclass(frozen=True)
class Compute(Law):
    """L(C) = E + K/C^gamma: no trade between N and D."""

    def bind(self, data: Any) -> Any:
        raise NotImplementedError

    def loss(self, natural: Any, log_params: Any, log_tokens: Any, **at: Any) -> Any:
        e, k, gamma = np.moveaxis(natural, -1, 0)
        return np.asarray(np.exp(e) + np.exp(k - gamma * at["log_flops"]))


COMPUTE = Compute(
    name="compute",
    formula="E + K/C^gamma",
    source="test",
    parameters=(Parameter("E"), Parameter("K"), Parameter("gamma", "shape")),
    variables=("C",),
)


def test_a_law_of_compute_alone_tells_the_loss_and_why_there_is_no_size() -> None:
    natural = np.array([math.log(1.8), math.log(30.0), 0.09])
    rng = np.random.default_rng(0)
    e = ensemble(
        law=COMPUTE, natural=natural, samples=natural + 1e-3 * rng.standard_normal((200, 3))
    )
    told = e.at(1e22)
    assert told.loss == pytest.approx(1.8 + 30 * 1e22**-0.09)
    assert math.isnan(told.params)
    assert any("does not trade size against tokens" in text for text in told.warnings)
    assert any("100 times the largest compute" in text for text in told.warnings)
    assert told.ci["loss"][0] < told.ci_parameters["loss"][0] < told.loss < told.ci["loss"][1]
    assert told.allowance is not None
    expected = sd_of_log_loss(EXPONENT_ERROR, 100.0, 0.09)
    assert told.allowance["sd_log_reducible_loss"] == pytest.approx(expected)
    assert "knows no N and D" in e.at(Target(5, "kWh")).warnings[0]


@dataclass(frozen=True)
class Repeated(Law):
    """Chinchilla's law with tokens that saturate at twice the unique ones."""

    def bind(self, data: Any) -> Any:
        raise NotImplementedError

    def loss(self, natural: Any, log_params: Any, log_tokens: Any, **at: Any) -> Any:
        log_unique = at.get("log_unique")
        if log_unique is None:
            return CHINCHILLA.loss(natural, log_params, log_tokens)
        limit = log_unique + math.log(2.0)
        return CHINCHILLA.loss(natural, log_params, -np.logaddexp(-log_tokens, -limit))


def test_data_that_run_out_make_the_optimum_larger() -> None:
    law = Repeated("repeated", "", "test", CHINCHILLA.parameters, ("N", "D", "U"))
    free = ensemble(law=law).at(1e21)
    bound = ensemble(law=law, unique_tokens=1e10).at(1e21)
    assert free.params == pytest.approx(ensemble().at(1e21).params, rel=1e-6)
    assert bound.params > 1.3 * free.params
    assert bound.loss > free.loss
    by_energy = ensemble(law=law, unique_tokens=1e10).at(Target(1000, "kWh"))
    assert by_energy.params > ensemble(law=law).at(Target(1000, "kWh")).params


def test_the_file_reads_back_as_it_was_written() -> None:
    e = ensemble(prices=Prices(0.3, 2.0, "EUR", 1.2))
    for target in (Target(1e23), Target(30, "kWh"), Target(100, "EUR"), Target(100, "USD")):
        told = e.at(target)
        text = json.dumps(told.to_dict())
        again = Optimum.from_dict(json.loads(text))
        assert json.dumps(again.to_dict()) == text
        # As the file has it, with null for what is not a number.
        plain = json.loads(text, parse_constant=lambda _: None)
        assert json.dumps(Optimum.from_dict(plain).to_dict()) == text
    assert Prices.from_dict(e.prices.to_dict()) == e.prices


def test_a_law_read_back_answers_without_intervals() -> None:
    told = replace(ensemble(), samples=np.empty((0, 5)), cost_samples={}).at(Target(30, "kWh"))
    assert told.params == pytest.approx(ensemble().at(Target(30, "kWh")).params)
    assert math.isnan(told.ci["params"][0])


def test_thousands_of_resamples_take_no_time() -> None:
    e = ensemble(4000)

    def best(target: Target, brief: bool) -> float:
        times = []
        for _ in range(5):
            begin = time.thread_time()
            e.at(target, brief=brief)
            times.append(time.thread_time() - begin)
        return min(times)

    # On a quiet core .002, .045 and .014 s.
    assert best(Target(1e22), True) < 0.05
    assert best(Target(1e22), False) < 0.5
    assert best(Target(30, "kWh"), False) < 0.3
