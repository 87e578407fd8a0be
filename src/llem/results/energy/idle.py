"""A device's idle power, and where the figure is from.

Late, in this order: what the user gives (see `LateOptions`); what the sampler measured before the
run (`/baseline`); samples of the run's own record from before its first step, where the device
reports that it did nothing; else it is not known.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from llem.records import Columns, DeviceSeries, NodeRecord

GIVEN = "given"
# Power is a mean over the last second on many boards: so much of an idle time is left out.
SETTLE_S = 1.0
LEAST_S = 1.0
LEAST_SAMPLES = 5
DOMAINS = ("gpu", "module")

CONTEXT = {0: "no context", 1: "a context existed"}


def idle_power(
    record: NodeRecord, device: DeviceSeries, *, before_ns: int | None
) -> tuple[float, str]:
    """Watts (NaN unknown), and their source or why there is none. `before_ns`: the first step."""
    for row in record.baseline:
        if row["uuid"].decode("utf-8", "replace") == device.uuid:
            return float(row["power_idle_mw"]) / 1e3, _told(row)
    if device.attrs.get("domain") not in DOMAINS:
        return math.nan, "no baseline: not a GPU"
    told = _refused(record, device.uuid) or "no baseline"
    if before_ns is None:
        return math.nan, told
    passed = device.reduced
    early = (
        Columns.of(device.samples)
        if passed is None
        else Columns(passed.head, len(passed.head["t_ns"]))
    )
    found, source = _before(early, before_ns)
    if math.isfinite(found):
        return found, source
    return found, f"{told}; {source}"


def _refused(record: NodeRecord, uuid: str) -> str:
    """Why the sampler has no baseline of a device, in its own words."""
    for event in record.events:
        if event["code"] == b"baseline-none":
            named, _, why = event["text"].decode("utf-8", "replace").partition(": ")
            if named == uuid:
                return str(why)
    return ""


def _told(row: Any) -> str:
    told = f"measured before the run, n={int(row['samples'])}, sd {float(row['sd']) / 1e3:.2g} W"
    context = CONTEXT.get(int(row["context"]), "")
    return f"{told}, {context}" if context else told


def _before(samples: Columns, before_ns: int) -> tuple[float, str]:
    """From the longest time before the first step in which the device did nothing."""
    early = samples.take(np.flatnonzero(samples["t_ns"] < before_ns))
    idle = (early["utilization"] == 0) & np.isfinite(early["power_mw"])
    best = (0, 0)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], idle, [False]]).astype(np.int8)))
    for begin, end in edges.reshape(-1, 2).tolist():
        best = max(best, (begin, end), key=lambda span: span[1] - span[0])
    stretch = early.take(slice(*best))
    if len(stretch):
        settled = stretch["t_ns"] >= stretch["t_ns"][0] + round(SETTLE_S * 1e9)
        stretch = stretch.take(settled)
    if len(stretch) < LEAST_SAMPLES or np.ptp(stretch["t_ns"]) < LEAST_S * 1e9:
        return math.nan, "not seen idle before the first step"
    power_w = stretch["power_mw"] / 1e3
    told = f"samples before the first step, n={len(stretch)}, sd {power_w.std(ddof=1):.2g} W"
    return float(power_w.mean()), told
