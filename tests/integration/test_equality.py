"""One run is one training, whoever computes it: ranks, engines and accumulation change nothing.

    LLEM_EQUALITY=all pytest -s tests/integration/test_equality.py

takes every combination, some minutes, and prints the table of docs/training.md; by default a few
of each kind are taken, with LLEM_EQUALITY=zero those of DeepSpeed alone, which tests/cluster has
the image run. Ranks are processes over gloo; all train in fp32 for 200 steps, those that are killed
and resumed for 100 by default.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import sysconfig
from collections import defaultdict
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llem.campaign import Decoder, Layout, Predicted, Recipe, Run
from llem.campaign.data.tokenfile import token_file, write_tokens
from llem.records import read_rank

pytestmark = [
    pytest.mark.train,
    pytest.mark.skipif(find_spec("torch") is None, reason="torch is not installed"),
    pytest.mark.skipif(find_spec("accelerate") is None, reason="accelerate is not installed"),
    # Of every combination the ranks take longer than any other test is given.
    *([pytest.mark.timeout(7200)] if os.environ.get("LLEM_EQUALITY") == "all" else []),
]

ASKED = os.environ.get("LLEM_EQUALITY", "")
WHOLE = ASKED == "all"
WORKER = Path(__file__).parents[1] / "unit" / "training" / "worker.py"
STEPS, BATCH_WINDOWS, CONTEXT = 200, 16, 32
CHECKPOINT_STEPS = 25
KILLED_STEPS = STEPS if WHOLE else 100
# At twice this rate the training is on the edge of stability: on some texts rounding then grows
# from 2e-7 to 2e-4 within the run, of mere accumulation too, and hides what is to be compared.
LEARNING_RATE = 5e-3
# Sums of another order round otherwise, and training makes more of it.
RELATIVE = 1e-4
ENGINES = ("plain", "zero-1", "zero-2", "zero-3", "fsdp2")


@dataclass(frozen=True, order=True)
class Way:
    """How a run is computed."""

    ranks: int
    engine: str
    accumulation: int = 1

    @property
    def zero_stage(self) -> int:
        return int(self.engine[-1]) if self.engine.startswith("zero") else 0

    def __str__(self) -> str:
        return f"{self.engine}, {self.ranks} ranks, accumulation {self.accumulation}"


ONE = Way(1, "plain")
if WHOLE:
    WAYS = [Way(r, e, a) for e in ENGINES for r in (1, 2, 4) for a in (1, 2, 4)
            if (r, e) != (1, "fsdp2")]  # fmt: skip
    KILLED = [Way(r, e) for e in ENGINES for r in (1, 2, 4) if (r, e) != (1, "fsdp2")]
else:
    WAYS = [ONE, Way(1, "plain", 4), Way(2, "plain", 2), Way(4, "plain"), Way(2, "fsdp2", 2)]
    WAYS += [Way(2, "zero-1"), Way(2, "zero-2", 2), Way(2, "zero-3")]
    KILLED = [Way(2, "plain"), Way(2, "fsdp2"), Way(2, "zero-3")]
if ASKED == "zero":
    WAYS = [way for way in WAYS if way.zero_stage]
    KILLED = [way for way in KILLED if way.zero_stage]
elif find_spec("deepspeed") is None:
    WAYS = [way for way in WAYS if not way.zero_stage]
    KILLED = [way for way in KILLED if not way.zero_stage]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A small decoder on some sources of Python's standard library, as bytes."""
    folder = Path(sysconfig.get_path("stdlib"))
    names = ("argparse", "inspect", "typing", "subprocess", "tarfile", "threading", "zipfile")
    path = tmp_path_factory.mktemp("data") / "sources.bin"
    write_tokens(path, ((folder / f"{name}.py").read_bytes() for name in names))
    batch_tokens = BATCH_WINDOWS * CONTEXT
    return Run(
        model=Decoder(
            layers=2, width=32, heads=2, mlp_width=88, vocabulary=256, context=CONTEXT
        ),
        tokens=STEPS * batch_tokens,
        steps=STEPS,
        seed=0,
        recipe=Recipe(batch_tokens=batch_tokens, learning_rate=LEARNING_RATE, warmup_steps=10),
        data=token_file(path, evaluation_tokens=256 * CONTEXT + 1),
        layout=Layout(),
        predicted=Predicted(duration_s=1.0, gpu_hours=1.0, energy_j=1.0, memory_bytes=1.0),
    )  # fmt: skip


def in_way(run: Run, way: Way) -> Run:
    return run.with_layout(
        Layout(
            gpus_per_node=way.ranks,
            zero_stage=way.zero_stage,
            sharding="fsdp2" if way.engine == "fsdp2" else "zero",
            micro_batch=BATCH_WINDOWS // (way.ranks * way.accumulation),
            grad_accum=way.accumulation,
        )
    )


def task(run: Run, name: str, folder: Path, **options: Any) -> dict[str, Any]:
    checkpoints = folder / options.pop("checkpoints", f"{name}-checkpoints")
    return {"name": name, "run": run.to_dict(), "attempt": str(folder / name),
            "checkpoints": str(checkpoints), **options}  # fmt: skip


def job(folder: Path, name: str, way: Way, tasks: list[dict[str, Any]], **more: Any) -> Path:
    here = folder / name
    here.mkdir(parents=True)
    world = {"world_size": way.ranks, "zero_stage": way.zero_stage, "precision": "fp32",
             "timeout_s": 60}  # fmt: skip
    path = here / "job.json"
    path.write_text(json.dumps({"world": world, "tasks": tasks, "folder": str(here), **more}))
    return path


def execute(jobs: list[Path]) -> None:
    source = Path(sys.modules["llem"].__file__ or "").parents[1]
    done = subprocess.run(
        [sys.executable, str(WORKER), *map(str, jobs)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(source)},
        capture_output=True, text=True, timeout=300 * len(jobs), check=False,
    )  # fmt: skip
    logs = [f"{path}:\n{path.read_text()}" for j in jobs for path in sorted(j.parent.glob("*.log"))]
    assert done.returncode == 0, "\n".join([done.stderr, *logs])


def outcome(path: Path, name: str) -> dict[str, Any]:
    return json.loads((path.parent / "out-0.json").read_text())[name]


def losses(attempt: Path) -> np.ndarray:
    """Training losses of (rank, step)."""
    return np.array([read_rank(p).steps["loss"] for p in sorted(attempt.glob("rank-*.h5"))])


@pytest.fixture(scope="module")
def curves(run: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[Way, tuple[Any, float]]:
    """Of each way the mean loss of all ranks at each step, and the loss on what is held out."""
    folder = tmp_path_factory.mktemp("ways")
    worlds: dict[tuple[int, int], list[Way]] = defaultdict(list)
    for way in sorted({ONE, *WAYS}):
        worlds[way.ranks, way.zero_stage].append(way)
    jobs = {
        world: job(folder, f"{world[0]}-{world[1]}", ways[0],
                   [task(in_way(run, way), str(way), folder) for way in ways])
        for world, ways in worlds.items()
    }  # fmt: skip
    execute(list(jobs.values()))
    return {
        way: (losses(folder / str(way)).mean(axis=0), outcome(jobs[world], str(way))["loss"])
        for world, ways in worlds.items()
        for way in ways
    }


def deviation(curves: dict[Way, tuple[Any, float]], way: Way) -> float:
    """The worst of all steps and of the evaluation, relative to one plain rank."""
    (curve, held_out), (one, one_held_out) = curves[way], curves[ONE]
    assert len(curve) == len(one) == STEPS
    return max(float(np.max(np.abs(curve - one) / one)), abs(held_out / one_held_out - 1))


def test_it_learns(curves: dict[Way, tuple[Any, float]]) -> None:
    curve, held_out = curves[ONE]
    assert curve[0] > 5 and curve[-10:].mean() < 3 and held_out < 3


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_the_loss_curve_is_that_of_one_rank(curves: dict[Way, tuple[Any, float]], way: Way) -> None:
    assert deviation(curves, way) < RELATIVE


@pytest.mark.skipif(not WHOLE, reason="LLEM_EQUALITY is not all")
def test_the_table_is_told(curves: dict[Way, tuple[Any, float]]) -> None:
    print("\n\n| engine | ranks | accumulation 1 | 2 | 4 |\n|---|---|---|---|---|")
    for engine in ENGINES:
        for ranks in (1, 2, 4):
            row = [Way(ranks, engine, a) for a in (1, 2, 4)]
            if row[0] in curves:
                cells = [f"{deviation(curves, way):.1e}" for way in row]
                print(f"| {engine} | {ranks} | {' | '.join(cells)} |")


@pytest.fixture(scope="module")
def interrupted(run: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[Way, Any]]:
    """Each way three times: from end to end, ended by a SIGKILL of a rank, and from there on."""
    folder = tmp_path_factory.mktemp("killed")
    draw = random.Random(os.environ.get("LLEM_SEED", 0))
    jobs, kills = [], {}
    for way in KILLED:
        tokens = KILLED_STEPS * BATCH_WINDOWS * CONTEXT
        run_in_way = replace(in_way(run, way), steps=KILLED_STEPS, tokens=tokens)
        kill = {"step": draw.randrange(CHECKPOINT_STEPS + 1, KILLED_STEPS),
                "rank": draw.randrange(way.ranks)}  # fmt: skip
        kills[way] = kill
        saving = replace(run_in_way, checkpoint_steps=CHECKPOINT_STEPS)
        shared = {"checkpoints": f"{way}-checkpoints"}
        jobs += [
            job(folder, f"{way}-whole", way, [task(run_in_way, f"{way}-whole", folder),
                                              task(run_in_way, f"{way}-twice", folder)]),
            job(folder, f"{way}-killed", way,
                [task(saving, f"{way}-killed", folder, kill=kill, **shared)], dies=True),
            job(folder, f"{way}-rest", way, [task(saving, f"{way}-rest", folder, **shared)]),
        ]  # fmt: skip
    execute(jobs)
    return folder, kills


@pytest.mark.parametrize("way", KILLED, ids=str)
def test_after_a_sigkill_it_resumes_to_the_same_bits(
    interrupted: tuple[Path, dict[Way, Any]], way: Way
) -> None:
    folder, kills = interrupted
    whole = outcome(folder / f"{way}-whole" / "job.json", f"{way}-whole")
    rest = outcome(folder / f"{way}-rest" / "job.json", f"{way}-rest")
    saved = (kills[way]["step"] - 1) // CHECKPOINT_STEPS * CHECKPOINT_STEPS
    assert not (folder / f"{way}-killed" / "out-0.json").exists()
    assert rest["start_step"] == saved
    after = losses(folder / f"{way}-whole")[:, saved:]
    assert np.array_equal(losses(folder / f"{way}-rest"), after)
    assert (rest["loss"], rest["loss_se"]) == (whole["loss"], whole["loss_se"])


@pytest.mark.parametrize("way", KILLED, ids=str)
def test_the_same_run_twice_is_the_same_to_the_bit(
    interrupted: tuple[Path, dict[Way, Any]], way: Way
) -> None:
    folder, _ = interrupted
    path = folder / f"{way}-whole" / "job.json"
    assert np.array_equal(losses(folder / f"{way}-twice"), losses(folder / f"{way}-whole"))
    assert outcome(path, f"{way}-twice")["loss"] == outcome(path, f"{way}-whole")["loss"]
