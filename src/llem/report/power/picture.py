"""What a picture of a measurement shows: power by device over time, phases, window, idle power."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

MOST_PANELS = 32
PHASE_CLASSES = 7
# Time without a phase's name: drawn in grey.
UNNAMED = ("rest", "startup")


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One device: mean power (W) between the edges (s, one more), NaN where it is not known."""

    label: str
    told: str
    edges_s: Sequence[float]
    power_w: Sequence[float]
    idle_w: float = math.nan

    def pieces(self) -> list[list[tuple[float, float]]]:
        """(s, W) of the bins' middles and the outer edges, parted where nothing is known."""
        found: list[list[tuple[float, float]]] = []
        known = [math.isfinite(watts) for watts in self.power_w]
        for i, watts in enumerate(self.power_w):
            if not known[i]:
                continue
            if i == 0 or not known[i - 1]:
                found.append([(self.edges_s[i], watts)])
            found[-1].append(((self.edges_s[i] + self.edges_s[i + 1]) / 2, watts))
            if i + 1 == len(known) or not known[i + 1]:
                found[-1].append((self.edges_s[i + 1], watts))
        return found


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """A phase's stretch of time, s."""

    phase: str
    t0_s: float
    t1_s: float


@dataclass(frozen=True, kw_only=True)
class PowerPicture:
    """What is drawn. `phases` are (name, what is told of it); `windows` what counts, s."""

    title: str
    duration_s: float
    panels: Sequence[Panel]
    stretches: Sequence[Stretch] = ()
    phases: Sequence[tuple[str, str]] = ()
    windows: Sequence[tuple[float, float]] = ()
    notes: Sequence[str] = ()

    @property
    def top_w(self) -> float:
        """The upper end of the axis of power, shared by all devices so that they compare."""
        most = max((w for p in self.panels for w in p.power_w if math.isfinite(w)), default=1.0)
        idle = max((p.idle_w for p in self.panels if math.isfinite(p.idle_w)), default=0.0)
        return 1.08 * max(most, idle, 1e-9)

    def class_of(self, phase: str) -> str:
        """The class of a phase's colour, the same wherever it is drawn."""
        return phase_class(phase, [name for name, _ in self.phases])

    def areas(self, panel: Panel) -> list[tuple[str, list[tuple[float, float]]]]:
        """What lies below a device's line, (phase, (s, W) from left to right): its energy."""
        whole = Stretch(phase="", t0_s=0.0, t1_s=self.duration_s)
        found = []
        for piece in panel.pieces():
            for stretch in self.stretches or (whole,):
                if cut := _between(piece, stretch.t0_s, stretch.t1_s):
                    found.append((stretch.phase, cut))
        return found

    def edges(self) -> list[float]:
        """Where the window begins and ends, where that is inside the picture."""
        least = 0.004 * self.duration_s
        found = {t for window in self.windows for t in window}
        return sorted(t for t in found if least < t < self.duration_s - least)


def phase_class(phase: str, names: Sequence[str]) -> str:
    """`p0`, `p1`, ... in the order of the names; `rest` for time that has no name of its own."""
    named = [name for name in names if name not in UNNAMED]
    return f"p{named.index(phase) % PHASE_CLASSES}" if phase in named else "rest"


def time_label(seconds: float, duration_s: float) -> str:
    """`30 s`, `5 min`, `2 h`: in the unit that suits the whole."""
    for limit, factor, unit in ((180, 1, "s"), (3 * 3600, 60, "min"), (4 * 86400, 3600, "h")):
        if duration_s < limit:
            return f"{seconds / factor:g} {unit}"
    return f"{seconds / 86400:g} d"


def _between(
    points: Sequence[tuple[float, float]], t0_s: float, t1_s: float
) -> list[tuple[float, float]]:
    """A line's part from one moment to another; [] where it has none."""
    import numpy as np

    seconds, watts = [s for s, _ in points], [w for _, w in points]
    first, last = max(t0_s, seconds[0]), min(t1_s, seconds[-1])
    if not last > first:
        return []
    inside = [(s, w) for s, w in points if first < s < last]
    ends = [(t, float(np.interp(t, seconds, watts))) for t in (first, last)]
    return [ends[0], *inside, ends[1]]
