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
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llem.errors import LlemError
from llem.records.host import host_meta
from llem.records.schema import (
    BASELINE,
    CHUNK_ROWS,
    CLOCK,
    EVENTS,
    LONG_TABLES,
    RANK_TABLES,
    SAMPLES,
    SCHEMA,
    SHORT_CHUNK_ROWS,
)

# Locks are not to be had on many parallel file systems, and one process writes each file anyway.
os.environ.setdefault("HDF5_USE_FILE_LOCKING", "FALSE")

# The format that single-writer mode needs, and none newer: every HDF5 since 1.10 can read it.
LIBRARY_VERSIONS = ("v110", "v110")

Row = tuple[Any, ...]
# The monotonic and the wall clock of one moment, ns.
Clock = Callable[[], tuple[int, int]]

# What h5py raises where a write fails: OSError for a write, RuntimeError where HDF5 finds its own
# state spoilt by one before, ValueError for a file that it has given up.
HDF5_ERRORS = (OSError, RuntimeError, ValueError)


def machine_clock() -> tuple[int, int]:
    """This host's monotonic and wall clock, of one moment; ns."""
    before = time.monotonic_ns()
    wall = time.time_ns()
    return (before + time.monotonic_ns()) // 2, wall


class RecordWriteError(LlemError):
    """A record cannot be written any more: a full disk, a quota, a file system that went away.

    What was flushed before stays readable. Every later append to that record raises this again;
    closing it does not.
    """


class RecordWriter:
    """One HDF5 file of raw measurements: named tables that rows are appended to.

    Rows stay in memory until `flush_s` have passed since the last flush or `flush` is called;
    after `flush` returns they survive SIGKILL. Safe to call from several threads of one process.
    `clock` is what the record is tied to: this host's, but for one that was never measured.
    Raises FileExistsError where the file is there, RecordWriteError where it cannot be made or
    written.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        meta: Mapping[str, Any],
        tables: Mapping[str, np.dtype[Any]],
        table_attrs: Mapping[str, Mapping[str, Any]] | None = None,
        flush_s: float = 2.0,
        clock: Clock = machine_clock,
    ) -> None:
        import h5py

        self.path = Path(path)
        self._flush_s = flush_s
        self._clock = clock
        self._lock = threading.Lock()
        self._last_flush = time.monotonic()
        self._failed = ""
        # mode "x": a record is never overwritten, not even by an attempt that got its number wrong
        try:
            self._file = h5py.File(self.path, "x", libver=LIBRARY_VERSIONS, locking=False)
        except FileExistsError:
            raise FileExistsError(f"{self.path} exists") from None
        except HDF5_ERRORS as error:
            raise RecordWriteError(f"{self.path}: cannot be made: {cause_of(error)}") from None
        self._fd: int = self._file.id.get_vfd_handle()
        self._tables: dict[str, _Table] = {}
        every = {"clock": CLOCK, "events": EVENTS, **tables}
        self._buffers: dict[str, list[Row]] = {name: [] for name in every}
        # Rows that came together, before those of the buffer.
        self._blocks: dict[str, list[NDArray[Any]]] = {name: [] for name in every}
        with self._lock, self._guarded():
            group = self._file.create_group("meta")
            for key, value in {"schema": SCHEMA, "closed": 0, **host_meta(), **meta}.items():
                set_attribute(group, key, value)
            for name, dtype in every.items():
                self._create(name, dtype, (table_attrs or {}).get(name, {}))
            self._file.swmr_mode = True
        self.stamp_clock()
        self.flush()

    def _create(self, name: str, dtype: np.dtype[Any], attrs: Mapping[str, Any]) -> None:
        rows = CHUNK_ROWS if name.endswith(LONG_TABLES) else SHORT_CHUNK_ROWS
        dataset = self._file.create_dataset(
            name, shape=(0,), maxshape=(None,), chunks=(rows,), dtype=dtype
        )
        holder = dataset.parent if name.endswith("/samples") else dataset
        for key, value in attrs.items():
            set_attribute(holder, key, value)
        self._tables[name] = _Table(dataset)

    def append(self, table: str, row: Row) -> None:
        """Add one row; flushes when the last flush is `flush_s` ago."""
        with self._lock:
            self._check()
            self._buffers[table].append(row)
            if time.monotonic() - self._last_flush >= self._flush_s:
                self._flush()

    def append_rows(self, table: str, rows: NDArray[Any]) -> None:
        """The same for several rows, as an array of the table's own dtype: what comes a thousand
        times a second is gathered first."""
        with self._lock:
            self._check()
            self._block(table)
            self._blocks[table].append(rows)
            if time.monotonic() - self._last_flush >= self._flush_s:
                self._flush()

    def extend(self, table: str, rows: NDArray[Any]) -> None:
        """Write many rows at once, as an array of the table's own dtype, and flush."""
        with self._lock:
            self._check()
            with self._guarded():
                self._write()
                if len(rows):
                    self._tables[table].append(rows)

    def event(self, code: str, text: str = "", *, t_ns: int | None = None) -> None:
        """Record that something happened now, or at `t_ns`; flushed at once: a crash may follow."""
        row = (
            self._clock()[0] if t_ns is None else t_ns,
            code.encode()[:32],
            text.encode("utf-8", "replace")[:256],
        )
        with self._lock:
            self._check()
            self._buffers["events"].append(row)
            self._flush()

    def stamp_clock(self, *, peer_offset_ns: float = np.nan, rtt_ns: float = np.nan) -> None:
        """Tie this host's monotonic clock to its wall clock (and to a peer's, where measured)."""
        mono, wall = self._clock()
        self.append("clock", (mono, wall, peer_offset_ns, rtt_ns))

    def flush(self) -> None:
        """Write all buffered rows; when it returns they survive a kill of this process."""
        with self._lock:
            self._check()
            self._flush()

    def _flush(self) -> None:
        with self._guarded():
            self._write()

    def _block(self, table: str) -> None:
        if rows := self._buffers[table]:
            self._blocks[table].append(np.array(rows, dtype=self._tables[table].dtype))
            rows.clear()

    def _write(self) -> None:
        for name, blocks in self._blocks.items():
            self._block(name)
            if blocks:
                self._tables[name].append(blocks[0] if len(blocks) == 1 else np.concatenate(blocks))
                blocks.clear()
        self._last_flush = time.monotonic()

    def close(self) -> None:
        """Flush, mark the file as closed in good order, and close it. Safe to call twice."""
        with self._lock:
            if self._failed or not self._file:
                return
            with self._guarded():
                self._write()
                self._file["meta"].attrs.modify("closed", 1)
                # all that can fail, before the point from which HDF5 cannot go back
                self._file.flush()
                self._file.close()

    def leave(self) -> None:
        """Let go of the file as a killed process does: what was flushed is there, never closed."""
        with self._lock:
            if not self._failed and self._file:
                self._failed = f"{self.path}: was left unclosed"
                self._abandon()

    def _check(self) -> None:
        if self._failed:
            raise RecordWriteError(self._failed)

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except HDF5_ERRORS as error:
            self._failed = f"{self.path}: writing failed: {cause_of(error)}"
            self._abandon()
            raise RecordWriteError(self._failed) from None

    def _abandon(self) -> None:
        """Let go of a file that cannot be written, without marking it as closed.

        HDF5 keeps what it could not write, tries again when the file is closed, and brings the
        process down (segmentation fault at exit, 2.0.0) where that fails too. So its descriptor
        is led into memory first, where all that is left can be written and is forgotten.
        """
        self._buffers = {name: [] for name in self._buffers}
        self._blocks = {name: [] for name in self._blocks}
        with contextlib.suppress(*HDF5_ERRORS):
            sink = os.memfd_create("llem-abandoned-record")
            os.dup2(sink, self._fd)
            os.close(sink)
        with contextlib.suppress(*HDF5_ERRORS):
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


class _Table:
    """A table that rows are appended to, by HDF5's own calls: h5py's take half as long again."""

    def __init__(self, dataset: Any) -> None:
        from h5py import h5s

        self._id = dataset.id
        self.dtype = dataset.dtype
        self._space_of = h5s.create_simple
        self._rows = 0

    def append(self, rows: NDArray[Any]) -> None:
        """Append and flush."""
        values = np.ascontiguousarray(rows, dtype=self.dtype)
        end = self._rows + len(values)
        self._id.set_extent((end,))
        place = self._space_of((end,))
        place.select_hyperslab((self._rows,), (len(values),))
        self._id.write(self._space_of((len(values),)), place, values)
        self._id.flush()
        self._rows = end


def rank_writer(
    path: str | Path,
    *,
    meta: Mapping[str, Any],
    flush_s: float = 2.0,
    clock: Clock = machine_clock,
) -> RecordWriter:
    """The record of one rank in one attempt, with the tables of `meta`'s `workload` (see
    `schema.RANK_TABLES`): of a training, where it names none."""
    return RecordWriter(
        path, meta={**meta, "kind": "rank"},
        tables=RANK_TABLES[meta.get("workload", "training")], flush_s=flush_s, clock=clock,
    )  # fmt: skip


def node_writer(
    path: str | Path,
    *,
    meta: Mapping[str, Any],
    devices: Mapping[str, Mapping[str, Any]],
    flush_s: float = 2.0,
    clock: Clock = machine_clock,
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
        clock=clock,
    )


def samples_table(uuid: str) -> str:
    """The name of a device's table."""
    return f"devices/{uuid}/samples"


def cause_of(error: Exception) -> str:
    """The system's own words in HDF5's report of several lines, or that report's first line."""
    text = str(error)
    _, found, rest = text.partition("error message = '")
    return rest.partition("'")[0] if found else (text.splitlines() or [type(error).__name__])[0]


def set_attribute(holder: Any, key: str, value: Any) -> None:
    """Set an attribute; text with a length of its own.

    Texts of any length would lie in HDF5's global heap, which has no checksum: where a byte of it
    is spoilt, HDF5 2.0.0 reads on for ever.
    """
    import h5py

    value = _attribute(value)
    if isinstance(value, str):
        data = value.encode("utf-8", "surrogateescape")
        dtype = h5py.string_dtype("utf-8", max(1, len(data)))
        holder.attrs.create(key, np.array(data, dtype=dtype), dtype=dtype)
    else:
        holder.attrs[key] = value


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
