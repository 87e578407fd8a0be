"""What llem's instrumentation of serving costs, against a bare loop of the same forward passes.

    OMP_NUM_THREADS=1 python tests/benchmarks/serving_overhead.py --pairs 400

A pair is the same batch served twice, in turns first: A by a bare greedy loop (pass, argmax, tokens
to the host, nothing else), B by llem's, with a record on disk, an energy counter that is read at
each pass, and what a job asks after each pass whether it has to leave. Compared are processor
seconds of this process, which other processes take no part of but make slower, by what they drive
out of the caches: the median of the pairs' ratios, with its 95 % interval (bootstrap over pairs).

Every other pair is timed otherwise, by the clock: from the end of one pass of the model to the
beginning of the next, and what a batch takes before its first and after its last. What llem adds
there is all that it adds, and a hundredth of the noise of whole passes.

`generate` of transformers itself is told beside it. Compares equal tokens, or fails. Wanted: below
1 %.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformers import DynamicCache, GenerationConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "serving"))

from deployments import serving

from llem.cluster.disk.folder import CampaignFolder
from llem.cluster.job.leaving import Leaving
from llem.energy.stamps import StepCounter
from llem.serving.generating.backend import TransformersBackend
from llem.serving.log import Log
from llem.serving.replica import Replica
from llem.serving.requests import make_requests
from llem.training.recording import Recording
from llem.training.world import start_world

# Of each: hidden size, layers, MLP, heads, rows, tokens in, tokens out.
SHAPES = {
    "tiny": (64, 2, 128, 4, 8, 16, 64),
    "small": (256, 4, 1024, 8, 8, 64, 64),
    "middle": (512, 8, 2048, 8, 8, 64, 32),
}
WANTED = 1.0


def costly() -> float:
    """As costly as the energy counter of a GPU (2 microseconds a call)."""
    until = time.perf_counter_ns() + 2000
    while time.perf_counter_ns() < until:
        pass
    return 1.0


class Watched:
    """A model that notes when its passes begin and end."""

    def __init__(self, model) -> None:
        self.config = model.config
        self.marks: list[int] = []
        self._model = model

    def __call__(self, **asked):
        self.marks.append(time.perf_counter_ns())
        found = self._model(**asked)
        self.marks.append(time.perf_counter_ns())
        return found


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
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    asked = parser.parse_args()
    with start_world() as world, tempfile.TemporaryDirectory() as folder:
        met = [compare(shape, asked.pairs, world, Path(folder)) for shape in asked.shapes]
    return 0 if all(met) else 1


def compare(shape: str, pairs: int, world, folder: Path) -> bool:
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
    leaving = Leaving(CampaignFolder(folder))
    leaving.looks = True
    # One of the whole window, as a run has it.
    # As a rank has it: it ends its readings where they take more than .2 % of the time.
    counter = StepCounter("GPU-0", read_mj=costly)
    log = Log(record, counter=counter, should_stop=leaving.why, told=lambda _: None)
    model, generator = backend.model, backend._generator
    watched = Watched(model)
    config = GenerationConfig(max_new_tokens=tokens_out, do_sample=False, pad_token_id=0)
    ids = torch.tensor([list(r.tokens) for r in requests])

    def served(model, which):
        if which == "A":
            return bare(model, requests)
        generator._forward = model
        return generator.generate(requests, log)

    def generate():
        found = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config
        )
        return found[:, tokens_in:].tolist()

    expected = bare(model, requests)
    assert served(model, "B") == expected == generate(), "the tokens differ"
    ratios, own, passes = [], [], []
    gaps: dict[str, list] = {"A": [], "B": []}
    ends: dict[str, list] = {"A": [], "B": []}
    for pair in range(pairs):
        spent = {}
        for which in "BA" if pair % 2 else "AB":
            spent[which], found = timed(lambda which=which: served(model, which))
            assert found == expected
        ratios.append(100 * (spent["B"] / spent["A"] - 1))
        passes.append(spent["A"] / tokens_out)
        if pair % 8 == 0:
            own.append(100 * (timed(generate)[0] / spent["A"] - 1))
            bare(model, requests)
        for which in "AB" if pair % 2 else "BA":
            watched.marks.clear()
            began = time.perf_counter_ns()
            served(watched, which)
            marks = np.diff([began, *watched.marks, time.perf_counter_ns()]) / 1e3
            gaps[which].append(marks[2:-2:2])
            ends[which].append(marks[0] + marks[-1])
    log.hand_over()
    record.close()
    [low, high] = interval(lambda pick: np.median(np.array(ratios)[pick]), pairs)

    def added(pick) -> float:
        """Microseconds a pass, the batch's ends spread over its passes."""
        between, outside = (
            np.median(np.array(x["B"])[pick]) - np.median(np.array(x["A"])[pick])
            for x in (gaps, ends)
        )
        return float(between * (tokens_out - 1) + outside) / tokens_out

    took_us = np.median(passes) * 1e6
    us, (us_low, us_high) = added(np.arange(pairs)), interval(added, pairs)
    share = 100 * us / took_us
    met = share < WANTED
    print(
        f"{shape}: pass of {took_us / 1e3:.2f} ms; llem, whole batches: {np.median(ratios):+.2f} % "
        f"[{low:+.2f} {high:+.2f}]; outside of the model: {us:+.1f} us a pass [{us_low:+.1f} "
        f"{us_high:+.1f}], {share:+.2f} % (wanted: below {WANTED:g}: {'met' if met else 'NOT met'})"
        f"; generate {np.median(own):+.1f} %  ({pairs} pairs; {counter.reason or 'counter read'})",
        flush=True,
    )
    return met


def interval(of, count: int, draws: int = 300) -> tuple[float, float]:
    rng = np.random.default_rng(0)
    found = [of(rng.integers(0, count, count)) for _ in range(draws)]
    return float(np.quantile(found, 0.025)), float(np.quantile(found, 0.975))


if __name__ == "__main__":
    sys.exit(main())
