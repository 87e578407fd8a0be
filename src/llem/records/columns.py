"""A table of a record column by column, which is how it is reduced.

A row of a table is 62 or 81 bytes without alignment; one pass over a column of such rows touches
every line of memory that the table has. So rows are read in slabs that stay in the processor's
cache, and parted there. Where the rows lie in the file as they are (no filter, every chunk
written), the slabs come straight from the file, which costs less than reading through HDF5 does.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Rows that are read at a time: 5 MB.
SLAB_ROWS = 65536

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


def read_columns(table: Any, dtype: np.dtype[Any], wanted: Sequence[str]) -> Columns | None:
    """The `wanted` columns of an h5py dataset; None where its layout is another.

    Raises what h5py raises, and EOFError where the file ends before the table does.
    """
    if table.dtype != dtype or len(table.shape) != 1:
        return None
    rows = len(table)
    columns = {name: np.empty(rows, dtype[name]) for name in wanted}
    slab = np.empty(min(rows, SLAB_ROWS), dtype)
    places = _chunk_places(table)
    for start in range(0, rows, SLAB_ROWS):
        part = slab[: min(SLAB_ROWS, rows - start)]
        if places is None:
            table.read_direct(part, np.s_[start : start + len(part)])
        else:
            _read_chunks(table, places, start, part)
        for name, column in columns.items():
            column[start : start + len(part)] = part[name]
    return Columns(columns, rows)


def _chunk_places(table: Any) -> list[int] | None:
    """Where each chunk lies in the file; None where its bytes are not the rows' own."""
    if not table.chunks or SLAB_ROWS % table.chunks[0]:
        return None
    plist = table.id.get_create_plist()
    file = table.file.id
    if plist.get_nfilters() or file.get_create_plist().get_userblock():
        return None
    if file.get_access_plist().get_driver() != _plain_driver():
        return None
    found: dict[int, int] = {}

    def place(info: Any) -> None:
        found[info.chunk_offset[0]] = info.byte_offset

    table.id.chunk_iter(place)
    starts = range(0, len(table), table.chunks[0])
    if len(found) < len(starts) or any(found.get(start) is None for start in starts):
        return None
    return [found[start] for start in starts]


def _plain_driver() -> int:
    from h5py import h5fd

    return int(h5fd.SEC2)


def _read_chunks(table: Any, places: Sequence[int], start: int, part: Table) -> None:
    """Fill `part` with rows from `start` on, neighbouring chunks together."""
    chunk = table.chunks[0]
    chunk_bytes = chunk * part.dtype.itemsize
    view = memoryview(part.view(np.uint8).data)
    descriptor = table.file.id.get_vfd_handle()
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
