"""Sealing: a finished record is rewritten compressed, verified, and put in its own place.

Layout, names, types and values stay as they were, bit by bit; only the storage changes: long
chunks, shuffled and deflated, which many small appends could not be. So a sealed record is read
by the same code as any other. Two attributes of its root say what it is:

    sealed          SHA-256 of the content of the original, as `digest` computes it
    sealed_bytes    how large the original was

The copy is made beside the original under a name that no reader looks for, forced to disk, read
back and compared, and only then renamed over it: at every moment the name holds a whole record.
What an interrupted sealing left is removed by the next one.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llem.errors import LlemError
from llem.records.reader import RecordError, opened, plain, read_node, read_rank
from llem.records.sink import Sink
from llem.records.unclosed import is_cut, is_unclosed
from llem.records.writer import (
    HDF5_ERRORS,
    LIBRARY_VERSIONS,
    RecordWriteError,
    cause_of,
    set_attribute,
)
from llem.records.writing import still_written

SEALED, SEALED_BYTES = "sealed", "sealed_bytes"
# Columns of their own would be 1 % smaller; a chunk of all columns keeps the layout as it was.
# Level 6 would save 3 % and take twice the time.
CHUNK_ROWS = 65536
GZIP_LEVEL = 4
# A copy on another machine that was not written to for so long belongs to a sealing that was ended.
STALE_S = 3600.0


class RecordInUseError(LlemError):
    """A record may still be written, so that nothing may take its place; says why."""


@dataclass(frozen=True, kw_only=True)
class Sealed:
    """A sealed record: the digest of its content, and the file's size before and after.

    `fresh` is false for one that was sealed already.
    """

    path: Path
    sha256: str
    bytes_before: int
    bytes_after: int
    fresh: bool


def seal(path: str | Path, *, over: bool = False) -> Sealed:
    """Seal one record, a node's or a rank's, closed or left by a killed writer.

    `over`: the caller knows that its attempt has ended; without this word, one that was not closed
    and whose writer was on another machine is left alone for a day. Safe to call again, also after
    it was killed at any moment, and from several machines at once.

    Raises RecordInUseError where the writer may live, RecordError where the file is no record or
    not wholly readable, RecordWriteError where there is no room for the copy. The original is then
    as it was.
    """
    path = Path(path)
    if (known := read_seal(path)) is not None:
        return known
    with _place(path) as copy:
        before = _stat(path)
        _refuse(path, over=over, now_s=copy.stat().st_mtime)
        expected = _write_copy(path, copy)
        _force(copy)
        _compare(path, copy, expected)
        # Whoever wrote to it, or sealed it meanwhile, has made it another file.
        if _identity(_stat(path)) != _identity(before):
            raise RecordInUseError(f"{path}: changed while it was being sealed")
        # As root, in an epilogue, it must stay the user's own.
        with contextlib.suppress(OSError):
            os.chown(copy, before.st_uid, before.st_gid)
        with contextlib.suppress(OSError):
            shutil.copystat(path, copy)
        try:
            os.replace(copy, path)
        except OSError as error:
            raise RecordWriteError(f"{path}: cannot be sealed: {error.strerror}") from None
        _force(path.parent)
    return Sealed(
        path=path,
        sha256=_total(expected),
        bytes_before=before.st_size,
        bytes_after=path.stat().st_size,
        fresh=True,
    )


def read_seal(path: str | Path) -> Sealed | None:
    """What a record's seal says, unchecked; None where it has none. Raises RecordError."""
    path = Path(path)
    with opened(path) as file:
        if SEALED not in file.attrs:
            return None
        return Sealed(
            path=path,
            sha256=plain(file.attrs[SEALED]),
            bytes_before=int(file.attrs[SEALED_BYTES]),
            bytes_after=_stat(path).st_size,
            fresh=False,
        )


def check_seal(path: str | Path) -> Sealed:
    """Read a sealed record whole and compare it with its seal. Raises RecordError."""
    path = Path(path)
    known = read_seal(path)
    if known is None:
        raise RecordError(f"{path}: not sealed")
    found = digest(path)
    if found != known.sha256:
        raise RecordError(f"{path}: content has SHA-256 {found}, its seal says {known.sha256}")
    return known


def digest(path: str | Path) -> str:
    """SHA-256 of all that a record says, however it is stored; the seal itself is left out.

    Over one line `name TAB SHA-256 LF` for each group, table and attribute, in the order of their
    names. Raises RecordError where a part cannot be read.
    """
    with opened(path) as file, _reading(path):
        return _total(_parts(file))


def _write_copy(path: Path, copy: Path) -> dict[str, str]:
    """Copy with compression; what was read, part by part. Raises RecordError, RecordWriteError."""
    import h5py

    with opened(path) as source, Sink(copy) as sink:
        with h5py.File(sink, "w", libver=LIBRARY_VERSIONS) as target:
            parts: dict[str, str] = {}
            for name, item in _items(path, source):
                _copy(path, name, item, target, parts)
                sink.check(path)
            set_attribute(target, SEALED, _total(parts))
            set_attribute(target, SEALED_BYTES, _stat(path).st_size)
        sink.check(path)
    return parts


def _copy(path: Path, name: str, item: Any, target: Any, parts: dict[str, str]) -> None:
    hashed = _Hash(item)
    made = _make(target, name, item, hashed)
    for block, rows in _blocks(path, item):
        hashed.update(rows)
        made[block] = rows
    parts[name] = hashed.hexdigest()
    with _reading(path):
        attrs = {key: (item.attrs[key], item.attrs.get_id(key).dtype) for key in item.attrs}
    for key, (value, dtype) in attrs.items():
        parts[f"{name}@{key}"] = _hash_attribute(value)
        made.attrs.create(key, value, dtype=dtype)


def _make(target: Any, name: str, item: Any, hashed: _Hash) -> Any:
    if not hashed.is_table:
        return target.require_group(name)
    if not len(item):
        return target.create_dataset(name, shape=item.shape, dtype=item.dtype)
    return target.create_dataset(
        name,
        shape=item.shape,
        dtype=item.dtype,
        chunks=(min(len(item), CHUNK_ROWS), *item.shape[1:]),
        shuffle=True,
        compression="gzip",
        compression_opts=GZIP_LEVEL,
    )


def _compare(path: Path, copy: Path, expected: dict[str, str]) -> None:
    """Read the copy back from its file and compare every part. Raises RecordWriteError."""
    try:
        with opened(copy) as file, _reading(copy):
            found = _parts(file)
    except RecordError as error:
        raise RecordWriteError(f"{path}: the sealed copy: {error.message}") from None
    wrong = sorted(n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n))
    if wrong:
        raise RecordWriteError(f"{path}: the sealed copy differs in {', '.join(wrong[:5])}")


def _parts(file: Any) -> dict[str, str]:
    """The name of each group, table and attribute, and the SHA-256 of what it says."""
    parts: dict[str, str] = {}
    for name, item in _items(Path(), file):
        hashed = _Hash(item)
        for _, rows in _blocks(Path(), item):
            hashed.update(rows)
        parts[name] = hashed.hexdigest()
        for key in item.attrs:
            if name != "/" or key not in (SEALED, SEALED_BYTES):
                parts[f"{name}@{key}"] = _hash_attribute(item.attrs[key])
    return parts


def _items(path: Path, file: Any) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = [("/", file)]
    with _reading(path):
        file.visititems(lambda name, item: found.append((f"/{name}", item)))
    return sorted(found, key=lambda pair: pair[0])


def _blocks(path: Path, item: Any) -> Iterator[tuple[slice, Any]]:
    """The rows of a table, as many at a time as a sealed chunk holds; none of a group."""
    rows = len(item) if hasattr(item, "dtype") else 0
    for start in range(0, rows, CHUNK_ROWS):
        block = slice(start, min(start + CHUNK_ROWS, rows))
        with _reading(path):
            values = item[block]
        yield block, values


class _Hash:
    """SHA-256 of a table's type, shape and bytes; of a group, that it is one."""

    def __init__(self, item: Any) -> None:
        self.is_table = hasattr(item, "dtype")
        head = f"table {item.dtype.descr} {item.shape}" if self.is_table else "group"
        self._sha = hashlib.sha256(head.encode())

    def update(self, rows: Any) -> None:
        self._sha.update(np.ascontiguousarray(rows).view(np.uint8).data)

    def hexdigest(self) -> str:
        return self._sha.hexdigest()


def _hash_attribute(value: Any) -> str:
    if isinstance(value, str):
        text = f"text {value}".encode("utf-8", "surrogateescape")
    else:
        array = np.asarray(value)
        text = f"value {array.dtype.str} {array.shape} ".encode() + array.tobytes()
    return hashlib.sha256(text).hexdigest()


def _total(parts: dict[str, str]) -> str:
    lines = "".join(f"{name}\t{parts[name]}\n" for name in sorted(parts))
    return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()


@contextlib.contextmanager
def _reading(path: str | Path) -> Iterator[None]:
    try:
        yield
    except (*HDF5_ERRORS, KeyError) as error:
        raise RecordError(f"{path}: not wholly readable: {cause_of(error)}") from None


def _refuse(path: Path, *, over: bool, now_s: float) -> None:
    """Raise where its writer may live, or where what it left has holes."""
    with opened(path) as file:
        kind = plain(file["meta"].attrs["kind"])
    if not is_unclosed(path) and not is_cut(path):
        return
    record = read_rank(path) if kind == "rank" else read_node(path)
    if reason := still_written(path, record.meta, over=over, now_s=now_s):
        raise RecordInUseError(f"{path}: {reason}")
    if record.problems:
        raise RecordError(f"{record.problems[0]}; left as it is")


@contextlib.contextmanager
def _place(path: Path) -> Iterator[Path]:
    """A new empty file beside `path` for the copy, of this process alone; gone afterwards."""
    _remove_stale(path)
    copy = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.sealing")
    try:
        os.close(os.open(copy, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except OSError as error:
        raise RecordWriteError(f"{path}: cannot be sealed: {error.strerror}") from None
    try:
        yield copy
    finally:
        copy.unlink(missing_ok=True)


def _remove_stale(path: Path) -> None:
    """Copies whose sealing was killed."""
    named = re.compile(re.escape(f".{path.name}.") + r"(.+)\.(\d+)\.sealing")
    for other in path.parent.iterdir():
        match = named.fullmatch(other.name)
        if match is None:
            continue
        here = match.group(1) == socket.gethostname()
        with contextlib.suppress(FileNotFoundError):
            own = int(match.group(2)) == os.getpid()
            if own or (here and not Path("/proc", match.group(2)).exists()) or _old(other):
                other.unlink()


def _old(path: Path) -> bool:
    return time.time() - path.stat().st_mtime > STALE_S


def _force(path: Path) -> None:
    """Force a file, or the names in a folder, to disk. Raises RecordWriteError."""
    try:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise RecordWriteError(f"{path}: cannot be forced to disk: {error.strerror}") from None


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise RecordError(f"{path}: {error.strerror}") from None


def _identity(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
