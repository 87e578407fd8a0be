"""The plan of a study: deployments, what is left out and why, elements in order, cost."""

import json
import os
import subprocess
import sys
from resource import RUSAGE_CHILDREN, getrusage

import pytest
import yaml

from llem.campaign.load import campaign_from
from llem.errors import InputError
from llem.pipeline import plan_study
from llem.planning import StudyPlan, plan_from_dict

TINY = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 176,
    "vocab_size": 256,
    "max_position_embeddings": 512,
}
LARGE = {
    **TINY,
    "hidden_size": 8192,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "intermediate_size": 28672,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
}
SITE = {
    "name": "test",
    "executor": "slurm",
    "nodes": 2,
    "gpus_per_node": 4,
    "gpu": {"name": "A100-80GB"},
}
STUDY = {
    "name": "serving",
    "workload": "inference",
    "models": {"tiny": {"config": TINY}},
    "prompts": {"synthetic": {"input_tokens": 32, "output_tokens": 16, "count": 8}},
    "site": SITE,
}


def plan_of(**changed) -> StudyPlan:
    study = campaign_from({**STUDY, **changed})
    return plan_study(study, out="nowhere", write=False).plan


def faults_of(**changed):
    with pytest.raises(InputError) as caught:
        plan_of(**changed)
    return [str(fault) for fault in caught.value.faults]


def options_of(plan):
    return [dict(some.run.deployment.options) for some in plan.runs.replicates]


def test_every_deployment_runs_in_every_cycle():
    plan = plan_of(sweep={"grid": {"options.batch_size": [1, 2]}}, cycles=3)

    assert (len(plan.runs.replicates), len(plan.runs)) == (2, 6)
    assert sorted(n for a in plan.arrays for e in a.elements for n in e) == sorted(
        plan.runs.run_ids
    )


def test_a_plan_is_read_back_from_plan_json():
    plan = plan_of(
        sweep={
            "grid": {"options.batch_size": [1, 2, 4], "options.precision": ["fp32", None]},
            "exclude": [{"when": {"options.batch_size": 4}, "reason": "too many"}],
        },
        arrival={"poisson": 3.0},
        budget="10 GPUh",
    )

    again = plan_from_dict(json.loads(json.dumps(plan.to_dict())))

    assert again == plan
    assert again.digest == plan.digest


def test_what_a_rule_excludes_is_kept_with_its_reason():
    plan = plan_of(
        sweep={
            "grid": {"options.batch_size": [1, 16], "options.precision": ["fp32", "bf16"]},
            "exclude": [
                {
                    "when": {"options.precision": "fp32", "options.batch_size": ">= 16"},
                    "reason": "does not fit",
                }
            ],
        }
    )

    assert len(plan.runs.replicates) == 3
    (left,) = plan.excluded
    assert (left.reason, left.by) == ("does not fit", "rule")
    assert left.what == {"options.batch_size": 16, "options.precision": "fp32"}


def test_a_rule_sees_what_an_option_becomes_where_it_was_not_asked_for():
    plan = plan_of(
        sweep={
            "grid": {"options.batch_size": [1, 2]},
            "exclude": [
                {"when": {"options.precision": "fp32", "options.batch_size": 2}, "reason": "slow"}
            ],
        }
    )

    assert options_of(plan) == [{"batch_size": 1}]


def test_a_rule_that_excludes_nothing_is_told():
    plan = plan_of(sweep={"exclude": [{"when": {"options.beams": 9}, "reason": "slow"}]})

    assert "sweep.exclude.0 (slow) excludes nothing" in plan.warnings


def test_where_everything_is_excluded_there_is_nothing_to_plan():
    found = faults_of(sweep={"exclude": [{"when": {"model": "tiny"}, "reason": "never"}]})

    assert found == ["sweep: leaves nothing to serve: all 1 deployments are excluded (never)"]


def test_what_becomes_the_same_is_served_once():
    """A model of fp32 is served in fp32 where nothing is asked; cold logits take the likeliest."""
    plan = plan_of(
        sweep={
            "grid": {"options.precision": [None, "fp32"], "options.temperature": [0.5, 1.0]},
        }
    )

    assert len(plan.runs.replicates) == 1
    first = plan.runs.replicates[0].run.deployment
    assert [d.deployment_id for d in plan.duplicates] == [first.deployment_id] * 3


def test_a_model_that_cannot_fit_is_left_out_and_says_what_it_needs():
    plan = plan_of(
        models={"large": {"config": LARGE}},
        options={"precision": "bf16"},
        sweep={"grid": {"options.tensor_parallel": [1, 4]}},
    )

    assert [o["tensor_parallel"] for o in options_of(plan)] == [4]
    (left,) = plan.excluded
    assert left.by == "memory"
    assert left.reason.startswith("needs about 143 GB")


@pytest.mark.parametrize(
    ("options", "layout", "words"),
    [
        ({"tensor_parallel": 16}, None, "16 GPUs a replica; site test has 2 x 4 for a job"),
        ({"tensor_parallel": 3}, None, "3 does not divide the 4 heads"),
        ({"tensor_parallel": 2}, {"gpus_per_node": 3}, "do not divide the 1 x 3 of the layout"),
        ({}, {"nodes": 3, "gpus_per_node": 4}, "3 x 4 GPUs; site test has 2 x 4 for a job"),
    ],
)
def test_a_parallelism_that_does_not_fit_is_a_fault_with_a_hint(options, layout, words):
    more = {"layout": layout} if layout else {}
    (fault,) = faults_of(options=options, **more)

    assert words in fault


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"beams": 2, "sample": True}, "options.beams: a beam search looks for the likeliest text"),
        ({"beams": 2, "prompt_lookup_tokens": 3}, "options.beams: guessed tokens are checked"),
        ({"prompt_lookup_tokens": 3, "batch_size": 4}, "(batch_size: 1; or exclude both"),
        ({"prompt_lookup_tokens": 3, "kv_cache": False}, "(kv_cache: true; or"),
        ({"prompt_lookup_tokens": 3, "cache": "quantized"}, "options.prompt_lookup_tokens: wrong"),
        ({"beams": 2, "compile": True, "compile_mode": "reduce-overhead"}, "CUDA graphs"),
        ({"device_map": "auto", "tensor_parallel": 2}, "options.device_map: spreads layers"),
        ({"attention": "flash_attention_2"}, "options.attention: computes in half precision"),
        ({"cache": "quantized"}, "do not divide the 32 of a token and layer of tiny"),
        ({"min_tokens": 20, "ignore_eos": False}, "options.min_tokens: 20 tokens at least, of 16"),
    ],
)
def test_options_that_contradict_each_other_are_a_fault_with_a_hint(options, words):
    found = faults_of(options=options)

    assert any(words in fault for fault in found)


def test_options_of_which_one_means_nothing_do_not_contradict():
    """Without a search there is no beam to sample from, without ends no least length."""
    plan = plan_of(options={"beams": 1, "sample": True, "early_stopping": "never",
                            "min_tokens": 99})  # fmt: skip

    (some,) = plan.runs.replicates
    assert not {"early_stopping", "min_tokens"} & set(some.run.deployment.effective)


def test_contradictions_and_misfits_are_told_together_and_once():
    found = faults_of(
        options={"tensor_parallel": 3, "sample": True},
        sweep={"grid": {"options.beams": [2, 3, 4], "options.batch_size": [1, 2]}},
    )

    assert sorted(fault.partition(":")[0] for fault in found) == [
        "options.beams", "options.tensor_parallel",
    ]  # fmt: skip


def test_a_rule_takes_out_what_would_contradict_and_says_why():
    reason = "a search does not draw"
    plan = plan_of(
        sweep={
            "grid": {"options.beams": [1, 4], "options.sample": [False, True]},
            "exclude": [
                {"when": {"options.beams": ">= 2", "options.sample": True}, "reason": reason}
            ],
        },
    )

    assert len(plan.runs.replicates) == 3
    assert [(left.what, left.reason) for left in plan.excluded] == [
        ({"options.beams": 4, "options.sample": True}, reason)
    ]


def test_replicas_that_are_split_are_as_many_as_the_gpus_hold():
    plan = plan_of(options={"tensor_parallel": 2}, layout={"nodes": 2, "gpus_per_node": 4})

    (some,) = plan.runs.replicates
    assert some.run.deployment.replicas == 4


def test_a_replica_that_would_straddle_nodes_is_a_fault():
    (fault,) = faults_of(
        options={"tensor_parallel": 2}, layout={"nodes": 2, "gpus_per_node": 3},
    )  # fmt: skip

    assert "some replica would have 1 of its GPUs on a node that it shares" in fault
    assert fault.endswith("(one of 1, 3, 6, or another layout)")


def test_it_is_one_fault_however_many_deployments_have_it():
    found = faults_of(
        options={"tensor_parallel": 3},
        sweep={"grid": {"options.batch_size": list(range(1, 99))}},
    )

    (fault,) = found
    assert fault.endswith("the 4 heads (2 of keys and values) of tiny (one of 1, 2)")


def test_a_replica_takes_the_gpus_that_it_needs():
    plan = plan_of(sweep={"grid": {"options.tensor_parallel": [1, 2]}})

    assert [(s.run.layout.nodes, s.run.layout.gpus_per_node) for s in plan.runs.replicates] == [
        (1, 1), (1, 2),
    ]  # fmt: skip


def test_prompts_longer_than_the_context_are_refused():
    (fault,) = faults_of(
        prompts={"synthetic": {"input_tokens": 500, "output_tokens": 16, "count": 8}}
    )

    assert "more than the 512 that tiny takes" in fault


def test_an_element_holds_one_shape_and_all_cycles_of_its_deployments():
    plan = plan_of(
        sweep={
            "grid": {"options.batch_size": [1, 2, 4, 8], "options.tensor_parallel": [1, 2]},
        },
        cycles=2,
    )

    for array in plan.arrays:
        for names in array.elements:
            runs = [plan.by_id[name] for name in names]
            assert {(r.layout.nodes, r.layout.gpus_per_node) for r in runs} == {
                (array.nodes, array.gpus_per_node)
            }
            cycles: dict[str, set[int]] = {}
            for run in runs:
                cycles.setdefault(run.deployment.deployment_id, set()).add(run.cycle)
            assert all(found == {0, 1} for found in cycles.values())


def test_a_block_is_as_many_deployments_in_an_element_as_are_asked_for():
    plan = plan_of(sweep={"grid": {"options.batch_size": [1, 2, 3, 4, 5]}}, cycles=2, block=2)

    assert [len(e) for a in plan.arrays for e in a.elements] == [4, 4, 2]


def test_the_order_is_kept_within_an_element():
    plan = plan_of(sweep={"grid": {"options.batch_size": [1, 2, 3]}}, cycles=2, order="reverse")

    ((names,),) = [array.elements for array in plan.arrays]
    runs = [plan.by_id[name] for name in names]
    assert [(r.deployment.options["batch_size"], r.cycle) for r in runs] == [
        (1, 0), (2, 0), (3, 0), (3, 1), (2, 1), (1, 1),
    ]  # fmt: skip


def test_each_backend_has_arrays_of_its_own():
    plan = plan_of(backend=["transformers", "vllm"])

    assert sorted(a.backend for a in plan.arrays) == ["transformers", "vllm"]


def test_a_budget_that_does_not_suffice_is_refused_before_anything_runs():
    (fault,) = faults_of(budget="1e-6 GPUh")

    assert "are expected, and 1e-6 GPUh may be spent" in fault


def test_slow_arrivals_take_as_long_as_they_take():
    quick, slow = plan_of(), plan_of(arrival={"rate": 0.01})

    assert quick.runs[0].predicted.duration_s < 800 < slow.runs[0].predicted.duration_s


def test_a_larger_batch_is_expected_to_take_less_time_and_more_memory():
    plan = plan_of(sweep={"grid": {"options.batch_size": [1, 2, 8]}})

    one, two, eight = (some.run.predicted for some in plan.runs.replicates)
    assert one.duration_s > two.duration_s > eight.duration_s
    assert one.memory_bytes < two.memory_bytes < eight.memory_bytes


def seconds_per_token(**options):
    """Of a model of 70 billion weights in bf16, split over four A100s."""
    plans = [
        plan_of(
            models={"large": {"config": LARGE}},
            options={"precision": "bf16", "tensor_parallel": 4, **options},
            prompts={"synthetic": {"input_tokens": 8, "output_tokens": tokens, "count": 1}},
            warmup={"least": 0, "most": 1},
        )
        for tokens in (101, 201)
    ]
    first, second = (plan.runs[0].predicted.duration_s for plan in plans)
    return (second - first) / 100 / 2  # a batch to warm up, and one that is measured


def test_decoding_a_large_model_is_bound_by_reading_its_weights():
    """2 x 69.5 G bytes (all but the table of embeddings) through 4 x 2.04 TB/s x .75 a token."""
    found = seconds_per_token(compile=True, compile_mode="reduce-overhead")

    assert found == pytest.approx(139e9 / (4 * 2.039e12 * 0.75), rel=0.02)


def test_a_host_that_launches_kernels_one_by_one_is_slower_than_the_weights_are_read():
    assert seconds_per_token() == pytest.approx(2e-3 + 80 * 7e-4, rel=0.01)


@pytest.mark.slow
def test_five_thousand_deployments_are_planned_in_two_seconds(tmp_path):
    """One call of the command, imports and writing included, in processor seconds."""
    grid = {
        "options.batch_size": [1, 2, 4, 8, 16, 32, 64, 128],
        "options.precision": ["fp32", "bf16"],
        "options.attention": ["eager", "sdpa"],
        "options.compile": [False, True],
        "options.cache": ["dynamic", "static"],
        "options.beams": [1, 2, 3, 4, 5],
        "prompts.synthetic.output_tokens": [16, 32, 64, 128],
        "prompts.synthetic.input_tokens": [32, 128],
    }
    study = {**STUDY, "sweep": {"grid": grid}, "cycles": 1}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    command = [sys.executable, "-m", "llem", "plan", "study.yaml", "--out", "planned"]

    before = getrusage(RUSAGE_CHILDREN)
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    after = getrusage(RUSAGE_CHILDREN)

    assert done.stdout.startswith("serving: 5120 deployments x 1 cycle = 5120 runs")
    seconds = (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)
    assert seconds < 2


def test_a_backend_runs_in_its_own_image(tmp_path):
    container = {"image": "/images/llem.sif", "images": {"vllm": "/images/vllm.sif"}}
    study = campaign_from(
        {**STUDY, "backend": ["transformers", "vllm"], "site": {**SITE, "container": container}}
    )

    planned = plan_study(study, out=tmp_path / "planned")

    scripts = {a.backend: planned.folder.script(a.name).read_text() for a in planned.plan.arrays}
    assert "/images/llem.sif" in scripts["transformers"]
    assert "/images/vllm.sif" in scripts["vllm"]
    assert "/images/llem.sif" not in scripts["vllm"]


def test_an_image_for_a_backend_that_there_is_not_is_told_with_the_nearest():
    container = {"images": {"vlm": "/images/vllm.sif"}}
    with pytest.raises(InputError, match=r"site.container.images.vlm: .*did you mean 'vllm'"):
        campaign_from({**STUDY, "site": {**SITE, "container": container}})


def test_a_manifest_holds_every_run_of_its_elements_in_their_order(tmp_path):
    study = campaign_from({**STUDY, "cycles": 2, "sweep": {"grid": {"options.beams": [1, 2]}}})

    planned = plan_study(study, out=tmp_path / "planned")

    (array,) = planned.plan.arrays
    (line,) = planned.folder.manifest(array.name).read_text().splitlines()
    assert [run["run_id"] for run in json.loads(line)["runs"]] == list(array.elements[0])
    assert planned.folder.load_plan() == planned.plan


def test_the_same_call_changes_nothing(tmp_path):
    study = campaign_from(STUDY)

    first = plan_study(study, out=tmp_path / "planned")
    again = plan_study(study, out=tmp_path / "planned")

    assert (first.changed, again.changed) == (True, False)


def test_a_batch_that_no_prompts_fill_is_told():
    plan = plan_of(sweep={"grid": {"options.batch_size": [8, 64]}})

    assert any("1 deployment has a batch_size of up to 64" in told for told in plan.warnings)
