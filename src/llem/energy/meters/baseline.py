"""A device's power while it is idle, measured before a run.

By itself the sampler watches from its start to the first record: ranks import their libraries
meanwhile and the GPUs have not been touched. Asked to (`idle`), it watches while all ranks keep
still: contexts exist by then, which raise a GPU's power. The row says which.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field

from llem.energy.meters.meter import Device, Reading

DOMAINS = ("gpu", "module")
LEAST_S = 1.0
LEAST_SAMPLES = 5
# Over less time a slope of whole degrees is that of one rounding.
HEATING_S = 30.0

BaselineRow = tuple[bytes, float, int, float, int, int, int]


@dataclass
class _Seen:
    at_ns: list[int] = field(default_factory=list)
    power_mw: list[float] = field(default_factory=list)
    temperature_c: list[float] = field(default_factory=list)
    first: tuple[int, float] | None = None
    last: tuple[int, float] | None = None
    busy: float = 0.0
    blind: bool = False


class IdleWatch:
    """Collects readings of idle devices. `contexts` tells how many processes hold one on a device,
    None where that is not to be had."""

    def __init__(self, *, contexts: Callable[[str], int | None]) -> None:
        self._contexts = contexts
        self._seen: dict[str, _Seen] = {}

    def add(self, device: Device, at_ns: int, reading: Reading) -> None:
        """Take note of one reading."""
        if device.domain not in DOMAINS or device.quality not in ("counter", "integral"):
            return
        seen = self._seen.setdefault(device.uuid, _Seen())
        seen.at_ns.append(at_ns)
        seen.power_mw.append(reading.power_mw)
        seen.temperature_c.append(reading.temperature_c)
        if math.isfinite(reading.energy_mj):
            seen.first = seen.first or (at_ns, reading.energy_mj)
            seen.last = (at_ns, reading.energy_mj)
        if math.isfinite(reading.utilization):
            seen.busy = max(seen.busy, reading.utilization)
        else:
            seen.blind = True

    def rows(self) -> tuple[list[BaselineRow], list[str]]:
        """A row for each device that was idle, and why others have none."""
        rows: list[BaselineRow] = []
        reasons: list[str] = []
        for uuid, seen in self._seen.items():
            found = self._row(uuid, seen)
            if isinstance(found, str):
                reasons.append(f"{uuid}: {found}")
            else:
                rows.append(found)
        return rows, reasons

    def heating_c_per_min(self, *, since_ns: int) -> float:
        """The fastest change of a device's temperature; NaN where too little was seen."""
        slopes = []
        for seen in self._seen.values():
            pairs = [
                (t / 6e10, c)
                for t, c in zip(seen.at_ns, seen.temperature_c, strict=True)
                if t >= since_ns and math.isfinite(c)
            ]
            if len(pairs) < LEAST_SAMPLES or pairs[-1][0] - pairs[0][0] < HEATING_S * 0.9 / 60:
                continue
            at, c = zip(*pairs, strict=True)
            slopes.append(abs(statistics.linear_regression(at, c).slope))
        return max(slopes, default=math.nan)

    def _row(self, uuid: str, seen: _Seen) -> BaselineRow | str:
        contexts = self._contexts(uuid)
        span_s = (seen.at_ns[-1] - seen.at_ns[0]) / 1e9
        if seen.busy > 0:
            return f"no baseline: it was busy ({seen.busy:.0f} % at most)"
        if seen.blind and contexts != 0:
            return "no baseline: whether it was idle is not known"
        if span_s < LEAST_S or len(seen.at_ns) < LEAST_SAMPLES:
            return f"no baseline: seen for {span_s:.1f} s only"
        known = [p for p in seen.power_mw if math.isfinite(p)]
        if len(known) >= LEAST_SAMPLES:
            mean, sd = statistics.fmean(known), statistics.stdev(known)
        elif seen.first is not None and seen.last is not None and seen.last[0] > seen.first[0]:
            # 1 mJ in a ns is 1e9 mW
            mean = (seen.last[1] - seen.first[1]) / (seen.last[0] - seen.first[0]) * 1e9
            sd = math.nan
        else:
            return "no baseline: neither power nor a counter was read"
        context = -1 if contexts is None else int(contexts > 0)
        at = (seen.at_ns[0], seen.at_ns[-1])
        return (uuid.encode(), mean, len(seen.at_ns), sd, *at, context)


def contexts_on(uuid: str) -> int | None:
    """How many processes hold a compute context on a GPU; None where NVML does not tell.

    The meter has started NVML; where none has, it tells nothing.
    """
    try:
        import pynvml
    except ImportError:
        return None
    try:
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        return len(pynvml.nvmlDeviceGetComputeRunningProcesses(handle))
    except (pynvml.NVMLError, pynvml.NVMLLibraryMismatchError):
        return None  # an older driver does not know the question
