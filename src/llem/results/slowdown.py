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
from llem.results.claim import Claim

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

# Hardware slowdown, heat (software's and hardware's), the supply's brake.
SLOWED = 0x8 | 0x20 | 0x40 | 0x80
# The power limit.
CAPPED = 0x4
# Of a longer silence nothing is known.
MOST_S = 2.0
# Devices that tell.
TELLING = ("gpu", "module")


def slowed_seconds(
    device: DeviceSeries, mask: int, t0_ns: Integers, t1_ns: Integers
) -> Floats | None:
    """Seconds in each [t0, t1] in which the device gave one of the reasons; None where in none."""
    samples = Columns.of(device.samples)
    at_ns = samples["t_ns"]
    if len(at_ns) < 2:
        return None
    told = (samples["throttle"] & np.uint64(mask)) != 0
    if not told.any():
        return None
    seconds = np.minimum(np.diff(at_ns) / 1e9, MOST_S) * told[1:]
    running = np.concatenate([[0.0], np.cumsum(seconds)])
    start = at_ns[0]
    first, last = (np.interp((t - start) / 1e9, (at_ns - start) / 1e9, running)
                   for t in (t0_ns, t1_ns))  # fmt: skip
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
