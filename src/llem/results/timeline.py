"""What a rank did when: its steps and its spans as one line of time without overlap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llem.records import Columns, Phase
from llem.records.native import compiled

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

# What the records name, and what lies before the first step and between the rest.
STARTUP, REST, IDLE = "startup", "rest", "idle"
PHASES = (STARTUP, *(phase.name.lower() for phase in Phase), IDLE, REST)
# No record has these: times of a served model that are told from its requests.
IDLE_CODE, REST_CODE = 254, 255


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


def timeline(steps: Columns, spans: NDArray[Any], *, ordered: bool = False) -> Timeline:
    """From a rank's `steps` (each step once) and `spans`; `ordered`: their ends are known to be."""
    if not ordered and (steps["t1_ns"][1:] < steps["t1_ns"][:-1]).any():
        steps = steps.take(np.argsort(steps["t1_ns"], kind="stable"))
    spans = spans[np.argsort(spans["t1_ns"], kind="stable")]
    ends, n = steps["t1_ns"], len(steps)
    # each span comes before the step of this place
    place = np.searchsorted(ends, spans["t1_ns"], side="right")
    native = compiled.library()
    if native is not None and n:
        starts, step_j, begins = native.line(
            steps, place, np.ascontiguousarray(spans["t1_ns"]),
            np.ascontiguousarray(spans["e1_mj"]),
        )  # fmt: skip
    else:
        starts, step_j, begins = _line(steps, spans, place)
    first, span_j = _spans(steps, spans, place)
    span_j[span_j < 0] = np.nan
    phase = np.concatenate([steps["phase"][begins], spans["phase"]])
    last = np.concatenate([ends[np.append(begins[1:], n)[: len(begins)] - 1], spans["t1_ns"]])
    order = np.lexsort((np.arange(len(last)) >= len(begins), last))
    stamped = np.add.reduceat(step_j, begins) if n else step_j
    return Timeline(
        step=steps["step"],
        t0_ns=starts,
        t1_ns=ends,
        kind=tuple(map(_name, phase[order].tolist())),
        first=np.concatenate([starts[begins], first])[order],
        last=last[order],
        stamped_j=np.concatenate([stamped, span_j])[order],
    )


def _line(
    steps: Columns, spans: NDArray[Any], place: NDArray[np.intp]
) -> tuple[Integers, Floats, NDArray[np.intp]]:
    """Where each step begins, its stamped energy, and the steps that stretches begin with."""
    ends, n = steps["t1_ns"], len(steps)
    starts = _after(steps["t0_ns"][:1], ends, place, spans["t1_ns"])
    np.minimum(starts, ends, out=starts)
    step_j = (
        steps["e1_mj"] - _after(steps["e0_mj"][:1], steps["e1_mj"], place, spans["e1_mj"])
    ) / 1e3
    step_j[step_j < 0] = np.nan  # the counter began anew
    # a new stretch begins where the phase changes and after a span
    new = np.zeros(n, dtype=bool)
    new[:1] = True
    new[1:] = steps["phase"][1:] != steps["phase"][:-1]
    new[place[place < n]] = True
    return starts, step_j, np.flatnonzero(new)


def _after(
    own: NDArray[Any], ends: NDArray[Any], place: NDArray[np.intp], span_ends: NDArray[Any]
) -> NDArray[Any]:
    """For each step the end of what came before it: a step, or a span; its `own` for the first."""
    found = np.concatenate([own, ends[:-1]])
    inside = place < len(found)
    found[place[inside]] = span_ends[inside]  # of several before one step the last counts
    return found


def _spans(steps: Columns, spans: NDArray[Any], place: NDArray[np.intp]) -> tuple[Integers, Floats]:
    """Where each span begins, and its stamped energy."""
    first = np.empty(len(spans), dtype=np.int64)
    joules = np.empty(len(spans))
    own = (spans[name].tolist() for name in ("t0_ns", "t1_ns", "e0_mj", "e1_mj"))
    ended: list[int] = []
    read_then: list[float] = []
    if len(steps):
        ended, read_then = (steps[name][place - 1].tolist() for name in ("t1_ns", "e1_mj"))
    before: int | None = None
    read = math.nan
    for k, (t0, t1, e0, e1) in enumerate(zip(*own, strict=True)):
        if place[k] and (before is None or ended[k] >= before):
            before, read = ended[k], read_then[k]
        start = t0 if before is None else max(t0, before)
        first[k] = min(start, t1)
        joules[k] = (e1 - (read if first[k] == before else e0)) / 1e3
        before, read = t1, e1
    return first, joules


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


_NAMES = {**{int(phase): phase.name.lower() for phase in Phase}, IDLE_CODE: IDLE}


def _name(phase: int) -> str:
    return _NAMES.get(phase, REST)
