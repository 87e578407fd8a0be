"""One process on each node that samples every device the job holds there.

    python -m llem.energy.sampler --socket PATH --interval 0.1

Its socket takes JSON lines from the node's local rank 0, one answer for each:

    {"op": "begin", "path": ".../node-<host>.h5", "meta": {...}}   opens a record, first sample
    {"op": "flush"}                                                writes what is in memory
    {"op": "idle", "baseline_s": 5, "cool_s": 600, "slope": 1.0}   answers when the devices, which
                                                                   all ranks leave in peace, were
                                                                   watched for so long, and change
                                                                   by less than `slope` degrees a
                                                                   minute or `cool_s` are over
    {"op": "end"}                                                  last sample, closes the record
    {"op": "stop"}                                                 ends, then exits

    {"ok": true, "devices": [{"uuid": ..., "domain": ..., ...}], "reasons": [...]}
    {"ok": true, "rows": 1234}                     samples that a kill cannot take any more
    {"ok": false, "reason": "..."}

Where several processes of a node measure together, each begins the same path with a name of its
own ("who", and how many are "expected" here, null where that is not known) and ends it: the
record ends with the last of them, and the answer to its end says "closed". What they mark
({"op": "mark", "code": ..., "text": ..., "t_ns": ...}) becomes an event, without an answer.

It is a process of its own so that a training's threads and locks cannot delay a sample, and one
for the node so that no device is counted twice. It imports neither torch nor scipy.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
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

from llem.energy.meeting.participants import Participants
from llem.energy.meeting.place import SocketError, bind_socket
from llem.energy.meters.baseline import HEATING_S
from llem.energy.meters.choose import AUTO, choose, make_meters, parse_meters
from llem.energy.meters.cpu_model import IDLE_W_PER_THREAD, MAXIMUM_W_PER_THREAD, CpuModel
from llem.energy.meters.node_held import node_held
from llem.energy.recorder import WRITE_ERRORS, Recorder

INTERVAL_S = 0.1
# How long a record goes on after its client's connection is lost: a rank that is restarting
# may come back, and one that was killed has left a GPU that is still busy for a moment.
GRACE_S = 5.0
NICE = 5
# From its start to the first record it watches idle devices, of the last so many seconds.
WATCH_S = 5.0
LONGEST_LINE = 1 << 20
RANK_LOST = ("rank-lost", "the local rank 0 closed its connection")
# The only events that a client may write.
MARKS = frozenset({"mark", "phase", "phase-end"})


@dataclass
class _Idle:
    """Who waits for the devices to have been watched, since when, and how long at most."""

    since_ns: int
    baseline_s: float
    cool_s: float
    slope: float
    waiting: list[int] = field(default_factory=list)

    def done(self, recorder: Recorder, now_ns: int) -> str | None:
        """What to tell when it is over; None while it is not."""
        waited_s = (now_ns - self.since_ns) / 1e9
        if waited_s < self.baseline_s:
            return None
        if not self.cool_s:
            return f"watched for {waited_s:.1f} s"
        watch = recorder.watching
        since = now_ns - round(HEATING_S * 1e9)
        slope = watch.heating_c_per_min(since_ns=since) if watch is not None else math.nan
        if slope < self.slope:
            return f"reached after {waited_s:.0f} s: {slope:.2f} degrees a minute"
        if waited_s < self.cool_s:
            return None
        told = f"{slope:.2f} degrees a minute" if slope == slope else "no temperature was read"
        return f"not reached in {waited_s:.0f} s: {told}"


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
        self._those = Participants()
        self._lost_ns: int | None = None
        self._last_event = RANK_LOST
        self._alone_since_ns: int | None = time.monotonic_ns()
        self._stop_at_ns: int | None = None
        self._selector = selectors.DefaultSelector()
        self._idle: _Idle | None = None
        self._recorder.watch()
        self._next_ns = time.monotonic_ns()
        self._watch_until_ns = self._next_ns + round(WATCH_S * 1e9)

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
        patient = self._recorder.path is not None and bool(self._those.inside)
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
        if self._recorder.recording or self._sampling_idle():
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
        if (self._recorder.recording or self._sampling_idle()) and now >= self._next_ns:
            missed = (now - self._next_ns) // self._interval_ns
            self._recorder.sample(late=missed > 0)
            # the grid stays where it began: a late sample moves no other
            self._next_ns += (missed + 1) * self._interval_ns
        if self._idle is not None and (told := self._idle.done(self._recorder, now)) is not None:
            self._end_idle(told)
        if self._lost_ns is not None and now - self._lost_ns >= self._grace_ns:
            self._lost_ns = None
            self._recorder.end(event=self._last_event)

    def _sampling_idle(self) -> bool:
        """Whether readings outside a record are wanted: before the first one, and when asked."""
        if self._recorder.watching is None:
            return False
        return self._idle is not None or time.monotonic_ns() < self._watch_until_ns

    def _ask_idle(self, fd: int, request: dict[str, Any]) -> dict[str, Any] | None:
        """Begin to watch, or join who waits already; the answer comes when it is over."""
        try:
            numbers = [float(request.get(key, 0)) for key in ("baseline_s", "cool_s", "slope")]
        except (TypeError, ValueError):
            numbers = [math.nan]
        if not all(math.isfinite(x) and x >= 0 for x in numbers):
            return _refusal("idle needs numbers baseline_s, cool_s and slope")
        if self._idle is None:
            self._recorder.watch()
            baseline_s, cool_s, slope = numbers
            self._idle = _Idle(time.monotonic_ns(), baseline_s, cool_s, slope)
            if not self._recorder.recording:
                self._next_ns = time.monotonic_ns()
        self._idle.waiting.append(fd)
        return None

    def _end_idle(self, told: str) -> None:
        assert self._idle is not None
        idle, self._idle = self._idle, None
        reasons = self._recorder.end_watch()
        if idle.cool_s:
            self._recorder.event("thermal-floor", told)
        answer = json.dumps({"ok": True, "reasons": [told, *reasons]}) + "\n"
        for fd in idle.waiting:
            if fd in self._clients:
                try:
                    self._clients[fd].connection.sendall(answer.encode())
                except OSError:
                    self._drop(fd)

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
            answer = self._answer(fd, bytes(line))
            if answer is None:
                continue
            try:
                client.connection.sendall(json.dumps(answer).encode() + b"\n")
            except OSError:
                self._drop(fd)

    def _drop(self, fd: int) -> None:
        client = self._clients.pop(fd)
        if self._idle is not None and fd in self._idle.waiting:
            # its number may be the next client's
            self._idle.waiting.remove(fd)
        self._selector.unregister(client.connection)
        client.connection.close()
        name = self._those.leave(fd)
        if name is not None and self._recorder.path is not None:
            if self._those.inside:
                self._recorder.mark("rank-lost", name)
            else:
                self._last_event = ("rank-lost", name) if name else RANK_LOST
                self._lost_ns = time.monotonic_ns()
        if not self._clients:
            self._alone_since_ns = time.monotonic_ns()

    def _answer(self, fd: int, line: bytes) -> dict[str, Any] | None:
        try:
            request = json.loads(line)
            operation = request["op"]
        except (ValueError, KeyError, TypeError):
            return _refusal('expected one JSON object a line, with "op"')
        match operation:
            case "begin":
                return self._begin(fd, request)
            case "flush":
                return self._flush()
            case "idle":
                return self._ask_idle(fd, request)
            case "end":
                return self._end(fd)
            case "mark":
                self._mark(fd, request)
                return None
            case "stop":
                self._stop_at_ns = time.monotonic_ns()
                reason = self._recorder.end()
                return _refusal(reason) if reason else {"ok": True}
            case _:
                return _refusal(
                    f"unknown op {operation!r}: expected begin, flush, idle, end or stop"
                )

    def _begin(self, fd: int, request: dict[str, Any]) -> dict[str, Any]:
        path, meta = request.get("path"), request.get("meta", {})
        name, expected = request.get("who", ""), request.get("expected", 1)
        if not isinstance(path, str) or not os.path.isabs(path) or not isinstance(meta, dict):
            return _refusal('begin needs an absolute "path" and an object "meta"')
        if not isinstance(name, str) or not (expected is None or isinstance(expected, int)):
            return _refusal('"who" is text, and "expected" a number or null')
        joins = bool(name) and self._recorder.path == Path(path)
        if self._recorder.path is not None and not joins:
            if self._those.inside:
                return _refusal(f"{self._recorder.path} is open; end it first")
            self._lost_ns = None
            self._recorder.end(event=("rank-lost", "another record was begun"))
        if not joins:
            try:
                self._recorder.begin(path, meta)
            except WRITE_ERRORS as error:
                return _refusal(str(error) if path in str(error) else f"{path}: {error}")
            self._those = Participants(expected=expected)
            self._next_ns = time.monotonic_ns() + self._interval_ns
        self._those.join(fd, name)
        self._lost_ns = None
        if name:
            self._recorder.mark("begin", name)
        return {"ok": True, "devices": self._recorder.devices(), "reasons": self._reasons}

    def _flush(self) -> dict[str, Any]:
        try:
            return {"ok": True, "rows": self._recorder.flush()}
        except WRITE_ERRORS as error:
            return _refusal(str(error))

    def _end(self, fd: int) -> dict[str, Any]:
        if self._recorder.path is None:
            return _refusal("no record is open")
        name = self._those.leave(fd)
        if name is None and self._those.inside:
            return _refusal(f"{self._recorder.path} was begun by another connection")
        if name:
            self._recorder.mark("end", name)
            if self._recorder.given_up:
                return _refusal(self._recorder.given_up)
            if self._those.inside:
                return {"ok": True, "closed": False}
            if self._those.awaited:
                # One that starts late may still come; its energy belongs into this record.
                self._last_event = ("absent", self._those.missing)
                self._lost_ns = time.monotonic_ns()
                return {"ok": True, "closed": False}
        self._lost_ns = None
        reason = self._recorder.end()
        return _refusal(reason) if reason else {"ok": True, "closed": True}

    def _mark(self, fd: int, request: dict[str, Any]) -> None:
        code, t_ns = request.get("code"), request.get("t_ns")
        if fd in self._those.inside and code in MARKS and isinstance(t_ns, int):
            self._recorder.mark(code, str(request.get("text", "")), t_ns=t_ns)


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
        help="auto (all, by priority), or some of them: nvml,rapl (see llem.energy.meters.choose)",
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
