"""A deployment and its runs: names, round trips, what belongs to a name and what does not."""

from dataclasses import replace

import pytest

from llem.campaign import (
    Arrival,
    Deployment,
    Layout,
    Predicted,
    Prompts,
    Runs,
    ServedModel,
    Serving,
    run_from_dict,
)

MODEL = ServedModel(
    name="tiny",
    source="config",
    config={"model_type": "llama", "hidden_size": 64},
    digest="abc",
    params=100_000,
    params_nonembedding=80_000,
    layers=2,
    width=64,
    heads=4,
    kv_heads=2,
    head_size=16,
    vocabulary=256,
    context=512,
    flops_per_token_forward=200_000.0,
)
PROMPTS = Prompts(kind="synthetic", count=8, input_tokens=16, output_tokens=4)
DEPLOYMENT = Deployment(
    model=MODEL,
    backend="transformers",
    options={"batch_size": 4, "precision": None},
    effective={"batch_size": 4, "precision": "fp32"},
    prompts=PROMPTS,
)
SERVING = Serving(
    deployment=DEPLOYMENT,
    cycle=0,
    predicted=Predicted(duration_s=1.0, gpu_hours=1 / 3600, energy_j=10.0, memory_bytes=1e6),
)


def test_a_run_is_read_back_from_what_a_manifest_holds():
    assert run_from_dict(SERVING.to_dict()) == SERVING


def test_an_edited_run_is_refused():
    values = {**SERVING.to_dict(), "options": {"batch_size": 5}}

    with pytest.raises(ValueError, match="edited"):
        run_from_dict(values)


def test_cycles_have_names_of_their_own_and_one_deployment():
    again = replace(SERVING, cycle=1)

    assert again.run_id != SERVING.run_id
    assert again.deployment.deployment_id == SERVING.deployment.deployment_id
    assert SERVING.names((0, 1)) == (SERVING.run_id, again.run_id)


def test_asking_for_the_backends_default_is_asking_for_nothing():
    unasked = replace(DEPLOYMENT, options={"batch_size": 4})

    assert unasked.deployment_id == DEPLOYMENT.deployment_id


@pytest.mark.parametrize(
    "changed",
    [
        {"backend": "vllm"},
        {"options": {"batch_size": 8}},
        {"model": replace(MODEL, digest="other")},
        {"prompts": replace(PROMPTS, output_tokens=5)},
        {"arrival": Arrival(kind="fixed", rate=2.0)},
        {"layout": Layout(gpus_per_node=2)},
    ],
)
def test_what_changes_the_result_changes_the_name(changed):
    assert replace(DEPLOYMENT, **changed).deployment_id != DEPLOYMENT.deployment_id


@pytest.mark.parametrize(
    "changed",
    [
        {"model": replace(MODEL, name="other", path="elsewhere")},
        {"prompts": replace(PROMPTS, path="elsewhere", expected_input_tokens=3.0)},
        {"effective": {}},
    ],
)
def test_names_and_places_do_not(changed):
    assert replace(DEPLOYMENT, **changed).deployment_id == DEPLOYMENT.deployment_id


def test_the_cycles_of_a_deployment_are_one_cell_of_runs():
    runs = Runs.of([SERVING, replace(SERVING, cycle=1), replace(SERVING, cycle=2)])

    assert len(runs.replicates) == 1
    assert Runs.from_dicts([run.to_dict() for run in runs]) == runs


def test_the_work_of_a_run_is_a_forward_of_each_prompt_and_of_each_later_token():
    one = replace(DEPLOYMENT, prompts=Prompts(kind="synthetic", count=1, input_tokens=1,
                                              output_tokens=1))  # fmt: skip
    attention = 4 * MODEL.layers * MODEL.heads * MODEL.head_size

    assert replace(SERVING, deployment=one).flops == MODEL.flops_per_token_forward + attention
