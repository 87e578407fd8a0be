"""A device's energy counter, read by a rank at its steps' ends.

The sampler's samples are the truth; a stamp tells the counter at the very moment, for steps that
are shorter than the samples' distance, and checks the samples. It costs one call of NVML (2
microseconds and the driver's latency) and no synchronisation. Where that is not cheap there are
no stamps: the reason is told, and late aggregation takes the samples alone.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable

from llem.energy.meters.nvml import NvmlMeter

# A driver that takes longer for one reading is left in peace.
MOST_READ_S = 1e-3
# Readings may take this share of a rank's time, looked at after so many of them.
MOST_SHARE = 0.002
LOOK_EVERY = 256
TRIES = 5


class StepCounter:
    """Reads one device's counter. `uuid` is "" where there is none to read, `reason` says why
    (also why readings ended)."""

    def __init__(
        self,
        uuid: str = "",
        *,
        reason: str = "",
        read_mj: Callable[[], float] | None = None,
        clock_ns: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self.uuid = uuid
        self.reason = reason
        self._read_mj = read_mj
        self._clock_ns = clock_ns
        self._spent_ns = self._reads = 0
        self._since_ns = clock_ns()
        if read_mj is not None:
            taken = [self._timed() for _ in range(TRIES)]
            if self._read_mj is not None and statistics.median(taken) > MOST_READ_S * 1e9:
                self._end(f"a reading takes {statistics.median(taken) / 1e6:.2g} ms")
        self._spent_ns = self._reads = 0

    def read(self) -> float:
        """The counter in mJ; NaN where it is not read (any more)."""
        if self._read_mj is None:
            return math.nan
        began_ns = self._clock_ns()
        value = self._value()
        now_ns = self._clock_ns()
        self._spent_ns += now_ns - began_ns
        self._reads += 1
        if self._reads >= LOOK_EVERY:
            if self._spent_ns > MOST_SHARE * (now_ns - self._since_ns):
                self._end(
                    f"{self._spent_ns / self._reads / 1e3:.0f} us a reading are too much here"
                )
            self._spent_ns, self._reads, self._since_ns = 0, 0, now_ns
        return value

    def _timed(self) -> int:
        began_ns = self._clock_ns()
        self._value()
        return self._clock_ns() - began_ns

    def _value(self) -> float:
        if self._read_mj is None:
            return math.nan
        try:
            return float(self._read_mj())
        except Exception as error:  # a driver's own errors: a training never ends for them
            self._end(str(error) or type(error).__name__)
            return math.nan

    def _end(self, why: str) -> None:
        self._read_mj = None
        self.reason = f"{self.uuid}: no stamps: {why}"


def step_counter(device_uuid: str, *, local_rank: int) -> StepCounter:
    """The counter of the rank's own GPU. Never raises: what cannot be read has a reason.

    Without CUDA ("") it is the job's GPU of this rank's number, as the layout places ranks.
    """
    probe = NvmlMeter().probe()
    if not probe.devices:
        return StepCounter(reason="; ".join(probe.reasons) or "no GPU with a counter")
    if device_uuid:
        found = [d for d in probe.devices if d.uuid.lower() == device_uuid.lower()]
        if not found:
            return StepCounter(reason=f"{device_uuid} is none of the GPUs that NVML shows this job")
        device = found[0]
    else:
        device = probe.devices[local_rank % len(probe.devices)]
    if not device.counter:
        return StepCounter(reason=f"{device.uuid}: {device.reason}")
    if device.share != 1.0:
        return StepCounter(reason=f"{device.uuid}: MIG: its counter is of the whole GPU")
    import pynvml

    handle = pynvml.nvmlDeviceGetHandleByUUID(device.uuid)
    return StepCounter(
        device.uuid, read_mj=lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    )
