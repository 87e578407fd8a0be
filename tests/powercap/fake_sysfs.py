"""A stand-in for /sys on machines that count their energy: a powercap tree and Cray's pm_counters.

    python tests/powercap/fake_sysfs.py FOLDER --sockets 2 --dram --cray 4

builds FOLDER/class/powercap and FOLDER/cray/pm_counters and moves their counters until it is
killed, or for `--seconds`. Every counter is an exact function of the wall clock (`Wave`), so that
all processes agree and the true energy between two moments is known.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ORIGIN_S = 1_700_000_000.0
RANGE_UJ = 262_143_328_850  # of a Xeon: about 262 kJ
TICK_S = 0.001  # RAPL's counters move about so often
SCAN_S = 0.1  # pm_counters, `raw_scan_hz` 10
LENGTH = 48  # bytes of every file that changes


@dataclass(frozen=True)
class Wave:
    """Power: `base_w`, and `amp_w` more in the first `duty` of every `period_s`."""

    base_w: float
    amp_w: float = 0.0
    period_s: float = 1.0
    duty: float = 0.5

    def power_w(self, t_s: float) -> float:
        phase = (t_s - ORIGIN_S) % self.period_s
        return self.base_w + (self.amp_w if phase < self.duty * self.period_s else 0.0)

    def energy_j(self, t0_s: float, t1_s: float) -> float:
        """The true energy between two moments of the wall clock, joules."""
        return self.base_w * (t1_s - t0_s) + self.amp_w * (self._high_s(t1_s) - self._high_s(t0_s))

    def _high_s(self, t_s: float) -> float:
        x = t_s - ORIGIN_S
        periods = math.floor(x / self.period_s)
        high = self.duty * self.period_s
        return periods * high + min(x - periods * self.period_s, high)


@dataclass(frozen=True, kw_only=True)
class FakePowercap:
    """Sockets of 100 W, 110 W, ...; memory of a tenth of that; the platform 50 W more than all.

    `dram` says which sockets count their memory. Each package has a zone `core`, which is part
    of it and must not be added.
    """

    sockets: int = 1
    dram: tuple[int, ...] = ()
    psys: bool = False
    base_w: float = 100.0
    step_w: float = 10.0
    amp_w: float = 0.0
    period_s: float = 1.0
    range_uj: int = RANGE_UJ

    @property
    def zones(self) -> Mapping[str, tuple[str, Wave]]:
        """Folder of the zone below intel-rapl -> its name and power."""
        found: dict[str, tuple[str, Wave]] = {}
        total = 0.0
        for i in range(self.sockets):
            base_w = self.base_w + i * self.step_w
            total += base_w * (1.1 if i in self.dram else 1.0)
            top = f"intel-rapl:{i}"
            found[top] = (f"package-{i}", Wave(base_w, self.amp_w, self.period_s))
            found[f"{top}/{top}:0"] = ("core", Wave(base_w / 2))
            if i in self.dram:
                found[f"{top}/{top}:1"] = ("dram", Wave(base_w / 10))
        if self.psys:
            found[f"intel-rapl:{self.sockets}"] = (
                "psys",
                Wave(total + 50.0, self.amp_w * self.sockets, self.period_s),
            )
        return found

    def energy_j(self, t0_s: float, t1_s: float, *, names: tuple[str, ...]) -> float:
        """The true energy of all zones of these kinds (`package`, `dram`, `psys`)."""
        return sum(
            wave.energy_j(t0_s, t1_s)
            for name, wave in self.zones.values()
            if name.partition("-")[0] in names
        )

    def counter_uj(self, zone: str, t_s: float) -> int:
        """What the zone's counter shows at a moment of the wall clock."""
        return int(self.zones[zone][1].energy_j(ORIGIN_S, t_s) * 1e6) % self.range_uj

    def build(self, sysfs: Path, *, t_s: float | None = None) -> Path:
        """Make the tree below `sysfs` and return its folder, as the kernel lays it out: zones
        nested below their control type, and a link to each beside it."""
        root = sysfs / "class" / "powercap"
        top = root / "intel-rapl"
        for zone, (name, _) in self.zones.items():
            folder = top / zone
            folder.mkdir(parents=True)
            (folder / "name").write_text(f"{name}\n")
            (folder / "max_energy_range_uj").write_text(f"{self.range_uj}\n")
            (root / folder.name).symlink_to(folder.relative_to(root))
        (top / "subsystem").symlink_to("..")
        (top / "enabled").write_text("1\n")
        self.write(sysfs, time.time() if t_s is None else t_s)
        return root

    def write(self, sysfs: Path, t_s: float) -> None:
        """Set every counter to what it shows at a moment."""
        for zone in self.zones:
            path = sysfs / "class" / "powercap" / "intel-rapl" / zone / "energy_uj"
            _replace(path, str(self.counter_uj(zone, t_s)))


@dataclass(frozen=True, kw_only=True)
class FakePmCounters:
    """A Cray node: accelerators of 300 W, 310 W, ...; 200 W of processors, 50 W of memory, and
    100 W that none of them tells apart."""

    accelerators: int = 4
    amp_w: float = 0.0
    period_s: float = 1.0
    generation: int = 1

    @property
    def counters(self) -> Mapping[str, Wave]:
        """Prefix of the files (`accel0_`, `` for the node) -> power."""
        parts = {f"accel{i}_": Wave(300.0 + 10 * i) for i in range(self.accelerators)}
        parts |= {"cpu_": Wave(200.0, self.amp_w, self.period_s), "memory_": Wave(50.0)}
        base_w = 100.0 + sum(wave.base_w for wave in parts.values())
        return {**parts, "": Wave(base_w, self.amp_w, self.period_s)}

    def energy_j(self, t0_s: float, t1_s: float, *, part: str = "") -> float:
        """The true energy of the node, or of a part (`cpu_`, `accel0_`)."""
        return self.counters[part].energy_j(t0_s, t1_s)

    def build(self, sysfs: Path, *, t_s: float | None = None) -> Path:
        root = sysfs / "cray" / "pm_counters"
        root.mkdir(parents=True)
        (root / "raw_scan_hz").write_text("10\n")
        (root / "generation").write_text(f"{self.generation}\n")
        self.write(sysfs, time.time() if t_s is None else t_s)
        return root

    def write(self, sysfs: Path, t_s: float) -> None:
        """Write the scan before a moment: the counters move with scans, in whole joules."""
        root = sysfs / "cray" / "pm_counters"
        scan = math.floor((t_s - ORIGIN_S) / SCAN_S)
        at_s = ORIGIN_S + scan * SCAN_S
        stamp = f"{round(at_s * 1e6)} us"
        for prefix, wave in self.counters.items():
            joules, watts = wave.energy_j(ORIGIN_S, at_s), wave.power_w(at_s)
            _replace(root / f"{prefix}energy", f"{int(joules)} J {stamp}")
            _replace(root / f"{prefix}power", f"{round(watts)} W {stamp}")
        _replace(root / "freshness", str(scan))


def _replace(path: Path, text: str) -> None:
    """One write over what is there, of one length: a reader sees the old text or the new one."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        os.pwrite(file, f"{text:<{LENGTH - 1}}\n".encode(), 0)
    finally:
        os.close(file)


def tick(trees: list[FakePowercap | FakePmCounters], sysfs: Path, *, seconds: float) -> None:
    """Move the counters with the wall clock."""
    end_s = time.monotonic() + seconds
    scanned = -1
    while time.monotonic() < end_s:
        now_s = time.time()
        scan = math.floor((now_s - ORIGIN_S) / SCAN_S)
        for tree in trees:
            if isinstance(tree, FakePowercap):
                tree.write(sysfs, time.time())
            elif scan != scanned:
                tree.write(sysfs, now_s)
        scanned = scan
        time.sleep(TICK_S)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="takes the place of /sys")
    parser.add_argument("--sockets", type=int, default=0)
    parser.add_argument("--dram", action="store_true", help="every socket counts its memory")
    parser.add_argument("--psys", action="store_true")
    parser.add_argument("--base-w", type=float, default=100.0)
    parser.add_argument("--amp-w", type=float, default=0.0)
    parser.add_argument("--period-s", type=float, default=1.0)
    parser.add_argument("--range-uj", type=int, default=RANGE_UJ)
    parser.add_argument("--cray", type=int, default=-1, metavar="N", help="pm_counters, N GPUs")
    parser.add_argument("--seconds", type=float, default=math.inf)
    args = parser.parse_args()
    trees: list[FakePowercap | FakePmCounters] = []
    if args.sockets:
        dram = tuple(range(args.sockets)) if args.dram else ()
        trees.append(
            FakePowercap(sockets=args.sockets, dram=dram, psys=args.psys, base_w=args.base_w,
                         amp_w=args.amp_w, period_s=args.period_s, range_uj=args.range_uj)
        )  # fmt: skip
    if args.cray >= 0:
        trees.append(
            FakePmCounters(accelerators=args.cray, amp_w=args.amp_w, period_s=args.period_s)
        )
    if not trees:
        parser.error("nothing to build: --sockets or --cray")
    for tree in trees:
        tree.build(args.folder)
    print("ready", flush=True)
    tick(trees, args.folder, seconds=args.seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
