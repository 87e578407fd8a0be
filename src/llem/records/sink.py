"""A file that HDF5 can write to the end, also where the disk is full.

HDF5 keeps what it could not write, tries again when objects are closed, and brings the process
down (segmentation fault at exit, 2.0.0) where that fails too. So it never hears of a failure here:
from the first one on, all goes into memory, and whoever asks is told.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

from llem.records.writer import RecordWriteError

COPY_BYTES = 1 << 20


class Sink(io.RawIOBase):
    """An existing file, to be written from its beginning, for h5py's driver of Python files."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._fd = os.open(path, os.O_RDWR)
        self._at = 0
        self._cause: OSError | None = None

    def check(self, path: Path) -> None:
        """Raise RecordWriteError, naming `path`, where a write has failed."""
        if self._cause is not None:
            raise RecordWriteError(f"{path}: cannot be sealed: {self._cause.strerror}")

    def write(self, data: bytes | memoryview) -> int:  # type: ignore[override]
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view):
            try:
                done += os.pwrite(self._fd, view[done:], self._at + done)
            except OSError as error:
                self._go_on_in_memory(error)
        self._at += done
        return done

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        view = memoryview(buffer).cast("B")
        count = os.preadv(self._fd, [view], self._at)
        view[count:] = bytes(len(view) - count)  # h5py does not look at the count
        self._at += count
        return count

    def truncate(self, size: int | None = None) -> int:
        size = self._at if size is None else size
        try:
            os.ftruncate(self._fd, size)
        except OSError as error:
            self._go_on_in_memory(error)
            os.ftruncate(self._fd, size)
        return size

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        end = os.fstat(self._fd).st_size
        self._at = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: end}[whence] + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        if not self.closed:
            os.close(self._fd)
        super().close()

    def _go_on_in_memory(self, error: OSError) -> None:
        if self._cause is not None:
            raise error  # memory is full as well
        self._cause = error
        memory = os.memfd_create("llem-abandoned-record")
        at = 0
        while data := os.pread(self._fd, COPY_BYTES, at):
            at += os.pwrite(memory, data, at)
        os.close(self._fd)
        self._fd = memory
