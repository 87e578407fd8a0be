"""The cache of reductions, so that runs whose files have not changed are not read again.

One file of lines: a head, then `<checksum> <run> <key> <reduction>` for each run, and the same for
each claim on a device that runs shared, after dividing. It is replaced as a whole, and only where
something has changed. What is damaged in it is left out and told; nothing in it is more than a
shortcut, and it can be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TypeVar

from llem.results.encoding import Unreadable, decode

HEAD = b"llem-reductions-1\n"
# A file that was written to so shortly before it was looked at may change again without its time's
# changing: what it gives is not kept.
SETTLED_S = 2.0

Kept = TypeVar("Kept")


@dataclass
class Store:
    """The cache at `path` for the campaign in `folder`; `problems` say what was damaged in it."""

    path: Path
    folder: Path
    problems: list[str] = field(default_factory=list)
    _places: dict[str, tuple[str, int, int]] = field(default_factory=dict)
    _kept: list[str] = field(default_factory=list)
    _old: IO[bytes] | None = None
    _new: IO[bytes] | None = None
    _unwritable: str = ""

    def __enter__(self) -> Store:
        """Reads where each run's line is. Never raises for what is wrong with the file."""
        try:
            self._old = self.path.open("rb")
        except FileNotFoundError:
            return self
        except OSError as error:
            self.problems.append(f"{self.path}: not readable, left out: {error.strerror}")
            return self
        if self._old.readline(len(HEAD)) != HEAD:
            self.problems.append(f"{self.path}: no cache of reductions, left out")
            return self
        at, damaged = len(HEAD), 0
        for line in self._old:
            parts = line.split(b" ", 3)
            whole = len(parts) == 4 and line.endswith(b"\n")
            if whole and parts[0] == _checksum(line[len(parts[0]) + 1 :]):
                self._places[parts[1].decode()] = (parts[2].decode(), at, len(line))
            else:
                damaged += 1
            at += len(line)
        if damaged:
            self.problems.append(
                f"{self.path}: {damaged} damaged line(s) left out, their runs are reduced again"
            )
        return self

    def find(self, kind: type[Kept], run_id: str, key: str, *, name: str = "") -> Kept | None:
        """What is kept of a run under this key: its reduction, or something named."""
        name = name or run_id
        known, at, size = self._places.get(name, ("", 0, 0))
        if known != key or self._old is None:
            return None
        self._old.seek(at)
        text = self._old.read(size).split(b" ", 3)[3]
        try:
            found = decode(text, place=self.folder / "runs" / run_id)
        except Unreadable as error:
            self.problems.append(f"{self.path}: run {run_id} left out: {error}")
            return None
        if not isinstance(found, kind):
            return None
        self._kept.append(name)
        return found

    def keep(self, name: str, key: str, text: str, *, newest_ns: int, looked_ns: int) -> None:
        """Put something in, as its text. `newest_ns`: when what it is of was last written to,
        `looked_ns`: when that was looked at."""
        if self._unwritable or looked_ns - newest_ns < SETTLED_S * 1e9:
            return
        content = f"{name} {key} {text}\n".encode()
        with self._telling():
            if self._new is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._new = self._temporary.open("wb")
                self._new.write(HEAD)
            self._new.write(_checksum(content) + b" " + content)

    def rename(self, key_of: Callable[[str, str], str]) -> None:
        """Give what is kept other keys: `key_of(name, key)`, whose files say the same as before."""
        for name, (key, at, size) in list(self._places.items()):
            new = key_of(name, key)
            if new == key or self._old is None:
                self._kept.append(name)
                continue
            self._old.seek(at)
            text = self._old.read(size).decode().split(" ", 3)[3].removesuffix("\n")
            self.keep(name, new, text, newest_ns=0, looked_ns=time.time_ns())

    def __exit__(self, *_: object) -> None:
        """Replace the file where something was added, also after an interruption."""
        with self._telling():
            self._replace()
        for file in (self._old, self._new):
            if file is not None:
                file.close()
        with contextlib.suppress(OSError):
            self._temporary.unlink(missing_ok=True)

    def _replace(self) -> None:
        if self._new is None or self._unwritable:
            return
        for run_id in self._kept:
            assert self._old is not None
            _, at, size = self._places[run_id]
            self._old.seek(at)
            self._new.write(self._old.read(size))
        self._new.flush()
        os.fsync(self._new.fileno())
        os.replace(self._temporary, self.path)

    @property
    def _temporary(self) -> Path:
        return self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        """A cache that cannot be written costs time, never a result."""
        try:
            yield
        except OSError as error:
            self._unwritable = error.strerror or str(error)
            self.problems.append(f"{self.path}: cannot be written: {self._unwritable}")


def _checksum(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=8).hexdigest().encode()
