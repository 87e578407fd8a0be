"""Reading a record whose writer was killed or still runs, or that was cut off.

Such a file carries a mark in its superblock, and HDF5 opens it for `swmr` readers only. These read
a block again and again where its checksum is wrong, with a pause that doubles a hundred times: a
file that was cut off would stop them for ever. This shows HDF5 the same bytes without the mark, so
that it reads as any reader does: what is whole is read, what is not is an error at once.

The layout is that of superblock version 3 in the "HDF5 File Format Specification Version 3.0",
II.A, its checksum Jenkins' lookup3 (public domain).
"""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path

SIGNATURE = b"\x89HDF\r\n\x1a\n"
VERSION_AT, FLAGS_AT, EOF_AT, CHECKSUM_AT, SIZE = 8, 11, 28, 44, 48
WRITING = 0b101  # opened for writing, and by a single writer with many readers
MASK = 0xFFFFFFFF
# Zeros that a file seems to end with, more than a chunk has bytes: HDF5 reads a chunk whole or not
# at all, and the one that was cut off has rows that are whole.
PADDING = 1 << 20


class Unclosed(io.RawIOBase):
    """The bytes of a record as if its writer had closed it; read only.

    `size` is that of the file; from there on it reads as zeros, and `passed` says that these were
    asked for.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = path.open("rb", buffering=0)
        self.size = os.fstat(self._file.fileno()).st_size
        self.passed = False
        self._end = self.size + PADDING
        self._at = 0
        self._head = _closed_head(self._file.read(SIZE) or b"", self._end)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._end}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Fill the whole buffer where the file is that long; the first bytes are the new head."""
        view = memoryview(buffer).cast("B")
        wanted = min(len(view), max(0, self.size - self._at))
        done = 0
        if wanted > 0:  # an address that a spoilt block made up may be more than a file can have
            self._file.seek(self._at)
        while done < wanted:
            count = self._file.readinto(view[done:wanted])
            if not count:
                break
            done += count
        # h5py does not look at the count: what is not there must at least be the same each time
        view[done:] = bytes(len(view) - done)
        if self._at < SIZE:
            head = self._head[self._at : self._at + done]
            view[: len(head)] = head
        count = max(done, min(len(view), self._end - self._at))
        self.passed = self.passed or count > done
        self._at += count
        return count

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def is_unclosed(path: Path) -> bool:
    """Whether this is an HDF5 file that its writer has not closed. Raises OSError."""
    head = _head(path)
    return len(head) == SIZE and bool(head[FLAGS_AT] & WRITING)


def is_cut(path: Path) -> bool:
    """Whether this is an HDF5 file that ends before its writer closed it there. Raises OSError."""
    head = _head(path)
    return len(head) == SIZE and path.stat().st_size < struct.unpack_from("<Q", head, EOF_AT)[0]


def _head(path: Path) -> bytes:
    """The superblock; empty where there is none, or none of this layout."""
    with path.open("rb") as file:
        head = file.read(SIZE)
    return (
        head if head.startswith(SIGNATURE) and head[VERSION_AT : VERSION_AT + 1] == b"\3" else b""
    )


def _closed_head(head: bytes, size: int) -> bytes:
    """The superblock without its mark, its end of file where the file really ends."""
    if len(head) < SIZE:
        return head
    changed = bytearray(head)
    changed[FLAGS_AT] = 0
    struct.pack_into("<Q", changed, EOF_AT, size)
    struct.pack_into("<I", changed, CHECKSUM_AT, lookup3(bytes(changed[:CHECKSUM_AT])))
    return bytes(changed)


def lookup3(data: bytes) -> int:
    """Bob Jenkins' lookup3 hash (hashlittle, initial value 0): HDF5's metadata checksum."""
    a = b = c = (0xDEADBEEF + len(data)) & MASK
    while len(data) > 12:
        x, y, z = struct.unpack_from("<III", data)
        a, b, c = (a + x) & MASK, (b + y) & MASK, (c + z) & MASK
        a, b, c = _mix(a, b, c)
        data = data[12:]
    if not data:
        return c
    x, y, z = struct.unpack("<III", data.ljust(12, b"\0"))
    return _final((a + x) & MASK, (b + y) & MASK, (c + z) & MASK)


def _rotate(x: int, k: int) -> int:
    return ((x << k) | (x >> (32 - k))) & MASK


def _mix(a: int, b: int, c: int) -> tuple[int, int, int]:
    for shift in (4, 6, 8, 16, 19, 4):
        a, c = ((a - c) & MASK) ^ _rotate(c, shift), (c + b) & MASK
        a, b, c = b, c, a
    return a, b, c


def _final(a: int, b: int, c: int) -> int:
    for shift in (14, 11, 25, 16, 4, 14, 24):
        c = ((c ^ b) - _rotate(b, shift)) & MASK
        a, b, c = b, c, a
    # After seven turns the last word that was changed stands in the place of b.
    return b
