"""A program that is started for a run and ended with it: it, and all that it started itself.

It has a process group of its own, and its words go to a file, whose last lines are told where it
ends too early.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from llem._processes import free_port
from llem.errors import Fault, InputError, LlemError

STOP_S = 15.0
POLL_S = 0.1
TOLD_LINES = 15


class Server:
    """Started by `start`, asked by `wait`, ended by `stop`; `port` is a free one of this host."""

    def __init__(self, command: str, *, values: Mapping[str, object]) -> None:
        self.port = free_port()
        self.arguments = filled(command, {**values, "port": self.port})
        self._process: subprocess.Popen[bytes] | None = None
        self._log = Path()

    def start(self) -> None:
        """Raises LlemError where the program cannot be started."""
        handle, name = tempfile.mkstemp(prefix="llem-server-", suffix=".log")
        self._log = Path(name)
        try:
            self._process = subprocess.Popen(
                self.arguments,
                stdin=subprocess.DEVNULL,
                stdout=handle,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            self._log.unlink(missing_ok=True)
            raise LlemError(f"{self.arguments[0]}: cannot be started: {error.strerror}") from None
        finally:
            os.close(handle)

    def wait(self, ready: Callable[[], bool], *, timeout_s: float) -> float:
        """Until `ready` says so; the seconds that it took. Raises LlemError with its last words
        where it ends before, or takes too long."""
        began = time.monotonic()
        while not ready():
            if (status := self.ended()) is not None:
                raise LlemError(f"the server ended with status {status}:\n{self.last_words()}")
            if time.monotonic() - began > timeout_s:
                said = self.last_words()
                raise LlemError(f"the server did not answer within {timeout_s:g} s:\n{said}")
            time.sleep(POLL_S)
        return time.monotonic() - began

    def ended(self) -> int | None:
        """Its exit status; None while it runs."""
        return self._process.poll() if self._process is not None else None

    def last_words(self) -> str:
        try:
            lines = self._log.read_text("utf-8", "replace").splitlines()
        except OSError:
            return ""
        return "\n".join(f"  {line[:400]}" for line in lines[-TOLD_LINES:])

    def stop(self) -> None:
        """End the whole group: asked first, killed after a while. Safe to call twice."""
        if self._process is None:
            return
        for number, patience_s in ((signal.SIGTERM, STOP_S), (signal.SIGKILL, STOP_S)):
            # Also where the program itself is gone: what it started may still be there.
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(patience_s)
                if not _group_lives(self._process.pid):
                    break
        self._process = None
        self._log.unlink(missing_ok=True)


def filled(command: str, values: Mapping[str, object]) -> list[str]:
    """The command's words with {names} filled in. Raises InputError for a name that is unknown."""
    try:
        return [word.format(**values) for word in shlex.split(command)]
    except (KeyError, IndexError, ValueError) as error:
        known = ", ".join(f"{{{name}}}" for name in sorted(values))
        text = f"{command!r} cannot be filled in: {error}"
        raise InputError("options", [Fault("options.command", text, f"known: {known}")]) from None


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
