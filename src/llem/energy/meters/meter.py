"""What a meter is: it says which devices it can measure, and reads them one at a time.

Joules that are not known are NaN with a reason, never 0.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Protocol


@dataclass(frozen=True, kw_only=True)
class Device:
    """One thing whose energy is measured.

    `domain` is where the energy lies (`llem.records.DOMAINS`); `contains` names the domains
    inside it, which must not be added to it. `counter`: `energy_mj` is a running counter.
    `quality` (`llem.records.QUALITIES`) is how its energy will be found; `reason` says why that
    is less than `counter`. `share` is the part of the device that the job holds (MIG), NaN where
    that cannot be known. `power` says what `power_mw` is: instant, average, model or none.
    `counter_range_mj`: the counter starts again at 0 there (0: it does not within a job's time).
    `interval_s`: how often a slow source is read; 0: with every sample. `node_wide`: it counts for
    all who run on the node, and is this job's own only where the job holds the node.
    `power_limit_w` is what its driver holds it to, `persistence` (1, 0) whether the driver stays
    loaded between programs; NaN and -1 where it does not say.
    """

    uuid: str
    name: str
    domain: str
    source: str
    contains: tuple[str, ...] = ()
    counter: bool = True
    quality: str = "counter"
    reason: str = ""
    share: float = 1.0
    power: str = "none"
    counter_range_mj: float = 0.0
    interval_s: float = 0.0
    node_wide: bool = False
    power_limit_w: float = math.nan
    persistence: int = -1

    def attrs(self) -> dict[str, Any]:
        """The device as the attributes of its group in a node's record."""
        attrs = asdict(self)
        del attrs["uuid"]
        return {**attrs, "contains": list(self.contains)}


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What a meter found: its devices, and the reasons for what it cannot measure.

    `accelerators` is how many GPUs the environment says this job holds on this node (None: it
    does not say), so that one which no meter sees is missed and not forgotten. `paired` are GPUs
    without a device of their own, measured with their neighbour (the second die of an MI250X).
    """

    devices: tuple[Device, ...] = ()
    reasons: tuple[str, ...] = ()
    accelerators: int | None = None
    paired: int = 0


@dataclass(frozen=True)
class Reading:
    """One sample of one device; NaN for what was not measured. `energy_mj` is read first.

    `t_ns` (monotonic) is when that was, where the meter knows it closer than that it was asked, or
    where the reading was taken earlier by a source that is too slow to be waited for, in `read_ns`
    nanoseconds; 0: it was taken now, as long as the call lasted.
    """

    energy_mj: float = math.nan
    power_mw: float = math.nan
    temperature_c: float = math.nan
    utilization: float = math.nan
    clock_mhz: float = math.nan
    throttle: int = 0
    t_ns: int = 0
    read_ns: int = 0


class MeterError(Exception):
    """A device could not be read this time."""


class Meter(Protocol):
    """A way to measure: a driver library, a kernel interface, a model."""

    @property
    def name(self) -> str:
        """Short name of the meter, for records and messages."""

    def probe(self) -> Probe:
        """Find the devices that this job holds. Never raises for what is not there."""

    def read(self, device: Device) -> Reading:
        """Read one device. Raises MeterError where nothing at all could be read."""

    def close(self) -> None:
        """Let go of the library or files. Safe to call twice."""
