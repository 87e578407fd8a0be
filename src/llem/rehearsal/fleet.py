"""The machines of a rehearsal: nodes with clocks of their own, and devices that are not all alike.

Drawn once from the seed, so that a slow or hot device stays so for every run that gets it. What is
chosen here rather than known (spread of speed and power, cooling) is a constant with its reason.
"""

from __future__ import annotations

import math
import uuid
from dataclasses import dataclass

import numpy as np

from llem.campaign import Site
from llem.energy.meters.meter import Device
from llem.planning import Accelerator

# Boards of one kind differ by a percent in speed and a few in power at the same work.
SPEED_SD, POWER_SD = 0.008, 0.03
# One board in so many is slow (a clock held down, a bad link), by a share in between.
STRAGGLERS, STRAGGLE = 0.03, (0.06, 0.25)
# Idle power as a part of what training takes; with a model in memory and no work, more.
IDLE_SHARE, HELD_SHARE = 0.14, 0.22
# A board under load settles between these degrees, most in the middle, and slows itself above the
# limit: power falls until it stays there, and speed with the cube root of power (P ~ f^3).
LOAD_C, LOAD_C_SD, INLET_C = 66.0, 6.0, 28.0
LIMIT_C = 83.0
# How fast a board warms up, seconds: a heat sink of a kilogram at half a watt for each degree.
INERTIA_S = 45.0
# Wall clocks under NTP, seconds; and how long nodes have been up.
CLOCK_SD_S, UPTIME_S = 0.002, 60 * 86400.0
# MHz under load, where known; idle boards clock down.
CLOCKS_MHZ = {
    "V100": 1380, "A100-40GB": 1410, "A100-64GB": 1395, "A100-80GB": 1410, "H100": 1755,
    "H200": 1755, "GH200": 1755, "B200": 1830, "MI250X": 1650, "MI300X": 2100,
}  # fmt: skip
OTHER_MHZ, IDLE_MHZ = 1500, 345
# The kernel's range of a package's counter, mJ (`llem.energy.meters.rapl`): it starts again there.
PACKAGE_RANGE_MJ = 262143328.85


@dataclass(frozen=True, kw_only=True)
class Board:
    """One device. `speed` is relative to the site's mean; powers in watts, temperatures in C.

    `slowed` is what is left of its speed once it is hot (1: it never gets too hot).
    """

    uuid: str
    name: str
    speed: float
    straggles: bool
    idle_w: float
    held_w: float
    busy_w: float
    inlet_c: float
    c_per_w: float
    clock_mhz: float
    memory_bytes: float
    package: bool

    @property
    def hot_c(self) -> float:
        """Where it would settle under load, if it did not slow itself."""
        return self.inlet_c + self.c_per_w * self.busy_w

    @property
    def throttles(self) -> bool:
        return self.hot_c > LIMIT_C

    @property
    def capped_w(self) -> float:
        """Power under load once it is hot."""
        return min(self.busy_w, (LIMIT_C - self.inlet_c) / self.c_per_w)

    @property
    def slowed(self) -> float:
        return float((self.capped_w / self.busy_w) ** (1 / 3))

    def device(self) -> Device:
        """What a meter would say of it."""
        if self.package:
            return Device(
                uuid=self.uuid, name=self.name, domain="package", source="rapl",
                counter_range_mj=PACKAGE_RANGE_MJ, node_wide=True,
            )  # fmt: skip
        return Device(uuid=self.uuid, name=self.name, domain="gpu", source="nvml", power="average")


@dataclass(frozen=True, kw_only=True)
class Node:
    """One host. Its clocks, of campaign time t in seconds: monotonic t + `up_s`, wall t + start +
    `off_s`."""

    name: str
    boot_id: str
    up_s: float
    off_s: float
    boards: tuple[Board, ...]

    def mono_ns(self, t_s: float) -> int:
        return round(t_s * 1e9) + round(self.up_s * 1e9)


def make_fleet(site: Site, device: Accelerator, *, nodes: int, seed: int) -> tuple[Node, ...]:
    """So many nodes of the site. On a site without GPUs a node is what one element gets, with one
    metered package."""
    return tuple(_node(site, device, number, seed) for number in range(nodes))


def _node(site: Site, device: Accelerator, number: int, seed: int) -> Node:
    rng = np.random.default_rng([seed, 1, number])
    boot_id = str(uuid.UUID(bytes=rng.bytes(16), version=4))
    count = 1 if device.cpu else site.gpus_per_node
    boards = tuple(_board(rng, site, device, boot_id, index) for index in range(count))
    return Node(
        name=f"rehearsed-{number + 1:04d}",
        boot_id=boot_id,
        up_s=float(rng.uniform(3600.0, UPTIME_S)),
        off_s=float(rng.normal(0.0, CLOCK_SD_S)),
        boards=boards,
    )


def _board(
    rng: np.random.Generator, site: Site, device: Accelerator, boot_id: str, index: int
) -> Board:
    # Drawn in one order whatever is used, so that a site's boards do not hang on its options.
    speed, power, warmth, inlet = rng.normal(size=4).tolist()
    lot, share = rng.random(2).tolist()
    name = str(uuid.UUID(bytes=rng.bytes(16), version=4))
    straggles = lot < STRAGGLERS
    relative = math.exp(SPEED_SD * speed)
    if straggles:
        relative *= 1 - (STRAGGLE[0] + share * (STRAGGLE[1] - STRAGGLE[0]))
    ranks = site.gpus_per_node if device.cpu else 1
    busy_w = ranks * device.power_w * math.exp(POWER_SD * power)
    inlet_c = INLET_C + inlet
    return Board(
        uuid=f"rapl-{boot_id[:18]}-intel-rapl:{index}" if device.cpu else f"GPU-{name}",
        name=f"RAPL package-{index}" if device.cpu else device.name,
        speed=relative,
        straggles=straggles,
        idle_w=IDLE_SHARE * busy_w,
        held_w=HELD_SHARE * busy_w,
        busy_w=busy_w,
        inlet_c=inlet_c,
        c_per_w=max(0.01, (LOAD_C + LOAD_C_SD * warmth - inlet_c) / busy_w),
        clock_mhz=float(CLOCKS_MHZ.get(device.name, OTHER_MHZ)),
        memory_bytes=device.memory_bytes,
        package=device.cpu,
    )
