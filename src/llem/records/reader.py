"""Reading records, those of killed writers, and of lost nodes as far as they go.

Nothing here ever writes to a file. What of a record cannot be read is said in its `problems`.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from llem.errors import LlemError
from llem.records.columns import (
    Columns,
    Rows,
    TableRows,
    file_rows,
    read_columns,
    read_short,
    read_table,
)
from llem.records.native import compiled, hdf5
from llem.records.salvage import READ_ERRORS, salvage, without_holes
from llem.records.schema import (
    BASELINE,
    CLOCK,
    ENGINE,
    EVALS,
    EVENTS,
    FORWARDS,
    REQUESTS,
    SAMPLES,
    SCHEMA,
    SPANS,
    STEPS,
    TOKENS,
)
from llem.records.unclosed import Unclosed, is_cut, is_unclosed

os.environ.setdefault("HDF5_USE_FILE_LOCKING", "FALSE")

Table = NDArray[Any]

# How often, and for how long, a record is looked at again that was written to a moment ago.
LIVE_RETRIES, LIVE_PAUSE_S, LIVE_S = 3, 0.05, 30.0


class RecordError(LlemError):
    """A file is not a record that can be read; says which and why."""


@dataclass(frozen=True)
class RankRecord:
    """What one rank wrote in one attempt; tables as structured arrays (see `schema`), `steps` or
    `forwards` as columns where these were asked for.

    `workload` says whose tables have rows: a training's `steps` and `evals`, or those of a served
    model, `requests`, `forwards`, `tokens` and `engine`; the others are empty. `problems` name the
    parts that cannot be read, and how many rows they had. `reduced` is
    what was asked for in place of the steps, which then have no columns.
    """

    path: Path
    meta: Mapping[str, Any]
    closed: bool
    steps: Table | Columns
    evals: Table
    spans: Table
    clock: Table
    events: Table
    problems: tuple[str, ...] = ()
    requests: Table = field(default_factory=lambda: np.empty(0, REQUESTS))
    forwards: Table | Columns = field(default_factory=lambda: np.empty(0, FORWARDS))
    tokens: Table = field(default_factory=lambda: np.empty(0, TOKENS))
    engine: Table = field(default_factory=lambda: np.empty(0, ENGINE))
    reduced: Any = None

    @property
    def workload(self) -> str:
        """training or inference"""
        return str(self.meta.get("workload", "training"))


@dataclass(frozen=True)
class DeviceSeries:
    """The samples of one device, and what they are samples of; as columns where asked for.
    `reduced` as of a RankRecord."""

    uuid: str
    attrs: Mapping[str, Any]
    samples: Table | Columns
    reduced: Any = None


@dataclass(frozen=True)
class NodeRecord:
    """What the sampler of one node wrote in one attempt; `problems` as of a RankRecord.

    `uuids` are all its devices, of which `devices` may be some.
    """

    path: Path
    meta: Mapping[str, Any]
    closed: bool
    devices: tuple[DeviceSeries, ...]
    uuids: tuple[str, ...]
    clock: Table
    events: Table
    baseline: Table
    problems: tuple[str, ...] = ()


Record = TypeVar("Record", RankRecord, NodeRecord)

# What takes the place of a table's rows, where they can be passed over: from the record's
# attributes, the device's (a rank's: none) and the rows; None where the columns are needed.
Reduce = Callable[[Mapping[str, Any], Mapping[str, Any], Rows], Any]


def read_rank(
    path: str | Path, *, columns: Sequence[str] | None = None, reduce: Reduce | None = None
) -> RankRecord:
    """Read `rank-*.h5`, its steps (of a served model: forwards) whole or these columns of them, or
    what `reduce` makes of a training's.

    Raises RecordError naming the file and the cause.
    """
    return _patiently(partial(_rank, columns=columns, reduce=reduce), Path(path))


def read_node(
    path: str | Path,
    *,
    columns: Sequence[str] | None = None,
    only: Collection[str] | None = None,
    reduce: Reduce | None = None,
) -> NodeRecord:
    """Read `node-*.h5`: the samples whole or these columns of them or what `reduce` makes of them,
    of all devices or of these.

    Raises RecordError naming the file and the cause.
    """
    return _patiently(partial(_node, columns=columns, only=only, reduce=reduce), Path(path))


@contextmanager
def opened(path: str | Path) -> Iterator[Any]:
    """The HDF5 file of a record of either kind, also of a killed writer. Raises RecordError."""
    with _Opened(Path(path), "") as record:
        yield record.file


def _patiently(read: Callable[[Path], Record], path: Path) -> Record:
    """A writer that still runs may be in the middle of a block: look again a moment later."""
    for _ in range(LIVE_RETRIES):
        try:
            record = read(path)
            if not record.problems or not _written_now(path):
                return record
        except RecordError:
            if not _written_now(path):
                raise
        time.sleep(LIVE_PAUSE_S)
    return read(path)


def _written_now(path: Path) -> bool:
    try:
        return is_unclosed(path) and time.time() - path.stat().st_mtime < LIVE_S
    except OSError:
        return False


def _rank(path: Path, *, columns: Sequence[str] | None, reduce: Reduce | None) -> RankRecord:
    with _Opened(path, "rank") as record:
        if record.meta.get("workload") == "inference":
            return RankRecord(
                path=path,
                meta=record.meta,
                closed=record.closed,
                steps=np.empty(0, STEPS),
                evals=np.empty(0, EVALS),
                requests=record.table("requests", REQUESTS),
                forwards=record.rows("forwards", FORWARDS, columns)[0],
                tokens=record.table("tokens", TOKENS),
                engine=record.later_table("engine", ENGINE),
                spans=record.table("spans", SPANS),
                clock=record.table("clock", CLOCK),
                events=record.table("events", EVENTS),
                problems=tuple(record.problems),
            )
        steps, reduced = record.rows("steps", STEPS, columns, reduce)
        return RankRecord(
            path=path,
            meta=record.meta,
            closed=record.closed,
            steps=steps,
            reduced=reduced,
            evals=record.table("evals", EVALS),
            spans=record.later_table("spans", SPANS),
            clock=record.table("clock", CLOCK),
            events=record.table("events", EVENTS),
            problems=tuple(record.problems),
        )


def _node(
    path: Path,
    *,
    columns: Sequence[str] | None,
    only: Collection[str] | None,
    reduce: Reduce | None,
) -> NodeRecord:
    with _Opened(path, "node") as record:
        uuids = tuple(record.children("devices"))
        devices = []
        for uuid in uuids:
            if only is None or uuid in only:
                attrs = record.attrs(f"devices/{uuid}")
                name = f"devices/{uuid}/samples"
                rows = record.rows(name, SAMPLES, columns, reduce, attrs)
                devices.append(DeviceSeries(uuid, attrs, *rows))
        return NodeRecord(
            path=path,
            meta=record.meta,
            closed=record.closed,
            devices=tuple(devices),
            uuids=uuids,
            clock=record.table("clock", CLOCK),
            events=record.table("events", EVENTS),
            baseline=record.later_table("baseline", BASELINE),
            problems=tuple(record.problems),
        )


class _Opened:
    """An open record of one kind ('': of any), also one whose writer was killed or still runs."""

    def __init__(self, path: Path, kind: str) -> None:
        self.path = path
        self.kind = kind
        self.problems: list[str] = []
        self._bytes: Unclosed | None = None

    def __enter__(self) -> _Opened:
        import h5py

        try:
            unclosed = is_unclosed(self.path)
            if unclosed or is_cut(self.path):
                if not unclosed:
                    size = self.path.stat().st_size
                    self.problems.append(f"{self.path}: cut off after {size} bytes")
                self._bytes = Unclosed(self.path)
                self.file = h5py.File(self._bytes, "r")
            else:
                self.file = h5py.File(self.path, "r", locking=False)
        except READ_ERRORS as error:
            raise RecordError(f"{self.path}: not readable as HDF5: {_first_line(error)}") from None
        try:
            self.meta = _attributes(self.file, "meta")
        except READ_ERRORS:
            self.file.close()
            raise RecordError(f"{self.path}: an HDF5 file, but no record of llem") from None
        found, expected = self.meta.get("kind"), self.kind or self.meta.get("kind")
        if self.meta.get("schema") != SCHEMA or found != expected:
            self.file.close()
            raise RecordError(
                f"{self.path}: holds {self.meta.get('schema')!r} {found!r}, "
                f"expected {SCHEMA!r} {expected!r}"
            )
        self.closed = bool(self.meta.get("closed", 0))
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def attrs(self, name: str) -> dict[str, Any]:
        try:
            return _attributes(self.file, name)
        except READ_ERRORS as error:
            self._problem(name, f"attributes not readable: {_first_line(error)}")
            return {}

    def children(self, name: str) -> list[str]:
        try:
            return sorted(self.file[name])
        except READ_ERRORS as error:
            self._problem(name, f"not readable: {_first_line(error)}")
            return []

    def rows(
        self,
        name: str,
        dtype: np.dtype[Any],
        columns: Sequence[str] | None,
        reduce: Reduce | None = None,
        attrs: Mapping[str, Any] | None = None,
    ) -> tuple[Table | Columns, Any]:
        """A table, or those of these columns that it has; or, where they can be reduced, no column
        and what `reduce` makes of them."""
        if columns is None:
            return self.table(name, dtype), None
        if compiled.library() is None:
            reduce = None
        columns = [column for column in columns if column in (dtype.names or ())]
        if self._bytes is None:
            try:
                rows = file_rows(self.file, name, dtype)
                if rows is not None:
                    reduced = reduce(self.meta, attrs or {}, rows) if reduce is not None else None
                    if reduced is not None:
                        return Columns({}, len(rows)), reduced
                    return read_columns(rows, dtype, columns), None
            except (*READ_ERRORS, EOFError):
                pass  # slower, and in the words of what is lost
        table = self.table(name, dtype)
        if lacking := [column for column in columns if column not in (table.dtype.names or ())]:
            self._problem(name, f"no column {', '.join(lacking)}: another version of llem wrote it")
            table = np.empty(0, dtype)
        if reduce is not None and table.dtype == dtype:
            reduced = reduce(self.meta, attrs or {}, TableRows(table))
            if reduced is not None:
                return Columns({}, len(table)), reduced
        return Columns.of(table), None

    def table(self, name: str, dtype: np.dtype[Any]) -> Table:
        """A table, or what can be read of it; what cannot is a problem."""
        if self._bytes is None:
            try:
                whole = read_table(self.file, name, dtype)
            except READ_ERRORS:
                whole = None  # slower, and in the words of what is lost
            if whole is not None:
                return whole
        try:
            found = self.file[name]
            total = len(found)
        except READ_ERRORS as error:
            self._problem(name, f"not readable: {_first_line(error)}")
            return np.zeros(0, dtype)
        cut = self._bytes
        try:
            rows = np.asarray(found[()])
            spoilt = cut is not None and cut.passed
        except READ_ERRORS:
            spoilt = True
        if spoilt:
            rows = salvage(found, None if cut is None else cut.size)
        if cut is not None:
            rows = without_holes(rows)
        if len(rows) < total:
            self._problem(name, f"{total - len(rows)} of {total} rows are lost")
        return rows

    def _problem(self, name: str, text: str) -> None:
        self.problems.append(f"{self.path}: table {name}: {text}")

    def later_table(self, name: str, dtype: np.dtype[Any]) -> Table:
        """A table that older records lack, or hold with fewer columns: those are then -1."""
        if self._bytes is None and (quick := read_short(self.file, name, dtype)) is not None:
            return quick
        if name not in self.file:
            return np.empty(0, dtype)
        found = self.table(name, dtype)
        if found.dtype == dtype:
            return found
        whole = np.empty(len(found), dtype)
        for column in dtype.names or ():
            whole[column] = found[column] if column in (found.dtype.names or ()) else -1
        return whole


def _attributes(file: Any, name: str) -> dict[str, Any]:
    """All attributes of a group; scalars by HDF5's own calls, since h5py's take twice as long."""
    from h5py import h5a, h5t

    if (calls := hdf5.calls()) is not None:
        try:
            told = calls.attributes(file, name, lambda key: file[name].attrs[key])
            return {key: plain(value) for key, value in told.items()}
        except KeyError:
            pass  # in h5py's words
    holder = file[name]
    found: dict[str, Any] = {}
    names: list[bytes] = []
    # opened by number, each would have HDF5 put all of them in order once more
    h5a.iterate(holder.id, lambda name, *_: names.append(name))
    for raw in names:
        attribute = h5a.open(holder.id, raw)
        name = raw.decode("utf-8", "surrogateescape")
        kind = attribute.get_type()
        text = kind.get_class() == h5t.STRING
        if attribute.shape != () or (text and kind.is_variable_str()):
            found[name] = plain(holder.attrs[name])
            continue
        value = np.empty((), f"S{kind.get_size()}" if text else kind.dtype)
        attribute.read(value, mtype=kind)
        found[name] = plain(value[()])
    return found


def plain(value: Any) -> Any:
    """An attribute as Python has it: numbers, text, and lists that were written as JSON."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, str) and value[:1] in "[{":
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
