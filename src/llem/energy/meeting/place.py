"""Where a sampler's socket lies: a folder of the user's own (0700) on the node, the socket 0600."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

LONGEST_PATH = 107  # sun_path of Linux, without its final zero byte


class SocketError(Exception):
    """The socket cannot be had at that path; says why."""


@contextlib.contextmanager
def bind_socket(path: Path) -> Iterator[socket.socket]:
    """A listening socket at `path`, removed in the end. Raises SocketError.

    Its folder goes with it where it was made here and holds nothing else.
    """
    _check_length(path)
    made = _private_folder(path.parent)
    if path.exists():
        if answers(path):
            raise SocketError(f"{path}: a sampler listens there already")
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        mask = os.umask(0o177)
        try:
            listener.bind(str(path))
        except OSError as error:
            raise SocketError(f"{path}: {error.strerror}") from None
        finally:
            os.umask(mask)
        own = path.stat().st_ino
        listener.listen(8)
        listener.setblocking(False)
        try:
            yield listener
        finally:
            # not one that a later sampler has put in its place
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_ino == own:
                    path.unlink()
    finally:
        listener.close()
        if made:
            with contextlib.suppress(OSError):
                path.parent.rmdir()


def connect_socket(path: Path, *, timeout_s: float) -> socket.socket:
    """A connection to the sampler at `path`. Raises SocketError or OSError."""
    _check_length(path)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout_s)
        connection.connect(str(path))
    except OSError:
        connection.close()
        raise
    return connection


def _check_length(path: Path) -> None:
    if len(os.fsencode(path)) > LONGEST_PATH:
        raise SocketError(
            f"{path}: longer than {LONGEST_PATH} bytes, which Linux allows a socket; "
            "choose a short folder on the node, such as one in /tmp"
        )


def _private_folder(folder: Path) -> bool:
    """Whether it was made here; it is there afterwards, this user's alone. Raises SocketError."""
    try:
        made = not folder.exists()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise SocketError(f"{folder}: {error.strerror}") from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise SocketError(f"{folder}: not a folder of this user")
    if found.st_mode & 0o077:
        raise SocketError(f"{folder}: open to others (mode {found.st_mode & 0o777:o}, not 700)")
    return made


def answers(path: Path) -> bool:
    """Whether a sampler listens there."""
    try:
        connect_socket(path, timeout_s=1.0).close()
    except OSError:
        return False
    return True
