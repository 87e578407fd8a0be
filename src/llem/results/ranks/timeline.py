"""What a rank did when: its steps and its spans as one line of time without overlap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llem.records import Columns, Phase
from llem.records.native import compiled
from llem.records.native.rows import StepRows

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

# What the records name, and what lies before the first step and between the rest.
STARTUP, REST, IDLE = "startup", "rest", "idle"
PHASES = (STARTUP, *(phase.name.lower() for phase in Phase), IDLE, REST)
# No record has these: times of a served model that are told from its requests.
IDLE_CODE, REST_CODE = 254, 255
_NAMED = {**{int(phase): phase.name.lower() for phase in Phase}, IDLE_CODE: IDLE}
_NAMES = tuple(_NAMED.get(code, REST) for code in range(256))


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

    @cached_property
    def apart(self) -> NDArray[np.intp]:
        """The places of steps that do not begin where the one before has ended."""
        found = np.ones(len(self.t0_ns), dtype=bool)
        found[1:] = self.t0_ns[1:] != self.t1_ns[:-1]
        return np.flatnonzero(found)

    def shifted(self, by_ns: int) -> Timeline:
        """The same on a clock that is `by_ns` ahead."""
        moved = {n: getattr(self, n) + by_ns for n in ("t0_ns", "t1_ns", "first", "last")}
        return replace(self, **moved)


def timeline(steps: Columns | StepRows, spans: NDArray[Any]) -> Timeline:
    """From a rank's `steps` (each step once) and `spans`."""
    rows, parts = _parts(steps, spans)
    starts = np.concatenate([[rows.began_ns], rows.t1_ns[:-1]])[: len(rows)]
    inside = parts.place < len(rows)
    # of several spans before one step the last counts
    starts[parts.place[inside]] = parts.spans["t1_ns"][inside]
    np.minimum(starts, rows.t1_ns, out=starts)
    first, last = parts.ends(starts[parts.begins])
    return Timeline(
        step=rows.step, t0_ns=starts, t1_ns=rows.t1_ns, kind=parts.kind, first=first, last=last,
        stamped_j=parts.stamped_j,
    )  # fmt: skip


def stamped_by_phase(steps: Columns | StepRows, spans: NDArray[Any]) -> dict[str, float]:
    """Joules of each phase by a rank's own stamps; NaN where one is missing."""
    _, parts = _parts(steps, spans)
    stamped: dict[str, float] = {}
    for kind, joules in zip(parts.kind, parts.stamped_j.tolist(), strict=True):
        stamped[kind] = stamped.get(kind, 0.0) + joules
    return stamped


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """Stretches of one phase: those of steps, which begin with the steps `begins`, and the `spans`,
    which come before the steps `place`; `order` is that of their ends, first those of steps."""

    spans: NDArray[Any]
    place: NDArray[np.intp]
    begins: NDArray[np.intp]
    order: NDArray[np.intp]
    span_first: Integers
    last: Integers
    kind: tuple[str, ...]
    stamped_j: Floats

    def ends(self, first: Integers) -> tuple[Integers, Integers]:
        """Of all stretches in order, by where those of steps begin."""
        return np.concatenate([first, self.span_first])[self.order], self.last


def _parts(steps: Columns | StepRows, spans: NDArray[Any]) -> tuple[StepRows, _Parts]:
    if not isinstance(steps, StepRows):
        steps = Columns.of(steps)
        if (steps["t1_ns"][1:] < steps["t1_ns"][:-1]).any():
            steps = steps.take(np.argsort(steps["t1_ns"], kind="stable"))
        steps = StepRows.of(steps)
    spans = spans[np.argsort(spans["t1_ns"], kind="stable")]
    ends, n = steps.t1_ns, len(steps)
    # each span comes before the step of this place
    place = np.searchsorted(ends, spans["t1_ns"], side="right")
    begins, phase, step_j = _stretches(steps, place, np.ascontiguousarray(spans["e1_mj"]))
    span_first, span_j = _spans(steps, spans, place)
    span_j[span_j < 0] = np.nan  # the counter began anew
    last = np.concatenate([ends[np.append(begins[1:], n)[: len(begins)] - 1], spans["t1_ns"]])
    order = np.lexsort((np.arange(len(last)) >= len(begins), last))
    kinds = np.concatenate([phase, spans["phase"]])[order]
    return steps, _Parts(
        spans=spans,
        place=place,
        begins=begins,
        order=order,
        span_first=span_first,
        last=last[order],
        kind=tuple([_NAMES[code] for code in kinds.tolist()]),
        stamped_j=np.concatenate([step_j, span_j])[order],
    )


def _stretches(
    steps: StepRows, place: NDArray[np.intp], span_e1_mj: Floats
) -> tuple[NDArray[np.intp], NDArray[np.uint8], Floats]:
    """Where stretches of steps begin, their phases, and each one's energy by the readings at the
    ends of its steps and before it: a phase begins there, or a span comes before it."""
    native = compiled.library()
    if native is not None and len(steps):
        return native.stretches(steps, place, span_e1_mj)
    inside = place < len(steps)
    begins = np.union1d(steps.change, place[inside])
    phase = steps.phase[np.searchsorted(steps.change, begins, side="right") - 1]
    if not len(begins):
        return begins, phase, np.zeros(0)
    before_mj = np.concatenate([[steps.began_mj], steps.e1_mj])[begins]
    before_mj[np.searchsorted(begins, place[inside])] = span_e1_mj[inside]
    step_j = np.empty(len(steps))
    step_j[1:] = steps.e1_mj[1:] - steps.e1_mj[:-1]
    step_j[begins] = steps.e1_mj[begins] - before_mj
    step_j /= 1e3
    step_j[step_j < 0] = np.nan  # the counter began anew
    return begins, phase, np.add.reduceat(step_j, begins)


def _spans(
    steps: StepRows, spans: NDArray[Any], place: NDArray[np.intp]
) -> tuple[Integers, Floats]:
    """Where each span begins, and its stamped energy."""
    first = np.empty(len(spans), dtype=np.int64)
    joules = np.empty(len(spans))
    own = (spans[name].tolist() for name in ("t0_ns", "t1_ns", "e0_mj", "e1_mj"))
    ended: list[int] = []
    read_then: list[float] = []
    if len(steps):
        ended, read_then = (of[place - 1].tolist() for of in (steps.t1_ns, steps.e1_mj))
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
