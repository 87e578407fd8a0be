"""What a plan promises, and the wave after it."""

from dataclasses import replace

import numpy as np
import pytest

from llem.campaign import Budget
from llem.planning import make_plan
from llem.planning.cells import Bench
from llem.planning.design import SEEDS_OF_A_CELL, Cells
from llem.planning.plan import Plan
from llem.planning.trust import near_optimum
from llem.planning.waves import Learnt, next_wave, promise_of, runs_of_wave
from llem.scaling import CHINCHILLA

from .sites import DATA, campaign_at

TRUTH = {"E": 1.8172, "A": 477.8, "B": 2143.4, "alpha": 0.3473, "beta": 0.3672}
TARGET = 1e23


@pytest.fixture(scope="module")
def first():
    return make_plan(campaign_at("small-cluster"), budget=Budget(200, "GPUh"), data=DATA)


def observed(plan, noise=0.005):
    rng = np.random.default_rng(0)
    rows = []
    for run in plan.runs:
        loss = float(CHINCHILLA.predict(TRUTH, run.params, run.tokens))
        loss *= float(np.exp(noise * rng.standard_normal()))
        row = {"params": run.params, "tokens": run.tokens, "flops": run.flops, "loss": loss}
        rows.append(row)
    return rows


def test_a_plan_states_its_errors_before_anything_is_spent(first):
    told = first.to_dict()["design"]
    assert 0 < told["predicted_se_log_params"] < 1
    assert told["law_error_log_params"] > 0
    assert set(told["for_budget"]) == {"0.5", "2"}
    assert Plan.from_dict(first.to_dict()).promise == first.promise


def test_a_farther_target_is_promised_less(first):
    near = promise_of(first.runs, target_flops=1e21)
    far = promise_of(first.runs, target_flops=1e25)
    for name in ("predicted_se_log_params", "law_error_log_params"):
        assert far[name] > near[name]


def test_a_law_that_the_runs_contradict_is_asked_near_its_optimum_only(first):
    bench = Bench(campaign=first.campaign, site=first.site, device=first.device, data=DATA)
    learnt = Learnt.of(observed(first))
    assert not learnt.contradicted

    def all_near(learnt):
        asked = {"target_flops": TARGET, "budget": 800.0, "unit": "GPUh", "first_level": 100}
        wave = next_wave(bench, learnt, **asked)
        params = np.array([float(cell.model.params) for cell, _ in wave.cells])
        tokens = np.array([float(cell.tokens) for cell, _ in wave.cells])
        cells = Cells(params, tokens, np.ones(params.size))
        largest, model = float(learnt.flops.max()), learnt.flops_model
        return near_optimum(cells, learnt.laws, largest_flops=largest, model=model).all()

    assert not all_near(learnt)
    assert all_near(replace(learnt, lack_of_fit=30.0))


def test_the_next_wave_spends_what_is_left_on_other_seeds_and_lowers_the_error(first):
    bench = Bench(campaign=first.campaign, site=first.site, device=first.device, data=DATA)
    learnt = Learnt.of(observed(first))
    wave = next_wave(bench, learnt, target_flops=TARGET, budget=800.0, unit="GPUh", first_level=100)
    runs = runs_of_wave(bench, wave, number=2)
    cost = sum(seeds * bench.cost(cell, "GPUh") for cell, seeds in wave.cells)
    assert 0.9 * 800 <= cost <= 800
    assert len({r.run_id for r in runs} | {r.run_id for r in first.runs}) == len(runs) + len(
        first.runs
    )
    before = promise_of(first.runs, target_flops=TARGET)["predicted_se_log_params"]
    assert wave.design.expected.se_log_params < 0.7 * before
    assert max(seeds for _, seeds in wave.cells) <= SEEDS_OF_A_CELL
