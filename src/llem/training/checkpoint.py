"""Checkpoints that are whole or not there: a folder appears by one rename, its proof inside.

checkpoints/step-000000400/   what the engine wrote
                              complete.json {run_id, attempt, step, world_size, zero_stage, layout,
                                             files: {name: {bytes, crc32}}}
checkpoints/.step-*.tmp       one that was being written when its ranks were killed

The newest two are kept, so that there is one to go back to where the newest turns out to be torn.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llem.errors import Fault, InputError, LlemError
from llem.training.engines.engine import Engine
from llem.training.world import World

PROOF = "complete.json"
KEPT = 2
BLOCK_BYTES = 1 << 22

# What a full disk or a lost file system raises: torch's own writer tells it as RuntimeError.
WRITE_ERRORS = (OSError, RuntimeError)


class CheckpointError(LlemError):
    """A checkpoint could not be written; the ones before it are as they were."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A complete checkpoint: where it is, after how many steps, and by what it was written."""

    path: Path
    step: int
    world_size: int
    zero_stage: int
    layout: str
    loop: Mapping[str, Any]
    crc32: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Found:
    """The newest complete checkpoint, if any, and why each newer folder was passed over."""

    checkpoint: Checkpoint | None
    skipped: tuple[str, ...]


def find_checkpoint(
    folder: str | Path, *, run_id: str, torn: Mapping[str, str] | None = None
) -> Found:
    """Look for the newest complete checkpoint of `run_id` in `folder` (which need not exist).

    Sizes are compared, contents are not (see `verify`): `torn` maps names of those that were found
    to be spoilt to what is wrong with them.
    """
    folder = Path(folder)
    skipped = [f"{path.name}: it was never finished" for path in sorted(folder.glob(".step-*.tmp"))]
    for path in sorted(folder.glob("step-*"), reverse=True):
        if torn and path.name in torn:
            skipped.append(f"{path.name}: {torn[path.name]}")
            continue
        try:
            return Found(checkpoint=_read_proof(path, run_id), skipped=tuple(skipped))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            skipped.append(f"{path.name}: {_said(error)}")
    return Found(checkpoint=None, skipped=tuple(skipped))


def find_whole(folder: Path, *, world: World, run_id: str) -> Found:
    """The newest checkpoint whose files are what was written; called by all ranks."""
    torn: dict[str, str] = {}
    while True:
        found = world.first(lambda: find_checkpoint(folder, run_id=run_id, torn=torn))
        if found.checkpoint is None:
            return found
        fault = verify(found.checkpoint, world=world)
        if not fault:
            return found
        torn[found.checkpoint.path.name] = fault


def verify(checkpoint: Checkpoint, *, world: World) -> str:
    """What is wrong with the files' contents, '' if nothing; each rank reads a share of them."""
    fault = None
    for name in sorted(checkpoint.crc32)[world.rank :: world.world_size]:
        try:
            found = _crc32(checkpoint.path / name)
        except OSError as error:
            fault = f"{name} cannot be read: {error.strerror or error}"
        else:
            if found != checkpoint.crc32[name]:
                fault = f"{name} is not what was written (crc32 {found:08x})"
    return next((said for said in world.gather_text(fault) if said), "")


def _read_proof(path: Path, run_id: str) -> Checkpoint:
    proof = json.loads((path / PROOF).read_text())
    if proof["run_id"] != run_id:
        raise ValueError(f"it is of run {proof['run_id']}")
    for name, file in proof["files"].items():
        found = (path / name).stat().st_size
        if found != file["bytes"]:
            raise ValueError(f"{name} has {found} bytes of {file['bytes']}")
    return Checkpoint(
        path=path,
        step=proof["step"],
        world_size=proof["world_size"],
        zero_stage=proof["zero_stage"],
        layout=proof["layout"],
        loop=proof["loop"],
        crc32={name: file["crc32"] for name, file in proof["files"].items()},
    )


def _said(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{Path(error.filename).name} is missing"
    if isinstance(error, KeyError):
        return f"{PROOF} lacks {error}"
    return str(error)


def superseded(attempt: Path) -> bool:
    """Whether a later attempt at the same run has begun: this one must leave its files alone."""
    number = re.fullmatch(r"attempt-(\d+)", attempt.name)
    return number is not None and (attempt.parent / f"attempt-{int(number[1]) + 1}").exists()


def save_checkpoint(
    folder: Path,
    *,
    engine: Engine,
    world: World,
    run_id: str,
    attempt: Path,
    step: int,
    loop: Mapping[str, Any],
) -> Path:
    """Write a checkpoint after `step` steps and delete all but the newest two; by all ranks.

    `loop` is what the loop itself must remember, as JSON can hold it; `attempt` is the folder of
    the attempt that writes. Raises CheckpointError on every rank where it cannot be written (what
    was begun is removed) or a later attempt has begun.
    """
    final = folder / f"step-{step:09d}"
    # The attempt's name keeps two writers apart, should a node that was given up still live.
    temporary = folder / f".{final.name}.{attempt.name}.tmp"

    def begin() -> None:
        if superseded(attempt):
            raise CheckpointError(f"{final.name}: not written, a later attempt has begun")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()

    def publish() -> None:
        _sync_files(temporary)
        proof = {
            "run_id": run_id,
            "attempt": attempt.name,
            "step": step,
            "world_size": world.world_size,
            "zero_stage": world.zero_stage,
            "layout": engine.layout,
            "loop": dict(loop),
            "files": files,
        }
        with open(temporary / PROOF, "w") as file:
            json.dump(proof, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        _sync(temporary)
        if superseded(attempt):
            raise CheckpointError(f"{final.name}: not kept, a later attempt has begun")
        # Only a torn checkpoint of the same step can be in the way: a whole one would be resumed.
        shutil.rmtree(final, ignore_errors=True)
        os.rename(temporary, final)
        _sync(folder)
        _prune(folder)

    try:
        _on_main(world, begin)
        fault = None
        try:
            engine.save(temporary)
            if world.local_rank == 0 and not world.main:
                # What this node wrote is in its cache; rank 0 sees to its own below.
                _sync_files(temporary)
        except WRITE_ERRORS as error:
            fault = _first_line(error)
        _raise_first(world, fault)
        files = _digests(temporary, world)
        _on_main(world, publish)
    except CheckpointError:
        if world.main:
            shutil.rmtree(temporary, ignore_errors=True)
        world.barrier()
        raise
    return final


def _on_main(world: World, work: Callable[[], None]) -> None:
    """Do `work` on rank 0; where it fails, all ranks raise CheckpointError."""

    def guarded() -> None:
        try:
            work()
        except WRITE_ERRORS as error:
            raise CheckpointError(_first_line(error)) from error

    world.first(guarded)


def _raise_first(world: World, fault: str | None) -> None:
    for rank, said in enumerate(world.gather_text(fault)):
        if said is not None:
            raise CheckpointError(f"rank {rank}: {said}")


def _digests(folder: Path, world: World) -> dict[str, dict[str, int]]:
    """Bytes and CRC of every file; each rank reads a share of them."""
    names = world.first(lambda: [str(path.relative_to(folder)) for path in _files(folder)])
    own, fault = {}, None
    try:
        for name in names[world.rank :: world.world_size]:
            path = folder / name
            own[name] = {"bytes": path.stat().st_size, "crc32": _crc32(path)}
    except OSError as error:
        fault = _first_line(error)
    _raise_first(world, fault)
    shares = world.gather_text(json.dumps(own))
    return {name: values for share in shares for name, values in json.loads(share or "{}").items()}


def _crc32(path: Path) -> int:
    value = 0
    with open(path, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            value = zlib.crc32(block, value)
    return value


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


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


def delete_checkpoints(folder: Path) -> None:
    """Remove all checkpoints in `folder`, whole or torn."""
    for path in [*folder.glob("step-*"), *folder.glob(".step-*.tmp")]:
        shutil.rmtree(path, ignore_errors=True)


def delete_leftovers(folder: Path) -> None:
    """Remove what writers that were killed have left."""
    for path in folder.glob(".step-*.tmp"):
        shutil.rmtree(path, ignore_errors=True)


def _prune(folder: Path) -> None:
    """Remove all but the newest checkpoints that have their proof."""
    whole = sorted(path.parent for path in folder.glob(f"step-*/{PROOF}"))
    delete = set(folder.glob("step-*")) - set(whole[-KEPT:])
    for path in delete:
        shutil.rmtree(path, ignore_errors=True)
    delete_leftovers(folder)


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
