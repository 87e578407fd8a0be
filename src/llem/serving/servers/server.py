"""A program that is started for a run and ended with it: it, and all that it started itself.

It has a session of its own, is told to end should this process be killed, and its words go to a
file, of which those that say why are told where it ends too early.
"""

from __future__ import annotations

import ctypes
import os
import re
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from llem._processes import free_port
from llem.errors import Fault, InputError, LlemError

STOP_S = 15.0
POLL_S = 0.1
TOLD_LINES = 15
TOLD_CAUSES = 6
# Who says a line, and when: "(EngineCore pid=7) ERROR 11-27 16:31:03 [core.py:1] ".
PREFIX = re.compile(r"^(?:\([^)]*\) *)?(?:[A-Z]+ [\d:\- ]+\[[^\]]*\] *)?")
# Of the lines before the last ones: those that name the error that began it.
CAUSE = re.compile(r"[\w.]*(?:Error|Exception)\b.*|[\w\- ]+: error: .*|.*out of memory.*")
TAKEN = re.compile(r"address already in use", re.IGNORECASE)
PORTS_TRIED = 3
# prctl(2)
PR_SET_PDEATHSIG = 1


class Server:
    """Started by `start`, asked by `wait`, ended by `stop`; `port` is a free one of this host.

    `environment` is beside that of this process. Call `start` on the main thread: the server ends
    with the thread that started it.
    """

    def __init__(
        self,
        command: str,
        *,
        values: Mapping[str, object],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._command = command
        self._values = values
        self._environment = dict(environment or {})
        self.port = 0
        # Told now, before anything is loaded, where it cannot be filled in.
        filled(command, {**values, "port": 0})
        self._process: subprocess.Popen[bytes] | None = None
        self._log = Path()

    def start(self) -> None:
        """Raises LlemError where the program cannot be started."""
        self.port = free_port()
        arguments = filled(self._command, {**self._values, "port": self.port})
        handle, name = tempfile.mkstemp(prefix="llem-server-", suffix=".log")
        self._log = Path(name)
        try:
            self._process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=handle,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **self._environment},
                preexec_fn=_ending_with_parent(),
            )
        except OSError as error:
            self._log.unlink(missing_ok=True)
            raise LlemError(f"{arguments[0]}: cannot be started: {error.strerror}") from None
        finally:
            os.close(handle)

    def wait(
        self,
        ready: Callable[[], bool],
        *,
        timeout_s: float,
        leave: Callable[[], bool] = lambda: False,
    ) -> float:
        """Until `ready` says so, or `leave` does; the seconds that it took.

        A server whose port was taken in the meantime is started again on another. Raises LlemError
        with its own words where it ends before it is ready, or takes too long.
        """
        began = time.monotonic()
        ports = 1
        while True:
            # Asked first: whoever answers on the port of a server that ended is another.
            status = self.ended()
            if status is None and ready():
                break
            if status is not None:
                # The signal that asks to leave reached it too.
                if leave():
                    break
                if ports < PORTS_TRIED and TAKEN.search(self.all_words()):
                    ports += 1
                    self.stop()
                    self.start()
                    continue
                raise LlemError(f"the server ended with status {status}:\n{self.last_words()}")
            if time.monotonic() - began > timeout_s:
                said = self.last_words()
                raise LlemError(f"the server did not answer within {timeout_s:g} s:\n{said}")
            if leave():
                break
            time.sleep(POLL_S)
        return time.monotonic() - began

    def ended(self, *, patience_s: float = 0.0) -> int | None:
        """Its exit status, for which `patience_s` is waited; None while it runs."""
        if self._process is None:
            return None
        if patience_s:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(patience_s)
        return self._process.poll()

    def all_words(self) -> str:
        """What it has said so far."""
        try:
            return self._log.read_text("utf-8", "replace")
        except OSError:
            return ""

    def last_words(self) -> str:
        """Its last lines, and before them those that name an error."""
        lines = self.all_words().splitlines()
        plain = (PREFIX.sub("", line) for line in lines[:-TOLD_LINES])
        # Once each, as workers and their server tell the same; the first is what began it.
        early = list(dict.fromkeys(line for line in plain if CAUSE.match(line)))[:TOLD_CAUSES]
        told = [*early, "...", *lines[-TOLD_CAUSES:]] if early else lines[-TOLD_LINES:]
        return "\n".join(f"  {line[:400]}" for line in told)

    def processes(self) -> list[int]:
        """The ids of all processes of its session that run now."""
        if self._process is None:
            return []
        return [pid for pid, _ in _of_session(self._process.pid)]

    def stop(self, *, patience_s: float = STOP_S) -> None:
        """End the whole session: asked first, killed after `patience_s`. Safe to call twice."""
        if self._process is None:
            return
        for number, wait_s in ((signal.SIGTERM, patience_s), (signal.SIGKILL, STOP_S)):
            # Also where the program itself is gone: what it started may still be there, and in
            # a process group of its own.
            for group in {group for _, group in _of_session(self._process.pid)}:
                with suppress(ProcessLookupError):
                    os.killpg(group, number)
            if self._gone(wait_s):
                break
        self._process = None
        self._log.unlink(missing_ok=True)

    def _gone(self, patience_s: float) -> bool:
        """Whether program and session end within this time."""
        assert self._process is not None
        until = time.monotonic() + patience_s
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(patience_s)
        while any(_of_session(self._process.pid)):
            if time.monotonic() > until:
                return False
            time.sleep(POLL_S / 2)
        return self._process.poll() is not None


def filled(command: str, values: Mapping[str, object]) -> list[str]:
    """The command's words with {names} filled in. Raises InputError for a name that is unknown."""
    try:
        return [word.format(**values) for word in shlex.split(command)]
    except (KeyError, IndexError, ValueError) as error:
        known = ", ".join(f"{{{name}}}" for name in sorted(values))
        text = f"{command!r} cannot be filled in: {error}"
        raise InputError("options", [Fault("options.command", text, f"known: {known}")]) from None


def _of_session(session: int) -> Iterator[tuple[int, int]]:
    """The live processes of a session: each with its process group."""
    for entry in os.scandir("/proc"):
        if not entry.name.isdecimal():
            continue
        with suppress(OSError):
            stat = Path(entry.path, "stat").read_text("utf-8", "replace")
            # After the name, which may hold anything.
            state, _, group, its_session = stat.rpartition(")")[2].split()[:4]
            if int(its_session) == session and state not in ("Z", "X"):
                yield int(entry.name), int(group)


def _ending_with_parent() -> Callable[[], None]:
    """What a child does before it becomes the program: ask to be ended with this thread.

    The library is opened here: between fork and exec nothing may be loaded.
    """
    prctl = getattr(ctypes.CDLL(None), "prctl", None)

    def ask() -> None:
        if prctl is not None:
            prctl(PR_SET_PDEATHSIG, signal.SIGTERM)

    return ask
