"""A run's name is a hash of all that changes its result, and of nothing else."""

import json
from dataclasses import replace

import pytest

from llem.campaign import CustomModel, Layout, Run

from .example import RUN


@pytest.mark.parametrize(
    "other",
    [
        replace(RUN, seed=1),
        replace(RUN, tokens=RUN.tokens + 1024, steps=65),
        replace(RUN, recipe=replace(RUN.recipe, learning_rate=0.02)),
        replace(RUN, recipe=replace(RUN.recipe, precision="bf16")),
        replace(RUN, data=replace(RUN.data, fingerprint="ac")),
        replace(RUN, data=replace(RUN.data, evaluation_tokens=8192)),
        replace(RUN, model=replace(RUN.model, layers=3)),
        replace(RUN, recipe=replace(RUN.recipe, optimiser="muon")),
        replace(RUN, recipe=replace(RUN.recipe, z_loss=1e-4)),
        replace(RUN, recipe=replace(RUN.recipe, parametrisation="mup", base_width=16)),
        replace(RUN, deepspeed={"communication_data_type": "bf16"}),
        replace(RUN, deepspeed={"zero_optimization": {"zero_quantized_weights": True}}),
    ],
)
def test_what_changes_the_result_changes_the_name(other):
    assert other.run_id != RUN.run_id


@pytest.mark.parametrize(
    "same",
    [
        RUN.with_layout(Layout(nodes=2, gpus_per_node=2, zero_stage=1, micro_batch=4)),
        replace(RUN, data=replace(RUN.data, path="/elsewhere/a.bin")),
        replace(RUN, recipe=replace(RUN.recipe, rule="steplaw")),
        replace(RUN, checkpoint_steps=10, level=3),
        RUN.with_layout(Layout(gpus_per_node=2, sharding="fsdp2", compile=True)),
        replace(RUN, evaluate_at=(8, 16), branch_at=(32,), trunk_steps=3),
        replace(RUN, deepspeed={"zero_optimization": {"overlap_comm": True}}),
    ],
)
def test_what_does_not_change_the_result_keeps_the_name(same):
    assert same.run_id == RUN.run_id


def test_names_are_those_of_every_version_so_far():
    """Results are found again by them: a new option at its default must not change one."""
    assert RUN.run_id == "9dcabc1f9e19"


def test_a_branch_is_the_run_of_its_own_length():
    branch = replace(RUN, branch_at=(32,)).branch(32)
    assert (branch.steps, branch.tokens, branch.trunk_steps) == (32, 32 * 1024, 22)
    assert branch.run_id == replace(RUN, steps=32, tokens=32 * 1024).run_id


def test_a_run_reads_back_from_what_it_is_written_as():
    assert Run.from_dict(RUN.to_dict()) == RUN
    full = replace(
        RUN.with_layout(Layout(gpus_per_node=2, sharding="fsdp2", compile=True)),
        recipe=replace(RUN.recipe, optimiser="muon", z_loss=1e-4),
        evaluate_at=(8,), branch_at=(32,), deepspeed={"zero_optimization": {"overlap_comm": True}},
    )  # fmt: skip
    assert Run.from_dict(json.loads(json.dumps(full.to_dict()))) == full


def test_an_edited_run_is_refused():
    with pytest.raises(ValueError, match="was edited"):
        Run.from_dict({**RUN.to_dict(), "seed": 5})


def test_parameters_and_flops_of_a_known_shape():
    # GPT-2-like numbers by hand: 2 layers of 4 w^2 + 3 w m + 2 w, a last norm, one table.
    model = RUN.model
    assert model.params_nonembedding == 2 * (4 * 32 * 32 + 3 * 32 * 88 + 2 * 32) + 32
    assert model.params == model.params_nonembedding + 256 * 32
    forward = 2 * (2 * (4 * 32 * 32 + 3 * 32 * 88) + 4 * 64 * 32) + 2 * 32 * 256
    assert model.flops_per_token == 3 * forward


def test_a_custom_model_counts_six_flops_per_parameter():
    model = CustomModel(class_path="m:N", size="w", value=8, params=100, vocabulary=256, context=8)
    assert model.flops_per_token == 600
