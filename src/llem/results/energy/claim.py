"""A claim: one attempt's use of one device, with what was seen of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llem.records import Columns, DeviceSeries
from llem.results.ranks.timeline import PHASES, Cuts

DeviceKey = tuple[str, str]
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Celsius:
    """A device's temperature by its samples."""

    at_ns: NDArray[np.int64]
    celsius: Floats

    @classmethod
    def of(cls, device: DeviceSeries) -> Celsius | None:
        if (passed := device.reduced) is not None:
            known = len(passed.warm_ns) > 0
            return cls(at_ns=passed.warm_ns, celsius=passed.celsius) if known else None
        samples = Columns.of(device.samples)
        known = np.isfinite(samples["temperature_c"])
        if not known.any():
            return None
        at_ns, celsius = samples["t_ns"], samples["temperature_c"]
        if not known.all():
            at_ns, celsius = at_ns[known], celsius[known]
        # sensors tell whole degrees: the ends of a time without a change say all of it
        kept = np.ones(len(celsius), dtype=bool)
        changed = celsius[1:] != celsius[:-1]
        kept[1:-1] = changed[:-1] | changed[1:]
        places = np.flatnonzero(kept)
        return cls(at_ns=at_ns[places], celsius=celsius[places])

    def at(self, t_ns: NDArray[np.int64]) -> Floats:
        """At moments in order."""
        if not len(t_ns):
            return np.array([])
        first, last = np.searchsorted(self.at_ns, [t_ns[0], t_ns[-1]])
        around = slice(max(0, int(first) - 1), int(last) + 1)
        at_ns = self.at_ns[around]
        found: Floats = np.interp(
            (t_ns - at_ns[0]) / 1e9, (at_ns - at_ns[0]) / 1e9, self.celsius[around]
        )
        return found


@dataclass(frozen=True, kw_only=True, eq=False)
class Pieces:
    """A claim's window cut by phase and carbon intensity: the `cuts`, which the claims of a node
    have in common, and the joules seen in each. `slowed_s` and `capped_s` are the seconds of each
    in which the device said so (`slowdown`); None where it never did."""

    cuts: Cuts
    energy_j: Floats
    slowed_s: Floats | None = None
    capped_s: Floats | None = None

    def by_phase(self) -> dict[str, float]:
        """Joules seen in each phase."""
        sums = np.bincount(self.cuts.phase, weights=self.energy_j, minlength=len(PHASES))
        return {PHASES[i]: float(sums[i]) for i in np.unique(self.cuts.phase).tolist()}


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One attempt's use of one device in [t0_ns, t1_ns] of that host's monotonic clock.

    `energy_j` is NaN where it is unknown, and `reason` says why (or what is to be known about
    it). `attributed_s` are the seconds that count as this attempt's own: less than `covered_s`
    where others shared the device. `idle_w` is NaN without a baseline, and `idle_source` says
    where it is from, or why there is none.

    `pieces` are the window cut by phase and carbon intensity, with the energy that was seen in
    each; None where none was. `wait_j` is what it used while a rank of it waited for others,
    `undivided_j` the energy before it was divided among those who shared the device, `steps_j`
    (undivided) that of each step of the host's timeline, `celsius` the device's temperature.

    A device that is `node_wide` counts for all who run on the node; `exclusive` (yes, no, unknown)
    says whether this job held that, `held` how this is known, `cpu_share` is the job's part of the
    node's CPUs, and `gpus_held` its number of GPUs there (-1: not known). `part` is what the claim
    is of the device: 1, or the CPUs' share after `partly`.
    """

    owner: str
    path: Path
    job: str = ""
    host: str = ""
    boot_id: str
    uuid: str
    name: str
    domain: str
    contains: tuple[str, ...]
    source: str
    quality: str
    t0_ns: int
    t1_ns: int
    energy_j: float
    seen_j: float
    covered_s: float
    attributed_s: float
    idle_w: float
    idle_source: str = ""
    reason: str = ""
    pieces: Pieces | None = None
    undivided_j: float = math.nan
    wait_j: float = 0.0
    steps_j: Floats | None = field(default=None, compare=False, repr=False)
    celsius: Celsius | None = field(default=None, compare=False, repr=False)
    node_wide: bool = False
    exclusive: str = "yes"
    held: str = ""
    cpu_share: float = 1.0
    gpus_held: int = -1
    part: float = 1.0

    @property
    def key(self) -> DeviceKey:
        return (self.boot_id, self.uuid)

    @property
    def duration_s(self) -> float:
        return (self.t1_ns - self.t0_ns) / 1e9

    @property
    def coverage(self) -> float:
        """How much of its window the device was sampled in, 0 to 1."""
        return min(1.0, self.covered_s / self.duration_s) if self.duration_s > 0 else 0.0
