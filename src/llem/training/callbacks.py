"""Who is told how a training goes: on rank 0, and never a reason for a run to fail."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from llem.campaign import Run
from llem.training.outcome import Evaluated, Outcome, Progress
from llem.training.recording import Recording


class Callback:
    """What is told of a training; override what is of interest.

    Called in the training's own thread, which waits: return at once. One that raises is told
    nothing more of this run.
    """

    @property
    def name(self) -> str:
        return type(self).__name__

    def on_start(self, run: Run, meta: Mapping[str, Any]) -> None:
        """Before the first step of an attempt; `meta` as the rank's record holds it."""

    def on_step(self, progress: Progress) -> None:
        """After some steps, about once a second, and after the last."""

    def on_evaluation(self, evaluated: Evaluated) -> None:
        """After an evaluation."""

    def on_end(self, outcome: Outcome) -> None:
        """The attempt has ended, by itself or because it was asked to."""


class Callbacks:
    """Tells several; lets go of each that raises, with an event in `record` and a line."""

    def __init__(self, callbacks: Sequence[Callback], *, record: Recording) -> None:
        self._callbacks = list(callbacks)
        self._record = record

    def on_start(self, run: Run, meta: Mapping[str, Any]) -> None:
        self._tell("on_start", run, meta)

    def on_step(self, progress: Progress) -> None:
        self._tell("on_step", progress)

    def on_evaluation(self, evaluated: Evaluated) -> None:
        self._tell("on_evaluation", evaluated)

    def on_end(self, outcome: Outcome) -> None:
        self._tell("on_end", outcome)

    def _tell(self, method: str, *values: object) -> None:
        for callback in list(self._callbacks):
            try:
                getattr(callback, method)(*values)
            except Exception as error:
                self._callbacks.remove(callback)
                said = " ".join(f"{callback.name}: {error or type(error).__name__}".split())
                self._record.event("callback", said)
                print(f"llem: {said}; the training goes on", file=sys.stderr, flush=True)
