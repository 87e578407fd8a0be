"""Measure one script: `with llem.energy.measure("run.h5"): ...`."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llem.energy.link import start_sampler
from llem.errors import UnavailableError


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What is being measured, and where the record is; read it with `llem.results`."""

    path: Path
    devices: tuple[Mapping[str, Any], ...]
    reasons: tuple[str, ...]


@contextlib.contextmanager
def measure(
    path: str | Path, *, interval_s: float = 0.1, meta: Mapping[str, Any] | None = None
) -> Iterator[Measurement]:
    """Sample this node's devices into a new record at `path` while the block runs.

    A process of its own does it, so the block is not slowed and cannot delay a sample. Raises
    UnavailableError where it cannot begin (the file is there already, for one). Where measuring
    ends early, the record says so; the block's own result is never lost to it.
    """
    with (
        tempfile.TemporaryDirectory(prefix="llem-") as folder,
        start_sampler(Path(folder) / "sampler.sock", interval_s=interval_s) as sampler,
        sampler.link() as link,
    ):
        answer = link.begin(path, meta or {})
        if not answer.ok:
            raise UnavailableError(f"energy is not measured: {answer.reason}")
        try:
            yield Measurement(path=Path(path), devices=answer.devices, reasons=answer.reasons)
        finally:
            link.end()
