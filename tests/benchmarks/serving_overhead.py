"""What llem's instrumentation of serving costs, against a bare loop of the same forward passes.

    OMP_NUM_THREADS=1 python tests/benchmarks/serving_overhead.py --blocks 60

A block is the same batch served four times, in the order A B B A or B A A B by turns: A is a bare
greedy loop (pass, argmax, tokens to the host, nothing else), B is llem's, with a record on disk and
an energy counter that is read at each pass. Compared are processor seconds of this process, which
other processes take no part of; the ratio is of a block's sums, its uncertainty the standard error
over blocks.
`generate` of transformers itself is told beside it. Compares equal tokens, or fails.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import DynamicCache, GenerationConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "serving"))

from deployments import serving

from llem.serving.log import Log
from llem.serving.replica import Replica
from llem.serving.requests import make_requests
from llem.serving.transformers_backend import TransformersBackend
from llem.training.recording import Recording
from llem.training.world import start_world

# Of each: hidden size, layers, MLP, heads, rows, tokens in, tokens out.
SHAPES = {
    "tiny": (64, 2, 128, 4, 8, 16, 64),
    "small": (256, 4, 1024, 8, 8, 64, 64),
    "middle": (512, 8, 2048, 8, 8, 64, 32),
}


class Counter:
    """As costly as the energy counter of a GPU (2 microseconds a call)."""

    uuid, reason = "GPU-0", ""

    def read(self) -> float:
        until = time.perf_counter_ns() + 2000
        while time.perf_counter_ns() < until:
            pass
        return 1.0


@torch.no_grad()
def bare(model, requests) -> list[list[int]]:
    """The loop without anything but the passes."""
    ids = torch.tensor([list(r.tokens) for r in requests])
    cache, tokens = DynamicCache(config=model.config), []
    for _ in range(requests[0].output_tokens):
        found = model(input_ids=ids, cache=cache, use_cache=True, logits_to_keep=1)
        token = found.logits[:, -1].argmax(dim=-1)
        tokens.append(token.tolist())
        ids = token[:, None]
    return [list(row) for row in zip(*tokens, strict=True)]


def timed(work) -> tuple[float, object]:
    began = time.process_time()
    found = work()
    return time.process_time() - began, found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=40)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    asked = parser.parse_args()
    with start_world() as world, tempfile.TemporaryDirectory() as folder:
        for shape in asked.shapes:
            compare(shape, asked.blocks, world, Path(folder))
    return 0


def compare(shape: str, blocks: int, world, folder: Path) -> None:
    width, layers, mlp, heads, rows, tokens_in, tokens_out = SHAPES[shape]
    run = serving(
        config={"hidden_size": width, "num_hidden_layers": layers, "intermediate_size": mlp,
                "num_attention_heads": heads, "num_key_value_heads": heads, "vocab_size": 8192},
        options={"batch_size": rows},
        prompts={"count": rows, "input_tokens": tokens_in, "output_tokens": tokens_out},
    )  # fmt: skip
    backend = TransformersBackend(run, Replica(world, ranks=1))
    backend.load()
    requests = make_requests(run, backend.tokenizer)
    record = Recording(
        folder / f"{shape}.h5", meta={"run_id": run.run_id, "workload": "inference"}, rank=0
    )
    counter, model = Counter(), backend.model
    config = GenerationConfig(max_new_tokens=tokens_out, do_sample=False, pad_token_id=0)
    ids = torch.tensor([list(r.tokens) for r in requests])

    def instrumented():
        log = Log(record, counter=counter, should_stop=lambda: None, told=lambda _: None)
        return backend._generator.generate(requests, log)

    def generate():
        found = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config
        )
        return found[:, tokens_in:].tolist()

    expected = bare(model, requests)
    assert instrumented() == expected == generate(), "the tokens differ"
    ratios, own, step = [], [], []
    for block in range(blocks):
        spent = {"A": 0.0, "B": 0.0}
        for which in "BAAB" if block % 2 else "ABBA":
            took, found = timed(instrumented if which == "B" else lambda: bare(model, requests))
            spent[which] += took
            assert found == expected
        ratios.append(100 * (spent["B"] / spent["A"] - 1))
        step.append(spent["A"] / 2 / tokens_out)
        if block % 4 == 0:
            own.append(100 * (2 * timed(generate)[0] / spent["A"] - 1))
            bare(model, requests)
    record.close()

    def told(values):
        return (
            f"{statistics.mean(values):+.2f} +- {statistics.stdev(values) / len(values) ** 0.5:.2f}"
        )

    print(
        f"{shape}: pass of {statistics.mean(step) * 1e3:.2f} ms; llem {told(ratios)} %, "
        f"median {statistics.median(ratios):+.2f} %; generate {told(own)} %  ({blocks} blocks)",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
