"""Later waves of a plan: what is left of the budget, chosen from what was observed."""

import math

import numpy as np
import pytest

from llem.campaign import Budget
from llem.errors import InputError
from llem.planning import BudgetError, Plan, make_plan, refine_plan
from llem.planning.spend import spend
from llem.planning.waves import wave_share
from llem.scaling import CHINCHILLA

from .sites import DATA, campaign_at

TRUTH = {"E": 1.8172, "A": 477.8, "B": 2143.4, "alpha": 0.3473, "beta": 0.3672}
TOTAL = Budget(800, "GPUh")


def observed(plan, *, slower=1.0, noise=0.005):
    """Rows as aggregation gives them, each run having taken `slower` times what was expected."""
    rng = np.random.default_rng(len(plan.runs))
    rows = []
    for run in plan.runs:
        loss = float(CHINCHILLA.predict(TRUTH, run.params, run.tokens))
        seconds = run.predicted.duration_s * run.layout.ranks * slower
        rows.append(
            {
                "run_id": run.run_id,
                "status": "completed",
                "params": run.params,
                "tokens": run.tokens,
                "flops": run.flops,
                "loss": loss * float(np.exp(noise * rng.standard_normal())),
                "gpu_seconds": seconds,
                "energy_j": math.nan,
            }
        )
    return rows


@pytest.fixture(scope="module")
def first():
    return make_plan(campaign_at("small-cluster", waves=3), budget=TOTAL, data=DATA)


@pytest.fixture(scope="module")
def second(first):
    return refine_plan(first, observed(first))


def test_the_shares_of_the_waves_use_up_the_budget():
    for waves in range(1, 6):
        left = 1.0
        for number in range(1, waves + 1):
            left -= left * wave_share(number, waves)
        assert left == pytest.approx(0.0, abs=1e-12)
    assert wave_share(5, 3) == 1.0


def test_the_first_wave_spends_its_share_and_the_plan_keeps_the_whole_budget(first):
    assert first.budget == TOTAL
    share = wave_share(1, 3) * TOTAL.value
    assert 0.9 * share <= spend(first.runs, "GPUh", first.site) <= share
    assert [w.kind for w in first.waves] == ["isoflop-grid"]


def test_a_first_wave_promises_what_all_waves_will_tell(first):
    alone = make_plan(campaign_at("small-cluster"), budget=Budget(200, "GPUh"), data=DATA)
    key = "predicted_se_log_params"
    assert first.promise[key] < 0.8 * alone.promise[key]


def test_three_waves_spend_the_budget_and_never_more(first, second):
    third = refine_plan(second, observed(second))
    spent = spend(third.runs, "GPUh", third.site)
    assert 0.95 * TOTAL.value <= spent <= TOTAL.value
    assert [w.number for w in third.waves] == [1, 2, 3]
    assert sum(w.runs for w in third.waves) == len(third.runs)
    errors = [p.promise["predicted_se_log_params"] for p in (second, third)]
    assert errors[1] < errors[0]


def test_earlier_waves_stay_as_they_were(first, second):
    assert second.runs[: len(first.runs)] == first.runs
    assert second.arrays[: len(first.arrays)] == first.arrays
    assert second.waves[0].digest == first.digest != second.digest
    new = second.arrays[len(first.arrays) :]
    assert new and all(a.wave == 2 and a.name.startswith("wave2-") for a in new)
    assert len({r.run_id for r in second.runs}) == len(second.runs)
    assert {n for a in new for e in a.elements for n in e} == {
        r.run_id for r in second.runs[len(first.runs) :]
    }


def test_a_refined_plan_is_read_back_as_it_was_written(second):
    again = Plan.from_dict(second.to_dict())
    assert again.waves == second.waves
    assert again.digest == second.digest


def test_what_runs_really_took_is_what_is_left_less(first):
    quick, slow = (refine_plan(first, observed(first, slower=s)) for s in (1.0, 2.0))
    start = sum(
        r.predicted.gpu_hours - r.predicted.duration_s * r.layout.ranks / 3600 for r in first.runs
    )
    share = wave_share(2, 3)
    spent = spend(first.runs, "GPUh", first.site)
    assert quick.waves[-1].value == pytest.approx(share * (800 - spent))
    assert slow.waves[-1].value == pytest.approx(share * (800 - 2 * spent + start))


def test_runs_under_way_are_paid_for_and_will_be_observed(first):
    rows = observed(first)
    for row in rows[::4]:
        row |= {"status": "unfinished", "loss": math.nan, "gpu_seconds": 1.0}
    plan = refine_plan(first, rows)
    assert plan.waves[-1].pending == len(rows[::4])
    assert plan.waves[-1].observed == len(rows) - len(rows[::4])
    spent = spend(first.runs, "GPUh", first.site)
    assert plan.waves[-1].value == pytest.approx(wave_share(2, 3) * (800 - spent))


def test_a_new_total_takes_the_place_of_the_old_one(first):
    single = make_plan(campaign_at("small-cluster"), budget=Budget(200, "GPUh"), data=DATA)
    with pytest.raises(BudgetError, match="no run fits"):
        refine_plan(single, observed(single))
    more = refine_plan(single, observed(single), budget=Budget(400, "GPUh"))
    assert 0.9 * 400 <= spend(more.runs, "GPUh", more.site) <= 400
    with pytest.raises(InputError, match="counts in GPUh"):
        refine_plan(single, observed(single), budget=Budget(1e20, "FLOP"))


def test_nothing_left_is_said_with_a_remedy(first):
    with pytest.raises(BudgetError, match="nothing is left") as caught:
        refine_plan(first, observed(first, slower=5.0))
    assert "--budget" in caught.value.remedy


def test_runs_that_carry_no_law_are_refused(first):
    rows = [{**row, "status": "missing"} for row in observed(first)]
    with pytest.raises(InputError, match=r"0 of .* runs have completed"):
        refine_plan(first, rows)


def test_a_number_of_runs_can_be_asked_for(first):
    plan = refine_plan(first, observed(first), runs=7)
    assert 1 <= plan.waves[-1].runs <= 7
