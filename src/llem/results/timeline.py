"""What a rank did when: its steps and its spans as one line of time without overlap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llem.records import Columns, Phase

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

# What the records name, and what lies before the first step and between the rest.
STARTUP, REST = "startup", "rest"
PHASES = (STARTUP, *(phase.name.lower() for phase in Phase), REST)


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """The steps of one rank, and the merged stretches of one phase, on its monotonic clock.

    A step counts from the end of what came before it (its own start, for the first), so that the
    host's work between two steps is a part of the later one. `first`, `last` and `kind` are of
    stretches: their ends and their phase. `stamped_j` is each stretch's energy by the rank's own
    stamps, of its own device alone; NaN where one of them is missing.
    """

    step: Integers
    t0_ns: Integers
    t1_ns: Integers
    kind: tuple[str, ...]
    first: Integers
    last: Integers
    stamped_j: Floats

    def shifted(self, by_ns: int) -> Timeline:
        """The same on a clock that is `by_ns` ahead."""
        moved = {n: getattr(self, n) + by_ns for n in ("t0_ns", "t1_ns", "first", "last")}
        return replace(self, **moved)


def timeline(steps: Columns, spans: NDArray[Any]) -> Timeline:
    """From a rank's `steps` (each step once) and `spans`."""
    names = ("step", "t0_ns", "t1_ns", "phase", "e0_mj", "e1_mj")
    step_of, t0, t1, phase, e0, e1 = (
        np.concatenate([steps[n], spans[n]]) if len(spans) else steps[n] for n in names
    )
    is_step = np.arange(len(t1)) < len(steps)
    if (np.diff(t1) < 0).any():
        order = np.argsort(t1, kind="stable")
        step_of, t0, t1, phase = (x[order] for x in (step_of, t0, t1, phase))
        is_step, e0, e1 = is_step[order], e0[order], e1[order]
    before = np.concatenate([t0[:1], t1[:-1]])
    start = np.where(is_step, before, np.maximum(t0, before))
    start = np.minimum(start, t1)
    # a new stretch begins where the phase changes or time was left out
    new = np.ones(len(t1), dtype=bool)
    new[1:] = (phase[1:] != phase[:-1]) | (start[1:] != t1[:-1])
    begins = np.flatnonzero(new)
    ends = np.append(begins[1:], len(t1)) - 1 if len(t1) else begins
    goes_on = np.zeros(len(t1), dtype=bool)
    goes_on[1:] = start[1:] == t1[:-1]
    item_j = (e1 - np.where(goes_on, np.concatenate([e0[:1], e1[:-1]]), e0)) / 1e3
    item_j[item_j < 0] = np.nan  # the counter began anew
    return Timeline(
        step=step_of[is_step],
        t0_ns=start[is_step],
        t1_ns=t1[is_step],
        kind=tuple(_name(int(phase[i])) for i in begins),
        first=start[begins],
        last=t1[ends],
        stamped_j=np.add.reduceat(item_j, begins) if len(begins) else item_j,
    )


@dataclass(frozen=True)
class Stretch:
    """A part of a window that was spent on one phase."""

    t0_ns: int
    t1_ns: int
    phase: str


def stretches(line: Timeline | None, window: tuple[int, int]) -> list[Stretch]:
    """The whole window, cut by phase: every moment is in exactly one stretch."""
    t0_ns, t1_ns = window
    if line is None or not len(line.first):
        return [Stretch(t0_ns, t1_ns, REST)]
    found: list[Stretch] = []
    at = t0_ns
    name = STARTUP
    for kind, first, last in zip(line.kind, line.first.tolist(), line.last.tolist(), strict=True):
        first, last = max(first, at), min(last, t1_ns)
        if last <= first:
            continue
        if first > at:
            found.append(Stretch(at, first, name))
        found.append(Stretch(first, last, kind))
        at, name = last, REST
    if at < t1_ns:
        found.append(Stretch(at, t1_ns, name if found else REST))
    return found


@dataclass(frozen=True, kw_only=True, eq=False)
class Cuts:
    """A window cut by phase and carbon intensity: ends, the phase as its place in PHASES, and g
    CO2 per kWh (NaN unknown)."""

    t0_ns: Integers
    t1_ns: Integers
    phase: NDArray[np.uint8]
    carbon_g_per_kwh: Floats


def cut(parts: Sequence[Stretch], at_ns: Sequence[int]) -> list[Stretch]:
    """The same stretches, cut at these moments as well."""
    found = []
    for part in parts:
        inner = sorted({t for t in at_ns if part.t0_ns < t < part.t1_ns})
        edges = [part.t0_ns, *inner, part.t1_ns]
        found += [Stretch(a, b, part.phase) for a, b in pairwise(edges)]
    return found


def _name(phase: int) -> str:
    try:
        return Phase(phase).name.lower()
    except ValueError:
        return REST
