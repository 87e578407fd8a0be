"""From which step on a run is steady: by its energy per token, and by its temperature.

    first k with, over the last w = 20 values,
        CV < 5 %,   |slope * w| / mean < 2 %   and, for energy,   dT < 1 degree a minute

Nothing is deleted: the step is an annotation, and every joule stays in every sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llem.records.native import compiled

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

WINDOW = 20
MOST_CV = 0.05
MOST_DRIFT = 0.02
MOST_HEATING_C_PER_MIN = 1.0
# A counter that moves every 0.1 s tells the energy of a shorter time badly: of single steps its
# error alone would pass for a run that never settles. Steps are taken together up to this long,
# where the counter's own share in the CV is 0.41 * 0.1 s / 2 s = 2 %.
LEAST_UNIT_S = 2.0
# Sensors tell whole degrees: over less time a slope is that of one rounding.
LEAST_HEATING_S = 60.0
# Windows of so many steps are looked at together.
AT_ONCE = 4096
# Of more values than this a median is first taken from a part.
PART_OF = 4096


@dataclass(frozen=True, kw_only=True)
class SteadyFrom:
    """`step`: the first that is known to be steady (the last of the window that converged), None
    with a reason where none is. `begins`: the first of that window."""

    step: int | None = None
    begins: int | None = None
    reason: str = ""


def converged(values: Floats, *, window: int = WINDOW) -> NDArray[np.bool_]:
    """For each k whether the `window` values up to k vary little and do not drift."""
    n = len(values)
    found = np.zeros(n, dtype=bool)
    if n < window:
        return found
    rows = np.lib.stride_tricks.sliding_window_view(values, window)
    mean = rows.mean(axis=1)
    x = np.arange(window) - (window - 1) / 2
    slope = rows @ x / float(x @ x)
    with np.errstate(divide="ignore", invalid="ignore"):
        cv = rows.std(axis=1, ddof=1) / mean
        drift = np.abs(slope) * window / np.abs(mean)
    found[window - 1 :] = (cv < MOST_CV) & (drift < MOST_DRIFT) & (mean > 0)
    return found


def steady_by_energy(
    *,
    step: Integers,
    joules: Floats,
    tokens: Floats,
    seconds: Floats,
    ends_s: Floats,
    temperature_c: Callable[[slice], Floats],
) -> SteadyFrom:
    """From arrays of one value per step. `temperature_c` gives that of the hottest device at the
    ends of some of them; NaN where unknown."""
    good = np.isfinite(joules) & (tokens > 0)
    if not good.any():
        return SteadyFrom(reason="energy per step is not known")
    place = np.flatnonzero(good)
    if len(place) < len(good):
        step, joules, tokens = step[good], joules[good], tokens[good]
        seconds, ends_s = seconds[good], ends_s[good]
    size = max(1, math.ceil(LEAST_UNIT_S / max(_median_s(seconds), 1e-9)))
    count = len(step) // size
    if count < WINDOW:
        unit = "steps" if size == 1 else f"groups of {size} steps ({LEAST_UNIT_S:g} s)"
        return SteadyFrom(reason=f"{count} {unit}: {WINDOW} are needed")
    last = np.arange(1, count + 1) * size - 1
    first = last - size + 1
    whole = size * count
    per_token = joules[:whole].reshape(count, size).sum(axis=1)
    per_token = per_token / tokens[:whole].reshape(count, size).sum(axis=1)
    ok = converged(per_token)
    if not ok.any():
        return SteadyFrom(reason="energy per token does not settle")
    chosen = np.flatnonzero(ok)
    ends, begins = last[chosen], first[chosen - WINDOW + 1]
    # at least a minute, from before the window where that is shorter
    since = np.minimum(begins, np.searchsorted(ends_s, ends_s[ends] - LEAST_HEATING_S))
    k = 0
    if len(place) == len(good):
        k = _first_flat(since, ends, ends_s, temperature_c)
    while k < len(chosen):
        if not _moves(place, ends_s, temperature_c, since[k], ends[k]):
            return SteadyFrom(step=int(step[ends[k]]), begins=int(step[begins[k]]))
        k += 1
    return SteadyFrom(reason="energy per token settles, the temperature does not")


def _median_s(seconds: Floats) -> float:
    """A median of step times that gives as many steps as the median does for one unit."""
    # most of the time a part of them will do: so many lie on either side of what changes the number
    part = float(np.median(seconds[:: max(1, len(seconds) // PART_OF)]))
    if part > 0 and len(seconds) > 2 * PART_OF:
        count = math.ceil(LEAST_UNIT_S / part)
        low = LEAST_UNIT_S / count * (1 + 1e-9)
        high = LEAST_UNIT_S / (count - 1) * (1 - 1e-9) if count > 1 else math.inf
        most = max(np.count_nonzero(seconds <= low), np.count_nonzero(seconds >= high))
        if most < (len(seconds) - 1) // 2 and low < part < high:
            return part
    return float(np.median(seconds))


def _first_flat(
    since: Integers, ends: Integers, ends_s: Floats, temperature_c: Callable[[slice], Floats]
) -> int:
    """How many windows are known to heat; each step's value is in its place."""
    native = compiled.library()
    k = 0
    while native is not None and k < len(ends):
        # temperatures are found as far as they are asked for
        reach = int(np.searchsorted(ends, int(ends[k]) + AT_ONCE))
        asked = temperature_c(slice(0, int(ends[reach - 1]) + 1))
        long = (ends[k:reach] - since[k:reach] >= 2) & (
            ends_s[ends[k:reach]] - ends_s[since[k:reach]] >= LEAST_HEATING_S / 2
        )
        if not long.all():
            return k
        found = native.flat(
            since[k:reach], ends[k:reach], ends_s, asked, most=MOST_HEATING_C_PER_MIN, times=60.0
        )
        if found != -1:
            return k + (found if found >= 0 else -2 - found)
        k = reach
    return k


def _moves(
    place: Integers,
    ends_s: Floats,
    temperature_c: Callable[[slice], Floats],
    since: int,
    last: int,
) -> bool:
    """Whether the temperature moves by more than a degree a minute from step `since` to `last`."""
    at, among = ends_s[since : last + 1], place[since : last + 1]
    c = temperature_c(slice(int(among[0]), int(among[-1]) + 1))
    if len(c) > len(among):
        c = c[among - among[0]]
    native = compiled.library()
    if native is not None and len(at) >= 3 and at[-1] - at[0] >= LEAST_HEATING_S / 2:
        steep = native.slope(at, c)
        if math.isfinite(steep):
            return abs(steep) * 60 >= MOST_HEATING_C_PER_MIN
    known = np.isfinite(c)
    if known.sum() < 3 or at[-1] - at[0] < LEAST_HEATING_S / 2:
        # a sensor that tells nothing, or too short a time for a whole degree to mean anything
        return False
    x = at[known] - at[known].mean()
    # sums as numpy has them everywhere: a product by BLAS depends on the processor
    slope = float((x * c[known]).sum()) / float((x * x).sum())
    return abs(slope) * 60 >= MOST_HEATING_C_PER_MIN


def steady_by_time(seconds: Floats) -> int | None:
    """The index of the first step of the first window of step times that converged."""
    ok = np.flatnonzero(converged(seconds))
    return int(ok[0]) - WINDOW + 1 if len(ok) else None
