"""How far an attempt is: a small file for whoever watches, and lines in the log."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from llem._numerals import format_duration, format_energy, format_si, percent
from llem.cluster.disk.files import finite_or_none
from llem.serving import ServingProgress
from llem.training import Callback, Progress

PROGRESS_S = 1.0
LOG_LINE_S = 30.0


class ProgressFile(Callback):
    """Keeps `progress.json` in the attempt's folder, and `log`s a line now and then.

    `last` is what was told last.
    """

    def __init__(self, run_id: str, attempt: Path, *, log: Callable[[str], None]) -> None:
        self.last: Progress | ServingProgress | None = None
        self._run_id = run_id
        self._attempt = attempt
        self._log = log
        self._next_file_s = 0.0
        self._next_line_s = time.monotonic() + LOG_LINE_S

    def on_step(self, progress: Progress | ServingProgress) -> None:
        self.last = progress
        now = time.monotonic()
        if now < self._next_file_s:
            return
        self._next_file_s = now + PROGRESS_S
        if now >= self._next_line_s:
            self._next_line_s = now + LOG_LINE_S
            self._log(f"run {self._run_id}: {line(progress)}")
        partial = self._attempt / ".progress.partial"
        values = {**asdict(progress), "time_ns": time.time_ns()}
        # For whoever watches: a full disk must not end the training over it.
        with suppress(OSError):
            partial.write_text(json.dumps(finite_or_none(values)))
            os.replace(partial, self._attempt / "progress.json")


def line(progress: Progress | ServingProgress) -> str:
    """How far a run is, in columns that stay where they are; what is not known is left out."""
    digits = len(str(progress.steps))
    trained = isinstance(progress, Progress)
    done = (
        f"{progress.step:{digits}d}/{progress.steps} "
        f"{percent(progress.step / progress.steps, places=0):>5}"
    )
    words = [f"{'step' if trained else 'request'} {done}"]
    if isinstance(progress, Progress):
        words.append(f"loss {progress.loss:7.4f}")
    words.append(f"{format_si(progress.tokens_per_s):>6} tokens/s")
    words.append(f"left {format_duration(progress.remaining_s):>9}")
    if isinstance(progress, Progress) and math.isfinite(progress.mfu):
        words.append(f"MFU {percent(progress.mfu, places=1):>7}")
    if math.isfinite(progress.energy_j):
        words.append(f"rank 0's device {format_energy(progress.energy_j):>7}")
    return "  ".join(words)
