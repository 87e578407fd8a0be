"""A table of a record column by column, which is how it is reduced.

A row of a table is 62 or 81 bytes without alignment; one pass over a column of such rows touches
every line of memory that the table has. So rows are read in slabs that stay in the processor's
cache, and parted there. Where the rows lie in the file as they are (no filter, every chunk
written), the slabs come straight from the file, which costs less than reading through HDF5 does.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llem.records.native import compiled

# Rows that are read at a time: half a megabyte, which stays in a processor's own cache.
SLAB_ROWS = 8192

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


def read_table(file: Any, name: str, dtype: np.dtype[Any]) -> Table | None:
    """A whole table of an h5py file by HDF5's own calls, since h5py's take three times as long for
    a short one; None where its layout is another. Raises what h5py raises."""
    from h5py import h5s

    table = _opened(file, name, dtype)
    if table is None:
        return None
    rows = np.empty(table.shape, dtype)
    if rows.size:
        table.read(h5s.ALL, h5s.ALL, rows, _type_of(dtype))
    return rows


def read_columns(
    file: Any, name: str, dtype: np.dtype[Any], wanted: Sequence[str]
) -> Columns | None:
    """The `wanted` columns of a table of an h5py file; None where its layout is another.

    Raises what h5py raises, and EOFError where the file ends before the table does.
    """
    from h5py import h5s

    table = _opened(file, name, dtype)
    if table is None:
        return None
    [rows] = table.shape
    columns = {name: np.empty(rows, dtype[name]) for name in wanted}
    places = _chunk_places(file.id, table, rows)
    native = compiled.library()
    if places is not None and native is not None:
        native.read_columns(
            file.id.get_vfd_handle(), places=places.at, chunk_rows=places.rows, rows=rows,
            dtype=dtype, slab_rows=SLAB_ROWS, columns=columns,
        )  # fmt: skip
        return Columns(columns, rows)
    slab = np.empty(min(rows, SLAB_ROWS), dtype)
    for start in range(0, rows, SLAB_ROWS):
        part = slab[: min(SLAB_ROWS, rows - start)]
        if places is None:
            space = table.get_space()
            space.select_hyperslab((start,), part.shape)
            table.read(h5s.create_simple(part.shape), space, part, _type_of(dtype))
        else:
            _read_chunks(file.id.get_vfd_handle(), places, start, part)
        for name, column in columns.items():
            column[start : start + len(part)] = part[name]
    return Columns(columns, rows)


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
    at: Sequence[int]


def _chunk_places(file: Any, table: Any, rows: int) -> _Places | None:
    """None where the bytes of chunks are not the rows' own."""
    from h5py import h5d, h5fd

    plist = table.get_create_plist()
    if plist.get_layout() != h5d.CHUNKED or plist.get_nfilters():
        return None
    [chunk] = plist.get_chunk()
    # an HDF5 before 1.12.3 cannot tell where chunks are, all at once
    if not hasattr(table, "chunk_iter"):
        return None
    if SLAB_ROWS % chunk or file.get_create_plist().get_userblock():
        return None
    if file.get_access_plist().get_driver() != h5fd.SEC2:
        return None
    told: list[Any] = []
    table.chunk_iter(told.append)
    found = {info[0][0]: info[2] for info in told}
    try:
        return _Places(chunk, [found[start] for start in range(0, rows, chunk)])
    except KeyError:
        return None  # one that was never written: HDF5 knows what it holds


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
        offset = places[first]
        while len(wanted):
            count = os.preadv(descriptor, [wanted], offset)
            if not count:
                raise EOFError
            wanted, offset = wanted[count:], offset + count
        first = last + 1
