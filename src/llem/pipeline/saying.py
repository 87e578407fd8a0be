"""What a call of the library says on the way, on standard error."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from llem._numerals import format_count

if TYPE_CHECKING:
    from llem.campaign import Run
    from llem.pipeline.campaigns import Planned


class Say:
    """Lines on standard error as found when the call began; none where nothing is to be said."""

    def __init__(self, on: bool) -> None:
        self._stream = sys.stderr if on else None
        self._began = time.monotonic()
        self._done = 0
        self._next = 0.0

    def __call__(self, text: str) -> None:
        if self._stream is not None:
            print(f"llem: {text}", file=self._stream, flush=True)

    def begin(self, planned: Planned) -> None:
        ids = planned.plan.runs.run_ids
        self._done = sum(planned.folder.final_end(name) is not None for name in ids)
        if self._done:
            self(f"{self._done} of {len(ids)} runs are done already")

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
