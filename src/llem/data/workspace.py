"""Where a file is made before it is there: a folder beside it that one process at a time holds."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llem.errors import LlemError

# Filesystems that know no locks, where two calls on one file are the user's to avoid.
_NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK}


@contextmanager
def workspace(out: Path) -> Iterator[Path]:
    """An empty folder on the filesystem of `out`, gone afterwards; also what a killed call left.

    Raises LlemError where another process is making `out`.
    """
    folder = out.with_name(f".{out.name}.partial")
    out.parent.mkdir(parents=True, exist_ok=True)
    # Beside the folder and not in it: who deletes the folder must not delete another's lock.
    lock = out.with_name(f".{out.name}.lock")
    with open(lock, "ab") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise LlemError(f"{out}: another process is preparing it") from None
        if not os.fstat(held.fileno()).st_nlink:
            raise LlemError(f"{out}: another process has just prepared it")
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            lock.unlink(missing_ok=True)


def put_in_place(files: dict[Path, Path]) -> None:
    """Move finished files to where they belong, the last one last: it stands for all of them.

    Their content is on disk before the first has its name.
    """
    for made in files.values():
        with open(made, "rb") as file:
            os.fsync(file.fileno())
    *_, whole = files
    # Never an old file beside what describes a new one.
    whole.unlink(missing_ok=True)
    for place, made in files.items():
        os.replace(made, place)
