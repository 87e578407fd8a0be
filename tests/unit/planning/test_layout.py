"""Which layout a run is given: the fewest ranks, and the cheapest way to fit on them."""

from dataclasses import replace

import pytest

from llem.campaign import CustomModel, Decoder, Layout, Recipe
from llem.campaign.campaign import LayoutChoice
from llem.campaign.site import Limits, Site
from llem.planning.hardware import ACCELERATORS
from llem.planning.layout import MEMORY_MARGIN, choose_layout, computed_flops, duration_s, fits
from llem.planning.memory import memory_of

DEVICE = ACCELERATORS["A100-80GB"]
SITE = Site(name="s", nodes=16, gpus_per_node=8, limits=Limits(time="24h"))
ONE = Site(name="one", nodes=1, gpus_per_node=1, limits=Limits(time="24h"))
BILLION = Decoder(
    layers=24, width=2048, heads=16, mlp_width=5504, vocabulary=32000, context=2048
)  # fmt: skip
RECIPE = Recipe(batch_tokens=2**19, learning_rate=1e-3, warmup_steps=10, precision="bf16")


def choose(model=BILLION, tokens=2**26, *, site=SITE, device=DEVICE, recipe=RECIPE, fixed=None):
    return choose_layout(model, recipe, tokens, site=site, device=device, fixed=fixed)


def with_memory(gigabytes):
    return replace(DEVICE, memory_bytes=gigabytes * 1e9)


def test_a_model_that_fits_is_neither_sharded_nor_computed_again():
    found = choose()
    assert (found.ranks, found.zero_stage, found.activation_checkpointing) == (1, 0, False)
    assert found.micro_batch * found.grad_accum * BILLION.context == RECIPE.batch_tokens


def test_what_the_user_says_of_sharding_and_compiling_stands():
    fixed = LayoutChoice(nodes=1, gpus_per_node=8, sharding="fsdp2", compile=True)
    found = choose(fixed=fixed)
    assert (found.ranks, found.sharding, found.compile, found.zero_stage) == (8, "fsdp2", True, 0)
    assert found.micro_batch * found.grad_accum * 8 * BILLION.context == RECIPE.batch_tokens


def test_fsdp2_divides_weights_gradients_and_moments():
    """Of 1.3 G parameters a device of 34 GB holds 16 bytes each only in parts."""
    plain, sharded = (
        Layout(gpus_per_node=8, micro_batch=1, grad_accum=32, sharding=way)
        for way in ("zero", "fsdp2")
    )
    states = 16 * BILLION.params
    saved = [memory_of(BILLION, RECIPE, way, cpu=False).of_run for way in (plain, sharded)]
    assert saved[0] - saved[1] == pytest.approx(states * 7 / 8, rel=0.15)


def test_muon_is_never_given_a_layout_that_shards():
    muon = replace(RECIPE, optimiser="muon")
    device = with_memory(22)
    assert choose(device=device).zero_stage > 0
    found = choose(device=device, recipe=muon)
    assert isinstance(found, str) or found.zero_stage == 0


def test_a_lone_device_computes_again_what_it_cannot_keep():
    # 16 bytes a parameter are 20 GB; bf16 copies and one sequence come to 30 GB.
    device = with_memory(34)
    plain = Layout(micro_batch=1, grad_accum=256)
    assert not fits(BILLION, RECIPE, plain, device)
    found = choose(device=device, site=ONE)
    assert (found.ranks, found.activation_checkpointing) == (1, True)
    assert memory_of(BILLION, RECIPE, found, cpu=False).total <= MEMORY_MARGIN * 34e9


def test_stages_that_cost_no_traffic_come_before_computing_again():
    fixed = {"nodes": 1, "gpus_per_node": 8}
    device = with_memory(34)
    ways = []
    for stage in range(4):
        layout = Layout(gpus_per_node=8, zero_stage=stage, micro_batch=1, grad_accum=32)
        ways.append(fits(BILLION, RECIPE, layout, device))
    assert ways == [False, True, True, True]
    # The user's stage stands, and what is left open is the checkpointing.
    assert choose(device=device, fixed=LayoutChoice(**fixed)).activation_checkpointing
    found = choose(device=device, fixed=LayoutChoice(**fixed, zero_stage=1))
    assert not found.activation_checkpointing
    # More ranks are not taken where fewer do.
    assert choose(device=device).ranks == 1


def test_a_run_too_slow_when_computed_again_is_sharded_instead():
    device = with_memory(34)
    tokens = 2**19 * 1000
    lone = choose(tokens=tokens, device=device)
    assert lone.activation_checkpointing
    seconds = duration_s(computed_flops(BILLION, lone) * tokens, 1000, lone, device)
    quick = SITE.model_copy(update={"limits": Limits(time=int(seconds / 0.81))})
    found = choose(tokens=tokens, device=device, site=quick)
    assert (found.ranks, found.zero_stage, found.activation_checkpointing) == (2, 1, False)


def test_computing_again_is_in_the_predicted_duration():
    again = Layout(activation_checkpointing=True)
    ratio = computed_flops(BILLION, again) / computed_flops(BILLION, Layout())
    assert 1.25 < ratio < 4 / 3
    assert duration_s(ratio * 1e18, 1, again, DEVICE) > 1.25 * duration_s(1e18, 1, again, DEVICE)


@pytest.mark.parametrize("asked", [True, False])
def test_what_the_user_asks_for_is_kept(asked):
    found = choose(fixed=LayoutChoice(activation_checkpointing=asked))
    assert found.activation_checkpointing is asked


def test_a_model_class_of_ones_own_is_never_checkpointed_by_the_planner():
    own = CustomModel(
        class_path="m:C", size="d", value=8, params=BILLION.params, vocabulary=32000, context=2048
    )
    assert not choose(own).activation_checkpointing
    refused = choose(own, fixed=LayoutChoice(activation_checkpointing=True))
    assert "does its own activation checkpointing" in refused


def test_what_does_not_fit_at_all_says_so():
    assert "more than 8 GB per device" in choose(device=with_memory(8), site=ONE)
