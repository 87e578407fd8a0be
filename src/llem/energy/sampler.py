"""One process on each node that samples every device the job holds there.

    python -m llem.energy.sampler --socket PATH --interval 0.1

Its socket takes JSON lines from the node's local rank 0, one answer for each:

    {"op": "begin", "path": ".../node-<host>.h5", "meta": {...}}   opens a record, first sample
    {"op": "end"}                                                  last sample, closes the record
    {"op": "stop"}                                                 ends, then exits

    {"ok": true, "devices": [{"uuid": ..., "domain": ..., ...}], "reasons": [...]}
    {"ok": false, "reason": "..."}

It is a process of its own so that a training's threads and locks cannot delay a sample, and one
for the node so that no device is counted twice. It imports neither torch nor scipy.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llem.energy.choose import AUTO, choose, make_meters, parse_meters
from llem.energy.cpu_model import IDLE_W_PER_THREAD, MAXIMUM_W_PER_THREAD, CpuModel
from llem.energy.node_held import node_held
from llem.energy.place import SocketError, bind_socket
from llem.energy.recorder import WRITE_ERRORS, Recorder

INTERVAL_S = 0.1
# How long a record goes on after its client's connection is lost: a rank that is restarting
# may come back, and one that was killed has left a GPU that is still busy for a moment.
GRACE_S = 5.0
NICE = 5
LONGEST_LINE = 1 << 20


@dataclass
class _Client:
    connection: socket.socket
    buffer: bytearray = field(default_factory=bytearray)


class Sampler:
    """The loop: samples on a fixed grid, and serves the socket in between."""

    def __init__(
        self,
        recorder: Recorder,
        listener: socket.socket,
        *,
        interval_s: float = INTERVAL_S,
        grace_s: float = GRACE_S,
        linger_s: float | None = None,
        term_grace_s: float = 0.0,
        reasons: Sequence[str] = (),
    ) -> None:
        self._recorder = recorder
        self._listener = listener
        self._interval_ns = int(interval_s * 1e9)
        self._grace_ns = int(grace_s * 1e9)
        self._linger_ns = None if linger_s is None else int(linger_s * 1e9)
        self._term_grace_ns = int(term_grace_s * 1e9)
        self._reasons = list(reasons)
        self._clients: dict[int, _Client] = {}
        self._owner: int | None = None
        self._next_ns = 0
        self._lost_ns: int | None = None
        self._alone_since_ns: int | None = time.monotonic_ns()
        self._stop_at_ns: int | None = None
        self._selector = selectors.DefaultSelector()

    def run(self) -> None:
        """Serve until asked to stop, by a client, a signal or nobody's being there."""
        wake_read, wake_write = socket.socketpair()
        wake_read.setblocking(False)
        wake_write.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(wake_read, selectors.EVENT_READ)
        signal.set_wakeup_fd(wake_write.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        # SLURM's --signal=USR1@60 reaches every step, and its default action would end this one.
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        try:
            while not self._finished():
                for key, _ in self._selector.select(self._wait_s()):
                    if key.fileobj is self._listener:
                        self._accept()
                    elif key.fileobj is wake_read:
                        with contextlib.suppress(BlockingIOError):
                            wake_read.recv(4096)
                    else:
                        self._receive(key.fd)
                self._tick()
        finally:
            self._recorder.end()
            signal.set_wakeup_fd(-1)
            for client in self._clients.values():
                client.connection.close()
            self._selector.close()
            wake_read.close()
            wake_write.close()

    def _on_signal(self, _number: int, _frame: object) -> None:
        now = time.monotonic_ns()
        patient = self._recorder.path is not None and self._owner is not None
        self._stop_at_ns = now + (self._term_grace_ns if patient else 0)

    def _finished(self) -> bool:
        now = time.monotonic_ns()
        if self._stop_at_ns is not None:
            return now >= self._stop_at_ns or self._recorder.path is None
        return (
            self._linger_ns is not None
            and self._alone_since_ns is not None
            and self._recorder.path is None
            and now - self._alone_since_ns >= self._linger_ns
        )

    def _wait_s(self) -> float | None:
        due = [self._stop_at_ns] if self._stop_at_ns is not None else []
        if self._recorder.recording:
            due.append(self._next_ns)
        if self._lost_ns is not None:
            due.append(self._lost_ns + self._grace_ns)
        if self._linger_ns is not None and self._alone_since_ns is not None:
            due.append(self._alone_since_ns + self._linger_ns)
        if not due:
            return None
        return max(0.0, (min(due) - time.monotonic_ns()) / 1e9)

    def _tick(self) -> None:
        now = time.monotonic_ns()
        if self._recorder.recording and now >= self._next_ns:
            missed = (now - self._next_ns) // self._interval_ns
            self._recorder.sample(late=missed > 0)
            # the grid stays where it began: a late sample moves no other
            self._next_ns += (missed + 1) * self._interval_ns
        if self._lost_ns is not None and now - self._lost_ns >= self._grace_ns:
            self._lost_ns = None
            self._recorder.end(event=("rank-lost", "the local rank 0 closed its connection"))

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        connection.setblocking(False)
        self._clients[connection.fileno()] = _Client(connection)
        self._selector.register(connection, selectors.EVENT_READ)
        self._alone_since_ns = None

    def _receive(self, fd: int) -> None:
        client = self._clients[fd]
        try:
            data = client.connection.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data or len(client.buffer) + len(data) > LONGEST_LINE:
            self._drop(fd)
            return
        client.buffer += data
        while b"\n" in client.buffer and fd in self._clients:
            line, _, rest = client.buffer.partition(b"\n")
            client.buffer = rest
            answer = json.dumps(self._answer(fd, bytes(line))) + "\n"
            try:
                client.connection.sendall(answer.encode())
            except OSError:
                self._drop(fd)

    def _drop(self, fd: int) -> None:
        client = self._clients.pop(fd)
        self._selector.unregister(client.connection)
        client.connection.close()
        if fd == self._owner:
            self._owner = None
            if self._recorder.path is not None:
                self._lost_ns = time.monotonic_ns()
        if not self._clients:
            self._alone_since_ns = time.monotonic_ns()

    def _answer(self, fd: int, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
            operation = request["op"]
        except (ValueError, KeyError, TypeError):
            return _refusal('expected one JSON object a line, with "op"')
        match operation:
            case "begin":
                return self._begin(fd, request)
            case "end":
                return self._end(fd)
            case "stop":
                self._stop_at_ns = time.monotonic_ns()
                reason = self._recorder.end()
                return _refusal(reason) if reason else {"ok": True}
            case _:
                return _refusal(f"unknown op {operation!r}: expected begin, end or stop")

    def _begin(self, fd: int, request: dict[str, Any]) -> dict[str, Any]:
        path, meta = request.get("path"), request.get("meta", {})
        if not isinstance(path, str) or not os.path.isabs(path) or not isinstance(meta, dict):
            return _refusal('begin needs an absolute "path" and an object "meta"')
        if self._recorder.path is not None:
            if self._owner is not None:
                return _refusal(f"{self._recorder.path} is open; end it first")
            self._lost_ns = None
            self._recorder.end(event=("rank-lost", "another record was begun"))
        try:
            self._recorder.begin(path, meta)
        except WRITE_ERRORS as error:
            return _refusal(str(error) if path in str(error) else f"{path}: {error}")
        self._owner = fd
        self._lost_ns = None
        self._next_ns = time.monotonic_ns() + self._interval_ns
        return {"ok": True, "devices": self._recorder.devices(), "reasons": self._reasons}

    def _end(self, fd: int) -> dict[str, Any]:
        if self._recorder.path is None:
            return _refusal("no record is open")
        if self._owner not in (None, fd):
            return _refusal(f"{self._recorder.path} was begun by another connection")
        self._owner = self._lost_ns = None
        reason = self._recorder.end()
        return _refusal(reason) if reason else {"ok": True}


def _refusal(reason: str) -> dict[str, Any]:
    return {"ok": False, "reason": reason}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line of the sampler; returns its exit status."""
    options = _parser().parse_args(arguments)
    try:
        os.nice(NICE)
    except OSError as error:
        print(f"llem sampler: nice: {error}", file=sys.stderr)
    meters, model = make_meters(options.meters)
    if isinstance(model, CpuModel):
        model = CpuModel(
            idle_w_per_thread=options.cpu_idle_w_per_thread,
            maximum_w_per_thread=options.cpu_max_w_per_thread,
        )
    try:
        with bind_socket(options.socket) as listener:
            chosen = choose(meters, model=model)
            for reason in chosen.reasons:
                print(f"llem sampler: {reason}", file=sys.stderr)
            recorder = Recorder(
                chosen,
                interval_s=options.interval,
                versions={k: v for m in meters for k, v in getattr(m, "versions", {}).items()},
                held=node_held(exclusive=options.exclusive).meta(),
            )
            Sampler(
                recorder,
                listener,
                interval_s=options.interval,
                linger_s=options.linger,
                term_grace_s=options.term_grace,
                reasons=chosen.reasons,
            ).run()
    except SocketError as error:
        print(f"llem sampler: {error}", file=sys.stderr)
        return 1
    finally:
        for meter in [*meters, *([model] if model else [])]:
            meter.close()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m llem.energy.sampler",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--socket", type=Path, required=True, help="node-local path of the socket")
    parser.add_argument("--interval", type=_positive, default=INTERVAL_S, help="seconds")
    parser.add_argument(
        "--meters",
        type=_meters,
        default=AUTO,
        help="auto (all, by priority), or some of them: nvml,rapl (see llem.energy.choose)",
    )
    parser.add_argument(
        "--exclusive",
        action="store_true",
        help="the job asked for whole nodes: nobody else is here",
    )
    parser.add_argument(
        "--linger", type=_positive, help="exit when nobody was connected for so many seconds"
    )
    parser.add_argument(
        "--term-grace",
        type=float,
        default=0.0,
        help="seconds to go on after SIGTERM while rank 0 is connected (it may write a checkpoint)",
    )
    parser.add_argument("--cpu-idle-w-per-thread", type=_positive, default=IDLE_W_PER_THREAD)
    parser.add_argument("--cpu-max-w-per-thread", type=_positive, default=MAXIMUM_W_PER_THREAD)
    return parser


def _meters(text: str) -> tuple[str, ...]:
    try:
        return parse_meters(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text}: expected more than 0")
    return value


if __name__ == "__main__":
    sys.exit(main())
