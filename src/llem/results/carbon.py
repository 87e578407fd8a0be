"""Carbon intensity as a series in time: CO2 = PUE * sum over time of E(t) * CI(t).

A CSV with a header and two columns, `time` and `g_per_kwh`:

    time,g_per_kwh
    2026-03-01T00:00+01:00,412
    2026-03-01T00:15+01:00,398

A time is ISO 8601 with its offset from UTC (or Z): one without is refused, since a series that is
an hour off looks just like a right one. A value holds until the next time. Where that is further
away than usual (and after the last one) it holds for the usual time only: in such a gap, and where
the value is empty, nothing is known, and the carbon of energy used then is NaN with a reason.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llem.errors import Fault, InputError, did_you_mean

TIME, INTENSITY = "time", "g_per_kwh"
# Times further apart than so many times their median are a gap (the clocks' change is none: the
# offset is part of the time).
GAP = 1.5
EPOCH = datetime.fromisoformat("1970-01-01T00:00+00:00")


@dataclass(frozen=True, kw_only=True, eq=False)
class CarbonSeries:
    """g CO2 per kWh from each `at_ns` (of the epoch) to the next; NaN where it is not known."""

    source: str
    at_ns: NDArray[np.int64]
    g_per_kwh: NDArray[np.float64]

    def at(self, wall_ns: int) -> float:
        """The intensity at a moment of the wall clock; NaN outside the series and in its gaps."""
        index = int(np.searchsorted(self.at_ns, wall_ns, side="right")) - 1
        return float(self.g_per_kwh[index]) if index >= 0 else math.nan

    def edges_ns(self, t0_ns: int, t1_ns: int) -> list[int]:
        """Where it may change within a window of the wall clock."""
        inside = self.at_ns[(self.at_ns > t0_ns) & (self.at_ns < t1_ns)]
        return [int(t) for t in inside]


def read_carbon(path: str | Path) -> CarbonSeries:
    """Read a series from CSV. Raises InputError with every line that cannot be read."""
    path = Path(path)
    faults: list[Fault] = []
    rows: list[tuple[int, float]] = []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            table = csv.DictReader(file)
            names = [name for name in (table.fieldnames or ()) if name]
            for wanted in (TIME, INTENSITY):
                if wanted not in names:
                    faults.append(
                        Fault("", f"no column {wanted}", did_you_mean(wanted, names) or None)
                    )
            if not faults:
                for line in table:
                    where = f"line {table.line_num}"
                    at_ns = _time_ns(line[TIME] or "", where, faults)
                    value = _intensity(line[INTENSITY] or "", where, faults)
                    if at_ns is not None:
                        if rows and at_ns <= rows[-1][0]:
                            faults.append(Fault(where, "is not later than the line before"))
                        rows.append((at_ns, value))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        text = getattr(error, "strerror", None) or str(error)
        raise InputError(str(path), [text]) from None
    if not faults and len(rows) < 2:
        faults.append(Fault("", f"{len(rows)} times: at least 2 are needed"))
    if faults:
        raise InputError(str(path), faults)
    return _series(str(path), rows)


def _series(source: str, rows: list[tuple[int, float]]) -> CarbonSeries:
    """With a NaN where a value's hold ends before the next time, and after the last one."""
    times = np.array([t for t, _ in rows], dtype=np.int64)
    usual = float(np.median(np.diff(times)))
    at: list[int] = []
    values: list[float] = []
    for i, (t, value) in enumerate(rows):
        at.append(t)
        values.append(value)
        if i + 1 == len(rows) or times[i + 1] - t > GAP * usual:
            at.append(t + round(usual))
            values.append(math.nan)
    return CarbonSeries(source=source, at_ns=np.array(at, dtype=np.int64),
                        g_per_kwh=np.array(values))  # fmt: skip


def _time_ns(text: str, where: str, faults: list[Fault]) -> int | None:
    try:
        found = datetime.fromisoformat(text.strip())
    except ValueError:
        faults.append(Fault(where, f"{text!r} is no time of ISO 8601"))
        return None
    if found.tzinfo is None:
        faults.append(Fault(where, f"{text!r} has no offset from UTC", "write +01:00, or Z"))
        return None
    return (found - EPOCH) // timedelta(microseconds=1) * 1000


def _intensity(text: str, where: str, faults: list[Fault]) -> float:
    if not text.strip():
        return math.nan
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not (math.isfinite(value) and value >= 0):
        faults.append(Fault(where, f"{text!r} is no carbon intensity"))
        return math.nan
    return value
