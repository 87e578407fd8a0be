"""A study that ran calibrates the next: planted on a device that llem's prior does not know."""

import json
import math
import random
from dataclasses import replace
from types import SimpleNamespace

import pytest

from llem.campaign import Warmup
from llem.campaign.load import campaign_from
from llem.errors import InputError
from llem.pipeline import plan_study
from llem.pipeline.campaigns import write_served
from llem.planning.study.cost import (
    batch_of,
    course_of,
    decode_pass,
    memory_of_serving,
    precision_of,
)
from llem.planning.study.law import law_of
from llem.results.ranks.served import Served
from llem.results.rows.served import ServedRow

ROUNDS, REST_S, START_S, POWER_W, MEMORY = 7, 3.5, 21.0, 287.0, 1.3
SITE = {
    "name": "test",
    "executor": "slurm",
    "nodes": 2,
    "gpus_per_node": 4,
    "gpu": {"name": "A100-80GB"},
}


def config(width, layers):
    return {
        "model_type": "llama",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "num_key_value_heads": width // 64,
        "intermediate_size": 4 * width,
        "vocab_size": 32000,
        "max_position_embeddings": 8192,
    }


STUDY = {
    "name": "first",
    "workload": "inference",
    "models": {
        "small": {"config": config(512, 8)},
        "large": {"config": config(4096, 32)},
    },
    "prompts": {"synthetic": {"input_tokens": 128, "output_tokens": 64, "count": 64}},
    "sweep": {
        "grid": {"options.batch_size": [1, 8, 64], "prompts.synthetic.input_tokens": [128, 2048]}
    },
    "options": {"precision": "bf16"},
    "cycles": 2,
    "site": SITE,
}
NEXT = {
    **STUDY,
    "name": "next",
    "models": {"middle": {"config": config(2048, 24)}, "large": {"config": config(4096, 32)}},
    "sweep": {
        "grid": {"options.batch_size": [2, 32], "prompts.synthetic.input_tokens": [512, 1024]}
    },
}


def truth(device):
    """The planted device: another one than the prior's in each of its terms."""
    prior = law_of(device, "transformers")
    return replace(
        prior,
        forward_s=1.5 * prior.forward_s,
        layer_s=1.7 * prior.layer_s,
        bandwidth=prior.bandwidth / 2.0,
        cache_bandwidth=prior.cache_bandwidth / 2.2,
        activation_bandwidth=prior.activation_bandwidth / 1.9,
        rates={name: rate / 0.7 for name, rate in prior.rates.items()},
        attention_rate=prior.attention_rate / 0.8,
        start_s=START_S,
        load_s=REST_S,
        load=1.4,
        warmup_rounds=ROUNDS,
    )


def planted(folder, asked=STUDY):
    """A study that ran on the planted device, each time 2 % off by chance."""
    done = plan_study(campaign_from(asked), out=folder)
    plan, dice = done.plan, random.Random(1)
    law = truth(plan.device)
    first = {names[0] for array in plan.arrays for names in array.elements}
    rows = []
    for run in plan.runs:
        deployment = run.deployment
        course = course_of(deployment, law=law, warmup=run.warmup)
        chance = math.exp(dice.gauss(0, 0.02))
        prompts, batch = deployment.prompts, batch_of(deployment)
        length = prompts.input_tokens + prompts.output_tokens / 2
        one = decode_pass(deployment, batch, length)
        loading = REST_S * (run.run_id in first) * START_S / REST_S + REST_S
        whole = chance * course.window_s + course.load_s - REST_S + course.warmup_s + loading
        rows.append(
            ServedRow(
                run_id=run.run_id,
                deployment_id=deployment.deployment_id,
                status="completed",
                attempts=1,
                span_s=chance * course.window_s,
                itl_p50_s=chance * law.seconds(one, precision=precision_of(deployment)),
                decodes=10,
                batch_mean=batch,
                context_mean=length,
                energy_total_j=POWER_W * whole,
                energy_quality="counter",
                peak_memory_bytes=MEMORY * memory_of_serving(deployment, plan.device).of_run,
            )
        )
        end = {
            "status": "completed",
            "t0_ns": 0,
            "t1_ns": round(whole * 1e9),
            "window_t0_ns": 0,
            "window_t1_ns": round(chance * course.window_s * 1e9),
            "load_s": course.load_s - REST_S,
            "warmup": {"rounds": ROUNDS, "converged": True, "duration_s": course.warmup_s},
        }
        attempt = done.folder.run(run.run_id) / "attempt-0"
        attempt.mkdir(parents=True)
        (attempt / "end.json").write_text(json.dumps(end))
    done.folder.results.mkdir(exist_ok=True)
    write_served(done.folder, SimpleNamespace(served=rows, samples=[Served()] * len(rows)))
    return done.folder


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    return planted(tmp_path_factory.mktemp("ran") / "first").root


def test_a_plan_that_rests_on_a_study_tells_the_next_one_within_five_percent(ran):
    plan = plan_study(campaign_from(NEXT), out="nowhere", write=False, calibration=ran).plan

    law = truth(plan.device)
    for some in plan.runs.replicates:
        expected = course_of(some.run.deployment, law=law, warmup=some.run.warmup).run_s
        assert some.run.predicted.duration_s == pytest.approx(expected, rel=0.05)


def test_the_prior_alone_is_far_from_it(ran):
    """So that the test before is one of the calibration."""
    plan = plan_study(campaign_from(NEXT), out="nowhere", write=False).plan

    law = truth(plan.device)
    off = [
        course_of(s.run.deployment, law=law, warmup=s.run.warmup).run_s / s.run.predicted.duration_s
        for s in plan.runs.replicates
    ]
    assert max(off) > 1.3


def test_start_power_and_memory_are_those_that_were_measured(ran):
    plan = plan_study(campaign_from(NEXT), out="nowhere", write=False, calibration=ran).plan

    law = plan.laws["transformers"]
    assert law.start_s == pytest.approx(START_S, rel=0.02)
    assert law.load_s == pytest.approx(REST_S, rel=0.02)
    assert law.warmup_rounds == ROUNDS
    assert law.power_w == pytest.approx(POWER_W)
    assert law.memory == pytest.approx(MEMORY)
    assert law.power_source == "measured: 24 runs of first"


def test_the_error_that_a_plan_states_is_what_was_found_and_limits_follow_from_it(ran):
    prior = plan_study(campaign_from(NEXT), out="nowhere", write=False).plan
    plan = plan_study(campaign_from(NEXT), out="nowhere", write=False, calibration=ran).plan

    told = plan.uncertainty["uncertainty"]["gpu_hours"]
    assert 0.02 < told < 0.2 < prior.uncertainty["uncertainty"]["gpu_hours"]
    spare = [
        array.time_limit_s
        / max(sum(p.by_id[n].predicted.duration_s for n in e) for e in array.elements)
        for p in (prior, plan)
        for array in p.arrays[-1:]
    ]
    assert spare[1] < spare[0]


def test_the_file_names_its_calibration_beside_itself(ran):
    study = campaign_from({**NEXT, "calibration": ran.name})

    plan = plan_study(study, out="nowhere", base=ran.parent, write=False).plan

    assert plan.laws["transformers"].source == "measured: 24 runs of first, 12 deployments"


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"site": {**SITE, "gpu": {"name": "H100"}}}, "ran on 'A100-80GB'"),
        ({"backend": "vllm"}, ""),
    ],
)
def test_what_a_study_did_not_measure_is_not_taken_from_it(ran, changed, told):
    study = campaign_from({**NEXT, **changed})
    if told:
        with pytest.raises(InputError, match=told):
            plan_study(study, out="nowhere", write=False, calibration=ran)
        return
    plan = plan_study(study, out="nowhere", write=False, calibration=ran).plan
    assert plan.laws["vllm"] == law_of(plan.device, "vllm")
    assert any("vllm" in warning for warning in plan.warnings)


def test_a_study_without_a_completed_run_is_no_calibration(tmp_path):
    done = plan_study(campaign_from(STUDY), out=tmp_path / "empty")
    done.folder.results.mkdir(exist_ok=True)
    row = ServedRow(run_id=done.plan.runs[0].run_id, status="failed")
    write_served(done.folder, SimpleNamespace(served=[row], samples=[Served()]))

    with pytest.raises(InputError, match="no run of it was completed"):
        plan_study(campaign_from(NEXT), out="nowhere", write=False, calibration=done.folder.root)


def test_rounds_of_warmup_keep_to_what_was_asked(ran):
    asked = {**NEXT, "warmup": {"least": 2, "most": 3}}
    plan = plan_study(campaign_from(asked), out="nowhere", write=False, calibration=ran).plan

    run = plan.runs[0]
    law = plan.laws["transformers"]
    three = course_of(run.deployment, law=law, warmup=Warmup(least=3, most=3, window=2))
    assert course_of(run.deployment, law=law, warmup=run.warmup) == three
