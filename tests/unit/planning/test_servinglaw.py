"""Time of forward passes: against public measurements, and fitted to times that were planted."""

import json
import math
import random
from dataclasses import asdict, replace

import pytest

from llem.campaign import Deployment, Prompts
from llem.campaign.options import effective_options
from llem.campaign.study.served import model_from_config
from llem.planning.hardware import ACCELERATORS
from llem.planning.study.cost import decode_pass, memory_of_serving, precision_of, prompt_pass
from llem.planning.study.law import (
    CPU,
    GPU_TIME_ERROR,
    Passes,
    ServingLaw,
    Timed,
    fit_passes,
    law_of,
)


def llama(width, layers, heads, kv_heads, inner, vocabulary):
    return {
        "model_type": "llama",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": inner,
        "vocab_size": vocabulary,
        "max_position_embeddings": 8192,
    }


LLAMA_2_7B = llama(4096, 32, 32, 32, 11008, 32000)
LLAMA_2_70B = llama(8192, 80, 64, 8, 28672, 32000)
LLAMA_3_8B = llama(4096, 32, 32, 8, 14336, 128256)
# Seconds of a decoding pass at batch 1 in bf16 or fp16, as published: model, GPU, ranks, with CUDA
# graphs or not.
PUBLISHED = [
    # pytorch.org/blog/accelerating-generative-ai-2: 25.5 tokens/s before anything is compiled
    (LLAMA_2_7B, "A100-80GB", 1, False, 1 / 25.5),
    # gpt-fast, table of AWQ quantisation, its base: 105.14 tokens/s
    (LLAMA_2_7B, "A100-80GB", 1, True, 1 / 105.14),
    # pytorch.org/blog/pytorch-compile-to-speed-up-inference: 29 ms with tensor parallelism
    (LLAMA_2_70B, "A100-80GB", 8, True, 29e-3),
    # cloudai.pt/tag/cuda-graphs: 8.4 ms kernel by kernel, 5.1 ms as a graph, on an H100 SXM5
    (LLAMA_3_8B, "H100", 1, False, 8.4e-3),
    (LLAMA_3_8B, "H100", 1, True, 5.1e-3),
]


def deployment(config, *, precision="bf16", batch=1, before=32, after=32, **options):
    asked = {"precision": precision, "batch_size": batch, **options}
    return Deployment(
        model=model_from_config("model", config),
        backend="transformers",
        options=asked,
        effective=effective_options("transformers", asked, config=config),
        prompts=Prompts(kind="synthetic", count=batch, input_tokens=before, output_tokens=after),
    )


def test_public_measurements_lie_about_the_prior_as_far_as_its_error_says():
    off = []
    for config, gpu, ranks, graphs, seconds in PUBLISHED:
        law = law_of(ACCELERATORS[gpu], "transformers")
        work = decode_pass(deployment(config, tensor_parallel=ranks), 1, 100)
        off.append(math.log(law.seconds(work, precision="bf16", graphs=graphs) / seconds))

    rms = math.sqrt(sum(x**2 for x in off) / len(off))
    assert rms == pytest.approx(GPU_TIME_ERROR, abs=0.1), off


# Processor seconds of a pass of transformers 5.24, torch 2.13 on one core of an AMD EPYC (family
# 1Ah), measured by tests/benchmarks/serving_time.py: shape, precision, batch, prompt, prefill and
# decode; six of 78 configurations.
MEASURED = [
    (llama(512, 4, 8, 2, 1376, 8000), "fp32", 8, 256, 0.5822, 0.0122),
    (llama(512, 12, 8, 8, 1376, 16000), "fp32", 1, 512, 0.5523, 0.0199),
    (llama(256, 8, 8, 4, 688, 4096), "fp32", 32, 32, 0.1607, 0.0119),
    (llama(384, 6, 6, 6, 1536, 32000), "bf16", 4, 64, 0.0358, 0.0103),
    (llama(1024, 6, 16, 8, 2816, 8000), "bf16", 1, 512, 0.2907, 0.0201),
    (llama(64, 2, 4, 2, 128, 256), "bf16", 4, 64, 0.0024, 0.0012),
]


@pytest.mark.parametrize("row", MEASURED, ids=lambda row: f"{row[0]['hidden_size']}-{row[1]}")
def test_passes_measured_on_a_core_lie_within_two_errors(row):
    config, precision, batch, before, prefill_s, decode_s = row
    served = deployment(config, precision=precision, batch=batch, before=before, after=8)

    for work, seconds in (
        (prompt_pass(served, batch, before), prefill_s),
        (decode_pass(served, batch, before + 4), decode_s),
    ):
        found = CPU.seconds(work, precision=precision)
        assert abs(math.log(found / seconds)) < 2 * CPU.time_error


@pytest.mark.parametrize(
    ("precision", "batch", "before", "peak"),
    [("fp32", 32, 64, 221.4e6), ("fp32", 4, 600, 228.5e6), ("bf16", 8, 300, 141.8e6)],
)
def test_peaks_measured_on_the_cpu_lie_within_two_errors(precision, batch, before, peak):
    """Of `peak_memory_bytes` of runs of a study of llem's own."""
    config = llama(384, 4, 6, 2, 1024, 32000)
    served = deployment(config, precision=precision, batch=batch, before=before, after=8)

    found = memory_of_serving(served, ACCELERATORS["cpu"]).of_run
    assert abs(math.log(found / peak)) < 2 * CPU.memory_error


WORK = Passes(passes=1, layers=8, weights=1e8, cache=2e7, flops=1e9, attention=1e8, activations=1e5)


def test_a_cpu_adds_what_a_gpu_does_at_the_same_time():
    host, traffic, products = CPU.parts_s(WORK, precision="fp32")
    assert CPU.seconds(WORK, precision="fp32") == pytest.approx(host + traffic + products)
    overlapped = replace(CPU, overlap=True)
    assert overlapped.seconds(WORK, precision="fp32") == max(host, traffic + products)


def planted(*, host, traffic, work, noise=0.0, late=0):
    """Times of deployments on a CPU whose terms differ; `late` of them took eight times as long."""
    truth = replace(
        CPU,
        forward_s=CPU.forward_s * host,
        layer_s=CPU.layer_s * host,
        bandwidth=CPU.bandwidth / traffic,
        cache_bandwidth=CPU.cache_bandwidth / traffic,
        activation_bandwidth=CPU.activation_bandwidth / traffic,
        rates={name: rate / work for name, rate in CPU.rates.items()},
        attention_rate=CPU.attention_rate / work,
    )
    dice, found = random.Random(3), []
    shapes = [llama(64, 8, 4, 2, 128, 256), llama(1024, 4, 8, 8, 4096, 8000)]
    for config in shapes:
        for batch in (1, 4, 16, 64):
            served = deployment(config, precision="fp32", batch=batch, before=64)
            for pass_ in (prompt_pass(served, batch, 64), decode_pass(served, batch, 96)):
                part = (pass_, precision_of(served), False)
                seconds = truth.seconds(pass_, precision="fp32") * math.exp(dice.gauss(0, noise))
                found.append(Timed(parts=(part,), seconds=seconds, group=served.deployment_id))
    for i in range(late):
        item = found[5 * i + 1]
        found[5 * i + 1] = replace(item, seconds=8 * item.seconds)
    return found, truth


@pytest.mark.parametrize("late", [0, 2])
def test_a_fit_finds_what_was_planted_though_some_runs_were_held_up(late):
    timed, truth = planted(host=2.0, traffic=1.5, work=0.6, noise=0.02, late=late)

    law = fit_passes(timed, CPU).law
    for item in timed:
        ((work, precision, _),) = item.parts
        expected = truth.seconds(work, precision=precision)
        assert law.seconds(work, precision=precision) == pytest.approx(expected, rel=0.06)


def test_the_error_of_a_fit_is_that_of_deployments_it_has_not_seen():
    still, noisy, held = (
        fit_passes(planted(host=2, traffic=1.5, work=0.6, noise=noise, late=late)[0], CPU).error
        for noise, late in ((0.0, 0), (0.1, 0), (0.1, 2))
    )
    assert still < 0.06 < noisy < 0.2 < held


def test_one_deployment_leaves_the_prior_its_doubt():
    timed, _ = planted(host=2, traffic=2, work=2)
    alone = [item for item in timed if item.group == timed[0].group]

    found = fit_passes(alone, CPU)
    assert (found.error, found.groups) == (0.5 * CPU.time_error, 1)
    with pytest.raises(ValueError, match="no pass"):
        fit_passes([], CPU)


def test_a_law_is_read_back_from_json():
    law = law_of(ACCELERATORS["H100"], "vllm")
    assert ServingLaw(**json.loads(json.dumps(asdict(law)))) == law
