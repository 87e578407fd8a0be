"""An estimate for machines without any meter, and labelled as one (quality `model`).

    power = idle + (maximum - idle) * busy share of the hardware threads, from /proc/stat

The defaults are 0.64 W (idle) and 4.05 W (full load) per hardware thread: the whole server,
divided by its threads, for the Skylake generation in the coefficients of Cloud Carbon Footprint
(https://www.cloudcarbonfootprint.org/docs/methodology/), which derive from SPECpower_ssj2008.
Generations differ by a factor of 3 (Haswell 1.9 to 6.0 W, EPYC Milan 0.45 to 1.9 W): use such
joules to compare runs on one machine, never machines with each other, and never with measurements.

The counter is a function of two things that only grow, time since boot and busy time since boot,
so it needs no state: every process on a host reads the same value, and no sample can be missed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from os import sysconf
from pathlib import Path

from llem.energy.meters.meter import Device, MeterError, Probe, Reading
from llem.records import host_meta

IDLE_W_PER_THREAD = 0.64
MAXIMUM_W_PER_THREAD = 4.05

STAT = Path("/proc/stat")


@dataclass(frozen=True)
class Busy:
    """Busy time of all hardware threads together since boot, and how many threads there are."""

    busy_s: float
    threads: int


def parse_stat(text: str, *, ticks_per_s: int) -> Busy:
    """Read /proc/stat (proc_stat(5)): user, nice, system, irq, softirq and steal are busy.

    guest and guest_nice are already in user and nice; idle and iowait are idle.
    """
    threads = 0
    total: list[int] = []
    for line in text.splitlines():
        if line.startswith("cpu "):
            total = [int(field) for field in line.split()[1:9]]
        elif line.startswith("cpu"):
            threads += 1
        else:
            break
    if len(total) < 4 or not threads:
        raise ValueError("no cpu lines")
    total += [0] * (8 - len(total))
    user, nice, system, _idle, _iowait, irq, softirq, steal = total
    return Busy((user + nice + system + irq + softirq + steal) / ticks_per_s, threads)


class CpuModel:
    """Models the energy of this node's processors from how busy they are."""

    name = "cpu-model"

    def __init__(
        self,
        *,
        idle_w_per_thread: float = IDLE_W_PER_THREAD,
        maximum_w_per_thread: float = MAXIMUM_W_PER_THREAD,
        stat: Path = STAT,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._idle_w = idle_w_per_thread
        self._maximum_w = maximum_w_per_thread
        self._stat = stat
        self._monotonic = monotonic
        self._ticks_per_s = sysconf("SC_CLK_TCK")
        self._last: tuple[float, float] | None = None

    def probe(self) -> Probe:
        try:
            busy = self._busy()
        except MeterError as error:
            return Probe(reasons=(f"cpu-model: {error}",))
        # Named after the boot, not the host: two "nodes" on one machine have one processor.
        uuid = f"cpu-model-{str(host_meta()['boot_id'])[:18]}"
        device = Device(
            uuid=uuid,
            name=f"model of {busy.threads} hardware threads, "
            f"{self._idle_w:g} to {self._maximum_w:g} W each",
            domain="package",
            source=self.name,
            quality="model",
            reason="no meter: estimated from how busy the processors are",
            power="model",
            node_wide=True,
        )
        return Probe(devices=(device,))

    def read(self, device: Device) -> Reading:
        at_s = self._monotonic()
        busy = self._busy()
        idle_w = self._idle_w * busy.threads
        span_w = (self._maximum_w - self._idle_w) * busy.threads
        energy_j = idle_w * at_s + span_w * busy.busy_s / busy.threads
        power_w = share = float("nan")
        if self._last is not None and at_s > self._last[0]:
            elapsed_s = at_s - self._last[0]
            # ticks of 10 ms make a short interval look busier than can be; the counter is exact
            share = min((busy.busy_s - self._last[1]) / (elapsed_s * busy.threads), 1.0)
            power_w = idle_w + span_w * share
        self._last = (at_s, busy.busy_s)
        return Reading(energy_mj=energy_j * 1e3, power_mw=power_w * 1e3, utilization=share * 100)

    def close(self) -> None:
        self._last = None

    def _busy(self) -> Busy:
        try:
            return parse_stat(self._stat.read_text(), ticks_per_s=self._ticks_per_s)
        except (OSError, ValueError) as error:
            raise MeterError(f"{self._stat}: {error}") from None
