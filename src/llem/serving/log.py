"""What a backend tells while it serves: its forward passes and its requests, into the record.

A forward pass begins where the one before it in its batch ended, so that all time of a batch is
that of its passes, and a gap between two tokens of a request is the length of one.
"""

from __future__ import annotations

import math
import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llem.records import ENGINE, FORWARDS, Phase, RequestStatus
from llem.serving.outcome import ServingProgress
from llem.serving.requests import Request
from llem.training.pulse import Counter
from llem.training.recording import Recording

PROGRESS_INTERVAL_S = 1.0
# Between passes that are shorter whether to leave is not asked each time.
ASK_NS = 5_000_000

# A moment: CLOCK_MONOTONIC in ns, and the device's counter in mJ.
Stamp = tuple[int, float]
# What some passes of a batch (0: its first) read and gave: columns of FORWARDS, by name.
Counts = Callable[[NDArray[np.int64]], Mapping[str, NDArray[np.int64] | int]]


@dataclass(kw_only=True)
class _Kind:
    """Passes of one kind in a row, from the batch's `first` on: the times (ns) and counters (mJ)
    where the first of them began and where each ended, as numbers without objects of their own. Of
    a counter that is not read (any more) there is the first alone."""

    batch: int
    sequences: int
    first: int
    counts: Counts
    times: array[int]
    counters: array[float]

    def rows(self) -> NDArray[Any]:
        """As FORWARDS, not numbered yet; of these passes nothing is kept but the last one's end."""
        times, counters = np.array(self.times), np.array(self.counters)
        passes = len(times) - 1
        if len(counters) == 1:
            counters = np.full(len(times), np.nan)
        rows = np.empty(passes, FORWARDS)
        rows["batch"], rows["sequences"] = self.batch, self.sequences
        rows["t0_ns"], rows["t1_ns"] = times[:-1], times[1:]
        rows["e0_mj"], rows["e1_mj"] = counters[:-1], counters[1:]
        for name, values in self.counts(np.arange(self.first, self.first + passes)).items():
            rows[name] = values
        self.first += passes
        # The same arrays: who stamps holds on to them.
        del self.times[:-1], self.counters[:-1]
        return rows


class Log:
    """The record of what is served, in the window or (`warmup`) before it; requests are recorded
    by the `lead` of a replica alone.

    `should_stop` is asked after each forward pass; `t0_ns` is when arrivals count from. `told` is
    called about once a second.
    """

    def __init__(
        self,
        record: Recording,
        *,
        counter: Counter,
        should_stop: Callable[[], str | None] | None = None,
        told: Callable[[ServingProgress], None] | None = None,
        requests: int = 0,
        warmup: bool = False,
        first_batch: int = 0,
        lead: bool = True,
    ) -> None:
        self.zero: Stamp = time.monotonic_ns(), counter.read()
        self.t0_ns = self.t_end_ns = self.zero[0]
        self.warmup = warmup
        self.lead = lead
        self.stop_reason: str | None = None
        self.batches = first_batch
        self.forwards = self.engine = 0
        self.finished = self.failed = 0
        self.tokens_in = self.tokens_out = 0
        self._record = record
        self._counter, self._read = counter, counter.read
        self._passes: list[tuple[int | float, ...]] = []
        self._kinds: list[_Kind] = []
        self._should_stop = should_stop
        self._told = told
        self._requests = requests
        self._next_told_ns = self.t0_ns

    def now(self) -> Stamp:
        return time.monotonic_ns(), self._read()

    def now_s(self) -> float:
        """Seconds since arrivals count."""
        return (time.monotonic_ns() - self.t0_ns) / 1e9

    def next_batch(self) -> int:
        """The number of the batch that begins now: from 0 up, in the warm-up from -1 down."""
        self.batches += 1
        return -self.batches if self.warmup else self.batches - 1

    def forward(
        self,
        began: Stamp,
        *,
        batch: int,
        phase: Phase,
        sequences: int,
        tokens_in: int,
        tokens_out: int,
        context: int,
        live: int,
        attended: int,
    ) -> Stamp:
        """A forward pass whose tokens are known now; returns this moment, when the next begins.

        The numbers are those of `llem.records.schema.FORWARDS`.
        """
        ended = time.monotonic_ns(), self._read()
        self._passes.append(
            (0, batch, began[0], ended[0], sequences, tokens_in, tokens_out, context, began[1],
             ended[1], phase, live, attended)
        )  # fmt: skip
        if ended[0] >= self._next_told_ns:
            self._tell(ended)
        return ended

    def passes(
        self,
        began: Stamp,
        *,
        batch: int,
        sequences: int,
        first: int,
        counts: Counts,
        asks: bool,
    ) -> Callable[[], bool]:
        """Passes of one kind follow, of which the batch's `first` is the first, until others do.

        To be called at each one's end is what this returns: it stamps the moment, in which the next
        begins, and tells whether to leave now, where it `asks` that (of passes of less than 5 ms
        not after each). It does nothing else: between two passes every line of Python comes from
        cold memory, and takes five times as long. What the stamps are of is asked of `counts` when
        the record gets them, which is at least as often as progress is told.
        """
        # What a counter told last, before its readings ended, is of no later moment.
        read = None if self._counter.reason else self._read
        kind = _Kind(
            batch=batch, sequences=sequences, first=first, counts=counts,
            times=array("q", began[:1]), counters=array("d", began[1:] if read else [math.nan]),
        )  # fmt: skip
        self._kinds.append(kind)
        clock_ns, keep_time = time.monotonic_ns, kind.times.append
        keep_counter = kind.counters.append
        ask = self._should_stop if asks else None
        due_ns = 0

        def ended() -> bool:
            nonlocal due_ns
            now_ns = clock_ns()
            keep_time(now_ns)
            if read is not None:
                keep_counter(read())
            if now_ns < due_ns:
                return False
            due_ns = now_ns + ASK_NS
            if now_ns >= self._next_told_ns:
                self._tell(self.last)
            if ask is None or (reason := ask()) is None:
                return False
            self.stop_reason = self.stop_reason or reason
            return True

        return ended

    @property
    def last(self) -> Stamp:
        """The end of the last of `passes`, or where the first of them began."""
        return self._kinds[-1].times[-1], self._kinds[-1].counters[-1]

    def hand_over(self) -> None:
        """Give the record what was gathered; whoever has served calls it, however that ended."""
        blocks = [np.array(self._passes, FORWARDS)] if self._passes else []
        self._passes = []
        for kind in self._kinds:
            if len(kind.times) > 1:
                blocks.append(kind.rows())
        del self._kinds[:-1]
        if not blocks:
            return
        rows = np.concatenate(blocks)
        rows["forward"] = np.arange(self.forwards, self.forwards + len(rows))
        if self.warmup:
            rows["phase"] = Phase.WARMUP
        self._record.append_rows("forwards", rows)
        self.forwards += len(rows)
        self.tokens_out += int(rows["tokens_out"].sum())

    def token(self, request: Request, index: int, t_ns: int) -> None:
        """A token that a server sent; its forward pass was nobody's to see."""
        if self.warmup:
            return
        self._record.append("tokens", (request.number, index, t_ns))
        self.tokens_out += 1
        if t_ns >= self._next_told_ns:
            self._tell((t_ns, self._read()))

    def engine_steps(self, steps: Sequence[tuple[int | float, ...]]) -> None:
        """Steps of a server's engine, by its own word; see `llem.records.schema.ENGINE`."""
        if self.warmup or not steps:
            return
        rows = [(self.engine + i, *step) for i, step in enumerate(steps)]
        self.engine += len(steps)
        self._record.append_rows("engine", np.array(rows, ENGINE))

    def request(
        self,
        request: Request,
        *,
        batch: int,
        tokens_out: int,
        t_start_ns: int,
        t_first_ns: int,
        t_last_ns: int,
        status: RequestStatus,
        tokens_in: int | None = None,
    ) -> None:
        """A request is done, in whatever way. `tokens_in` where a server counted them itself."""
        if self.warmup or not self.lead:
            return
        read = len(request.tokens) if tokens_in is None else tokens_in
        self._record.append(
            "requests",
            (request.number, request.prompt, batch, read, tokens_out,
             self.t0_ns + round(request.arrival_s * 1e9), t_start_ns, t_first_ns, t_last_ns,
             int(status)),
        )  # fmt: skip
        if t_first_ns or tokens_out:
            self.tokens_in += read
        if status in (RequestStatus.FINISHED, RequestStatus.STOPPED):
            self.finished += 1
        elif status is RequestStatus.FAILED:
            self.failed += 1

    def event(self, code: str, text: str) -> None:
        self._record.event(code, text)

    def stopping(self) -> bool:
        """Whether to leave now."""
        if self.stop_reason is None and self._should_stop is not None:
            self.stop_reason = self._should_stop()
        return self.stop_reason is not None

    def wait_until(self, at_s: float) -> None:
        """Wait for an arrival; a moment at most, so that a signal to leave is not slept through."""
        if time.monotonic_ns() >= self._next_told_ns:
            # Nothing may come for long: what was recorded is on disk by then.
            self._tell(self.now())
            self._record.flush()
        time.sleep(max(0.0, min(at_s - self.now_s(), 0.1)))

    def left(self, requests: Sequence[Request]) -> None:
        """These will not be begun any more."""
        for request in requests:
            self.request(
                request, batch=-1, tokens_out=0, t_start_ns=0, t_first_ns=0, t_last_ns=0,
                status=RequestStatus.LEFT,
            )  # fmt: skip

    def _tell(self, now: Stamp) -> None:
        self.hand_over()
        self._next_told_ns = now[0] + round(PROGRESS_INTERVAL_S * 1e9)
        if self._told is None:
            return
        took_s = (now[0] - self.t0_ns) / 1e9
        self._told(
            ServingProgress(
                step=self.finished,
                steps=self._requests,
                tokens=self.tokens_out,
                tokens_per_s=self.tokens_out / took_s if took_s > 0 else math.nan,
                energy_j=(now[1] - self.zero[1]) / 1e3,
            )
        )
