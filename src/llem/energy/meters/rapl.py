"""Processors and memory through RAPL, by the kernel's powercap tree (Intel, and AMD since 5.8).

    /sys/class/powercap/intel-rapl:<socket>[:<n>]/{name,energy_uj,max_energy_range_uj}

The counters move every millisecond and start again at `max_energy_range_uj` (about 262 kJ: 17 min
at 250 W), which late aggregation undoes by the range kept with the device. What the tree nests is
not what the energy nests: `core` and `uncore` are parts of their package and are left alone, while
`dram`, which the tree shows below its package, is not in it and is added to it.

`psys` is the platform's counter. Vendors wire it differently: whether it holds the memory, and a
GPU in a slot, nobody can tell from here. It is recorded as the domain `node`, and counts only
where no accelerator is measured beside it (`llem.results.energy.claims`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llem.energy.meters.meter import Device, MeterError, Probe, Reading
from llem.energy.meters.sysfs import SysfsMeter, read_int, read_text, short_boot_id

PSYS_CONTAINS = ("package", "dram")
# A live counter moves within a millisecond; one that stands still is a virtual machine's.
ALIVE_S = 0.15
REMEDY = (
    "energy_uj is for root alone since Linux 5.10 (CVE-2020-8694): ask your site for read access "
    "(udev: chmod a+r), or for Zeus's daemon (zeusd) and the package zeus"
)


@dataclass(frozen=True)
class _Zone:
    path: Path
    name: str
    parent: str = ""

    @property
    def label(self) -> str:
        return f"{self.name} of {self.parent}" if self.parent else self.name


class RaplMeter(SysfsMeter):
    """The processors of this node, and their memory where it is counted."""

    name = "rapl"

    place = "class/powercap"

    def probe(self) -> Probe:
        if not self._root.is_dir():
            return Probe(reasons=(f"rapl: no {self._root}: no RAPL in this kernel or machine",))
        reasons: list[str] = []
        zones = _zones(self._root, reasons)
        if not zones:
            reasons.append(f"rapl: {self._root} shows no zone")
        first: dict[_Zone, int] = {}
        refused: list[str] = []
        for zone in zones:
            try:
                first[zone] = read_int(zone.path / "energy_uj")
            except MeterError as error:
                if os.access(zone.path / "energy_uj", os.R_OK, effective_ids=True):
                    reasons.append(f"rapl: {zone.label}: {error}")
                else:
                    refused.append(zone.label)
        if refused:
            reasons.append(f"rapl: {', '.join(refused)}: permission denied; {REMEDY}")
        alive = self._alive(first)
        devices: list[Device] = []
        for zone, energy_uj in first.items():
            if zone not in alive:
                text = f"counter stands still at {energy_uj} uJ for {ALIVE_S:g} s"
                reasons.append(f"rapl: {zone.label}: {text} (a virtual machine?)")
                continue
            try:
                devices.append(self._device(zone))
            except MeterError as error:
                reasons.append(f"rapl: {zone.label}: {error}")
        packages = sum(d.domain == "package" for d in devices)
        drams = sum(d.domain == "dram" for d in devices)
        if 0 < drams < packages:
            reasons.append(f"rapl: memory is counted on {drams} of {packages} sockets")
        return Probe(devices=tuple(devices), reasons=tuple(reasons))

    def _alive(self, first: Mapping[_Zone, int]) -> set[_Zone]:
        waiting = dict(first)
        deadline = self._monotonic() + ALIVE_S
        while waiting:
            for zone, energy_uj in list(waiting.items()):
                try:
                    if read_int(zone.path / "energy_uj") != energy_uj:
                        del waiting[zone]
                except MeterError:
                    continue
            if self._monotonic() >= deadline:
                break
            if waiting:
                self._sleep(0.005)
        return set(first) - set(waiting)

    def _device(self, zone: _Zone) -> Device:
        uuid = f"rapl-{short_boot_id(self._boot_id)}-{zone.path.name}"
        range_uj = read_int(zone.path / "max_energy_range_uj")
        if range_uj <= 0:
            raise MeterError(f"max_energy_range_uj is {range_uj}: a wrap could not be undone")
        self._files[uuid] = (zone.path / "energy_uj", None)
        psys = zone.name == "psys"
        return Device(
            uuid=uuid,
            name=f"RAPL {zone.label}",
            domain="node" if psys else "dram" if zone.name == "dram" else "package",
            contains=PSYS_CONTAINS if psys else (),
            source=self.name,
            counter_range_mj=range_uj / 1e3,
            node_wide=True,
        )

    def read(self, device: Device) -> Reading:
        return Reading(energy_mj=read_int(self._files[device.uuid][0]) / 1e3)


def _zones(root: Path, reasons: list[str]) -> list[_Zone]:
    """The zones that are counted, each once, in the order of their names.

    The kernel shows every zone as a link beside the others, and nested below its control type.
    `intel-rapl-mmio` shows the same packages once more, by another way to the same counters.
    """
    found: dict[str, Path] = {}
    for pattern in ("intel-rapl*:*", "intel-rapl*/intel-rapl*:*", "intel-rapl*/*/intel-rapl*:*"):
        for path in sorted(root.glob(pattern)):
            found.setdefault(path.name, path)
    names: dict[str, str] = {}
    for zone, path in found.items():
        try:
            names[zone] = read_text(path / "name")
        except MeterError as error:
            reasons.append(f"rapl: {zone}: {error}")
    zones: list[_Zone] = []
    seen: set[tuple[str, str]] = set()
    # "intel-rapl:1" before "intel-rapl-mmio:0", and sockets by their numbers
    for zone in sorted(names, key=_order):
        name = names[zone]
        parent = names.get(zone.rpartition(":")[0], "")
        if not (name.startswith("package") or name in ("dram", "psys")):
            continue
        if name == "psys" and any(z.name == "psys" for z in zones):
            reasons.append(f"rapl: {zone}: a second psys; the first speaks for the platform")
            continue
        if (parent, name) in seen:
            continue
        seen.add((parent, name))
        zones.append(_Zone(found[zone], name, parent))
    return zones


def _order(zone: str) -> tuple[str, list[int]]:
    kind, *numbers = zone.split(":")
    return kind.replace("-mmio", "~mmio"), [int(n) if n.isdigit() else -1 for n in numbers]
