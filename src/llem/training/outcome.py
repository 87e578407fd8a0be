"""How a run ended, as its end record tells it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypedDict

Status = Literal["completed", "diverged", "interrupted"]


class Evaluated(TypedDict):
    """The held-out loss after `step` steps, `tokens` tokens; `phase` is that of the last of them.

    In any phase before the schedule's end it is no result of a run of so many tokens.
    """

    step: int
    tokens: int
    loss: float
    loss_se: float
    phase: str


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The end of one attempt at a run; the same on every rank but for the two train losses' rank.

    `step` is the number of finished optimiser steps of `steps`, `start_step` where this attempt
    began (more than 0 after a resume, from the folder `resumed_from`). Losses are nats per token
    over all ranks; `loss` and its standard error `loss_se` are of the held-out windows and NaN
    unless completed. `record` says which ranks' records are incomplete and why. `t*_ns` are
    CLOCK_MONOTONIC, `wall*_ns` the wall clock, at the attempt's two ends; `tokens` are those of
    all steps so far, `tokens_per_s` the rate of this attempt's steps from the start of its first
    to the end of its last. `peak_memory_bytes` is the largest of all ranks (see
    `llem.training.memory`), NaN with a `peak_memory_reason` where unmeasurable. `mfu` is the
    model's FLOP/s over those of all devices, NaN where these are not known. `evaluations` are those
    that the run asked for on its way, of all attempts. `trunk` is {run_id, steps} where the first
    `steps` steps were another run's, None where all were its own.
    """

    status: Status
    reason: str
    step: int
    steps: int
    start_step: int
    tokens: int
    loss: float
    loss_se: float
    train_loss_first: float
    train_loss_last: float
    resumed_from: str | None
    checkpoint: str | None
    record: str
    t0_ns: int
    t1_ns: int
    wall0_ns: int
    wall1_ns: int
    tokens_per_s: float
    peak_memory_bytes: float = math.nan
    peak_memory_reason: str = ""
    mfu: float = math.nan
    evaluations: tuple[Evaluated, ...] = ()
    trunk: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What a training tells about once a second, after `step` of `steps` steps.

    `loss` is the last step's, of all ranks; `grad_norm` before clipping. `tokens` are those of all
    steps so far; `tokens_per_s`, and the `mfu` as in Outcome, of this attempt. `energy_j` is what
    the counter of rank 0's device has counted since the attempt's first step, NaN without one.
    """

    step: int
    steps: int
    start_step: int
    loss: float
    tokens_per_s: float
    tokens: int = 0
    learning_rate: float = math.nan
    grad_norm: float = math.nan
    mfu: float = math.nan
    energy_j: float = math.nan

    @property
    def remaining_s(self) -> float:
        """Until the last step at the rate so far; NaN where no rate is known."""
        if not self.step:
            return math.nan
        return (self.steps - self.step) * self.tokens / self.step / self.tokens_per_s


ShouldStop = Callable[[], str | None]
