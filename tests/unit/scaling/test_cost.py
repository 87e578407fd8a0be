"""The cost law: planted prices come back, layouts count, and what is not known is said."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass

import numpy as np
import pytest
from scipy.optimize import nnls

from llem.scaling.answers.cost import CostLaw, cost_design, draw_costs, fit_cost
from llem.scaling.answers.features import CORE, FEATURES, Columns, Layout, Layouts, fill

START, PER_TOKEN, PER_FLOP, STEP, ALL_REDUCE = 300.0, 2e-6, 3e-12, 0.5, 1e-8


@dataclass(frozen=True)
class Runs:
    params: np.ndarray
    tokens: np.ndarray
    flops: np.ndarray
    ranks: np.ndarray
    nodes: np.ndarray
    steps: np.ndarray
    cost: np.ndarray

    @property
    def layouts(self) -> Layouts:
        return Layouts(self.ranks, self.nodes, self.steps)


def runs(count: int = 40, *, noise: float = 0.0, seed: int = 0) -> Runs:
    """Runs of 1 to 16 ranks on up to two nodes; several ranks pay for the all-reduce."""
    rng = np.random.default_rng(seed)
    params = 10 ** rng.uniform(6.0, 8.5, count)
    tokens = 10 ** rng.uniform(7.5, 9.5, count)
    ranks = rng.choice([1.0, 2.0, 4.0, 8.0, 16.0], count)
    nodes = np.where(ranks > 8, 2.0, 1.0)
    steps = tokens / rng.choice([2.0**16, 2.0**18, 2.0**20], count)
    flops = 6.0 * params * tokens
    cost = START * ranks + PER_TOKEN * tokens + PER_FLOP * flops
    cost = cost + STEP * steps * ranks + ALL_REDUCE * params * steps * (ranks - 1)
    cost = cost * np.exp(noise * rng.standard_normal(count))
    return Runs(params, tokens, flops, ranks, nodes, steps, cost)


def fit(r: Runs, **options: object) -> CostLaw:
    given: dict[str, object] = {
        "weight": np.ones(r.cost.size),
        "quantity": "energy_j",
        "unit": "J",
        "params": r.params,
        "layouts": r.layouts,
    }
    return fit_cost(r.cost, r.tokens, r.flops, **(given | options))  # type: ignore[arg-type]


def prices(law: CostLaw) -> dict[str, float]:
    return {t.name: t.coefficient for t in law.terms}


def test_planted_prices_of_every_term_come_back() -> None:
    law = fit(runs())
    assert prices(law) == pytest.approx(
        {
            "start": START,
            "per_token": PER_TOKEN,
            "per_flop": PER_FLOP,
            "step": STEP,
            "all_reduce": ALL_REDUCE,
            "between_nodes": 0.0,
        },
        rel=1e-5,
        abs=1e-14,
    )
    assert law.mean_error < 1e-7
    assert np.max(np.abs(law.residuals)) < 1e-6


def test_noise_of_three_per_cent_leaves_a_law_of_three_per_cent() -> None:
    r = runs(200, noise=0.03)
    law = fit(r)
    assert law.mean_error == pytest.approx(0.03 * np.sqrt(2 / np.pi), rel=0.2)
    assert law.held_out is not None
    assert law.held_out["runs"] == 40
    assert law.held_out["mean_abs_relative_error"] < 0.05
    assert law.held_out["largest_held_out"] > law.held_out["largest_fitted"]


def test_noise_makes_a_law_neither_cheaper_nor_dearer() -> None:
    """Relative to what was measured, a noise of 20 % makes it 8 % too cheap."""
    r = runs(40)
    truth = START + PER_TOKEN * r.tokens + PER_FLOP * r.flops
    rng = np.random.default_rng(3)
    ratios = []
    for _ in range(60):
        noisy = truth * np.exp(0.2 * rng.standard_normal(40) - 0.5 * 0.2**2)
        law = fit_cost(noisy, r.tokens, r.flops, weight=np.ones(40), quantity="energy_j", unit="J")
        ratios.append(np.mean(law.predict(r.tokens, r.flops) / truth))
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.015)


def test_errors_are_relative_to_what_is_predicted() -> None:
    r = runs(40, noise=0.1)
    law = fit(r)
    told = law.predict(r.tokens, r.flops, params=r.params, layouts=r.layouts)
    error = r.cost / told - 1
    assert np.max(np.abs(error)) < 3 * np.median(np.abs(error)) / 0.6745
    # at the minimum the errors are at right angles to what they may be made of
    slopes = [t.coefficient * error @ (_feature(t.name, r) / told) for t in law.terms]
    assert slopes == pytest.approx(np.zeros(len(slopes)), abs=1e-5)


def test_a_run_that_was_killed_and_tried_again_hardly_moves_the_law() -> None:
    """Its energy is that of both attempts: what a training costs is what most runs have cost."""
    r = runs(40, noise=0.02)
    r.cost[[4, 23]] *= 2.5
    law = fit(r)
    assert law.predict(1e9, 6e17, params=1e8) == pytest.approx(
        float(fit(runs(40, noise=0.02)).predict(1e9, 6e17, params=1e8)), rel=0.02
    )
    assert law.residuals[4] == pytest.approx(1 / 2.5 - 1, abs=0.05)


def test_a_weight_of_two_is_a_row_that_is_there_twice() -> None:
    r = runs(30, noise=0.1)
    r.cost[3] *= 3
    weight = np.where(np.arange(30) % 3, 1.0, 2.0)
    twice = np.repeat(np.arange(30), weight.astype(int))
    one = fit_cost(r.cost, r.tokens, r.flops, weight=weight, quantity="energy_j", unit="J")
    other = fit_cost(
        r.cost[twice], r.tokens[twice], r.flops[twice], weight=np.ones(40), quantity="energy_j",
        unit="J",
    )  # fmt: skip
    assert prices(one) == pytest.approx(prices(other), rel=1e-6)


def _feature(name: str, r: Runs) -> np.ndarray:
    return FEATURES[name].of(Columns(r.tokens, r.flops, r.params, r.ranks, r.nodes, r.steps))


def test_the_cost_law_has_no_negative_price() -> None:
    tokens, flops = np.geomspace(1e6, 1e9, 12), np.geomspace(1e12, 1e16, 12)
    cost = 1e-11 * flops * (1 + 0.05 * np.sin(np.arange(12)))
    law = fit_cost(cost, tokens, flops, weight=np.ones(12), quantity="energy_j", unit="J")
    assert min(law.constant, law.per_token, law.per_flop) >= 0
    assert law.mean_error < 0.06


def test_without_a_layout_the_law_is_that_of_one_rank() -> None:
    r = runs()
    cost = 50 + PER_TOKEN * r.tokens + PER_FLOP * r.flops
    law = fit_cost(cost, r.tokens, r.flops, weight=np.ones(40), quantity="energy_j", unit="J")
    assert law.names == CORE
    assert (law.constant, law.per_token, law.per_flop) == pytest.approx((50, PER_TOKEN, PER_FLOP))
    assert law.layout == Layout()
    assert {entry["name"] for entry in law.not_used} == {"step", "all_reduce", "between_nodes"}
    assert law.predict(1e9, 1e17) == pytest.approx(50 + PER_TOKEN * 1e9 + PER_FLOP * 1e17)


def test_what_the_runs_cannot_tell_apart_is_left_out_by_name() -> None:
    r = runs()
    same = fit(r, layouts=Layouts(np.full(40, 4.0), np.ones(40), r.tokens / 2**18))
    reasons = {entry["name"]: entry["reason"] for entry in same.not_used}
    assert "cannot tell it from per_flop" in reasons["step"]
    assert "cannot tell it from" in reasons["all_reduce"]
    assert reasons["between_nodes"] == "every run had one node"
    alone = fit(r, layouts=Layouts(np.ones(40), np.ones(40), r.steps))
    assert {entry["name"]: entry["reason"] for entry in alone.not_used}["all_reduce"] == (
        "every run had one rank"
    )


def test_a_column_that_is_not_known_everywhere_is_not_used() -> None:
    r = runs()
    steps = r.steps.copy()
    steps[:3] = np.nan
    ranks = r.ranks.copy()
    ranks[5] = 0
    law = fit(r, layouts=Layouts(ranks, r.nodes, steps))
    reasons = {entry["name"]: entry["reason"] for entry in law.not_used}
    assert reasons["step"] == "ranks is known in 39 of 40 rows"
    assert reasons["all_reduce"] == "ranks is known in 39 of 40 rows"
    assert law.names == CORE


def test_steps_that_are_not_known_count_as_tokens() -> None:
    r = runs()
    cost = PER_FLOP * r.flops + 1e-16 * r.params * r.tokens * (r.ranks - 1)
    law = fit_cost(
        cost, r.tokens, r.flops, weight=np.ones(40), quantity="energy_j", unit="J",
        params=r.params, layouts=Layouts(r.ranks, r.nodes),
    )  # fmt: skip
    (term,) = (t for t in law.terms if t.name == "all_reduce")
    assert term.coefficient == pytest.approx(1e-16, rel=1e-5)
    assert term.formula == "params x tokens x (ranks - 1)"
    assert law.layout.batch_tokens is None


def test_few_runs_get_no_terms_of_the_layout() -> None:
    law = fit(runs(8))
    assert law.names == CORE
    assert all("runs are too few" in entry["reason"] for entry in law.not_used)


def test_predictions_assume_the_largest_layout_seen() -> None:
    r = runs()
    law = fit(r)
    assert (law.layout.ranks, law.layout.nodes) == (16.0, 2.0)
    those = r.ranks == 16
    assert law.layout.batch_tokens == pytest.approx(np.median(r.tokens[those] / r.steps[those]))
    n, d, batch = 1e8, 1e9, law.layout.batch_tokens
    expected = START * 16 + PER_TOKEN * d + PER_FLOP * 6 * n * d
    expected += STEP * d / batch * 16 + ALL_REDUCE * n * d / batch * 15
    assert float(law.predict(d, 6 * n * d, params=n)) == pytest.approx(expected, rel=1e-5)


def test_a_prediction_for_each_runs_own_layout_is_its_measurement() -> None:
    r = runs()
    law = fit(r)
    predicted = law.predict(r.tokens, r.flops, params=r.params, layouts=r.layouts)
    assert predicted == pytest.approx(r.cost, rel=1e-5)


def test_the_lines_of_a_layout_are_its_predictions() -> None:
    law = fit(runs())
    n, d = 3e7, 2e9
    for layout in (Layout(1, 1, 2.0**18), Layout(64, 8, 2.0**20)):
        lines = law.lines(layout=layout)
        slope = lines.per_token + lines.per_flop * 6 * n + lines.per_param * n
        steps = d / layout.batch_tokens  # type: ignore[operator]
        layouts = Layouts(layout.ranks, layout.nodes, steps)
        expected = float(law.predict(d, 6 * n * d, params=n, layouts=layouts))
        assert float(lines.fixed + slope * d) == pytest.approx(expected, rel=1e-12)


def test_rows_without_a_measurement_are_left_out_by_number() -> None:
    r = runs()
    cost = r.cost.copy()
    cost[[3, 7]] = np.nan
    law = fit_cost(
        cost, r.tokens, r.flops, weight=np.ones(40), quantity="energy_j", unit="J",
        params=r.params, layouts=r.layouts,
    )  # fmt: skip
    assert law.left_out == (3, 7)
    assert law.rows == 38
    assert prices(law)["per_flop"] == pytest.approx(PER_FLOP, rel=1e-5)
    assert np.isnan(law.residuals[3])


@pytest.mark.parametrize(
    ("cost", "words"), [(None, "was not given"), (np.nan, "was measured in 0")]
)
def test_no_measurements_are_a_reason_and_no_law(cost: float | None, words: str) -> None:
    column = None if cost is None else np.full(5, cost)
    ones = np.ones(5)
    law = fit_cost(column, ones, ones, weight=ones, quantity="energy_j", unit="J")
    assert words in law.reason
    assert not law.fitted
    assert np.isnan(law.predict(1e9, 1e18))
    assert np.isnan(law.lines().per_flop)


def test_rows_of_one_run_are_held_out_together() -> None:
    r = runs(40, noise=0.02)
    run = np.repeat(np.arange(10), 4)
    law = fit(r, run=run)
    assert law.held_out is not None
    rows = np.array(law.held_out["rows"])
    assert rows.size == 8
    assert np.unique(run[rows]).size == law.held_out["runs"] == 2


def test_a_resample_is_the_fit_of_its_weights() -> None:
    r = runs(30, noise=0.05)
    weight = np.random.default_rng(1).integers(0, 3, (50, 30)).astype(float)
    weight[7] = 0
    core = cost_design(r.cost, r.tokens, r.flops)
    many = core.solve(core.sums(weight))
    assert np.isnan(many[7]).all()
    features = np.stack([np.ones(30), r.tokens, r.flops], axis=1)
    # relative to what all runs, each counted once, predict; less of what lies far off
    told = features @ core.solve(core.sums(np.ones((1, 30))))[0]
    error = np.abs(r.cost / told - 1)
    counts = np.minimum(1, 3 * np.sort(error)[14] / 0.6745 / error)
    design = features / told[:, None]
    size = design.max(axis=0)
    for i in (0, 20, 49):
        root_weight = np.sqrt(weight[i] * counts)
        wanted = root_weight * r.cost / told
        expected, _ = nnls(design / size * root_weight[:, None], wanted)
        assert many[i] * size == pytest.approx(expected, abs=1e-6)


def test_sums_of_blocks_of_rows_are_the_sums_of_all() -> None:
    r = runs(30, noise=0.05)
    names = fit(r).names
    design = cost_design(r.cost, r.tokens, r.flops, params=r.params, layouts=r.layouts, names=names)
    weight = np.random.default_rng(1).exponential(size=(20, 30))
    blocks = [design.solve(design.sums(w)) for w in (weight[:9], weight[9:])]
    together = design.solve(design.sums(weight))
    assert np.concatenate(blocks) == pytest.approx(together)


def test_thousands_of_resamples_are_one_product() -> None:
    r = runs(240, noise=0.05)
    weight = np.random.default_rng(1).exponential(size=(4000, 240))
    best = np.inf
    for _ in range(5):
        begin = time.thread_time()
        design = cost_design(r.cost, r.tokens, r.flops)
        design.solve(design.sums(weight))
        best = min(best, time.thread_time() - begin)
    assert best < 0.3  # about .013 s on a quiet core


def drawn(r: Runs, law: CostLaw, *, count: int = 400, seed: int = 0) -> np.ndarray:
    design = cost_design(
        r.cost, r.tokens, r.flops, params=r.params, layouts=r.layouts, names=law.names
    )
    return draw_costs(
        design,
        law.coefficients,
        weight=np.ones(r.cost.size),
        size=np.unique(r.params, return_inverse=True)[1],
        run=np.arange(r.cost.size),
        count=count,
        seed=seed,
    )


def at(law: CostLaw, params: float, tokens: float) -> np.ndarray:
    columns = fill(
        np.array(tokens), np.array(6 * params * tokens), params, Layouts(1.0, 1.0, tokens / 2**18)
    )
    return np.array([float(FEATURES[name].of(columns)) for name in law.names])


@pytest.mark.slow
def test_intervals_hold_what_a_further_run_costs_as_often_as_they_say() -> None:
    """Six sizes, six lengths; costs are off by 5 % alike for the runs of a size, by 3 % by run."""
    size = np.repeat(np.arange(6), 6)
    params = np.geomspace(1e6, 1e8, 6)[size]
    tokens = np.tile(np.geomspace(2e7, 2e9, 6), 6)
    ones = np.ones(36)
    held = []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        off = np.exp(rng.normal(0, 0.05, 6)[size] + rng.normal(0, 0.03, 36))
        cost = START + PER_TOKEN * tokens + PER_FLOP * 6 * params * tokens
        r = Runs(params, tokens, 6 * params * tokens, ones, ones, tokens / 2**18, cost * off)
        law = fit(r)
        samples = drawn(r, law, seed=seed)
        for n, d in ((2e6, 1e9), (3e7, 3e8), (3e8, 6e9)):
            low, high = np.quantile(samples @ at(law, n, d), [0.025, 0.975])
            of_law = START + PER_TOKEN * d + PER_FLOP * 6 * n * d
            held.append(low < of_law * np.exp(rng.normal(0, np.hypot(0.05, 0.03))) < high)
    assert 0.90 < np.mean(held) < 0.99


def test_costs_without_noise_leave_no_doubt() -> None:
    r = runs(30)
    law = fit(r)
    assert drawn(r, law) == pytest.approx(np.tile(law.coefficients, (400, 1)), rel=1e-5)


def test_the_file_reads_back_as_it_was_written() -> None:
    for law in (fit(runs(noise=0.02)), fit(runs(2))):
        text = json.dumps(law.to_dict())
        again = CostLaw.from_dict(json.loads(text))
        assert json.dumps(again.to_dict()) == text
    law = fit(runs())
    data = law.to_dict()
    tokens, params = 1e9, 1e8
    slope = data["per_token"] + data["per_flop"] * 6 * params + data["per_param_token"] * params
    expected = float(law.predict(tokens, 6 * params * tokens, params=params))
    assert data["constant"] + slope * tokens == pytest.approx(expected)
