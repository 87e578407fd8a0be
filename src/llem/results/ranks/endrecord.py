"""`end.json`: what rank 0 says of an attempt when it ends."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STATUSES = ("completed", "diverged", "interrupted", "failed")


@dataclass(frozen=True, kw_only=True)
class EndRecord:
    """How an attempt ended. `t0_ns` to `t1_ns` is its window on rank 0's monotonic clock.

    `trunk_steps` of the run's steps were another run's, whose checkpoint it began from. Of a served
    model: `effective`, its options as the backend itself reports them, `peak_memory_window_bytes`,
    the most that it held in the measured window, and `load_s`, until its weights were there.

    None or NaN where the file does not say.
    """

    status: str
    reason: str = ""
    step: int | None = None
    steps: int | None = None
    tokens: float = math.nan
    loss: float = math.nan
    loss_se: float = math.nan
    peak_memory_bytes: float = math.nan
    t0_ns: int | None = None
    t1_ns: int | None = None
    host: str = ""
    boot_id: str = ""
    hosts: tuple[str, ...] = ()
    ranks: int | None = None
    trunk_steps: int = 0
    effective: Mapping[str, Any] = field(default_factory=dict)
    peak_memory_window_bytes: float = math.nan
    load_s: float = math.nan

    @property
    def window_ns(self) -> tuple[int, int] | None:
        if self.t0_ns is None or self.t1_ns is None or self.t1_ns < self.t0_ns:
            return None
        return self.t0_ns, self.t1_ns


def read_end(path: Path, *, run_id: str, rehearsed: bool = False) -> EndRecord | str | None:
    """The end record; None where there is no file; a sentence where it cannot be trusted.

    One that was rehearsed tells nothing of a real campaign, nor the other way about.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        return f"{path}: not readable: {error}"
    if not isinstance(values, Mapping):
        return f"{path}: holds no JSON object"
    if values.get("run_id", run_id) != run_id:
        return f"{path}: of another run, {values['run_id']!r}"
    if bool(values.get("rehearsal")) != rehearsed:
        what = "measured, in a rehearsed" if rehearsed else "rehearsed, in a real"
        return f"{path}: was {what} campaign: left out"
    status = values.get("status")
    if status not in STATUSES:
        return f"{path}: status {status!r} is none of {', '.join(STATUSES)}"
    hosts = values.get("hosts")
    return EndRecord(
        status=status,
        reason=_text(values.get("reason")),
        step=_integer(values.get("step")),
        steps=_integer(values.get("steps")),
        tokens=_number(values.get("tokens")),
        loss=_number(values.get("loss")),
        loss_se=_number(values.get("loss_se")),
        peak_memory_bytes=_number(values.get("peak_memory_bytes")),
        t0_ns=_integer(values.get("t0_ns")),
        t1_ns=_integer(values.get("t1_ns")),
        host=_text(values.get("host")),
        boot_id=_text(values.get("boot_id")),
        hosts=tuple(map(str, hosts)) if isinstance(hosts, list) else (),
        ranks=_integer(values.get("ranks")),
        trunk_steps=_trunk_steps(values.get("trunk")),
        effective=_mapping(values.get("effective")),
        peak_memory_window_bytes=_number(values.get("peak_memory_window_bytes")),
        load_s=_number(values.get("load_s")),
    )


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _trunk_steps(trunk: Any) -> int:
    return (_integer(trunk.get("steps")) or 0) if isinstance(trunk, Mapping) else 0


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _integer(value: Any) -> int | None:
    # a whole float is what some JSON writers make of an int; a bool is no number
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return int(value) if math.isfinite(value) and value == int(value) else None


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return math.nan
    return float(value)
