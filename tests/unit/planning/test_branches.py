"""Branches of runs: planned with their trunks, counted by what they cost beside them."""

import math

import pytest

from llem.planning import calibration_plan, make_plan
from llem.planning.spend import spend

from .sites import DATA, campaign_at


def plan_of(**training):
    """A plan of a small cluster, its runs all on a few devices."""
    training = {"rule": "steplaw", **training}
    return make_plan(
        campaign_at("small-cluster", training=training, seeds=2, budget="300 GPUh"), data=DATA
    )


@pytest.fixture(scope="module")
def plan():
    return plan_of(branch_at=[0.25, 0.5], evaluate_at=[0.5, "1G"])


def pairs(plan):
    by_id = plan.by_id
    return [(run, by_id[run.branch(n).run_id]) for run in plan.runs for n in run.branch_at]


def test_every_trunk_has_its_branches_among_the_runs(plan):
    found = pairs(plan)
    trunks = [run for run in plan.runs if not run.trunk_steps]
    assert len(found) == 2 * len(trunks) == len(plan.runs) - len(trunks)
    for trunk, branch in found:
        assert branch.seed == trunk.seed and branch.recipe == trunk.recipe
        assert 0 < branch.trunk_steps < branch.steps < trunk.steps
        assert branch.trunk_steps > trunk.recipe.warmup_steps


def test_a_branch_costs_its_decay_alone_and_all_of_it_fits_the_budget(plan):
    for trunk, branch in pairs(plan):
        share = (branch.steps - branch.trunk_steps) / trunk.steps
        assert branch.flops_of_its_own == pytest.approx(share * trunk.flops)
        assert branch.predicted.duration_s < 0.3 * trunk.predicted.duration_s
    spent = spend(plan.runs, plan.budget.unit, plan.site)
    assert 0.9 * plan.budget.value < spent <= plan.budget.value
    assert plan.totals["flops"] == pytest.approx(math.fsum(r.flops_of_its_own for r in plan.runs))


def test_a_branch_follows_its_trunk_in_the_same_element(plan):
    names = [name for array in plan.arrays for element in array.elements for name in element]
    assert sorted(names) == sorted(plan.runs.run_ids)
    place = {
        name: (array.name, i, j)
        for array in plan.arrays
        for i, element in enumerate(array.elements)
        for j, name in enumerate(element)
    }
    for trunk, branch in pairs(plan):
        assert place[trunk.run_id][:2] == place[branch.run_id][:2]
        assert place[trunk.run_id][2] < place[branch.run_id][2]


def test_evaluations_are_steps_on_the_way(plan):
    for run in plan.runs:
        if not run.trunk_steps:
            assert round(run.steps / 2) in run.evaluate_at
            at_1g = math.ceil(1e9 / run.recipe.batch_tokens)
            assert (at_1g in run.evaluate_at) == (at_1g < run.steps)
            assert list(run.evaluate_at) == sorted(run.evaluate_at)


def test_a_calibration_has_neither(plan):
    for run in calibration_plan(plan).runs:
        assert (run.branch_at, run.evaluate_at, run.trunk_steps) == ((), (), 0)


def test_runs_without_them_keep_their_names():
    """Where no more is spent on them: the batch of a grid fills what is left of a budget."""
    plain, asked = (plan_of(**more).runs[0] for more in ({}, {"deepspeed": {"dump_state": True}}))
    assert plain.run_id == asked.run_id


def test_a_trunk_whose_branches_do_not_fit_its_job_as_well_has_several():
    """Four branches take half as long as their trunk, which alone fits into a day."""
    plan = make_plan(
        campaign_at(
            "small-cluster", training={"rule": "steplaw", "branch_at": [0.2, 0.4, 0.6, 0.8]},
            budget="20 kGPUh",
        ),
        data=DATA,
    )  # fmt: skip
    by_id, limit = plan.by_id, plan.site.limits.time
    needed = [
        (array, plan.site.startup_s + math.fsum(by_id[name].predicted.duration_s for name in names))
        for array in plan.arrays
        for names in array.elements
    ]
    assert any(seconds > limit for _, seconds in needed)
    assert all(seconds <= array.segments * array.time_limit_s for array, seconds in needed)
