"""The memory model: published figures, and how a peak moves with what a run is given."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llem.campaign import CustomModel, Decoder, Layout, Recipe
from llem.planning.memory import least_bytes, memory_of, model_states

RECIPE = Recipe(batch_tokens=2**19, learning_rate=1e-3, warmup_steps=10, precision="bf16")
SEVEN = Decoder(layers=32, width=4096, heads=32, mlp_width=11008, vocabulary=32000, context=2048)
SMALL = Decoder(layers=6, width=384, heads=6, mlp_width=1024, vocabulary=8192, context=512)


# GB of weights, gradients and optimiser states in mixed precision (2 + 2 + 12 bytes):
# arXiv 1910.02054, figure 1 (7.5 billion parameters on 64 devices) and table 1.
@pytest.mark.parametrize(
    ("params", "ranks", "published"),
    [
        (7.5e9, 64, (120, 31.4, 16.6, 1.88)),
        (7.5e9, 4, (120, 52.5, 41.3, 30)),
        (7.5e9, 16, (120, 35.6, 21.6, 7.5)),
        (7.5e9, 256, (120, 30.4, 15.4, 0.47)),
        (128e9, 64, (2048, 536, 284, 32)),
        (1e12, 1024, (16000, 4011, 2013, 15.6)),
    ],
)
def test_model_states_are_those_of_the_zero_paper(params, ranks, published):
    found = [
        model_states(int(params), ranks=ranks, stage=stage, bytes_each=(2, 2, 12)).total / 1e9
        for stage in range(4)
    ]
    assert found == pytest.approx(published, rel=0.01)


def test_states_of_a_lone_rank_are_sixteen_bytes_a_parameter():
    layout = Layout(micro_batch=1)
    assert least_bytes(SEVEN, layout) == 16 * SEVEN.params
    found = memory_of(SEVEN, replace(RECIPE, precision="fp32"), layout, cpu=False)
    states = found.weights + found.gradients + found.optimiser
    assert states == pytest.approx(16 * SEVEN.params, rel=0.05)


layouts = st.builds(
    Layout,
    gpus_per_node=st.sampled_from([1, 2, 4, 64]),
    zero_stage=st.integers(0, 3),
    micro_batch=st.integers(1, 64),
    grad_accum=st.sampled_from([1, 4]),
    activation_checkpointing=st.booleans(),
)
models = st.sampled_from([SEVEN, SMALL])
precisions = st.sampled_from(["fp32", "bf16"])


def peak(model, layout, precision="bf16", *, cpu=False):
    return memory_of(model, replace(RECIPE, precision=precision), layout, cpu=cpu)


@given(models, layouts, precisions, st.booleans())
def test_a_larger_micro_batch_never_takes_less_and_checkpointing_never_more(
    model, layout, precision, cpu
):
    now = peak(model, layout, precision, cpu=cpu).of_run
    more = replace(layout, micro_batch=layout.micro_batch + 1)
    assert peak(model, more, precision, cpu=cpu).of_run >= now
    again = replace(layout, activation_checkpointing=True)
    # What is computed again is there while its own gradients are.
    assert peak(model, again, precision, cpu=cpu).of_run <= 1.05 * now


@given(models, layouts, precisions, st.booleans())
def test_a_peak_is_the_sum_of_its_parts_and_no_less_than_the_least(model, layout, precision, cpu):
    found = peak(model, layout, precision, cpu=cpu)
    parts = (
        found.weights, found.gradients, found.optimiser, found.activations, found.logits,
        found.buffers,
    )  # fmt: skip
    assert all(part >= 0 for part in parts)
    assert found.of_run == pytest.approx(sum(parts))
    assert found.total == pytest.approx(found.of_run + found.standing + found.allocator)
    assert least_bytes(model, layout) <= found.of_run * (1 + 1e-9)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_each_stage_shards_more_of_a_large_model(stage):
    layout = Layout(nodes=16, gpus_per_node=4, zero_stage=stage, activation_checkpointing=True)
    before = replace(layout, zero_stage=stage - 1)
    assert peak(SEVEN, layout).of_run < peak(SEVEN, before).of_run


def test_wide_vocabularies_peak_at_the_loss_and_the_logits_are_told_apart():
    found = peak(replace(SMALL, vocabulary=64000), Layout(micro_batch=16))
    assert found.moment == "loss"
    assert found.logits == 12 * 64000 * 16 * SMALL.context


def test_a_model_class_of_ones_own_is_told_by_its_parameters():
    own = CustomModel(
        class_path="m:C", size="d", value=8, params=10**8, vocabulary=1000, context=512
    )
    assert peak(own, Layout(micro_batch=1)).of_run > 16e8
