"""Writing records so that `kill -9` at any moment loses at most the unflushed buffer.

Every object is created before the file enters HDF5's single-writer mode; from then on rows are
only appended and flushed, without compression (which would bloat small appends 600-fold).
A file is never opened again for writing: the next attempt has files of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from llem.records.schema import (
    BASELINE,
    CHUNK_ROWS,
    CLOCK,
    EVALS,
    EVENTS,
    SAMPLES,
    SCHEMA,
    STEPS,
)

# Locks are not to be had on many parallel file systems, and one process writes each file anyway.
os.environ.setdefault("HDF5_USE_FILE_LOCKING", "FALSE")

Row = tuple[Any, ...]


class RecordWriter:
    """One HDF5 file of raw measurements: named tables that rows are appended to.

    Rows stay in memory until `flush_s` have passed since the last flush or `flush` is called;
    after `flush` returns they survive SIGKILL. Safe to call from several threads of one process.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        meta: Mapping[str, Any],
        tables: Mapping[str, np.dtype[Any]],
        table_attrs: Mapping[str, Mapping[str, Any]] | None = None,
        flush_s: float = 2.0,
    ) -> None:
        import h5py

        self.path = Path(path)
        self._flush_s = flush_s
        self._lock = threading.Lock()
        self._last_flush = time.monotonic()
        # mode "x": a record is never overwritten, not even by an attempt that got its number wrong
        self._file = h5py.File(self.path, "x", libver="latest", locking=False)
        group = self._file.create_group("meta")
        for key, value in {"schema": SCHEMA, "closed": 0, **meta}.items():
            group.attrs[key] = _attribute(value)
        self._tables: dict[str, Any] = {}
        every = {"clock": CLOCK, "events": EVENTS, **tables}
        for name, dtype in every.items():
            dataset = self._file.create_dataset(
                name, shape=(0,), maxshape=(None,), chunks=(CHUNK_ROWS,), dtype=dtype
            )
            attrs = (table_attrs or {}).get(name, {})
            holder = dataset.parent if name.endswith("/samples") else dataset
            for key, value in attrs.items():
                holder.attrs[key] = _attribute(value)
            self._tables[name] = dataset
        self._buffers: dict[str, list[Row]] = {name: [] for name in every}
        self._file.swmr_mode = True
        self.stamp_clock()
        self.flush()

    def append(self, table: str, row: Row) -> None:
        """Add one row; flushes when the last flush is `flush_s` ago."""
        with self._lock:
            self._buffers[table].append(row)
            if time.monotonic() - self._last_flush >= self._flush_s:
                self._flush()

    def event(self, code: str, text: str = "") -> None:
        """Record that something happened now; flushed at once, since a crash may follow."""
        row = (time.monotonic_ns(), code.encode()[:32], text.encode("utf-8", "replace")[:256])
        with self._lock:
            self._buffers["events"].append(row)
            self._flush()

    def stamp_clock(self, *, peer_offset_ns: float = np.nan, rtt_ns: float = np.nan) -> None:
        """Tie this host's monotonic clock to its wall clock (and to a peer's, where measured)."""
        before = time.monotonic_ns()
        wall = time.time_ns()
        mono = (before + time.monotonic_ns()) // 2
        self.append("clock", (mono, wall, peer_offset_ns, rtt_ns))

    def flush(self) -> None:
        """Write all buffered rows; when it returns they survive a kill of this process."""
        with self._lock:
            self._flush()

    def _flush(self) -> None:
        for name, rows in self._buffers.items():
            if not rows:
                continue
            dataset = self._tables[name]
            start = dataset.shape[0]
            dataset.resize((start + len(rows),))
            dataset[start:] = np.array(rows, dtype=dataset.dtype)
            dataset.flush()
            rows.clear()
        self._last_flush = time.monotonic()

    def close(self) -> None:
        """Flush, mark the file as closed in good order, and close it. Safe to call twice."""
        with self._lock:
            if not self._file:
                return
            self._flush()
            self._file["meta"].attrs.modify("closed", 1)
            self._file.close()

    def abandon(self) -> None:
        """Let go of a file that cannot be written any more, without marking it as closed.

        What was flushed stays readable. Never raises: HDF5 itself may refuse to close such a file.
        """
        with self._lock:
            for rows in self._buffers.values():
                rows.clear()
            with contextlib.suppress(OSError, RuntimeError, ValueError):
                self._file.close()

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def rank_writer(path: str | Path, *, meta: Mapping[str, Any], flush_s: float = 2.0) -> RecordWriter:
    """The record of one rank in one attempt: tables `steps` and `evals`."""
    return RecordWriter(
        path, meta={**meta, "kind": "rank"}, tables={"steps": STEPS, "evals": EVALS},
        flush_s=flush_s,
    )  # fmt: skip


def node_writer(
    path: str | Path,
    *,
    meta: Mapping[str, Any],
    devices: Mapping[str, Mapping[str, Any]],
    flush_s: float = 2.0,
) -> RecordWriter:
    """The record of one node in one attempt: table `devices/<uuid>/samples` for each device.

    `devices` maps each UUID to its attributes: `domain` (gpu, module, package, dram, node),
    `contains` (names of domains inside it), `counter` (is energy_mj a hardware counter),
    `source` (nvml, rapl, model, ...), `quality` (counter, integral, model), `name`.
    """
    return RecordWriter(
        path,
        meta={**meta, "kind": "node"},
        tables={**{samples_table(u): SAMPLES for u in devices}, "baseline": BASELINE},
        table_attrs={samples_table(u): attrs for u, attrs in devices.items()},
        flush_s=flush_s,
    )


def samples_table(uuid: str) -> str:
    """The name of a device's table."""
    return f"devices/{uuid}/samples"


def _attribute(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, (str, bool, int, float, np.generic)):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Sequence) and all(isinstance(v, str) for v in value):
        return json.dumps(list(value))
    return json.dumps(value)
