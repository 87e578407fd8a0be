"""The rank's end of the sampler's socket.

Nothing here ever ends a training: what fails is answered with a reason, which the rank writes
into its record's events, and the run's energy is then unknown with this reason.
"""

from __future__ import annotations

import contextlib
import json
import select
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from socket import socket as Socket
from types import TracebackType
from typing import IO, Any

from llem.energy.meeting.place import SocketError, connect_socket

# A child sampler whose rank was killed goes away by itself.
CHILD_LINGER_S = 15.0
# How often a wait asks whether to leave.
LOOK_S = 0.2


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the sampler said: whether it did it, which devices it measures, else why not.

    `rows` is how many samples are on disk, after a flush. `closed`: the record has been closed;
    false where others of this node still measure.
    """

    ok: bool
    closed: bool = False
    devices: tuple[Mapping[str, Any], ...] = ()
    reasons: tuple[str, ...] = ()
    reason: str = ""
    rows: int = 0


class SamplerLink:
    """A connection to the node's sampler; made when first needed, and again where it was lost.

    `timeout_s` is how long to wait for the sampler to appear, and for each answer. `gone` says
    why the sampler will never appear, where that is known ('' else).
    """

    def __init__(
        self, socket_path: str | Path, *, timeout_s: float = 30.0, gone: Callable[[], str] = str
    ) -> None:
        self.socket_path = Path(socket_path)
        self._timeout_s = timeout_s
        self._gone = gone
        self._connection: Socket | None = None
        self._received: IO[bytes] | None = None

    def begin(
        self,
        path: str | Path,
        meta: Mapping[str, Any],
        *,
        who: str = "",
        expected: int | None = 1,
    ) -> Answer:
        """Open the record `path` of this node and start sampling. Never raises for a failure.

        Of several processes that begin the same path under names of their own (`who`), the first
        opens it; `expected` is how many there are on this node, None where that is not known.
        """
        try:
            request: dict[str, Any] = {
                "op": "begin",
                "path": str(Path(path).absolute()),
                "meta": dict(meta),
            }
            if who:
                request |= {"who": who, "expected": expected}
            line = json.dumps(request)
        except (TypeError, ValueError) as error:
            return Answer(ok=False, reason=f"sampler: meta is not JSON: {error}")
        return self._ask(line, connect=True)

    def flush(self) -> Answer:
        """Write what is in memory; what was sampled until now survives any kill. Never raises."""
        return self._ask('{"op": "flush"}', connect=False)

    def idle(
        self,
        *,
        baseline_s: float,
        cool_s: float = 0.0,
        slope: float = 0.0,
        leave: Callable[[], bool] | None = None,
    ) -> Answer:
        """Wait, with the devices left in peace, until they were watched; see the sampler's `idle`.

        Every rank of the node asks, on a link of its own: who waits here keeps no device busy,
        as a collective would. It hangs up once `leave` says so. Never raises for a failure.
        """
        request = {"op": "idle", "baseline_s": baseline_s, "cool_s": cool_s, "slope": slope}
        more_s = max(baseline_s, cool_s)
        return self._ask(json.dumps(request), connect=True, more_s=more_s, leave=leave)

    def end(self) -> Answer:
        """Take the last sample and close the record. Never raises for a failure."""
        return self._ask('{"op": "end"}', connect=False)

    def mark(self, code: str, text: str) -> str:
        """Write an event, at this moment; does not wait. Returns why that could not be, else ''."""
        event = {"op": "mark", "code": code, "text": text, "t_ns": time.monotonic_ns()}
        if self._connection is None:
            return "sampler: not connected"
        try:
            self._connection.sendall(json.dumps(event).encode() + b"\n")
        except OSError as error:
            self.close()
            return f"sampler at {self.socket_path}: {error}"
        return ""

    def stop(self) -> Answer:
        """Have the sampler exit; whatever is open is closed first. Never raises for a failure."""
        return self._ask('{"op": "stop"}', connect=False)

    def close(self) -> None:
        """Hang up. A record that is still open ends after the sampler's grace, as lost."""
        with contextlib.suppress(OSError):
            if self._received is not None:
                self._received.close()
            if self._connection is not None:
                self._connection.close()
        self._connection = self._received = None

    def __enter__(self) -> SamplerLink:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _ask(
        self,
        line: str,
        *,
        connect: bool,
        more_s: float = 0.0,
        leave: Callable[[], bool] | None = None,
    ) -> Answer:
        try:
            if self._connection is None:
                if not connect:
                    return Answer(ok=False, reason="sampler: not connected")
                self._connect(leave)
            assert self._connection is not None and self._received is not None
            self._connection.sendall(line.encode() + b"\n")
            if leave is not None:
                self._look(leave, at_most_s=more_s)
            self._connection.settimeout(self._timeout_s + more_s)
            received = self._received.readline()
            self._connection.settimeout(self._timeout_s)
            if not received:
                raise OSError("it hung up")
            answer = json.loads(received)
            return Answer(
                ok=bool(answer["ok"]),
                closed=bool(answer.get("closed", False)),
                devices=tuple(answer.get("devices", ())),
                reasons=tuple(answer.get("reasons", ())),
                reason=str(answer.get("reason", "")),
                rows=int(answer.get("rows", 0)),
            )
        except (OSError, SocketError, ValueError, KeyError, TypeError) as error:
            self.close()
            text = str(error) or type(error).__name__
            return Answer(ok=False, reason=f"sampler at {self.socket_path}: {text}")

    def _look(self, leave: Callable[[], bool], *, at_most_s: float) -> None:
        """Until the answer begins or its time is over, look now and then whether to leave."""
        assert self._connection is not None
        deadline = time.monotonic() + at_most_s
        while time.monotonic() < deadline:
            if leave():
                raise OSError("left before it answered")
            if select.select([self._connection], [], [], LOOK_S)[0]:
                return

    def _connect(self, leave: Callable[[], bool] | None) -> None:
        deadline = time.monotonic() + self._timeout_s
        while True:
            try:
                self._connection = connect_socket(self.socket_path, timeout_s=self._timeout_s)
                self._received = self._connection.makefile("rb")
                return
            except (FileNotFoundError, ConnectionRefusedError) as error:
                # it may still be starting
                if reason := self._gone():
                    raise OSError(reason) from None
                if time.monotonic() >= deadline:
                    waited = f"{self._timeout_s:g} s"
                    raise OSError(f"{error.strerror} (waited {waited})") from None
                if leave is not None and leave():
                    raise OSError(f"{error.strerror}, and left before it appeared") from None
                time.sleep(0.05)


class SamplerProcess:
    """A sampler that local rank 0 started itself, where no SLURM step of its own is to be had."""

    def __init__(self, process: subprocess.Popen[bytes], socket_path: Path) -> None:
        self.process = process
        self.socket_path = socket_path

    def link(self, *, timeout_s: float = 30.0) -> SamplerLink:
        """A link that notices when this process has ended."""
        return SamplerLink(self.socket_path, timeout_s=timeout_s, gone=self._gone)

    def stop(self, *, timeout_s: float = 10.0) -> int:
        """End it in good order (SIGTERM); its exit status. Safe to call twice."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.process.kill()
        return self.process.wait()

    def __enter__(self) -> SamplerProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _gone(self) -> str:
        status = self.process.poll()
        return "" if status is None else f"the sampler ended with status {status}"


def start_sampler(
    socket_path: str | Path,
    *,
    interval_s: float = 0.1,
    linger_s: float = CHILD_LINGER_S,
    options: tuple[str, ...] = (),
    environ: Mapping[str, str] | None = None,
    stderr: IO[Any] | int | None = None,
) -> SamplerProcess:
    """Start a sampler as a child of this process. Raises OSError where no process can be had.

    It is put in a session of its own, so that Ctrl-C reaches the rank, which then ends it in
    order; it also ends by itself `linger_s` after its last client has gone.
    """
    command = [
        sys.executable, "-m", "llem.energy.sampler",
        "--socket", str(socket_path), "--interval", repr(interval_s), "--linger", repr(linger_s),
        *options,
    ]  # fmt: skip
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        env=None if environ is None else dict(environ),
        start_new_session=True,
    )
    return SamplerProcess(process, Path(socket_path))
