"""How a run of a deployment ended, as its end record tells it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Status = Literal["completed", "interrupted"]


@dataclass(frozen=True, kw_only=True)
class WarmedUp:
    """The warm-up: its rounds, and how far the last of them were spread (standard deviation over
    mean), which is NaN of fewer rounds than are compared."""

    rounds: int
    spread: float
    converged: bool
    duration_s: float


@dataclass(frozen=True, kw_only=True)
class Served:
    """The end of one attempt at serving; the same on every rank.

    `step` of `steps` requests were finished, all replicas together, and so are the tokens and
    rates, which are over the measured window: from the earliest beginning to the latest end of
    the replicas. `asked` and `effective` are the backend's options, as it tells them itself.
    `peak_memory_bytes` is the largest peak of a rank from before its model was loaded,
    `peak_memory_window_bytes` that within the window, weights included; NaN with a
    `peak_memory_reason`. `load_s` and `warmup` are rank 0's. `t*_ns` and `window_t*_ns` are rank
    0's CLOCK_MONOTONIC, `wall*_ns` its wall clock.
    """

    status: Status
    reason: str
    step: int
    steps: int
    tokens_in: int
    tokens_out: int
    tokens_per_s: float
    requests_per_s: float
    asked: Mapping[str, Any]
    effective: Mapping[str, Any]
    replicas: int
    load_s: float
    warmup: WarmedUp
    peak_memory_bytes: float
    peak_memory_window_bytes: float
    peak_memory_reason: str
    window_t0_ns: int
    window_t1_ns: int
    t0_ns: int
    t1_ns: int
    wall0_ns: int
    wall1_ns: int
    record: str
    failed: int = 0
    start_step: int = 0
    checkpoint: None = None
    workload: str = "inference"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class ServingProgress:
    """What serving tells about once a second: `step` of `steps` requests are done by rank 0's
    replica, `tokens` have come out; `energy_j` is what its device's counter counted since."""

    step: int
    steps: int
    tokens: int
    tokens_per_s: float
    energy_j: float = math.nan
    start_step: int = field(default=0)
    workload: str = "inference"

    @property
    def remaining_s(self) -> float:
        """Until the last request at the rate so far; NaN where no rate is known."""
        if not self.step or not self.tokens_per_s > 0:
            return math.nan
        return (self.steps - self.step) * self.tokens / self.step / self.tokens_per_s
