"""When a device ran slower than it could, by its own word: for its heat or supply, or at its limit.

NVML tells with each sample why clocks are lower than they might be (`nvmlClocksEventReasons`). A
sample's word counts for the time since the one before.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llem.records import Columns, DeviceSeries
from llem.results.energy.claim import Claim
from llem.results.energy.counter import CAPPED, MOST_S, SLOWED

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

# Devices that tell.
TELLING = ("gpu", "module")


def slowed_seconds(
    device: DeviceSeries, t0_ns: Integers, t1_ns: Integers
) -> tuple[Floats | None, Floats | None]:
    """Seconds in each [t0, t1] in which the device was slowed, and in which it was at its limit;
    None where it never was."""
    passed = device.reduced
    if passed is None:
        slowed, capped = (_slowed(device, mask, t0_ns, t1_ns) for mask in (SLOWED, CAPPED))
        return slowed, capped
    slowed, capped = (
        None if running is None else _within(passed.start_ns, passed.at_s, running, t0_ns, t1_ns)
        for running in (passed.slowed_s, passed.capped_s)
    )
    return slowed, capped


def _slowed(device: DeviceSeries, mask: int, t0_ns: Integers, t1_ns: Integers) -> Floats | None:
    samples = Columns.of(device.samples)
    at_ns = samples["t_ns"]
    if len(at_ns) < 2:
        return None
    told = (samples["throttle"] & np.uint64(mask)) != 0
    if not told.any():
        return None
    seconds = np.minimum(np.diff(at_ns) / 1e9, MOST_S) * told[1:]
    running = np.concatenate([[0.0], np.cumsum(seconds)])
    return _within(int(at_ns[0]), (at_ns - at_ns[0]) / 1e9, running, t0_ns, t1_ns)


def _within(
    start_ns: int, at_s: Floats, running: Floats, t0_ns: Integers, t1_ns: Integers
) -> Floats:
    first, last = (np.interp((t - start_ns) / 1e9, at_s, running) for t in (t0_ns, t1_ns))
    found: Floats = last - first
    return found


def slowed_columns(claims: Iterable[Claim]) -> dict[str, Any]:
    """`slowed_s` and `capped_s`, device-seconds of these claims; NaN where no device tells."""
    telling = [claim for claim in claims if claim.domain in TELLING and claim.pieces is not None]
    if not telling:
        return {"slowed_s": math.nan, "capped_s": math.nan}
    pieces = [claim.pieces for claim in telling if claim.pieces is not None]
    return {
        "slowed_s": sum(float(p.slowed_s.sum()) for p in pieces if p.slowed_s is not None),
        "capped_s": sum(float(p.capped_s.sum()) for p in pieces if p.capped_s is not None),
    }
