"""Energy of one device in a window, from its raw samples.

    E = I(t1) - I(t0),  I = linear interpolation of the unwrapped counter over the sample times

Without a counter, I is the trapezoid sum of the power samples (quality `integral`). A counter that
stands still is none for that time: power takes its place there, and the quality says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llem._numerals import percent
from llem.records import SAMPLES, Columns, DeviceSeries, SampleFlag
from llem.records.columns import Rows, TableRows
from llem.records.native import compiled
from llem.records.native.compiled import Line
from llem.records.native.rows import SampleRows, SamplesPass

# A window may reach beyond the samples by so much before its energy is unknown: three samples,
# or this share of the window. The rest is extrapolated at the power of the second beside it.
EDGE_SAMPLES = 3
EDGE_SHARE = 0.02
EDGE_S = 1.0

# The longest time that a counter is known to stand still between two of its values (20 to 100 ms
# by the boards' makers and users).
COUNTER_PERIOD_S = 0.1

# Power alone is blind in a gap; a counter bridges it.
GAP_SAMPLES = 5

# Counter and integrated power differ by more than this share, and by more than so many standard
# errors of a mean of the power's samples: one of them is wrong, or samples and a swinging power
# keep step (a note, no more: the counter counts).
DISAGREEMENT = 0.1
DISAGREEMENT_ERRORS = 4.0
DISAGREEMENT_MIN_S = 5.0

# Counters of GPUs move every 20 to 100 ms: one that has not for this long, nor for so many times
# its own habit, stands still. What then moves it again is what it missed, or a fresh start.
STILL_S = 0.5
STILL_MOVES = 5
CAUGHT_UP = 0.5

# Hardware slowdown, heat (software's and hardware's), the supply's brake.
SLOWED = 0x8 | 0x20 | 0x40 | 0x80
# The power limit.
CAPPED = 0x4
# What a sample says of the time since the one before holds for so long.
MOST_S = 2.0

# Of more values than this a median is taken from a part.
TYPICAL_OF = 4096

# A counter that would have had to run so many times as fast as it ever did, and by more watts than
# any processor draws, has not come to the end of its range but began anew.
WRAP_TIMES = 10.0
WRAP_W = 2000.0

# A device that draws less may keep its counter where it is.
AWAKE_W = 1.0

# What of the samples is read.
SAMPLE_COLUMNS = (
    "t_ns", "read_ns", "energy_mj", "power_mw", "temperature_c", "utilization", "throttle",
    "flags",
)  # fmt: skip

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class EnergySeries:
    """A device's running energy: joules since its first sample, at seconds since `start_ns`.

    `quality` is how it was found, which may be worse than the meter promised. `base_j` is what the
    counter showed at the start; NaN where it cannot be compared with (no counter, or one that began
    anew or stood still). `peak_w` is the most power that was seen, `read_s` a reading's time.
    """

    start_ns: int
    at_s: Floats
    joules: Floats
    interval_s: float
    quality: str
    notes: tuple[str, ...]
    base_j: float = math.nan
    peak_w: float = math.nan
    read_s: float = 0.0

    @property
    def end_ns(self) -> int:
        return self.start_ns + round(float(self.at_s[-1]) * 1e9)

    def between(self, t0_ns: int, t1_ns: int) -> float:
        """Joules between two moments of the samples' clock; nothing is added outside them."""
        at = [(t0_ns - self.start_ns) / 1e9, (t1_ns - self.start_ns) / 1e9]
        first, last = np.interp(at, self.at_s, self.joules)
        return float(last - first)

    def at(self, t_ns: NDArray[np.int64]) -> Floats:
        """Joules since the first sample at each of these moments; constant outside the samples."""
        moments: Floats = (t_ns - self.start_ns) / 1e9
        found: Floats = np.interp(moments, self.at_s, self.joules)
        return found

    @cached_property
    def line(self) -> Line:
        """The same for the passes in C, where there are any, of two samples or more."""
        native = compiled.library()
        assert native is not None
        return native.line(self.start_ns, self.at_s, self.joules)

    @property
    def least_doubt_j(self) -> float:
        """The least that `doubt_j` can be."""
        return self.peak_w * (COUNTER_PERIOD_S + self.read_s)

    def doubt_j(self, t_ns: NDArray[np.int64]) -> Floats:
        """How far a direct reading of the counter may be from `at`, joules.

        The counter moves once in its period D, a line between two samples is off by at most what
        is used between them, and reading takes time: P * (D + samples' distance + latency).
        """
        moments: Floats = (t_ns - self.start_ns) / 1e9
        i = np.clip(np.searchsorted(self.at_s, moments), 1, len(self.at_s) - 1)
        apart = self.at_s[i] - self.at_s[i - 1]
        doubt: Floats = self.peak_w * (COUNTER_PERIOD_S + apart + self.read_s)
        return doubt

    def covered_s(self, t0_ns: int, t1_ns: int) -> float:
        """How much of a window the samples span, seconds."""
        return max(0.0, (min(t1_ns, self.end_ns) - max(t0_ns, self.start_ns)) / 1e9)

    def edges_j(self, t0_ns: int, t1_ns: int) -> float:
        """What a window's parts before the first and after the last sample will have used."""
        span_ns = round(min(EDGE_S, float(self.at_s[-1])) * 1e9)
        before_ns = max(0, self.start_ns - t0_ns)
        after_ns = max(0, t1_ns - self.end_ns)
        first = self.between(self.start_ns, self.start_ns + span_ns)
        last = self.between(self.end_ns - span_ns, self.end_ns)
        return (first * before_ns + last * after_ns) / span_ns

    def tolerance_s(self, t0_ns: int, t1_ns: int) -> float:
        """How much of the window may be uncovered before its energy is unknown."""
        return max(EDGE_SAMPLES * self.interval_s, EDGE_SHARE * (t1_ns - t0_ns) / 1e9)


def energy_series(device: DeviceSeries) -> EnergySeries | str:
    """The running energy of a device, or why there is none."""
    quality = str(device.attrs.get("quality", "none"))
    if quality == "none":
        return str(device.attrs.get("reason") or "the meter reads no energy")
    counter = bool(device.attrs.get("counter", False))
    passed = device.reduced
    if passed is None and not isinstance(device.samples, Columns):
        passed = passed_samples(device.attrs, TableRows(device.samples), head_ns=0)
    if passed is not None:
        return _of_pass(passed, quality, device.attrs)
    samples = Columns.of(device.samples)
    column = "energy_mj" if counter else "power_mw"
    good = np.isfinite(samples[column])
    kept = samples if good.all() else samples.take(good)
    if len(kept) < 2:
        return f"{len(kept)} readable samples of {len(samples)}"
    if (kept["t_ns"][1:] < kept["t_ns"][:-1]).any():
        kept = kept.take(np.argsort(kept["t_ns"], kind="stable"))
    start_ns = int(kept["t_ns"][0])
    at_s: Floats = (kept["t_ns"] - start_ns) / 1e9
    interval_s = typical_gap(at_s)
    power_w: Floats = kept["power_mw"] / 1e3
    notes: list[str] = []
    if quality == "integral" and device.attrs.get("reason"):
        notes.append(str(device.attrs["reason"]))
    if counter:
        steps_j, resets = _counter_steps(kept, at_s, power_w, device.attrs)
        if blind := _blind_gap(at_s, np.cumsum(steps_j), device.attrs):
            return blind
        if resets:
            notes.append(f"counter reset {resets} times, bridged by power")
        if quality == "counter" and (still := _still(at_s, steps_j)):
            bridged_s = _bridge(still, at_s, steps_j, power_w)
            if math.isnan(bridged_s):
                return _still_reason(still, at_s)
            if bridged_s:
                quality = "integral"
                notes.append(f"counter stood still for {bridged_s:.1f} s, power integrated instead")
    else:
        steps_j = _trapezoids(at_s, power_w)
        gap_s = float(np.diff(at_s).max())
        if gap_s > GAP_SAMPLES * interval_s:
            notes.append(f"power integrated over a gap of {gap_s:.1f} s")
    joules: Floats = np.zeros(len(at_s))
    np.cumsum(steps_j, out=joules[1:])
    if counter:
        notes += _disagreement(at_s, power_w, float(joules[-1]), quality)
    failed = int(np.count_nonzero(samples["flags"] & SampleFlag.READ_FAILED))
    if failed:
        notes.append(f"{failed} of {len(samples)} samples failed")
    comparable = quality == "counter" and not any("reset" in note for note in notes)
    return EnergySeries(
        start_ns, at_s, joules, interval_s, quality, tuple(notes),
        base_j=float(kept["energy_mj"][0]) / 1e3 if comparable else math.nan,
        peak_w=_peak_w(at_s, joules, power_w, interval_s),
        read_s=typical(kept["read_ns"]) / 1e9,
    )  # fmt: skip


def passed_samples(attrs: Mapping[str, Any], rows: Rows, *, head_ns: int) -> SampleRows | None:
    """The samples of a counter at which nothing is odd, in one pass in C; the head is what was
    sampled before `head_ns`. None where that is not so, or there is no compiler."""
    quality = str(attrs.get("quality", "none"))
    native = compiled.library()
    if native is None or len(rows) < 2 or quality == "none" or not attrs.get("counter", False):
        return None
    if isinstance(rows, TableRows) and rows.table.dtype != SAMPLES:
        return None
    into = SamplesPass(
        len(rows), failed=int(SampleFlag.READ_FAILED), slowed=SLOWED, capped=CAPPED,
        most_s=MOST_S, every_read=_every(len(rows)), head_ns=head_ns,
    )  # fmt: skip
    rows.feed(into)
    found = into.found()
    if found is None or (quality == "counter" and found.stood_s >= STILL_S):
        return None
    odd = _differ(found.at_s, float(found.joules[-1]), found.integral_j, quality)
    return None if odd else found


def _of_pass(found: SampleRows, quality: str, attrs: Mapping[str, Any]) -> EnergySeries | str:
    at_s, joules = found.at_s, found.joules
    if blind := _blind_gap(at_s, joules[1:], attrs):
        return blind
    interval_s = typical_gap(at_s)
    native = compiled.library()
    assert native is not None
    most_w = native.most(at_s, joules, _apart(interval_s))
    notes = (str(attrs["reason"]),) if quality == "integral" and attrs.get("reason") else ()
    return EnergySeries(
        found.start_ns, at_s, joules, interval_s, quality, notes,
        base_j=found.start_mj / 1e3 if quality == "counter" else math.nan,
        peak_w=max(float(joules[-1] / at_s[-1]), found.most_w, most_w),
        read_s=_median(found.read_ns) / 1e9,
    )  # fmt: skip


def typical(values: NDArray[Any]) -> float:
    """The median of at most TYPICAL_OF values, which lie evenly among them."""
    return _median(values[:: _every(len(values))])


def _every(count: int) -> int:
    return max(1, count // TYPICAL_OF)


def typical_gap(values: NDArray[Any]) -> float:
    """`typical` of the differences of neighbouring values."""
    every = max(1, (len(values) - 1) // TYPICAL_OF)
    return _median(values[1::every] - values[:-1:every])


def _median(values: NDArray[Any]) -> float:
    native = compiled.library()
    return float(np.median(values)) if native is None or not len(values) else native.median(values)


def _peak_w(at_s: Floats, joules: Floats, power_w: Floats, interval_s: float) -> float:
    """The most of the sampled power and of the counter's mean over as many samples as a second
    usually has."""
    with np.errstate(invalid="ignore"):
        drawn = float(np.fmax.reduce(power_w, initial=0.0))
    apart = _apart(interval_s)
    means = (joules[apart:] - joules[:-apart]) / (at_s[apart:] - at_s[:-apart])
    mean_w = float(joules[-1] / at_s[-1])
    return max(mean_w, drawn, float(means.max(initial=0.0)))


def _apart(interval_s: float) -> int:
    return max(1, round(1.0 / interval_s)) if interval_s > 0 else 1


def _trapezoids(at_s: Floats, power_w: Floats) -> Floats:
    found = power_w[1:] + power_w[:-1]
    found /= 2
    found *= np.diff(at_s)
    return found


def _counter_steps(
    samples: Columns, at_s: Floats, power_w: Floats, attrs: Any
) -> tuple[Floats, int]:
    """Joules between neighbouring samples; a counter's wrap is undone, a reset is bridged."""
    steps_j: Floats = np.diff(samples["energy_mj"])
    steps_j /= 1e3
    backwards = np.flatnonzero(steps_j < 0)
    range_j = _range_j(attrs)
    if range_j > 0:
        steps_j[backwards] += range_j
        rates = steps_j / np.maximum(np.diff(at_s), 1e-9)
        fastest_w = float(np.delete(rates, backwards).max(initial=0.0))
        if fastest_w > 0:
            backwards = backwards[rates[backwards] > max(WRAP_TIMES * fastest_w, WRAP_W)]
            steps_j[backwards] = -1.0
        else:
            backwards = backwards[:0]
    for i in backwards:
        # What was counted before the reset is lost: the power samples around it say how much.
        around = power_w[i : i + 2]
        around = around[np.isfinite(around)]
        if around.size:
            steps_j[i] = around.mean() * (at_s[i + 1] - at_s[i])
        else:
            rates = steps_j / np.diff(at_s)
            steps_j[i] = float(np.median(rates[rates >= 0])) * (at_s[i + 1] - at_s[i])
    return steps_j, len(backwards)


def _range_j(attrs: Mapping[str, Any]) -> float:
    return float(attrs.get("counter_range_mj", 0) or 0) / 1e3


def _blind_gap(at_s: Floats, joules: Floats, attrs: Mapping[str, Any]) -> str:
    """Why a counter of a known range tells nothing of a gap in its samples: it may have come to its
    end more than once. `joules` (n - 1,) since the first sample, at all others. '' where it tells.
    """
    range_j = _range_j(attrs)
    if not range_j > 0:
        return ""
    gaps_s = np.diff(at_s)
    longest = int(np.argmax(gaps_s))
    rates = np.diff(joules, prepend=0.0) / np.maximum(gaps_s, 1e-9)
    gap_s = float(gaps_s[longest])
    if float(np.delete(rates, longest).max(initial=0.0)) * gap_s < range_j:
        return ""
    return f"{gap_s:.0f} s without a sample, in which the counter may have wrapped more than once"


def _still(at_s: Floats, steps_j: Floats) -> list[tuple[int, int]]:
    """Where the counter stood: from sample i to sample j."""
    if not _stood(at_s, steps_j):
        return []
    moved = np.flatnonzero(steps_j != 0)
    # between two moves, samples before + 1 to after show one value
    first, last = np.append(0, moved + 1), np.append(moved, len(steps_j))
    stood_s = at_s[last] - at_s[first]
    if not (stood_s >= STILL_S).any():
        return []
    habit_s = typical(np.diff(at_s[moved + 1])) if len(moved) > 2 else 0.0
    long = stood_s >= max(STILL_S, STILL_MOVES * habit_s)
    return list(zip(first[long].tolist(), last[long].tolist(), strict=True))


def _stood(at_s: Floats, steps_j: Floats) -> bool:
    """Whether it stood for long anywhere; most counters never do, and few steps are without."""
    still = np.flatnonzero(steps_j == 0)
    if not len(still):
        return False
    apart = np.flatnonzero(still[1:] != still[:-1] + 1)
    first, last = still[np.append(0, apart + 1)], still[np.append(apart, len(still) - 1)] + 1
    return bool((at_s[last] - at_s[first] >= STILL_S).any())


def _bridge(still: list[tuple[int, int]], at_s: Floats, steps_j: Floats, power_w: Floats) -> float:
    """Put power into `steps_j` where the counter stood; the seconds of that, NaN without power."""
    bridged_s = 0.0
    known = np.isfinite(power_w)
    for i, j in still:
        if np.count_nonzero(known[i : j + 1]) < max(2, (j - i) / 2):
            return math.nan
        # with the steps on either side: it stood for an unknown part of those
        first, last = max(0, i - 1), min(j + 1, len(steps_j))
        power = np.interp(at_s[first : last + 1], at_s[known], power_w[known])
        used_j = _trapezoids(at_s[first : last + 1], power)
        still_j = float(used_j[i - first : j - first].sum())
        if still_j < AWAKE_W * (at_s[j] - at_s[i]):
            continue
        # the step that moved it again may hold all that it had not told
        if j < len(steps_j) and steps_j[j] >= CAUGHT_UP * still_j:
            continue
        steps_j[first:last] = np.maximum(steps_j[first:last], used_j)
        bridged_s += float(at_s[j] - at_s[i])
    return bridged_s


def _still_reason(still: list[tuple[int, int]], at_s: Floats) -> str:
    still_s = sum(float(at_s[j] - at_s[i]) for i, j in still)
    return f"the counter stood still for {still_s:.1f} s, and no power was read to take its place"


def _differ(at_s: Floats, counted_j: float, integral_j: float, quality: str) -> bool:
    if quality == "model" or at_s[-1] < DISAGREEMENT_MIN_S:
        return False
    return not abs(counted_j - integral_j) <= DISAGREEMENT * abs(integral_j)


def _disagreement(at_s: Floats, power_w: Floats, counted_j: float, quality: str) -> list[str]:
    good = np.isfinite(power_w)
    if quality == "model" or good.sum() < 2 or at_s[-1] < DISAGREEMENT_MIN_S:
        return []
    known_w, known_s = (power_w, at_s) if good.all() else (power_w[good], at_s[good])
    integral_j = float(_trapezoids(known_s, known_w).sum())
    if not _differ(at_s, counted_j, integral_j, quality):
        return []
    off_j = counted_j - integral_j
    spread_w = float(known_w.std(ddof=1))
    error_j = DISAGREEMENT_ERRORS * spread_w / math.sqrt(len(known_w)) * float(at_s[-1])
    if abs(off_j) <= DISAGREEMENT * abs(integral_j) + error_j:
        return []
    share = f" by {percent(off_j / integral_j, places=0, signed=True)}" if integral_j > 0 else ""
    return [f"counter ({counted_j:.0f} J) and power ({integral_j:.0f} J) disagree{share}"]
