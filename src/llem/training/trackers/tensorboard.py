"""TensorBoard: event files in a folder for each run, written without torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llem.training.trackers.rows import EVALUATION_NAMES, STEP_NAMES, hyperparameters, scalars


class Tracker:
    """`tensorboard --logdir FOLDER` shows it."""

    def __init__(self, *, folder: Path, say: Callable[[str], None]) -> None:
        # At once, so that an absent package is told before the first run.
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._folder = folder
        self._event, self._summary, self._open = Event, Summary, EventFileWriter
        self._writer: Any = None

    def on_start(self, run: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
        self._close()
        self._writer = self._open(str(self._folder / run["run_id"]), flush_secs=5)
        rows = (f"| {k} | {v} |" for k, v in hyperparameters(run).items())
        self._text("run", "\n".join(["| | |", "|---|---|", *rows]))

    def on_step(self, row: Mapping[str, Any]) -> None:
        self._scalars(scalars(row, STEP_NAMES), step=row["step"])

    def on_evaluation(self, row: Mapping[str, Any]) -> None:
        self._scalars(scalars(row, EVALUATION_NAMES), step=row["step"])

    def on_end(self, outcome: Mapping[str, Any]) -> None:
        self._text("end", f"{outcome['status']} {outcome['reason']}".strip())
        self._close()

    def close(self) -> None:
        self._close()

    def _scalars(self, values: Mapping[str, float], *, step: int) -> None:
        parts = [self._summary.Value(tag=k, simple_value=v) for k, v in values.items()]
        self._add(self._summary(value=parts), step=step)

    def _text(self, tag: str, text: str) -> None:
        from tensorboard.plugins.text.summary_v2 import text_pb

        self._add(text_pb(tag, text), step=0)

    def _add(self, summary: Any, *, step: int) -> None:
        self._writer.add_event(self._event(wall_time=time.time(), step=step, summary=summary))

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
