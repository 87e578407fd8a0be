"""HPE Cray nodes: /sys/cray/pm_counters, ten times a second, readable by every user.

    energy          whole node, J: `12345 J 1616161616000000 us` (older firmware: no time)
    cpu_energy, memory_energy, accel<n>_energy     parts of it; each with a file *power, W
    freshness       grows with every scan; generation with every change of the power caps

The node's counter holds its accelerators, processors and memory: late aggregation adds none of
them to it. The counters are in whole joules and as old as a scan, .1 s.
"""

from __future__ import annotations

import re
from pathlib import Path

from llem.energy.meters.meter import Device, MeterError, Probe, Reading
from llem.energy.meters.sysfs import SysfsMeter, read_int, read_text, short_boot_id

NODE_CONTAINS = ("gpu", "module", "package", "dram")
PARTS = {"cpu_energy": "package", "memory_energy": "dram"}
ACCELERATOR = re.compile(r"accel\d+_energy")
# Scans come every .1 s. A daemon that has died leaves its last numbers.
FRESH_S = 0.5
STALE_S = 2.0
# One look at the scan serves all devices of a sample.
CHECK_S = 0.05


def parse_counter(text: str, *, unit: str) -> int:
    """`12345 J [1616161616000000 us]` -> 12345. Raises ValueError."""
    words = text.split()
    if len(words) not in (2, 4) or words[1] != unit or not words[0].isdigit():
        raise ValueError(f"{text[:40]!r}: expected a number and {unit}")
    return int(words[0])


class PmCountersMeter(SysfsMeter):
    """This node as its own controller counts it, and the parts that it tells apart."""

    name = "pm_counters"

    place = "cray/pm_counters"
    _fresh: tuple[int, float] | None = None
    _generation: int | None = None
    _checked_s = -1.0

    def probe(self) -> Probe:
        if not self._root.is_dir():
            return Probe(reasons=(f"pm_counters: no {self._root}: not an HPE Cray node",))
        try:
            self._wait_fresh()
            self._generation = read_int(self._root / "generation")
        except MeterError as error:
            return Probe(reasons=(f"pm_counters: {error}",))
        devices: list[Device] = []
        reasons: list[str] = []
        for file in sorted(p.name for p in self._root.glob("*energy")):
            domain = "node" if file == "energy" else PARTS.get(file)
            if domain is None and ACCELERATOR.fullmatch(file):
                domain = "gpu"
            if domain is None:
                continue
            try:
                energy_j = self._count(self._root / file, "J")
                if energy_j == 0:
                    raise MeterError(f"{self._root / file}: 0 J since the node started")
                devices.append(self._device(file, domain))
            except MeterError as error:
                reasons.append(f"pm_counters: {error}")
        if not devices and not reasons:
            reasons.append(f"pm_counters: {self._root} holds no counter of energy")
        return Probe(devices=tuple(devices), reasons=tuple(reasons))

    def _wait_fresh(self) -> None:
        first = read_int(self._root / "freshness")
        deadline = self._monotonic() + FRESH_S
        while read_int(self._root / "freshness") == first:
            if self._monotonic() >= deadline:
                raise MeterError(f"freshness stands still at {first} for {FRESH_S:g} s")
            self._sleep(0.02)

    def _device(self, file: str, domain: str) -> Device:
        part = file.removesuffix("energy").strip("_") or "node"
        uuid = f"pm-{short_boot_id(self._boot_id)}-{part}"
        power = self._root / f"{file.removesuffix('energy')}power"
        self._files[uuid] = (self._root / file, power if power.is_file() else None)
        return Device(
            uuid=uuid,
            name=f"pm_counters {file}",
            domain=domain,
            contains=NODE_CONTAINS if domain == "node" else (),
            source=self.name,
            power="average" if power.is_file() else "none",
            node_wide=True,
        )

    def read(self, device: Device) -> Reading:
        energy, power = self._files[device.uuid]
        self._check_fresh()
        energy_mj = self._count(energy, "J") * 1e3
        if power is None:
            return Reading(energy_mj=energy_mj)
        return Reading(energy_mj=energy_mj, power_mw=self._count(power, "W") * 1e3)

    def _check_fresh(self) -> None:
        """Raises MeterError for numbers that are old, and once where the generation changed."""
        now = self._monotonic()
        if 0.0 <= now - self._checked_s < CHECK_S:
            return
        fresh = read_int(self._root / "freshness")
        if self._fresh is None or fresh != self._fresh[0]:
            self._fresh = (fresh, now)
        elif now - self._fresh[1] > STALE_S:
            raise MeterError(f"pm_counters: freshness stands still at {fresh}: old numbers")
        generation = read_int(self._root / "generation")
        if generation != self._generation:
            before, self._generation = self._generation, generation
            raise MeterError(f"pm_counters: generation {before} -> {generation}: caps were changed")
        self._checked_s = now

    def _count(self, path: Path, unit: str) -> int:
        try:
            return parse_counter(read_text(path), unit=unit)
        except ValueError as error:
            raise MeterError(f"{path}: {error}") from None
