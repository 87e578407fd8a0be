"""Checkpoints that are whole or not there: a folder appears by one rename, its proof inside.

checkpoints/step-000000400/   what the engine wrote
                              complete.json {run_id, step, world_size, zero_stage, layout, files}
checkpoints/.step-*.tmp       one that was being written when its ranks were killed
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llem.errors import Fault, InputError
from llem.training.engine import Engine
from llem.training.world import World

PROOF = "complete.json"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A complete checkpoint: where it is, after how many steps, and by what it was written."""

    path: Path
    step: int
    world_size: int
    zero_stage: int
    layout: str
    loop: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Found:
    """The newest complete checkpoint, if any, and why each newer folder was passed over."""

    checkpoint: Checkpoint | None
    skipped: tuple[str, ...]


def find_checkpoint(folder: str | Path, *, run_id: str) -> Found:
    """Look for the newest complete checkpoint of `run_id` in `folder` (which need not exist)."""
    folder = Path(folder)
    skipped = [f"{path.name}: it was never finished" for path in sorted(folder.glob(".step-*.tmp"))]
    for path in sorted(folder.glob("step-*"), reverse=True):
        try:
            return Found(checkpoint=_read_proof(path, run_id), skipped=tuple(skipped))
        except (OSError, ValueError, KeyError, TypeError) as error:
            skipped.append(f"{path.name}: {_said(error)}")
    return Found(checkpoint=None, skipped=tuple(skipped))


def _read_proof(path: Path, run_id: str) -> Checkpoint:
    proof = json.loads((path / PROOF).read_text())
    if proof["run_id"] != run_id:
        raise ValueError(f"it is of run {proof['run_id']}")
    for name, size in proof["files"].items():
        found = (path / name).stat().st_size
        if found != size:
            raise ValueError(f"{name} has {found} bytes of {size}")
    return Checkpoint(
        path=path,
        step=proof["step"],
        world_size=proof["world_size"],
        zero_stage=proof["zero_stage"],
        layout=proof["layout"],
        loop=proof["loop"],
    )


def _said(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{Path(error.filename).name} is missing"
    if isinstance(error, KeyError):
        return f"{PROOF} lacks {error}"
    return str(error)


def save_checkpoint(
    folder: Path, *, engine: Engine, world: World, run_id: str, step: int, loop: Mapping[str, Any]
) -> Path:
    """Write a checkpoint after `step` steps and delete older ones; called by all ranks.

    `loop` is what the loop itself must remember, as JSON can hold it.
    """
    final = folder / f"step-{step:09d}"
    temporary = folder / f".{final.name}.tmp"
    if world.main:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
    world.barrier()
    engine.save(temporary)
    if world.local_rank == 0 and not world.main:
        # The shards that this node wrote are in its cache; rank 0 sees to its own below.
        _sync_files(temporary)
    world.barrier()
    if world.main:
        _sync_files(temporary)
        proof = {
            "run_id": run_id,
            "step": step,
            "world_size": world.world_size,
            "zero_stage": world.zero_stage,
            "layout": engine.layout,
            "loop": dict(loop),
            "files": {
                str(path.relative_to(temporary)): path.stat().st_size for path in _files(temporary)
            },
        }
        with open(temporary / PROOF, "w") as file:
            json.dump(proof, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        _sync(temporary)
        # Only a torn checkpoint of the same step can be in the way: a whole one would be resumed.
        shutil.rmtree(final, ignore_errors=True)
        os.rename(temporary, final)
        _sync(folder)
        delete_checkpoints(folder, keep=final)
    world.barrier()
    return final


def load_checkpoint(checkpoint: Checkpoint, *, engine: Engine, world: World) -> None:
    """Restore `engine`; called by all ranks. Raises InputError where the layouts do not fit."""
    here = (engine.layout, world.zero_stage, world.world_size)
    there = (checkpoint.layout, checkpoint.zero_stage, checkpoint.world_size)
    fits = here[:2] == there[:2] if engine.portable else here == there
    if not fits:
        raise InputError(
            str(checkpoint.path),
            [
                Fault(
                    "layout",
                    "written by {2} ranks with {0}, ZeRO stage {1}; ".format(*there)
                    + "here are {2} ranks with {0}, ZeRO stage {1}".format(*here),
                    "resume with the same layout, or delete the checkpoint to start again",
                )
            ],
        )
    engine.load(checkpoint.path)


def delete_checkpoints(folder: Path, *, keep: Path | None = None) -> None:
    """Remove all checkpoints in `folder`, whole or torn, but `keep`."""
    for path in [*folder.glob("step-*"), *folder.glob(".step-*.tmp")]:
        if path != keep:
            shutil.rmtree(path, ignore_errors=True)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _sync_files(folder: Path) -> None:
    for path in _files(folder):
        _sync(path)
    for path in folder.rglob("*"):
        if path.is_dir():
            _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
