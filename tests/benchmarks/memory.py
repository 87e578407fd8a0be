"""Peak memory of real training ranks on this machine, beside what the planner predicts.

    python tests/benchmarks/memory.py [--quick] [--json FILE]

Every cell is a training by llem's own ranks (`llem.training.train`: plain torch and DDP for ZeRO
stage 0, DeepSpeed for 1 to 3) in processes of its own, over gloo, through its evaluation at the end.
Each rank trains twice from the start:

- *tensors*: the peak of bytes that torch's allocator had given out, from torch.profiler's memory
  events. This is what the model predicts and what must lie within 15 %.
- *resident*: VmHWM of the process over what it held before training, every import, the process
  group and a first product behind it. It also counts what is no tensor (gloo's buffers, the
  profile of DeepSpeed's modules, the heap's holes) and leaves out pages that nobody wrote to.

The worst rank of a cell counts. DeepSpeed must be installed; about 15 minutes on two cores.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llem.campaign import Decoder, Layout, Predicted, Recipe, Run, TokenData
from llem.campaign.tokenfile import token_file, write_tokens

STEPS = 3
WANTED = 0.15


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One training: the run, and the name of its shape."""

    shape: str
    run: Run


def decoder(layers: int, width: int, vocabulary: int, *, tied: bool = True) -> Decoder:
    return Decoder(
        layers=layers, width=width, heads=width // 64, mlp_width=-(-8 * width // 3 // 64) * 64,
        vocabulary=vocabulary, context=256, tied_embeddings=tied,
    )  # fmt: skip


SHAPES: dict[str, tuple[Decoder, int]] = {
    "4M": (decoder(4, 256, 4096), 8),
    "14M": (decoder(6, 384, 8192), 4),
    "34M": (decoder(8, 512, 8192, tied=False), 2),
    "60M": (decoder(10, 640, 16384), 2),
}


def make_run(
    model: Decoder,
    data: TokenData,
    *,
    ranks: int,
    zero_stage: int,
    micro_batch: int,
    grad_accum: int = 1,
    precision: str = "fp32",
    checkpointing: bool = False,
) -> Run:
    batch = ranks * micro_batch * grad_accum * model.context
    extra: dict[str, Any] = {"activation_checkpointing": True} if checkpointing else {}
    return Run(
        model=model,
        tokens=STEPS * batch,
        steps=STEPS,
        seed=0,
        recipe=Recipe(
            batch_tokens=batch, learning_rate=1e-3, warmup_steps=1, precision=precision
        ),
        data=data,
        layout=Layout(
            gpus_per_node=ranks, zero_stage=zero_stage, micro_batch=micro_batch,
            grad_accum=grad_accum, **extra,
        ),
        predicted=Predicted(duration_s=1.0, gpu_hours=1.0, energy_j=1.0, memory_bytes=1.0),
    )  # fmt: skip


def cells(data: TokenData, *, quick: bool) -> list[Cell]:
    """The grid of the issue, then one change at a time."""
    found = []
    names = list(SHAPES)[:2] if quick else list(SHAPES)
    for ranks, stage, name in itertools.product((1, 2, 4), (0, 1, 2, 3), names):
        model, micro = SHAPES[name]
        found.append(
            Cell(
                shape=name,
                run=make_run(model, data, ranks=ranks, zero_stage=stage, micro_batch=micro),
            )
        )
    model, micro = SHAPES["14M"]
    for ranks, stage in ((1, 0), (2, 0), (2, 1), (2, 2), (2, 3)):
        for change in (
            {"grad_accum": 2},
            {"precision": "bf16"},
            {"checkpointing": True, "micro_batch": 4 * micro},
            {"micro_batch": 4 * micro},
            {"micro_batch": 4 * micro, "precision": "bf16"},
        ):
            options: dict[str, Any] = {"micro_batch": micro, **change}
            if options.get("checkpointing") and "activation_checkpointing" not in FIELDS:
                continue
            found.append(
                Cell(
                    shape="14M",
                    run=make_run(model, data, ranks=ranks, zero_stage=stage, **options),
                )
            )
    return found


FIELDS = Layout.__dataclass_fields__


def measure(cell: Cell, folder: Path) -> list[dict[str, Any]]:
    """What each rank of the cell's run held at most, as its process wrote it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(json.dumps({"run": cell.run.to_dict(), "port": port}))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    started = []
    for rank in range(cell.run.layout.ranks):
        with open(folder / f"rank-{rank}.log", "w") as log:
            command = [sys.executable, __file__, "--rank", str(rank), "--folder", str(folder)]
            started.append(
                subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
            )
    try:
        for rank, process in enumerate(started):
            if process.wait(timeout=300):
                raise SystemExit((folder / f"rank-{rank}.log").read_text())
    finally:
        for process in started:
            process.kill()
            process.wait()
    return [json.loads((folder / f"out-{r}.json").read_text()) for r in range(len(started))]


def rank_main(folder: Path, rank: int) -> None:
    """One rank: the run once for the process's memory, and once for the allocator's."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from llem.training import start_world, train

    torch.set_num_threads(1)
    job = json.loads((folder / "job.json").read_text())
    run = Run.from_dict(job["run"])
    world = start_world(
        rank=rank, local_rank=rank, world_size=run.layout.ranks, master_port=job["port"],
        zero_stage=run.layout.zero_stage, precision=run.recipe.precision,
    )  # fmt: skip

    def once(name: str) -> None:
        train(
            run, attempt_dir=folder / name, checkpoints_dir=folder / f"{name}-checkpoints",
            world=world, meta={"attempt": 0},
        )  # fmt: skip

    if run.layout.zero_stage:
        import accelerate
        import deepspeed  # noqa: F401

        accelerate.PartialState()
    warm = torch.randn(256, 256, requires_grad=True)
    (warm @ warm).sum().backward()
    world.sum(torch.ones(1))
    del warm
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = status_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    once("resident")
    resident = status_bytes("VmHWM") - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as seen:
        once("tensors")
    events = seen.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), i, e.nbytes()) for i, e in enumerate(events)
                     if e.name() == "[memory]")  # fmt: skip
    held = np.cumsum([change for _, _, change in changes])
    out = {"resident": resident, "tensors": int(held.max()), "left": int(held[-1])}
    (folder / f"out-{rank}.json").write_text(json.dumps(out))
    world.barrier()
    world.close()
    os._exit(0)


def status_bytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the two smallest shapes")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--only", default="", help="e.g. '34M,2,1': shape, ranks, ZeRO stage")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.rank is not None:
        rank_main(given.folder, given.rank)
    from llem.planning.layout import memory_bytes

    rows = []
    print("| model | params | ranks | ZeRO | micro-batch | accum | precision | ckpt "
          "| predicted MB | tensors MB | off | resident MB | off | s |")  # fmt: skip
    print("|---" * 14 + "|")
    with tempfile.TemporaryDirectory() as scratch:
        rng = np.random.default_rng(0)
        path = Path(scratch) / "tokens.bin"
        write_tokens(path, [rng.integers(0, 256, 2**20, dtype=np.uint8).tobytes()])
        data = token_file(path, evaluation_tokens=32 * 256 + 1)
        for number, cell in enumerate(cells(data, quick=given.quick)):
            run, layout = cell.run, cell.run.layout
            place = f"{cell.shape},{layout.ranks},{layout.zero_stage}"
            if not place.startswith(given.only):
                continue
            began = time.monotonic()
            ranks = measure(cell, Path(scratch) / str(number))
            tensors = max(r["tensors"] for r in ranks)
            resident = max(r["resident"] for r in ranks)
            predicted = memory_bytes(run.model, run.recipe, layout)
            row = {
                "shape": cell.shape, "params": run.params, "ranks": layout.ranks,
                "zero_stage": layout.zero_stage, "micro_batch": layout.micro_batch,
                "grad_accum": layout.grad_accum, "precision": run.recipe.precision,
                "checkpointing": getattr(layout, "activation_checkpointing", False),
                "predicted": predicted, "tensors": tensors, "resident": resident,
            }  # fmt: skip
            rows.append(row)
            print(
                f"| {cell.shape} | {run.params / 1e6:.1f}M | {layout.ranks} | {layout.zero_stage} "
                f"| {layout.micro_batch} | {layout.grad_accum} | {run.recipe.precision} "
                f"| {'yes' if row['checkpointing'] else 'no'} "
                f"| {predicted / 1e6:.0f} | {tensors / 1e6:.0f} | {predicted / tensors - 1:+.1%} "
                f"| {resident / 1e6:.0f} | {predicted / resident - 1:+.1%} "
                f"| {time.monotonic() - began:.0f} |",
                flush=True,
            )
            if given.json:
                given.json.write_text(json.dumps(rows, indent=1))
    off = [abs(r["predicted"] / r["tensors"] - 1) for r in rows]
    print(f"\nworst {max(off):.1%} off of {len(off)} cells; wanted: at most {WANTED:.0%}")
    return int(max(off) > WANTED)


if __name__ == "__main__":
    sys.exit(main())
