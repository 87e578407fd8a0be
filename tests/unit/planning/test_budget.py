"""Budgets over many decades and five shapes of site: filled, never exceeded, within all limits."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llem._numerals import format_gpu_hours, format_hours
from llem.campaign import Budget
from llem.errors import InputError
from llem.planning import BudgetError, make_plan, spend
from llem.planning.layout import MEMORY_MARGIN

from .sites import DATA, MODELS, SITES, campaign_at

BUDGETS = [
    *(Budget(10.0**e, "FLOP") for e in range(14, 25)),
    *(Budget(10.0**e, "GPUh") for e in range(-1, 7)),
    *(Budget(10.0**e, "kWh") for e in range(-2, 7)),
    *(Budget(10.0**e, "node-h") for e in range(6)),
    *(Budget(10.0**e, "EUR") for e in range(7)),
]


def check(plan, budget, *, least=0.99):
    """A plan of the budget that the site can run; a few of the smallest runs fill it less well."""
    assert least * budget.value <= spend(plan.runs, budget.unit, plan.site) <= budget.value
    assert len({r.run_id for r in plan.runs}) == len(plan.runs)
    placed = [name for a in plan.arrays for element in a.elements for name in element]
    assert sorted(placed) == sorted(r.run_id for r in plan.runs)
    limits = plan.site.limits
    for run in plan.runs:
        layout = run.layout
        assert run.predicted.memory_bytes <= MEMORY_MARGIN * plan.device.memory_bytes
        assert run.predicted.duration_s <= 0.9 * run.segments * limits.time
        assert layout.nodes <= plan.site.nodes
        assert layout.gpus_per_node <= plan.site.gpus_per_node
        assert run.tokens == run.steps * run.recipe.batch_tokens
        sequences = layout.ranks * layout.micro_batch * layout.grad_accum
        assert sequences * run.model.context == run.recipe.batch_tokens
    for array in plan.arrays:
        assert len(array.elements) <= limits.array_size
        assert array.time_limit_s <= limits.time
        assert {plan.run(n).segments for e in array.elements for n in e} == {array.segments}


@pytest.mark.parametrize(("turn", "model"), list(enumerate(MODELS)))
@pytest.mark.parametrize(("number", "site"), list(enumerate(SITES)))
def test_decades_of_every_unit_are_filled_within_the_sites_limits(number, site, turn, model):
    # Families and sites take turns along the decades: every budget is met, at a site or two; at
    # every site below.
    for i, budget in enumerate(BUDGETS[turn :: len(MODELS)]):
        if (i + number) % 3 == 0:
            check(make_plan(campaign_at(site, model), budget=budget, data=DATA), budget)


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("site", SITES)
def test_every_decade_of_every_unit_is_filled_at_every_site(site, model):
    for budget in BUDGETS:
        check(make_plan(campaign_at(site, model), budget=budget, data=DATA), budget)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(list(SITES)),
    st.sampled_from(["FLOP", "GPUh", "kWh", "node-h", "EUR"]),
    st.floats(-4, 7),
    st.sampled_from([None, 1, 2, 7, 50, 300]),
    st.integers(1, 3),
)
def test_any_budget_is_filled_or_the_least_plan_costs_more(site, unit, exponent, runs, seeds):
    campaign = campaign_at(site, seeds=seeds)
    budget = Budget(10.0 ** (exponent + (17 if unit == "FLOP" else 0)), unit)
    try:
        plan = make_plan(campaign, budget=budget, data=DATA, runs=runs)
    except BudgetError as error:
        refused = error
    else:
        check(plan, budget, least=0.9)
        assert runs is None or len(plan.runs) == runs
        return
    assert refused.exit_status == 1
    assert "the least one costs" in str(refused) or "its smallest part" in str(refused)


@pytest.mark.parametrize("runs", [1, 2, 3, 10, 64, 1000])
def test_a_number_of_runs_asked_for_is_the_number_planned(runs):
    plan = make_plan(campaign_at("small-cluster"), budget=Budget(500, "GPUh"), data=DATA, runs=runs)
    assert len(plan.runs) == runs
    assert spend(plan.runs, "GPUh", plan.site) > 495


def test_what_is_left_open_grows_with_the_budget_and_what_is_fixed_stays():
    def shape(budget, **grid):
        campaign = campaign_at("small-cluster", grid=grid)
        return make_plan(campaign, budget=Budget(budget, "FLOP"), data=DATA).shape

    assert shape(1e22).levels > shape(1e15).levels
    assert (shape(1e22, levels=2).levels, shape(1e22, sizes=4).sizes) == (2, 4)


def test_the_least_plan_is_named_with_its_cost():
    campaign = campaign_at("small-cluster")
    with pytest.raises(BudgetError, match=r"the least one costs 2.* FLOP: 1 run of .* 32 steps"):
        make_plan(campaign, budget=Budget(1e9, "FLOP"), data=DATA)


def test_models_beyond_the_sites_memory_are_left_out_by_name_and_smaller_ones_take_their_place():
    plan = make_plan(campaign_at("one-node"), budget=Budget(1e24, "FLOP"), data=DATA)
    assert any("80 GB per device" in d.reason for d in plan.dropped)
    for level in range(plan.shape.levels):
        assert len({r.params for r in plan.runs if r.level == level}) >= 3


def test_money_pays_for_device_hours_and_for_energy_where_both_are_priced():
    plan = make_plan(campaign_at("small-cluster"), budget=Budget(1000, "EUR"), data=DATA)
    hours = sum(r.predicted.gpu_hours for r in plan.runs)
    kwh = sum(r.predicted.energy_j for r in plan.runs) / 3.6e6 * 1.2
    assert spend(plan.runs, "EUR", plan.site) == pytest.approx(1.5 * hours + 0.2 * kwh)


def test_the_start_of_elements_is_paid_for():
    def start_seconds(**changes):
        site = {"name": "s", **SITES["one-node"], **changes}
        plan = make_plan(
            campaign_at("one-node", site=site), budget=Budget(1e17, "FLOP"), data=DATA, runs=20
        )
        paid_s = 3600 * sum(r.predicted.gpu_hours for r in plan.runs)
        return paid_s - sum(r.predicted.duration_s * r.layout.ranks for r in plan.runs)

    assert start_seconds(startup_s=0) == pytest.approx(0, abs=1e-6)
    assert start_seconds(startup_s=30, pack_s=0) >= 20 * 30 * (1 - 1e-9)


def test_a_plan_states_how_uncertain_its_cost_is_and_what_that_rests_on():
    plan = make_plan(campaign_at("one-node"), budget=Budget(100, "GPUh"), data=DATA)
    budget = plan.to_dict()["budget"]
    assert budget["uncertainty"]["flops"] == 0
    assert 0 < budget["uncertainty"]["gpu_hours"] < budget["uncertainty"]["energy_j"] < 1
    assert "prior" in budget["source"]["utilisation"]


def test_money_without_a_price_is_told_with_the_line_to_write():
    campaign = campaign_at("laptop", "bytes", site={**SITES["laptop"], "name": "laptop"})
    with pytest.raises(InputError, match=r"needs a price.*\{currency: EUR, per_kwh: 0\.3\}"):
        make_plan(campaign, budget=Budget(200, "EUR"), data=DATA)


def test_starts_of_elements_that_short_runs_do_not_fill_are_told():
    """Twenty minutes of work in an element made for two hours pay a sixth of its start."""
    site = {**SITES["one-node"], "name": "s", "startup_s": 300, "pack_s": 7200}
    plan = make_plan(campaign_at("one-node", "bytes", site=site, budget="0.4 GPUh"), data=DATA)
    [told] = [w for w in plan.warnings if "starts of" in w]
    elements = [(array, names) for array in plan.arrays for names in array.elements]
    starts = sum(a.nodes * a.gpus_per_node * a.segments * 300 / 3600 for a, _ in elements)
    counted = (
        plan.totals["gpu_hours"]
        - sum(run.predicted.duration_s * run.layout.ranks for run in plan.runs) / 3600
    )
    assert f"take {format_gpu_hours(starts)}, of which {format_hours(counted)} are counted" in told
    roomy = make_plan(campaign_at("one-node", "bytes", budget="50 GPUh"), data=DATA)
    assert not any("starts of" in w for w in roomy.warnings)
