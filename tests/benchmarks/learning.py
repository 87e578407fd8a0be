#!/usr/bin/env python3
"""Whether the reference family's losses follow a law, and how they stand beside other people's.

    python tests/benchmarks/learning.py --out L               # some 20 minutes on 2 idle cores
    python tests/benchmarks/learning.py --out L --quick       # 12 smaller cells, no peers
    python tests/benchmarks/learning.py --out L --minutes 5   # stop there; the same call goes on
    python tests/benchmarks/learning.py --out L --python ENV/bin/python   # litgpt is there

A campaign of 16 (N, D) cells with three seeds on the shipped text, planned and run by llem as a
user would (`--quick`: smaller). Then, of the mean loss of each cell's seeds:

  largest   the law is fitted without the cells of the largest budget, and predicts them
  each      each cell is left out in turn, and predicted by the law of all others

Wanted: a relative error of the loss below 1 % (root of the mean square). The seeds' own noise is
told beside it: no law can predict a mean better than the mean is known.

Peers: litgpt's GPT and transformers' Llama of the same parameters are trained by llem's loop on the
same tokens in the same order, with their own initialisation, first with llem's recipe and then with
hyperparameters of their own (litgpt's defaults; those that nanoGPT gives for a small model on a
CPU). Wanted: llem's loss is not above theirs by more than two standard errors of the seeds.

What is done is not done again. Exit status 1 where something was not met.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peers

from llem.campaign import Run
from llem.scaling import fit_law

WANTED = 0.01
CAMPAIGN = """\
name: learning
target: 1e14 FLOP
budget: {budget} FLOP
model: {{family: llama, vocabulary: 256, context: 128}}
data: {{builtin: python-sources, evaluation_tokens: 131072}}
seeds: {seeds}
grid: {{levels: {levels}, ratio: 2, sizes: {sizes}, span: 0.3}}
training: {{precision: fp32, rule: small, batch_tokens: 1024}}
site: laptop
"""
# One batch for all: rounded to powers of two, it would jump by two from cell to cell.
FULL = {"budget": "3e13", "seeds": 3, "levels": 4, "sizes": 4}
QUICK = {"budget": "4e12", "seeds": 1, "levels": 4, "sizes": 3}
# Hyperparameters of peers' own. litgpt: its TrainArgs and AdamW defaults, its warm-up of 2000 steps
# cut to a tenth of the run. nanoGPT: its README's small character-level model on a CPU.
OWN = {
    "litgpt": {"learning_rate": 4e-4, "schedule": "cosine", "beta2": 0.95, "weight_decay": 0.1},
    "transformers": {"learning_rate": 1e-3, "schedule": "cosine", "beta2": 0.99,
                     "weight_decay": 0.1},
}  # fmt: skip
WARMUP_STEPS = {"litgpt": 2000, "transformers": 100}


def run_campaign(out: Path, shape: dict[str, Any], deadline: float) -> bool:
    """Plan and run, or go on; whether all runs have ended. Interrupted where time is up."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / "campaign.yaml"
    file.write_text(CAMPAIGN.format(**shape))
    command = [sys.executable, "-m", "llem", "run", str(file), "--out", str(out / "c"), "--yes"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(out / "run.log", "a") as log:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        try:
            return process.wait(timeout=max(1.0, deadline - time.monotonic())) == 0
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            process.wait()
            return False


Cells = dict[tuple[float, float], list[float]]


def read_cells(out: Path) -> Cells:
    """Losses of each (N, D)'s seeds."""
    cells: Cells = defaultdict(list)
    with open(out / "c" / "results" / "observations.csv") as file:
        for row in csv.DictReader(file):
            if row["status"] == "completed":
                cells[float(row["params"]), float(row["tokens"])].append(float(row["loss"]))
    return dict(cells)


def predicted(known: Cells, asked: list[tuple[float, float]]) -> np.ndarray[Any, Any]:
    """What the law of the cells `known` says of others."""
    n, d, loss = np.array([(*cell, x) for cell, losses in known.items() for x in losses]).T
    return fit_law(n, d, loss, bootstrap=0).predict(*np.array(asked).T)


def flops(cells: Cells, out: Path) -> dict[tuple[float, float], float]:
    plan = json.loads((out / "c" / "plan.json").read_text())
    return {(float(r["params"]), float(r["tokens"])): float(r["flops"]) for r in plan["runs"]}


def judge(out: Path) -> bool:
    cells = read_cells(out)
    budget = flops(cells, out)
    means = {cell: float(np.mean(losses)) for cell, losses in cells.items()}
    most = max(budget[cell] for cell in cells)
    top = [cell for cell in cells if budget[cell] > most / 1.4]
    errors = {
        "largest": predicted({c: v for c, v in cells.items() if c not in top}, top)
        / np.array([means[c] for c in top]) - 1,
        "each": np.array([
            predicted({c: v for c, v in cells.items() if c != cell}, [cell])[0] / means[cell] - 1
            for cell in cells
        ]),
    }  # fmt: skip
    spreads = [np.var(np.log(v), ddof=1) for v in cells.values() if len(v) > 1]
    seeds = min(len(v) for v in cells.values())
    noise = math.sqrt(np.mean(spreads)) if spreads else math.nan
    print(f"{len(cells)} cells, {seeds} seeds each; loss {min(means.values()):.3f} to "
          f"{max(means.values()):.3f} nats per byte")  # fmt: skip
    print(f"seeds: a loss's standard deviation {noise:.2%}, a cell's mean {noise / seeds**0.5:.2%}")
    met = True
    for name, found in errors.items():
        rms = float(np.sqrt(np.mean(found**2)))
        ok = rms < WANTED
        met &= ok
        print(
            f"{name:>8}: {len(found):2d} cells, error {rms:.2%} rms, {np.abs(found).max():.2%} "
            f"worst, {found.mean():+.2%} mean   wanted < 1 %: {'met' if ok else 'NOT MET'}"
        )
        if noise == noise:
            rest = math.sqrt(max(0.0, rms**2 - noise**2 / seeds))
            print(f"{'':>10}without the noise of the predicted means: {rest:.2%}")
    return met


def peer_runs(out: Path) -> list[Run]:
    """The cells nearest to the optimum of the smallest and of the last budget but one."""
    plan = json.loads((out / "c" / "plan.json").read_text())
    runs = [Run.from_dict(values) for values in plan["runs"]]
    levels = sorted({run.level for run in runs})
    chosen = []
    for level in (levels[0], levels[-2]):
        here = [run for run in runs if run.level == level]
        nearest = min(here, key=lambda run: abs(math.log(run.tokens / run.params / 20)))
        chosen += [run for run in here if run.params == nearest.params]
    return [replace(r, data=replace(r.data, path=str(out / "c" / r.data.path))) for r in chosen]


def train_peer(run: Run, kind: str, folder: Path) -> float:
    """The held-out loss of a peer's model, trained by llem's loop."""
    import torch
    from torch import nn

    from llem.training import start_world, train
    from llem.training.task import TokenTask

    torch.set_num_threads(1)

    class Logits(nn.Module):  # type: ignore[misc]
        """transformers' models answer with more than logits."""

        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            found = self.model(tokens)
            return getattr(found, "logits", found)

    class PeerTask(TokenTask):
        def build(self) -> nn.Module:
            torch.manual_seed(run.seed)
            make = peers.litgpt_model if kind == "litgpt" else peers.transformers_model
            return Logits(make(run.model))

    with start_world() as world:
        outcome = train(
            run, attempt_dir=folder / "attempt-0", checkpoints_dir=folder / "checkpoints",
            world=world, meta={"attempt": 0}, task=PeerTask(run, world),
        )  # fmt: skip
    return outcome.loss


def compare(out: Path, args: argparse.Namespace, deadline: float) -> bool:
    cells = read_cells(out)
    found: dict[tuple[float, float], dict[str, list[float]]] = {}
    complete = True
    for run in peer_runs(out):
        cell = (float(run.params), float(run.tokens))
        by_name = found.setdefault(cell, {"llem": cells[cell]})
        for kind, own in ((k, own) for own in (False, True) for k in OWN):
            name = f"{kind}, own hyperparameters" if own else kind
            loss = peer_loss(out, run, kind, own, args, deadline)
            complete &= loss is not None
            if loss is not None:
                by_name.setdefault(name, []).append(loss)
    met = complete
    for (params, tokens), by_name in found.items():
        print(f"\n{params:,.0f} parameters on {tokens:,.0f} tokens")
        llem = by_name["llem"]
        for name, losses in by_name.items():
            error = np.std(losses, ddof=1) / len(losses) ** 0.5 if len(losses) > 1 else math.nan
            line = f"{name:>36} {np.mean(losses):.4f} +- {error:.4f}"
            if name != "llem":
                gap = np.mean(llem) / np.mean(losses) - 1
                both = np.var(llem, ddof=1) / len(llem) + np.var(losses, ddof=1) / len(losses)
                ok = gap <= 2 * math.sqrt(both) / np.mean(losses)
                met &= bool(ok)
                line += f"   llem {gap:+.2%}: {'not worse' if ok else 'WORSE'}"
            print(line)
    if not complete:
        print("time was up, or a package is absent: the same call goes on")
    return bool(met)


def peer_loss(
    out: Path, run: Run, kind: str, own: bool, args: argparse.Namespace, deadline: float
) -> float | None:
    """From the file of a former call, or of a training in a process of its own."""
    place = out / "peers" / f"{kind}-{'own' if own else 'llem'}-{run.run_id}"
    answer = place / "loss.json"
    if not answer.exists() and time.monotonic() < deadline:
        place.mkdir(parents=True, exist_ok=True)
        if own:
            warmup = min(WARMUP_STEPS[kind], run.steps // 10)
            run = replace(run, recipe=replace(run.recipe, warmup_steps=warmup, **OWN[kind]))
        (place / "run.json").write_text(json.dumps(run.to_dict()))
        for old in place.glob("attempt-0/*"):
            old.unlink()
        with open(place / "log", "w") as log:
            subprocess.run(
                [args.python, __file__, "--out", str(out), "--peer", kind, str(place)],
                stdout=log, stderr=log, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
    return float(json.loads(answer.read_text())) if answer.exists() else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="kept; the same call goes on there")
    parser.add_argument("--quick", action="store_true", help="smaller cells, one seed, no peers")
    parser.add_argument("--minutes", type=float, default=60.0, help="stop after so many")
    parser.add_argument("--python", default=sys.executable, help="has llem, litgpt, transformers")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--peer", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer:
        kind, place = args.peer[0], Path(args.peer[1])
        run = Run.from_dict(json.loads((place / "run.json").read_text()))
        (place / "loss.json").write_text(json.dumps(train_peer(run, kind, place)))
        return 0
    deadline = time.monotonic() + 60 * args.minutes
    print("load", *(f"{load:.1f}" for load in os.getloadavg()), "on", os.cpu_count(), "processors")
    began = time.monotonic()
    if not run_campaign(args.out, QUICK if args.quick else FULL, deadline):
        print(f"not every run has ended: see {args.out}/run.log; the same call goes on")
        return 1
    print(f"the campaign took {(time.monotonic() - began) / 60:.1f} minutes here")
    met = judge(args.out)
    if not (args.quick or args.no_peers):
        met &= compare(args.out, args, deadline)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
