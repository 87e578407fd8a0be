"""Reading records, those of killed writers too; nothing here ever writes to a file."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from llem.errors import LlemError
from llem.records.schema import BASELINE, SCHEMA, SPANS
from llem.records.unclosed import Unclosed, is_unclosed

os.environ.setdefault("HDF5_USE_FILE_LOCKING", "FALSE")

Table = NDArray[Any]

# How often, and for how long, a record is looked at again that was written to a moment ago.
LIVE_RETRIES, LIVE_PAUSE_S, LIVE_S = 3, 0.05, 30.0


class RecordError(LlemError):
    """A file is not a record that can be read; says which and why."""


Record = TypeVar("Record")


@dataclass(frozen=True)
class RankRecord:
    """What one rank wrote in one attempt; tables as structured arrays (see `schema`)."""

    path: Path
    meta: Mapping[str, Any]
    closed: bool
    steps: Table
    evals: Table
    spans: Table
    clock: Table
    events: Table


@dataclass(frozen=True)
class DeviceSeries:
    """The samples of one device, and what they are samples of."""

    uuid: str
    attrs: Mapping[str, Any]
    samples: Table


@dataclass(frozen=True)
class NodeRecord:
    """What the sampler of one node wrote in one attempt."""

    path: Path
    meta: Mapping[str, Any]
    closed: bool
    devices: tuple[DeviceSeries, ...]
    clock: Table
    events: Table
    baseline: Table


def read_rank(path: str | Path) -> RankRecord:
    """Read `rank-*.h5`. Raises RecordError naming the file and the cause."""
    return _patiently(_rank, Path(path))


def read_node(path: str | Path) -> NodeRecord:
    """Read `node-*.h5`. Raises RecordError naming the file and the cause."""
    return _patiently(_node, Path(path))


def _patiently(read: Callable[[Path], Record], path: Path) -> Record:
    """A writer that still runs may be in the middle of a block: look again a moment later."""
    for _ in range(LIVE_RETRIES):
        try:
            return read(path)
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


def _rank(path: Path) -> RankRecord:
    with _Opened(path, "rank") as file:
        return RankRecord(
            path=path,
            meta=file.meta,
            closed=file.closed,
            steps=file.table("steps"),
            evals=file.table("evals"),
            spans=file.later_table("spans", SPANS),
            clock=file.table("clock"),
            events=file.table("events"),
        )


def _node(path: Path) -> NodeRecord:
    with _Opened(path, "node") as file:
        return NodeRecord(
            path=path,
            meta=file.meta,
            closed=file.closed,
            devices=tuple(
                DeviceSeries(
                    uuid, file.attrs(f"devices/{uuid}"), file.table(f"devices/{uuid}/samples")
                )
                for uuid in file.children("devices")
            ),
            clock=file.table("clock"),
            events=file.table("events"),
            baseline=file.later_table("baseline", BASELINE),
        )


class _Opened:
    """An open record, also one whose writer was killed or still runs."""

    def __init__(self, path: str | Path, kind: str) -> None:
        self.path = Path(path)
        self.kind = kind

    def __enter__(self) -> _Opened:
        import h5py

        try:
            if is_unclosed(self.path):
                self._file = h5py.File(Unclosed(self.path), "r")
            else:
                self._file = h5py.File(self.path, "r", locking=False)
        except (OSError, RuntimeError, ValueError) as error:
            raise RecordError(f"{self.path}: not readable as HDF5: {_first_line(error)}") from None
        try:
            self.meta = self.attrs("meta")
        except (RecordError, KeyError, OSError, RuntimeError):
            self._file.close()
            raise RecordError(f"{self.path}: an HDF5 file, but no record of llem") from None
        if self.meta.get("schema") != SCHEMA or self.meta.get("kind") != self.kind:
            self._file.close()
            raise RecordError(
                f"{self.path}: holds {self.meta.get('schema')!r} {self.meta.get('kind')!r}, "
                f"expected {SCHEMA!r} {self.kind!r}"
            )
        self.closed = bool(self.meta.get("closed", 0))
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def attrs(self, name: str) -> dict[str, Any]:
        return {key: _plain(value) for key, value in self._file[name].attrs.items()}

    def children(self, name: str) -> list[str]:
        return sorted(self._file[name]) if name in self._file else []

    def table(self, name: str) -> Table:
        try:
            return np.asarray(self._file[name][()])
        except (OSError, RuntimeError, KeyError) as error:
            raise RecordError(f"{self.path}: table {name}: {_first_line(error)}") from None

    def later_table(self, name: str, dtype: np.dtype[Any]) -> Table:
        """A table that older records lack, or hold with fewer columns: those are then -1."""
        if name not in self._file:
            return np.empty(0, dtype)
        found = self.table(name)
        if found.dtype == dtype:
            return found
        whole = np.empty(len(found), dtype)
        for column in dtype.names or ():
            whole[column] = found[column] if column in (found.dtype.names or ()) else -1
        return whole


def _plain(value: Any) -> Any:
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
