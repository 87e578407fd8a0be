#!/usr/bin/env python3
"""The planner's time and memory of serving against transformers on one core of the CPU.

    python tests/benchmarks/serving_time.py               # all of it, some 15 minutes
    python tests/benchmarks/serving_time.py --minutes 3   # a random part of it

Each line is one configuration in a process of its own: processor seconds (so that a busy machine
tells the same as an idle one) of a prefill and of a decoding pass, the median of some, and the peak
of memory as a run records it; each with ln(predicted / measured). At the end the root mean square
of these, and of a fit of the law that has not seen the model's shape. Exit status 1 where the
planner's own error is more than its plans state.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import sys
import time
from inspect import signature
from itertools import product
from typing import Any

from llem.campaign import Deployment, Prompts
from llem.campaign.options import effective_options
from llem.campaign.study.served import model_from_config
from llem.planning.hardware import ACCELERATORS
from llem.planning.study.cost import decode_pass, memory_of_serving, prompt_pass
from llem.planning.study.law import CPU, Timed, fit_passes

# Width, layers, heads, heads of keys and values, inner width, vocabulary.
SHAPES = (
    (64, 2, 4, 2, 128, 256), (64, 12, 4, 4, 256, 1000), (128, 4, 4, 4, 512, 2000),
    (256, 8, 8, 4, 688, 4096), (384, 6, 6, 6, 1536, 32000), (512, 4, 8, 2, 1376, 8000),
    (512, 12, 8, 8, 1376, 16000), (768, 8, 12, 4, 2048, 32000), (1024, 6, 16, 8, 2816, 8000),
    (1024, 12, 16, 16, 2816, 16000),
)  # fmt: skip
PRECISIONS = {"fp32": "float32", "bf16": "bfloat16"}
# Sequences in a batch, and tokens of each prompt.
LOADS = ((1, 16), (1, 512), (4, 64), (8, 256), (32, 32), (32, 256), (64, 64), (2, 1500))
OUT = 8
# Work of a prefill that would take too long here.
MOST_FLOPS = 1.5e11
LEAST_S, MOST_ROUNDS = 0.5, 8


def make(shape: tuple[int, ...], precision: str, load: tuple[int, int]) -> Deployment:
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
             "intermediate_size", "vocab_size")  # fmt: skip
    config = {"model_type": "llama", **dict(zip(names, shape, strict=True)),
              "max_position_embeddings": 8192}  # fmt: skip
    asked = {"precision": precision, "batch_size": load[0]}
    prompts = Prompts(kind="synthetic", count=load[0], input_tokens=load[1], output_tokens=OUT)
    return Deployment(
        model=model_from_config("model", config), backend="transformers", options=asked,
        effective=effective_options("transformers", asked, config=config), prompts=prompts,
    )  # fmt: skip


def measure(served: Deployment) -> dict[str, Any]:
    """Processor seconds of a prefill and of a decoding pass, and the peak of memory in bytes."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

    from llem.training.memory import PeakMemory

    torch.set_num_threads(1)
    memory = PeakMemory(torch.device("cpu"))
    values = dict(served.model.config)
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model = model.to(getattr(torch, PRECISIONS[str(served.options["precision"])])).eval()
    rows, tokens = served.prompts.count, served.prompts.input_tokens or 1
    ids = torch.randint(0, served.model.vocabulary, (rows, tokens))
    # The cache has another name in transformers 5.24 and after.
    name = "cache" if "cache" in signature(model.forward).parameters else "past_key_values"
    prefill: list[float] = []
    decode: list[float] = []
    began, rounds = time.process_time(), 0
    with torch.no_grad():
        while rounds < 3 or (time.process_time() - began < LEAST_S and rounds < MOST_ROUNDS):
            cache, given = DynamicCache(config=config), ids
            for step in range(OUT):
                t0 = time.process_time()
                found = model(input_ids=given, use_cache=True, logits_to_keep=1, **{name: cache})
                given = found.logits[:, -1].argmax(-1)[:, None]
                given.tolist()
                # The first round warms up.
                if rounds:
                    (decode if step else prefill).append(time.process_time() - t0)
            rounds += 1
    middle = [sorted(times)[len(times) // 2] for times in (prefill, decode)]
    return {"prefill_s": middle[0], "decode_s": middle[1], "peak_bytes": memory.read().bytes}


def in_a_process(served: Deployment) -> dict[str, Any] | None:
    """`measure` in a process of its own, whose memory no other has used before."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writing, json.dumps(measure(served)).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        text = file.read()
    os.waitpid(pid, 0)
    return dict(json.loads(text)) if text else None


def rms(values: list[float]) -> float:
    return math.sqrt(sum(v * v for v in values) / len(values))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after so many")
    minutes = parser.parse_args().minutes
    os.environ["OMP_NUM_THREADS"] = "1"
    import transformers.models.llama.modeling_llama  # noqa: F401

    asked = list(product(SHAPES, PRECISIONS, LOADS))
    random.Random(1).shuffle(asked)
    timed: list[Timed] = []
    off: dict[str, list[float]] = {"prefill": [], "decode": [], "memory": []}
    end = time.monotonic() + 60 * minutes
    for shape, precision, load in asked:
        served = make(shape, precision, load)
        if served.model.flops(tokens=load[0] * load[1], context=load[1] / 2) > MOST_FLOPS:
            continue
        if time.monotonic() > end:
            break
        found = in_a_process(served)
        if found is None:
            print(f"{shape} {precision} {load}: failed", file=sys.stderr)
            continue
        told = []
        for name, work in (
            ("prefill", prompt_pass(served, *load)),
            ("decode", decode_pass(served, load[0], load[1] + OUT / 2)),
        ):
            seconds = found[f"{name}_s"]
            part = (work, precision, False)
            timed.append(Timed(parts=(part,), seconds=seconds, group=str(shape)))
            off[name].append(math.log(CPU.seconds(work, precision=precision) / seconds))
            told.append(f"{name} {1e3 * seconds:8.2f} ms ({off[name][-1]:+.2f})")
        peak = found["peak_bytes"]
        predicted = memory_of_serving(served, ACCELERATORS["cpu"]).of_run
        off["memory"].append(math.log(predicted / peak))
        told.append(f"peak {peak / 1e6:6.1f} MB ({off['memory'][-1]:+.2f})")
        print(f"{shape[0]:5d} x {shape[1]:2d} {precision} {load[0]:2d} x {load[1]:4d}:",
              ", ".join(told), flush=True)  # fmt: skip
    print({name: round(rms(values), 3) for name, values in off.items()})
    times = rms(off["prefill"] + off["decode"])
    print(f"times: {times:.3f}, stated {CPU.time_error}; fitted without the model's shape: "
          f"{fit_passes(timed, CPU).error:.3f}")  # fmt: skip
    print(f"memory: {rms(off['memory']):.3f}, stated {CPU.memory_error}")
    return int(times > CPU.time_error or rms(off["memory"]) > CPU.memory_error)


if __name__ == "__main__":
    sys.exit(main())
