"""The cache of reductions, so that runs whose files have not changed are not read again.

One file of lines: a head, then `<checksum> <run> <key> <reduction>` for each run, and the same for
each claim on a device that runs shared, after dividing. It is replaced as a whole, and only where
something has changed. What is damaged in it is left out and told; nothing in it is more than a
shortcut, and it can be deleted at any time.

Beside it may lie parts: files of the same lines, which jobs have written (see `slices`). They are
read as it is, and what is used of them goes into it.
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

from llem.results.reducing.encoding import Unreadable, decode

HEAD = b"llem-reductions-1\n"
# A file that was written to so shortly before it was looked at may change again without its time's
# changing: what it gives is not kept.
SETTLED_S = 2.0
PART = ".part"

Kept = TypeVar("Kept")


@dataclass
class Store:
    """The cache at `path` for the campaign in `folder`; `problems` say what was damaged in it."""

    path: Path
    folder: Path
    problems: list[str] = field(default_factory=list)
    # (name, key) -> the file that holds it, where, and how many bytes of it
    _places: dict[tuple[str, str], tuple[IO[bytes], int, int]] = field(default_factory=dict)
    _kept: list[tuple[str, str]] = field(default_factory=list)
    _old: list[IO[bytes]] = field(default_factory=list)
    _parts: list[Path] = field(default_factory=list)
    _new: IO[bytes] | None = None
    _unwritable: str = ""

    def __enter__(self) -> Store:
        """Reads where each run's line is. Never raises for what is wrong with a file."""
        self._look(self.path)
        for part in sorted(parts_of(self.path).glob(f"*/*{PART}")):
            if self._look(part):
                self._parts.append(part)
        return self

    def _look(self, path: Path) -> bool:
        """Note what is in a file; whether it is one of this kind."""
        try:
            file = path.open("rb")
        except FileNotFoundError:
            return False
        except OSError as error:
            self.problems.append(f"{path}: not readable, left out: {error.strerror}")
            return False
        self._old.append(file)
        if file.readline(len(HEAD)) != HEAD:
            self.problems.append(f"{path}: no cache of reductions, left out")
            return False
        at, damaged = len(HEAD), 0
        for line in file:
            parts = line.split(b" ", 3)
            whole = len(parts) == 4 and line.endswith(b"\n")
            if whole and parts[0] == _checksum(line[len(parts[0]) + 1 :]):
                self._places[parts[1].decode(), parts[2].decode()] = (file, at, len(line))
            else:
                damaged += 1
            at += len(line)
        if damaged:
            self.problems.append(
                f"{path}: {damaged} damaged line(s) left out, their runs are reduced again"
            )
        return True

    def holds(self, name: str, key: str) -> bool:
        """Whether something of that name is kept under this key."""
        return (name, key) in self._places

    def find(self, kind: type[Kept], run_id: str, key: str, *, name: str = "") -> Kept | None:
        """What is kept of a run under this key: its reduction, or something named."""
        name = name or run_id
        if not self.holds(name, key):
            return None
        text = self._line(name, key).split(b" ", 3)[3]
        try:
            found = decode(text, place=self.folder / "runs" / run_id)
        except Unreadable as error:
            self.problems.append(f"{self.path}: run {run_id} left out: {error}")
            return None
        if not isinstance(found, kind):
            return None
        self._kept.append((name, key))
        return found

    def _line(self, name: str, key: str) -> bytes:
        file, at, size = self._places[name, key]
        file.seek(at)
        return file.read(size)

    def keep(self, name: str, key: str, text: str, *, newest_ns: int, looked_ns: int) -> None:
        """Put something in, as its text. `newest_ns`: when what it is of was last written to,
        `looked_ns`: when that was looked at."""
        if self._unwritable or looked_ns - newest_ns < SETTLED_S * 1e9:
            return
        content = f"{name} {key} {text}\n".encode()
        with self._telling():
            self._begun().write(_checksum(content) + b" " + content)

    def rename(self, key_of: Callable[[str, str], str]) -> None:
        """Give what is kept other keys: `key_of(name, key)`, whose files say the same as before."""
        for name, key in list(self._places):
            new = key_of(name, key)
            if new == key:
                self._kept.append((name, key))
                continue
            text = self._line(name, key).decode().split(" ", 3)[3].removesuffix("\n")
            self.keep(name, new, text, newest_ns=0, looked_ns=time.time_ns())

    def __exit__(self, *_: object) -> None:
        """Replace the file where something was added, also after an interruption."""
        with self._telling():
            self._replace()
        for file in (*self._old, self._new):
            if file is not None:
                file.close()
        with contextlib.suppress(OSError):
            self._temporary.unlink(missing_ok=True)

    def _replace(self) -> None:
        # parts of which nothing is of use any more go as well, once all was looked up
        gathers = bool(self._parts and self._kept)
        if self._unwritable or (self._new is None and not gathers):
            return
        new = self._begun()
        for name, key in self._kept:
            new.write(self._line(name, key))
        new.flush()
        os.fsync(new.fileno())
        os.replace(self._temporary, self.path)
        for part in self._parts:
            part.unlink(missing_ok=True)

    def _begun(self) -> IO[bytes]:
        """The file that takes this one's place."""
        if self._new is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._new = self._temporary.open("wb")
            self._new.write(HEAD)
        return self._new

    @property
    def _temporary(self) -> Path:
        # jobs on several nodes write here
        owner = f"{os.uname().nodename}.{os.getpid()}"
        return self.path.with_name(f".{self.path.name}.{owner}.tmp")

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        """A cache that cannot be written costs time, never a result."""
        try:
            yield
        except OSError as error:
            self._unwritable = error.strerror or str(error)
            self.problems.append(f"{self.path}: cannot be written: {self._unwritable}")


def parts_of(path: Path) -> Path:
    """The folder of the parts of the cache at `path`: a folder in it for each array of jobs."""
    return path.with_name(f"{path.name}.parts")


def _checksum(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=8).hexdigest().encode()
