"""From a budget to runs and arrays."""

import json
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llem.campaign import Budget, TokenData, campaign_from, default_campaign, site_of
from llem.errors import InputError
from llem.planning import BudgetError, Plan, accelerator_of, make_plan, nearest_decoder, spend
from llem.planning.layout import MEMORY_MARGIN

DATA = TokenData(path="x", dtype="uint8", tokens=10**12, evaluation_tokens=65536, fingerprint="ab")


def big(**changes):
    values = {
        "name": "big",
        "target": "1e24",
        "budget": "500 GPUh",
        "model": {"vocabulary": 32000, "context": 2048},
        "site": "juwels-booster",
        **changes,
    }
    return campaign_from(values)


@pytest.mark.parametrize("exponent", [12, 13, 14, 17, 18, 19, 20, 21, 22])
def test_a_budget_in_flops_is_filled_and_never_exceeded(exponent):
    small = exponent < 17
    campaign = default_campaign() if small else big()
    budget = Budget(10.0**exponent, "FLOP")
    plan = make_plan(campaign, budget=budget, data=DATA)
    assert 0.9 * budget.value <= sum(r.flops for r in plan.runs) <= budget.value


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.floats(1.5, 3.0),
    st.sampled_from(["GPUh", "node-h", "kWh", "EUR"]),
    st.integers(1, 3),
    st.integers(2, 5),
)
def test_a_budget_in_any_unit_is_filled_and_never_exceeded(exponent, unit, seeds, levels):
    site = {"name": "s", "nodes": 64, "gpus_per_node": 4, "gpu": {"name": "A100-80GB"},
            "prices": {"currency": "EUR", "per_gpu_hour": 1.5}, "pue": 1.2}  # fmt: skip
    campaign = big(site=site, seeds=seeds, grid={"levels": levels})
    budget = Budget(10**exponent, unit)
    plan = make_plan(campaign, budget=budget, data=DATA)
    assert 0.9 * budget.value <= spend(plan.runs, unit, plan.site) <= budget.value
    device = accelerator_of(plan.site)
    for run in plan.runs:
        assert run.predicted.memory_bytes <= MEMORY_MARGIN * device.memory_bytes
        assert run.predicted.duration_s <= run.segments * plan.site.limits.time
        assert run.tokens == run.steps * run.recipe.batch_tokens
        layout = run.layout
        sequences = layout.ranks * layout.micro_batch * layout.grad_accum
        assert sequences * run.model.context == run.recipe.batch_tokens


def test_every_run_is_in_exactly_one_element_and_arrays_keep_the_sites_limit():
    site = {"name": "s", "limits": {"array_size": 3}, "pack_s": 0, "gpu": {"name": "H100"}}
    plan = make_plan(big(site=site, seeds=3, budget="30 GPUh"), data=DATA)
    placed = [name for a in plan.arrays for element in a.elements for name in element]
    assert sorted(placed) == sorted(r.run_id for r in plan.runs)
    assert all(len(a.elements) <= 3 for a in plan.arrays)
    assert all(a.time_limit_s <= plan.site.limits.time for a in plan.arrays)
    assert len({a.name for a in plan.arrays}) == len(plan.arrays)


def test_short_runs_share_an_element():
    plan = make_plan(default_campaign(), data=DATA)
    assert sum(len(a.elements) for a in plan.arrays) < len(plan.runs)


def test_a_plan_reads_back_from_its_json():
    plan = make_plan(big(seeds=2), data=DATA)
    values = json.loads(json.dumps(plan.to_dict()))
    assert Plan.from_dict(values).to_dict() == plan.to_dict()


def test_the_same_call_gives_the_same_plan():
    assert make_plan(big(), data=DATA).to_dict() == make_plan(big(), data=DATA).to_dict()


def test_a_budget_too_small_says_what_the_least_plan_costs():
    with pytest.raises(BudgetError, match="the least one costs") as caught:
        make_plan(big(), budget=Budget(1.0, "FLOP"), data=DATA)
    assert caught.value.exit_status == 1


def test_money_without_a_price_and_no_budget_at_all_are_input_errors():
    with pytest.raises(InputError, match="needs a price"):
        make_plan(big(), budget=Budget(100, "EUR"), data=DATA)
    with pytest.raises(InputError, match="no budget"):
        make_plan(big(budget=None), data=DATA)


def test_tokens_beyond_the_data_are_warned_about():
    plan = make_plan(big(), data=TokenData(path="x", dtype="uint16", tokens=10**6,
                                           evaluation_tokens=10**4, fingerprint="a"))  # fmt: skip
    assert any("more than once" in warning for warning in plan.warnings)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("1e24", "times beyond the largest run: extrapolated"),
        ("1e17", "times the compute of the target: the answer needs no more than runs around it"),
    ],
)
def test_a_target_far_from_the_runs_is_warned_about(target, words):
    """Far beyond them it is extrapolated to; far below them the budget is not the question's."""
    plan = make_plan(big(target=target), data=DATA)
    assert sum(words in warning for warning in plan.warnings) == 1
    assert not any("e+" in warning for warning in plan.warnings)


def test_a_fixed_layout_is_kept():
    layout = {"nodes": 2, "gpus_per_node": 2, "zero_stage": 1, "micro_batch": 1}
    plan = make_plan(big(layout=layout), data=DATA)
    assert {(r.layout.nodes, r.layout.gpus_per_node, r.layout.zero_stage) for r in plan.runs} == {
        (2, 2, 1)
    }


def test_the_layout_does_not_change_the_runs():
    one = make_plan(big(budget="1e20"), data=DATA)
    four = make_plan(big(budget="1e20", layout={"nodes": 2, "gpus_per_node": 2}), data=DATA)
    assert [r.run_id for r in one.runs] == [r.run_id for r in four.runs]


@settings(max_examples=60)
@given(st.floats(math.log(2e4), math.log(5e10)))
def test_the_ladder_meets_n_within_five_per_cent(log_params):
    params = math.exp(log_params)
    vocabulary, context = (256, 128) if params < 1e7 else (32000, 2048)
    model = nearest_decoder(
        params, vocabulary=vocabulary, context=context, tied_embeddings=True, head_size=None
    )
    if params < 1e7 or params > 3e7:
        assert model is not None
    if model is not None:
        assert abs(math.log(model.params / params)) <= 0.05
        assert model.width % model.heads == 0


def test_an_unknown_gpu_needs_its_three_figures():
    campaign = big(site={"name": "s", "gpu": {"name": "H100x"}})
    with pytest.raises(InputError, match=r"did you mean 'H100'") as caught:
        accelerator_of(site_of(campaign))
    assert "peak_flops, memory, power_w" in str(caught.value)


@pytest.mark.parametrize("stage", [0, 1])
def test_settings_of_deepspeed_go_with_the_runs_that_it_trains(stage):
    chosen = {"zero_optimization": {"overlap_comm": True}}
    layout = {"gpus_per_node": 4, "zero_stage": stage}
    plan = make_plan(big(training={"deepspeed": chosen}, layout=layout), data=DATA)
    assert all(run.deepspeed == (chosen if stage else {}) for run in plan.runs)
