"""Tiny runs on the sources of Python's standard library, and ranks in processes of their own."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from llem.campaign import Architecture, Decoder, Layout, Predicted, Recipe, Run, TokenData
from llem.campaign.data.tokenfile import token_file, write_tokens

CONTEXT = 32
BATCH_WINDOWS = 16
MODEL = Decoder(layers=2, width=16, heads=2, mlp_width=32, vocabulary=256, context=CONTEXT)
# Freed memory goes back to the kernel at once, so that what is resident is what is in use.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "131072"}
MakeRun = Callable[..., Run]


@pytest.fixture(scope="session", autouse=True)
def imported() -> None:
    """What a first step imports, left out of the collection that each training ends with."""
    if find_spec("torch") and find_spec("accelerate"):
        import accelerate  # noqa: F401
        import torch._dynamo  # noqa: F401

        gc.freeze()


@pytest.fixture(scope="session")
def token_data(tmp_path_factory: pytest.TempPathFactory) -> TokenData:
    """Some 400 kB of Python sources as bytes, 8,193 of them held out: 256 windows and one byte."""
    folder = Path(sysconfig.get_path("stdlib"))
    names = ("argparse", "inspect", "typing", "subprocess", "tarfile", "threading", "zipfile")
    files = [f for f in (folder / f"{name}.py" for name in names) if f.exists()]
    path = tmp_path_factory.mktemp("data") / "sources.bin"
    write_tokens(path, (file.read_bytes() for file in files))
    return token_file(path, evaluation_tokens=256 * CONTEXT + 1)


@pytest.fixture(scope="session")
def make_run(token_data: TokenData) -> MakeRun:
    """A run of the tiny model; keywords change the recipe, `layout` and the rest by name."""

    def make(
        *,
        ranks: int = 1,
        grad_accum: int = 1,
        steps: int = 30,
        model: Architecture = MODEL,
        data: TokenData = token_data,
        checkpoint_steps: int = 0,
        seed: int = 0,
        zero_stage: int = 0,
        sharding: str = "zero",
        **recipe: Any,
    ) -> Run:
        batch_tokens = BATCH_WINDOWS * CONTEXT
        chosen = Recipe(batch_tokens=batch_tokens, learning_rate=1e-2, warmup_steps=5)
        return Run(
            model=model,
            tokens=steps * batch_tokens,
            steps=steps,
            seed=seed,
            recipe=replace(chosen, **recipe),
            data=data,
            layout=Layout(
                gpus_per_node=ranks,
                zero_stage=zero_stage,
                sharding=sharding,
                micro_batch=BATCH_WINDOWS // (ranks * grad_accum),
                grad_accum=grad_accum,
            ),
            predicted=Predicted(duration_s=1.0, gpu_hours=1.0, energy_j=1.0, memory_bytes=1.0),
            checkpoint_steps=checkpoint_steps,
        )

    return make


@pytest.fixture(scope="session")
def make_heavy_run(make_run: MakeRun) -> MakeRun:
    """Two steps of a model whose tensors, not its libraries, take the memory: 4M parameters."""
    heavy = Decoder(layers=3, width=320, heads=5, mlp_width=864, vocabulary=1024, context=256)

    def make(*, ranks: int = 1, zero_stage: int = 0, checkpointing: bool = False) -> Run:
        run = make_run(ranks=ranks, zero_stage=zero_stage, model=heavy, steps=2)
        layout = replace(run.layout, micro_batch=4, activation_checkpointing=checkpointing)
        batch_tokens = 4 * ranks * heavy.context
        return replace(
            run,
            tokens=2 * batch_tokens,
            recipe=replace(run.recipe, batch_tokens=batch_tokens),
            layout=layout,
        )

    return make


Tasks = list[dict[str, Any]]
# By task name, the outcomes of all ranks in order.
Results = dict[str, list[dict[str, Any]]]


def write_job(
    tasks: Tasks, *, ranks: int, folder: Path, zero_stage: int = 0, precision: str = "fp32"
) -> Path:
    """What `ranks` processes are to execute, task after task (see worker.py)."""
    folder.mkdir(parents=True, exist_ok=True)
    job = {
        "world": {
            "world_size": ranks,
            "zero_stage": zero_stage,
            "precision": precision,
            "timeout_s": 60,
        },
        "tasks": tasks,
        "folder": str(folder),
    }
    path = folder / "job.json"
    path.write_text(json.dumps(job))
    return path


def start_worker(*jobs: Path) -> subprocess.Popen[bytes]:
    """Start what executes jobs one after the other; torch is imported once for all their ranks."""
    worker = Path(__file__).with_name("worker.py")
    source = Path(sys.modules["llem"].__file__ or "").parents[1]
    return subprocess.Popen(
        [sys.executable, str(worker), *map(str, jobs)],
        env={**os.environ, **ALLOCATOR, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(source)},
        start_new_session=True,
    )


def finish(worker: subprocess.Popen[bytes], *jobs: Path) -> list[Results]:
    """Each job's outcomes, by task."""
    try:
        status = worker.wait(timeout=300 * len(jobs))
    finally:
        with suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()
    logs = [path for job in jobs for path in sorted(job.parent.glob("rank-*.log"))]
    assert status == 0, "\n".join(f"{path}:\n{path.read_text()}" for path in logs)
    found: list[Results] = []
    for job in jobs:
        results: Results = {}
        for rank in range(json.loads(job.read_text())["world"]["world_size"]):
            for name, outcome in json.loads((job.parent / f"out-{rank}.json").read_text()).items():
                results.setdefault(name, []).append(outcome)
        found.append(results)
    return found


RunRanks = Callable[..., Results]


@pytest.fixture(scope="session")
def run_ranks() -> RunRanks:
    """Execute tasks on gloo ranks in processes of their own, and wait for their outcomes."""

    def run(tasks: Tasks, *, ranks: int, folder: Path, **world: Any) -> Results:
        job = write_job(tasks, ranks=ranks, folder=folder, **world)
        return finish(start_worker(job), job)[0]

    return run


@pytest.fixture(scope="session")
def run_worlds() -> Callable[[Mapping[int, tuple[Tasks, Path]]], dict[int, Results]]:
    """The same for several worlds one after the other: tasks and folder by number of ranks."""

    def run(worlds: Mapping[int, tuple[Tasks, Path]]) -> dict[int, Results]:
        jobs = [write_job(tasks, ranks=n, folder=at) for n, (tasks, at) in worlds.items()]
        return dict(zip(worlds, finish(start_worker(*jobs), *jobs), strict=True))

    return run


@pytest.fixture(scope="session")
def spawn_rank() -> Callable[[Tasks, Path], subprocess.Popen[bytes]]:
    """A process that is the one rank of its world."""
    return lambda tasks, folder: start_worker(write_job(tasks, ranks=1, folder=folder))


@pytest.fixture
def alone() -> Iterator[Any]:
    """A world of this process alone, on one thread so that sums have one order."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("accelerate")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    from llem.training import start_world

    with start_world() as world:
        yield world
    torch.set_num_threads(threads)


@pytest.fixture
def train_alone(alone: Any, tmp_path: Path) -> Callable[..., Any]:
    """`train` in this process; folders are named by attempt, checkpoints shared."""
    from llem.training import train

    def run(run: Run, attempt: str = "attempt-0", **options: Any) -> Any:
        meta: Mapping[str, Any] = {"attempt": 0}
        return train(
            run,
            attempt_dir=tmp_path / attempt,
            checkpoints_dir=tmp_path / "checkpoints",
            world=alone,
            meta=meta,
            **options,
        )

    return run
