"""What a call of the library says on the way, on standard error."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from llem._numerals import format_count, format_duration, percent

if TYPE_CHECKING:
    from llem.campaign import Run
    from llem.pipeline.campaigns import Planned

# Longest silence while runs are trained; later on a share of what has passed.
SILENCE_S = 20.0
SILENCE_SHARE = 0.05


class Say:
    """Lines on standard error as found when the call began; none where nothing is to be said."""

    def __init__(self, on: bool) -> None:
        self._stream = sys.stderr if on else None
        self._began = time.monotonic()
        self._done = 0
        self._next = 0.0
        self._spoke = self._began

    def __call__(self, text: str) -> None:
        if self._stream is not None:
            self._spoke = time.monotonic()
            print(f"llem: {text}", file=self._stream, flush=True)

    def begin(self, planned: Planned) -> None:
        ids = planned.plan.runs.run_ids
        self._done = sum(planned.folder.final_end(name) is not None for name in ids)
        if self._done:
            self(f"{self._done} of {len(ids)} runs are done already")

    @contextmanager
    def meanwhile(self, planned: Planned) -> Iterator[None]:
        """Now and then, while runs are trained: how much is done, and how long the rest takes."""
        if self._stream is None:
            yield
            return
        ended = threading.Event()
        teller = threading.Thread(target=self._tell, args=(planned, ended), daemon=True)
        teller.start()
        try:
            yield
        finally:
            ended.set()
            teller.join()

    def _tell(self, planned: Planned, ended: threading.Event) -> None:
        began, at_first = time.monotonic(), _work_done_s(planned)
        whole = math.fsum(run.predicted.duration_s for run in planned.plan.runs)
        if not whole > 0:
            return  # the plan could not foresee how long they take
        silence = SILENCE_S
        while not ended.wait(max(0.1, self._spoke + silence - time.monotonic())):
            now = time.monotonic()
            silence = max(SILENCE_S, SILENCE_SHARE * (now - began))
            if now < self._spoke + silence:
                continue
            done = _work_done_s(planned)
            speed = (done - at_first) / (now - began)
            left = (whole - done) / speed if speed > 0 else math.inf
            to_go = f", about {format_duration(left)} to go" if math.isfinite(left) else ""
            self(f"{percent(done / whole, places=0)} of the work is done{to_go}")

    def run(self, planned: Planned, run: Run, status: str) -> None:
        if self._stream is None:
            return
        end = (planned.folder.ends(run.run_id) or [{}])[-1]
        ended = float(end.get("ended_ns") or 0) / 1e9
        if ended < time.time() - (time.monotonic() - self._began) - 1:
            return  # trained by an earlier call, and counted then
        self._done += status in ("completed", "diverged")
        loss = end.get("loss")
        told = f"loss {loss:.4f}" if status == "completed" and loss is not None else (
            f"{status}: {end.get('reason', '')}"
        )  # fmt: skip
        self(
            f"{self._done}/{len(planned.plan.runs)} N {format_count(run.params)}, D "
            f"{format_count(run.tokens)}: {told} "
            f"({time.monotonic() - self._began:.0f} s)"
        )

    def watch(self, state: Any) -> None:
        if self._stream is None or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + 10.0
        done = sum(run.status in ("completed", "diverged") for run in state.runs)
        if done != self._done:
            self._done = done
            self(f"{done}/{len(state.runs)} runs ended")


def _work_done_s(planned: Planned) -> float:
    """What was trained, in seconds that the plan foresaw for it."""
    from llem.cluster import campaign_state

    runs = planned.plan.by_id
    state = campaign_state(planned.folder, planned.plan)
    return math.fsum(r.progress * runs[r.run_id].predicted.duration_s for r in state.runs)
