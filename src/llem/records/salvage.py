"""What can be read of a table in a file that a lost node or a full disk has left incomplete.

HDF5 reads a chunk whole or not at all. Here the chunks are read one by one; those that cannot be
read are left out, and so are rows that never reached the disk. These are zeros: a file's pages are
written in any order, and where one is missing the file has a hole. No row of a record is all
zeros, since each has a time. The rows next to a hole may be torn and are left out with it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# What h5py raises where a part of a file cannot be read.
READ_ERRORS = (OSError, RuntimeError, ValueError, KeyError)


def salvage(table: Any, size: int | None) -> NDArray[Any]:
    """The rows of an h5py dataset that can be read, in their order, chunk by chunk.

    `size` is where the file really ends, None where it ends where it says.
    """
    rows = len(table)
    chunk = table.chunks[0] if table.chunks else max(rows, 1)
    parts = []
    for start in range(0, rows, chunk):
        try:
            part = np.asarray(table[start : min(start + chunk, rows)])
            if size is not None and table.chunks:
                part = part[: _rows_before(table, start, size)]
        except READ_ERRORS:
            continue
        parts.append(part)
    return np.concatenate(parts) if parts else np.zeros(0, table.dtype)


def without_holes(rows: NDArray[Any]) -> NDArray[Any]:
    """The rows that are neither a hole nor next to one."""
    if not len(rows):
        return rows
    hole = np.equal(rows.view(np.uint8).reshape(len(rows), -1).max(axis=1), 0)
    if not hole.any():
        return rows
    torn = hole.copy()
    torn[1:] |= hole[:-1]
    torn[:-1] |= hole[1:]
    kept: NDArray[Any] = rows[~torn]
    return kept


def _rows_before(table: Any, start: int, size: int) -> int:
    """How many rows of the chunk that begins with row `start` lie before the file's end."""
    info = table.id.get_chunk_info_by_coord((start,))
    if info.byte_offset is None:
        return 0
    return int(max(0, size - info.byte_offset) // table.dtype.itemsize)
