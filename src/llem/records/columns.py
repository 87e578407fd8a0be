"""A table of a record column by column, which is how it is reduced.

A row of a table is 62 or 81 bytes without alignment; one pass over a column of such rows touches
every line of memory that the table has. So rows are read in slabs that stay in the processor's
cache, and parted there. Where the rows lie in the file as they are (no filter, every chunk
written), the slabs come straight from the file, which costs less than reading through HDF5 does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from llem.records.native import compiled, hdf5
from llem.records.native.rows import ColumnsPass, Pass

# Rows that are read at a time: half a megabyte, which stays in a processor's own cache.
SLAB_ROWS = 8192
# In C they need not be so many.
NATIVE_ROWS = 2048

Table = NDArray[Any]


class Columns:
    """Columns of one length, each contiguous; indexed by name, as a structured array is."""

    __slots__ = ("_columns", "_rows")

    def __init__(self, columns: Mapping[str, NDArray[Any]], rows: int) -> None:
        self._columns = columns
        self._rows = rows

    @classmethod
    def of(cls, table: Table | Columns) -> Columns:
        if isinstance(table, Columns):
            return table
        names = table.dtype.names or ()
        return cls({n: np.ascontiguousarray(table[n]) for n in names}, len(table))

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._columns[name]

    def __len__(self) -> int:
        return self._rows

    def take(self, rows: NDArray[Any] | slice) -> Columns:
        """Some of the rows, by a mask, by their numbers or by a slice."""
        taken = {name: column[rows] for name, column in self._columns.items()}
        return Columns(taken, len(next(iter(taken.values()))) if taken else 0)


def read_short(file: Any, name: str, dtype: np.dtype[Any]) -> Table | None:
    """A short table, in one call; None where it is none, or cannot be had in this way."""
    calls = hdf5.calls()
    return None if calls is None else calls.table(file, name, dtype, _type_of(dtype))


def read_table(file: Any, name: str, dtype: np.dtype[Any]) -> Table | None:
    """A whole table of an h5py file by HDF5's own calls, since h5py's take three times as long for
    a short one; None where its layout is another. Raises what h5py raises."""
    from h5py import h5s

    if (found := read_short(file, name, dtype)) is not None:
        return found
    table = _opened(file, name, dtype)
    if table is None:
        return None
    rows = np.empty(table.shape, dtype)
    if rows.size:
        table.read(h5s.ALL, h5s.ALL, rows, _type_of(dtype))
    return rows


class Rows(Protocol):
    """The rows of a table, which can be fed to a pass (see `native.rows`)."""

    def __len__(self) -> int: ...

    def feed(self, into: Pass) -> None:
        """All of them in order, unless the pass has enough before."""


@dataclass(frozen=True)
class TableRows:
    """Those of a table in memory, of its schema's layout."""

    table: Table

    def __len__(self) -> int:
        return len(self.table)

    def feed(self, into: Pass) -> None:
        native = compiled.library()
        if native is not None:
            native.feed(np.ascontiguousarray(self.table), into=into)


class FileRows:
    """Those of a table in an open h5py file. Methods raise what h5py raises, and EOFError where
    the file ends before the table does."""

    def __init__(
        self, file: Any, name: str, dtype: np.dtype[Any], rows: int, places: _Places | None
    ) -> None:
        self._file, self._name, self._dtype = file, name, dtype
        self._rows, self._places = rows, places

    def __len__(self) -> int:
        return int(self._rows)

    def feed(self, into: Pass) -> None:
        native = compiled.library()
        if native is None:
            return
        if self._places is not None:
            native.read(
                self._file.id.get_vfd_handle(), self._places.at, chunk_rows=self._places.rows,
                slab_rows=NATIVE_ROWS, into=into,
            )  # fmt: skip
            return
        for _, slab in self.slabs():
            if not native.feed(slab, into=into):
                return

    def slabs(self) -> Iterator[tuple[int, Table]]:
        """The rows in slabs, each with the place of its first, and gone when the next one is."""
        from h5py import h5s

        table = _opened(self._file, self._name, self._dtype)
        whole = np.empty(min(self._rows, SLAB_ROWS), self._dtype)
        for start in range(0, self._rows, SLAB_ROWS):
            slab = whole[: min(SLAB_ROWS, self._rows - start)]
            if self._places is None:
                space = table.get_space()
                space.select_hyperslab((start,), slab.shape)
                memory = h5s.create_simple(slab.shape)
                table.read(memory, space, slab, _type_of(self._dtype))
            else:
                _read_chunks(self._file.id.get_vfd_handle(), self._places, start, slab)
            yield start, slab


def file_rows(file: Any, name: str, dtype: np.dtype[Any]) -> FileRows | None:
    """The rows of a table of an h5py file; None where its layout is another."""
    calls = hdf5.calls()
    if calls is not None and _is_plain(file):
        found = calls.places(file, name, _type_of(dtype))
        if found is not None and not SLAB_ROWS % found[1]:
            rows, chunk, at = found
            return FileRows(file, name, dtype, rows, _Places(chunk, at))
    table = _opened(file, name, dtype)
    if table is None:
        return None
    [rows] = table.shape
    return FileRows(file, name, dtype, rows, _chunk_places(file, table, rows))


def read_columns(rows: FileRows, dtype: np.dtype[Any], wanted: Sequence[str]) -> Columns:
    """The `wanted` columns."""
    columns = {name: np.empty(len(rows), dtype[name]) for name in wanted}
    if compiled.library() is not None:
        rows.feed(ColumnsPass(len(rows), dtype, columns))
        return Columns(columns, len(rows))
    for start, slab in rows.slabs():
        for name, column in columns.items():
            column[start : start + len(slab)] = slab[name]
    return Columns(columns, len(rows))


def _opened(file: Any, name: str, dtype: np.dtype[Any]) -> Any:
    from h5py import h5d

    table = h5d.open(file.id, name.encode())
    alike = len(table.shape) == 1 and table.get_type().equal(_type_of(dtype))
    return table if alike else None


@cache
def _type_of(dtype: np.dtype[Any]) -> Any:
    from h5py import h5t

    return h5t.py_create(dtype, logical=True)


@dataclass(frozen=True)
class _Places:
    """Where the chunks of `rows` rows lie in the file."""

    rows: int
    at: NDArray[np.int64]


def _chunk_places(file: Any, table: Any, rows: int) -> _Places | None:
    """None where the bytes of chunks are not the rows' own."""
    from h5py import h5d

    plist = table.get_create_plist()
    if plist.get_layout() != h5d.CHUNKED or plist.get_nfilters():
        return None
    [chunk] = plist.get_chunk()
    # an HDF5 before 1.12.3 cannot tell where chunks are, all at once
    if not hasattr(table, "chunk_iter"):
        return None
    if SLAB_ROWS % chunk or not _is_plain(file):
        return None
    told: list[Any] = []
    table.chunk_iter(told.append)
    found = {info[0][0]: info[2] for info in told}
    try:
        at = [found[start] for start in range(0, rows, chunk)]
    except KeyError:
        return None  # one that was never written: HDF5 knows what it holds
    return _Places(chunk, np.array(at, dtype=np.int64))


def _is_plain(file: Any) -> bool:
    """Whether places in an open h5py file are those of its bytes."""
    from h5py import h5fd

    return bool(
        file.id.get_access_plist().get_driver() == h5fd.SEC2
        and not file.id.get_create_plist().get_userblock()
    )


def _read_chunks(descriptor: int, chunks: _Places, start: int, part: Table) -> None:
    """Fill `part` with rows from `start` on, neighbouring chunks together."""
    chunk, places = chunks.rows, chunks.at
    chunk_bytes = chunk * part.dtype.itemsize
    view = memoryview(part.view(np.uint8).data)
    first, end = start // chunk, -(-(start + len(part)) // chunk)
    while first < end:
        last = first
        while last + 1 < end and places[last + 1] == places[last] + chunk_bytes:
            last += 1
        at = first * chunk_bytes - start * part.dtype.itemsize
        wanted = view[at : at + (last + 1 - first) * chunk_bytes]
        offset = int(places[first])
        while len(wanted):
            count = os.preadv(descriptor, [wanted], offset)
            if not count:
                raise EOFError
            wanted, offset = wanted[count:], offset + count
        first = last + 1
