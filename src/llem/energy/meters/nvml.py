"""NVIDIA GPUs through NVML: the total-energy counter is the reference, power is kept beside it.

The counter (nvmlDeviceGetTotalEnergyConsumption, Volta and later) moves every 20 to 100 ms, so a
window's error is at most the peak power times that period. Where a GPU has no counter the power
samples can be integrated late (quality `integral`), which aliases with loads that swing faster
than the samples. Board power is therefore two things. Beside a counter it is what the GPU draws
now: NVML_FI_DEV_POWER_INSTANT where there is one, because GetPowerUsage is a one-second average on
most GPUs since Ampere. In a counter's place it is NVML_FI_DEV_POWER_AVERAGE where there is one:
averages of a second, summed, leave out no moment.

The counter of a Grace-Hopper counts the module, so its power is asked of the module too.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from llem.energy.meters.held import Shown, expected_gpus, held_gpus
from llem.energy.meters.meter import Device, MeterError, Probe, Reading

# On these the counter covers the whole module: GPU, Grace CPU and its memory (zeus#172).
MODULES = ("GH200", "GB200", "GB300")
MODULE_CONTAINS = ("gpu", "package", "dram")

# A reading of the counter takes microseconds, or a millisecond where the driver is slow.
SLOW_READ_NS = 3_000_000
READ_TRIES = 3

# The ways in which a GPU may tell its power, of which one is kept.
POWERS = ("instant", "average", "usage")


class NvmlMeter:
    """The NVIDIA GPUs that this job holds on this node."""

    name = "nvml"

    def __init__(self, *, environ: Mapping[str, str] = os.environ) -> None:
        self._environ = environ
        self._nvml: Any = None
        self._handles: dict[str, Any] = {}
        self._reads: dict[str, dict[str, Callable[[], float]]] = {}
        self.versions: dict[str, str] = {}

    def probe(self) -> Probe:
        expected = expected_gpus(self._environ)
        try:
            import pynvml
        except ImportError:
            return Probe(reasons=("nvml: nvidia-ml-py is not installed",), accelerators=expected)
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            return Probe(reasons=(f"nvml: {error}",), accelerators=expected)
        self._nvml = pynvml
        try:
            return self._probe(expected)
        except pynvml.NVMLError as error:
            return Probe(reasons=(f"nvml: {error}",), accelerators=expected)

    def _probe(self, expected: int | None) -> Probe:
        nvml = self._nvml
        self.versions = {
            "driver": self._text(nvml.nvmlSystemGetDriverVersion),
            "nvml": self._text(nvml.nvmlSystemGetNVMLVersion),
        }
        reasons: list[str] = []
        shown: list[Shown] = []
        handles: dict[str, Any] = {}
        for index in range(nvml.nvmlDeviceGetCount()):
            try:
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                gpu = self._shown(handle)
            except nvml.NVMLError as error:
                reasons.append(f"nvml: GPU {index}: {error}")
                continue
            shown.append(gpu)
            handles[gpu.uuid] = handle
        if not shown:
            reasons.append("nvml: the driver shows no GPU")
        held = held_gpus(shown, self._environ)
        reasons += [f"nvml: {reason}" for reason in held.reasons]
        if shown and not held.shares and not held.reasons:
            reasons.append(f"nvml: {len(shown)} GPUs here, but this job holds none")
        self._handles = {uuid: handles[uuid] for uuid in held.shares}
        devices = tuple(self._device(uuid, share) for uuid, share in held.shares.items())
        reasons += [f"nvml: {d.uuid}: {d.reason}" for d in devices if d.quality != "counter"]
        return Probe(devices=devices, reasons=tuple(reasons), accelerators=expected)

    def _shown(self, handle: Any) -> Shown:
        nvml = self._nvml
        uuid = _decode(nvml.nvmlDeviceGetUUID(handle))
        try:
            mig = bool(nvml.nvmlDeviceGetMigMode(handle)[0])
        except nvml.NVMLError:
            mig = False  # older GPUs do not know the question
        instances: dict[str, float] = {}
        if mig:
            slices = nvml.nvmlDeviceGetMaxMigDeviceCount(handle)
            for index in range(slices):
                try:
                    instance = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)
                except nvml.NVMLError:
                    continue  # the places are sparse
                try:
                    share = nvml.nvmlDeviceGetAttributes(instance).gpuInstanceSliceCount / slices
                except nvml.NVMLError:
                    share = math.nan
                instances[_decode(nvml.nvmlDeviceGetUUID(instance))] = share
        return Shown(uuid=uuid, instances=instances, mig=mig)

    def _device(self, uuid: str, share: float) -> Device:
        """Try each reading once; what does not work now is left out of every sample."""
        nvml, handle = self._nvml, self._handles[uuid]
        name = self._text(lambda: nvml.nvmlDeviceGetName(handle))
        module = any(mark in name for mark in MODULES)
        scope = nvml.NVML_POWER_SCOPE_MODULE if module else nvml.NVML_POWER_SCOPE_GPU
        candidates: dict[str, Callable[[], float]] = {
            "energy_mj": lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle),
            "instant": lambda: self._power(handle, nvml.NVML_FI_DEV_POWER_INSTANT, scope),
            "average": lambda: self._power(handle, nvml.NVML_FI_DEV_POWER_AVERAGE, scope),
            "usage": lambda: nvml.nvmlDeviceGetPowerUsage(handle),
            "temperature_c": lambda: nvml.nvmlDeviceGetTemperature(
                handle, nvml.NVML_TEMPERATURE_GPU
            ),
            "utilization": lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu,
            "clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            "throttle": lambda: nvml.nvmlDeviceGetCurrentClocksEventReasons(handle),
        }
        works: dict[str, Callable[[], float]] = {}
        refused: dict[str, str] = {}
        for key, read in candidates.items():
            if key == "usage" and module:
                continue  # of the GPU alone
            try:
                read()
            except (nvml.NVMLError, MeterError) as error:
                refused[key] = str(error)
            else:
                works[key] = read
        counter = "energy_mj" in works
        wanted = ("instant", "average") if counter else ("average", "instant")
        kind = next((kind for kind in (*wanted, "usage") if kind in works), "")
        powers = {key: works.pop(key) for key in POWERS if key in works}
        if kind:
            works["power_mw"] = powers[kind]
        self._reads[uuid] = works
        # what GetPowerUsage tells is an average on GPUs that have no such field
        power = {"": "none", "usage": "average"}.get(kind, kind)
        quality = "counter" if counter else "integral" if power != "none" else "none"
        reason = ""
        if not counter:
            reason = f"no energy counter ({refused['energy_mj']})"
            reason += (
                f", {power} power is integrated instead"
                if power != "none"
                else f" and no power ({refused.get('usage') or refused['average']})"
            )
        return Device(
            uuid=uuid,
            name=name,
            domain="module" if module else "gpu",
            contains=MODULE_CONTAINS if module else (),
            source=self.name,
            counter=counter,
            quality=quality,
            reason=reason,
            share=share,
            power=power,
            power_limit_w=self._asked(lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle)) / 1e3,
            persistence=self._persistence(handle),
        )

    def _asked(self, read: Callable[[], float]) -> float:
        """A number, NaN where the driver does not say."""
        try:
            return float(read())
        except self._nvml.NVMLError:
            return math.nan

    def _persistence(self, handle: Any) -> int:
        told = self._asked(lambda: self._nvml.nvmlDeviceGetPersistenceMode(handle))
        return -1 if math.isnan(told) else int(told)

    def _power(self, handle: Any, field: int, scope: int) -> float:
        nvml = self._nvml
        [value] = nvml.nvmlDeviceGetFieldValues(handle, [(field, scope)])
        if value.nvmlReturn != nvml.NVML_SUCCESS:
            raise MeterError(f"power field: NVML error {value.nvmlReturn}")
        return float(value.value.uiVal)

    def read(self, device: Device) -> Reading:
        values: dict[str, Any] = {}
        error: Exception | None = None
        for key, read in self._reads[device.uuid].items():
            try:
                if key == "energy_mj":
                    values[key], values["t_ns"] = _timed(read)
                else:
                    values[key] = read()
            except (self._nvml.NVMLError, MeterError) as refusal:
                error = refusal
        if error is not None and not values:
            raise MeterError(f"{device.uuid}: {error}")
        return Reading(**values)

    def close(self) -> None:
        if self._nvml is not None:
            nvml, self._nvml = self._nvml, None
            try:
                nvml.nvmlShutdown()
            except nvml.NVMLError:
                return  # the driver went away first; there is nothing left to let go of

    def _text(self, read: Callable[[], Any]) -> str:
        try:
            return _decode(read())
        except self._nvml.NVMLError:
            return "unknown"


def _timed(read: Callable[[], float]) -> tuple[float, int]:
    """What `read` gives, and when. Interrupted between clock and counter, it is asked again: joules
    of another moment would be worth the power times that while."""
    quickest_ns, value, at_ns = 1 << 62, 0.0, 0
    for _ in range(READ_TRIES):
        before_ns = time.monotonic_ns()
        read_value = read()
        took_ns = time.monotonic_ns() - before_ns
        if took_ns < quickest_ns:
            quickest_ns, value, at_ns = took_ns, read_value, before_ns + took_ns // 2
        if took_ns < SLOW_READ_NS:
            break
    return value, at_ns


def _decode(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
