"""What a server's engine told of its steps, as columns: they are there where any run has them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from llem.results.ranks.engine import Engine
from llem.results.rows.trained import quotient
from llem.results.tables.where import is_known

PREFIX = "engine."
STEPS = PREFIX + "steps"
# How a column of several runs is made of theirs: as a mean over the time in which the engine
# worked, as a share (what is counted above, and below), as a sum, as the most.
MEANS = ("running_mean", "occupancy", "waiting_mean", "cache_mean")
SHARES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "prefix_hits": ("prompt_cached", ("prompt_cached", "prompt_computed")),
    "right_guesses": ("accepted", ("drafted",)),
}
SUMS = ("steps", "work_s", "preempted", "prompt_computed", "prompt_cached", "drafted", "accepted")
MOST = ("cache_max",)


def engine_columns(engine: Engine, *, batch_size: Any = None) -> dict[str, int | float]:
    """Those of one run, less what has no value in it: `occupancy` without the engine's own limit
    `batch_size`, `right_guesses` where none were made. Empty where the engine told nothing."""
    if not engine.steps:
        return {}
    found = {
        "steps": engine.steps,
        "work_s": engine.work_ns / 1e9,
        "running_mean": quotient(engine.running, engine.work_ns),
        "occupancy": quotient(engine.running, engine.work_ns * _limit(batch_size)),
        "waiting_mean": quotient(engine.waiting, engine.work_ns),
        "cache_mean": quotient(engine.cache, engine.work_ns),
        "cache_max": engine.cache_most,
        "preempted": engine.preempted,
        "prompt_computed": engine.computed,
        "prompt_cached": engine.cached,
        "prefix_hits": quotient(engine.cached, engine.cached + engine.computed),
        "drafted": engine.drafted,
        "accepted": engine.accepted,
        "right_guesses": quotient(engine.accepted, engine.drafted),
    }
    return {PREFIX + name: value for name, value in found.items() if is_known(value)}


def engine_part(name: str, place: int, row: Mapping[str, Any]) -> float:
    """What a run adds to a mean or a share of several runs: above the line (0), or below it (1)."""
    if name in SHARES:
        counted, among = SHARES[name]
        return math.fsum(_value(row, part) for part in (among if place else (counted,)))
    worked_s = _value(row, "work_s")
    return worked_s if place else _value(row, name) * worked_s


def _value(row: Mapping[str, Any], name: str) -> float:
    value: Any = row.get(PREFIX + name)
    return float(value) if is_known(value) else math.nan


def _limit(batch_size: Any) -> float:
    known = isinstance(batch_size, (int, float)) and batch_size > 0
    return float(batch_size) if known else math.nan
