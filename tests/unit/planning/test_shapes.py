"""Which shapes a calibration measures."""

import pytest

from llem.campaign import Budget
from llem.planning import Plan, calibration_plan, make_plan
from llem.planning.shapes import work_of

from .sites import DATA, SITES, campaign_at

BUDGETS = {"laptop": "1e13 FLOP", "one-node": "300 GPUh", "small-cluster": "3000 GPUh",
           "large-cluster": "1e5 GPUh", "amd": "3e4 GPUh"}  # fmt: skip


def plan_at(site, budget=None):
    value, unit = (budget or BUDGETS[site]).split()
    model = "bytes" if site == "laptop" else "words"
    return make_plan(campaign_at(site, model), budget=Budget(float(value), unit), data=DATA)


def places(runs):
    return {(r.layout.nodes, r.layout.gpus_per_node, r.layout.zero_stage) for r in runs}


@pytest.mark.parametrize("site", SITES)
def test_the_smallest_and_the_largest_and_some_between(site):
    plan = plan_at(site)
    short = calibration_plan(plan)
    works = sorted(work_of(r) for r in plan.runs)
    chosen = [work_of(r) for r in short.runs]
    assert 2 <= len(short.runs) <= 5
    assert chosen == sorted(chosen)
    assert chosen[0] == works[0]
    assert len(set(short.runs)) == len(short.runs)
    hours = plan.totals["gpu_hours"]
    assert short.totals["gpu_hours"] <= max(0.1 * hours, 1.0)


@pytest.mark.parametrize("site", SITES)
def test_every_place_is_measured_or_named(site):
    plan = plan_at(site)
    short = calibration_plan(plan, shapes=8)
    missing = places(plan.runs) - places(short.runs)
    assert len(short.dropped) >= len(missing)
    if len(places(plan.runs)) <= 6 and not short.dropped:
        assert not missing


def test_a_shape_that_costs_much_of_the_plan_is_left_out_with_its_price():
    plan = plan_at("large-cluster", "20 GPUh")
    short = calibration_plan(plan, steps=2000)
    for dropped in short.dropped:
        assert "GPUh are more than" in dropped.reason or "asked for" in dropped.reason
    assert short.runs


def test_a_shape_keeps_model_batch_and_layout_and_little_else():
    plan = plan_at("small-cluster")
    short = calibration_plan(plan, steps=50)
    known = {(r.model, r.recipe.batch_tokens, r.layout) for r in plan.runs}
    for run in short.runs:
        assert (run.model, run.recipe.batch_tokens, run.layout) in known
        assert run.steps == 50
        assert run.tokens == 50 * run.recipe.batch_tokens
        assert run.recipe.warmup_steps < 50
        assert run.data.evaluation_tokens > run.model.context
        assert run.segments == 1


def test_each_shape_has_an_element_and_a_name_of_its_own():
    short = calibration_plan(plan_at("small-cluster"))
    elements = [e for a in short.arrays for e in a.elements]
    assert sorted(elements) == sorted((r.run_id,) for r in short.runs)
    assert len({r.run_id for r in short.runs}) == len(short.runs)


def test_steps_fill_some_seconds_where_they_are_short_and_number_forty_at_least():
    assert min(r.steps for r in calibration_plan(plan_at("laptop")).runs) > 100
    for run in calibration_plan(plan_at("laptop")).runs:
        assert 5 < run.predicted.duration_s < 10
    assert min(r.steps for r in calibration_plan(plan_at("large-cluster")).runs) >= 40


def test_it_is_a_plan_that_reads_back():
    short = calibration_plan(plan_at("small-cluster"))
    again = Plan.from_dict(short.to_dict())
    assert again.runs == short.runs
    assert again.digest == short.digest
    assert again.campaign.name == "c-calibration"
