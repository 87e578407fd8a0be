"""What is known of an attempt on one host, on that host's monotonic clock: what claims are cut by.

A claim (see `claims`) knows a device's samples; when steps, phases and waits were is the ranks'
word, and when the carbon intensity changed is the wall clock's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from llem.records.native import compiled
from llem.results.carbon import CarbonSeries
from llem.results.ranks.clock import HostClock, shift_ns
from llem.results.ranks.ranks import Ranks, RankTimes, timed
from llem.results.ranks.timeline import PHASES, Cuts, Stretch, Timeline, cut, stretches

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

# Moments of two hosts are compared by a shift in whole nanoseconds.
SAME_NS = 1000


@dataclass(frozen=True)
class StepEnds:
    """When the last rank ended each step, on rank 0's monotonic clock; steps sorted."""

    steps: Integers
    t1_ns: Integers


@dataclass(frozen=True, kw_only=True)
class Wait:
    """When one rank had ended its steps and others had not; `device` "" is all of the host's.

    `total_ns` are all waits together, `last` in how many steps it was the last.
    """

    rank: int
    device: str
    from_ns: Integers
    to_ns: Integers
    weight: float
    total_ns: int
    last: int


@dataclass(frozen=True, kw_only=True)
class HostView:
    """One host's timeline, its ranks' stamps by device, their waits, and its wall clock;
    `own_lines` are those of devices whose ranks keep a time of their own (replicas)."""

    line: Timeline | None = None
    own_lines: Mapping[str, Timeline] = field(default_factory=dict)
    stamps: Mapping[str, Sequence[tuple[Integers, Floats]]] = field(default_factory=dict)
    waits: tuple[Wait, ...] = ()
    clock: HostClock | None = None
    carbon: CarbonSeries | None = None

    @property
    def first_step_ns(self) -> int | None:
        return int(self.line.t0_ns[0]) if self.line is not None and len(self.line.t0_ns) else None

    def parts(self, window: tuple[int, int], uuid: str = "") -> list[Stretch]:
        """The window cut by the phases of a device's ranks, and where the carbon intensity
        changes."""
        found = stretches(self.own_lines.get(uuid, self.line), window)
        if self.carbon is None or self.clock is None:
            return found
        wall = (self.clock.wall_of(t) for t in window)
        return cut(found, [self.clock.mono_of(t) for t in self.carbon.edges_ns(*wall)])

    def cuts(self, window: tuple[int, int], uuid: str = "") -> Cuts:
        """`parts`, as arrays."""
        parts = self.parts(window, uuid)
        return Cuts(
            t0_ns=np.array([part.t0_ns for part in parts], dtype=np.int64),
            t1_ns=np.array([part.t1_ns for part in parts], dtype=np.int64),
            phase=np.array([PHASES.index(part.phase) for part in parts], dtype=np.uint8),
            carbon_g_per_kwh=np.full(len(parts), np.nan)
            if self.carbon is None
            else np.array([self.carbon_at(part) for part in parts]),
        )

    def carbon_at(self, part: Stretch) -> float:
        """g CO2 per kWh in a part that `parts` gave; NaN where it is not known."""
        if self.carbon is None or self.clock is None:
            return float("nan")
        return self.carbon.at(self.clock.wall_of((part.t0_ns + part.t1_ns) // 2))


def view_of(
    boot_id: str,
    clock: HostClock | None,
    ranks: Ranks,
    *,
    skew: int,
    ends: StepEnds,
    carbon: CarbonSeries | None,
) -> HostView:
    """The view of one host. `skew` is what its clock is off by after translation from rank 0's.

    `ends` are the last rank's, on rank 0's clock.
    """
    line = ranks.lines.get(boot_id)
    reference = ranks.reference
    if line is None and reference is not None and clock is not None and ranks.lines:
        # no rank's record from here: rank 0's times, brought here
        there = ranks.lines.get(reference.boot_id) or next(iter(ranks.lines.values()))
        if len(there.t1_ns):
            line = there.shifted(shift_ns(int(there.t1_ns[0]), reference, clock) + skew)
    own = [timed(r) for r in ranks.ranks if r.boot_id == boot_id]
    return HostView(
        line=line,
        own_lines={uuid: own for (boot, uuid), own in ranks.own_lines.items() if boot == boot_id},
        stamps={r.device: r.stamps for r in own if r.stamps},
        waits=_waits(own, clock, reference, skew, ends),
        clock=clock,
        carbon=carbon,
    )


def step_ends(ranks: Ranks, skews: Mapping[str, int]) -> StepEnds:
    """When the last rank ended each step, on rank 0's clock; none for a lone rank.

    `skews` are what hosts' clocks are off by, by boot id.
    """
    stepped = [rank for rank in ranks.ranks if len(rank.steps)]
    none: Integers = np.array([], dtype=np.int64)
    if len(stepped) < 2 or ranks.reference is None:
        return StepEnds(none, none)
    every = ranks.steps
    last: Integers = np.full(len(every), np.iinfo(np.int64).min)
    for rank in map(timed, stepped):
        if not len(rank.steps):
            continue
        here = ranks.clocks[rank.boot_id]
        shift = shift_ns(int(rank.t1_ns[0]), here, ranks.reference) - skews.get(rank.boot_id, 0)
        ends = rank.t1_ns + shift
        if rank.steps is every:
            np.maximum(last, ends, out=last)
        else:
            at = np.searchsorted(every, rank.steps)
            last[at] = np.maximum(last[at], ends)
    return StepEnds(every, last)


def _waits(
    own: Sequence[RankTimes],
    clock: HostClock | None,
    reference: HostClock | None,
    skew: int,
    ends: StepEnds,
) -> tuple[Wait, ...]:
    if not len(ends.steps) or clock is None or reference is None:
        return ()
    known = all(rank.device for rank in own)
    on_device = Counter(rank.device for rank in own)
    found = []
    shared: Integers | None = None
    for rank in own:
        if not len(rank.steps):
            continue
        if rank.steps is ends.steps and shared is not None:
            to = shared
        else:
            alike = rank.steps is ends.steps
            to = ends.t1_ns if alike else ends.t1_ns[np.searchsorted(ends.steps, rank.steps)]
            to = to + shift_ns(int(to[0]), reference, clock) + skew
            shared = to if alike else shared
        total_ns, last, late = _waited(rank.t1_ns, to)
        if late:
            to = np.maximum(to, rank.t1_ns)
            total_ns, last, _ = _waited(rank.t1_ns, to)
        found.append(
            Wait(
                rank=rank.rank,
                device=rank.device if known else "",
                from_ns=rank.t1_ns,
                to_ns=to,
                weight=1 / (on_device[rank.device] if known else len(own)),
                total_ns=total_ns,
                last=last,
            )
        )
    return tuple(found)


def _waited(ends: Integers, last: Integers) -> tuple[int, int, int]:
    """All waits from the ends to the last ones, ns; how many are none; how many are below 0."""
    native = compiled.library()
    if native is not None:
        return native.waited(ends, last, same_ns=SAME_NS)
    ns = last - ends
    return int(ns.sum()), int(np.count_nonzero(ns < SAME_NS)), int(np.count_nonzero(ns < 0))
