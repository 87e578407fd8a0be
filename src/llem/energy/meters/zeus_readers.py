"""What llem's own readers do not see, through the package `zeus`, where it is installed.

AMD GPUs (amdsmi), Apple and Jetson chips, and processors through Zeus's daemon (zeusd), which
reads RAPL for users who may not. NVIDIA's GPUs and a readable powercap tree are left to llem's own
meters, which need a tenth of the memory and name devices by UUID. Zeus is asked through its
readers, not through its monitor: importing that takes seconds.

Zeus answers "no device" with empty lists and "no sensor" with 0: here both are reasons.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from typing import Any

from llem.energy.meters.meter import Device, MeterError, Probe, Reading
from llem.energy.meters.sysfs import short_boot_id

ZEUSD_VARIABLES = ("ZEUSD_SOCK_PATH", "ZEUSD_HOST_PORT")

# Fields of a chip's measurement, mJ, and where that energy lies. A field that is None is not there.
CHIP = {
    "AppleSiliconMeasurement": {
        "cpu_total_mj": "package", "dram_mj": "dram", "gpu_mj": "gpu",
    },
    "JetsonMeasurement": {"total_energy_mj": "node"},
}  # fmt: skip
CHIP_CONTAINS = {"node": ("gpu", "package", "dram")}

Read = Callable[[], Reading]


class ZeusMeter:
    """AMD GPUs, Apple and Jetson chips, and processors by zeusd."""

    name = "zeus"

    def __init__(
        self, *, environ: Mapping[str, str] = os.environ, boot_id: str | None = None
    ) -> None:
        self._environ = environ
        self._boot_id = boot_id
        self._reads: dict[str, Read] = {}
        self.versions: dict[str, str] = {}

    def probe(self) -> Probe:
        try:
            import zeus
            import zeus.device as device
        except ImportError as error:
            missing = error.name == "zeus"
            return Probe(reasons=(f"zeus: {'not installed' if missing else _line(error)}",))
        self.versions = {"zeus": str(getattr(zeus, "__version__", "unknown"))}
        devices: list[Device] = []
        reasons: list[str] = []
        paired = 0
        # Zeus's errors have no common root, and a driver's own may come through.
        try:
            found, reasons_gpu, paired = self._gpus(device.get_gpus())
            devices += found
            reasons += reasons_gpu
        except Exception as error:
            reasons.append(f"zeus: GPUs: {_line(error)}")
        for part, probe in (("processors", self._cpus), ("chip", self._chip)):
            try:
                devices += probe(reasons)
            except Exception as error:
                reasons.append(f"zeus: {part}: {_line(error)}")
        return Probe(devices=tuple(devices), reasons=tuple(reasons), paired=paired)

    def read(self, device: Device) -> Reading:
        try:
            return self._reads[device.uuid]()
        except Exception as error:
            raise MeterError(f"{device.uuid}: {_line(error)}") from None

    def close(self) -> None:
        self._reads.clear()

    def _gpus(self, gpus: Any) -> tuple[list[Device], list[str], int]:
        kind = type(gpus).__name__
        if kind == "NVIDIAGPUs":
            return [], ["zeus: NVIDIA GPUs are left to nvml"], 0
        every = list(gpus.gpus)
        if not every:
            return [], [f"zeus: {kind}: no GPU"], 0
        devices: list[Device] = []
        reasons: list[str] = []
        paired = 0
        for gpu in every:
            # the second die of an MI250(X): its neighbour's counter holds both
            if getattr(gpu, "_is_dual_die_odd_chiplet", False):
                paired += 1
                continue
            device = self._gpu(gpu)
            devices.append(device)
            if device.reason:
                reasons.append(f"zeus: {device.uuid}: {device.reason}")
        if paired:
            reasons.append(f"zeus: {paired} GPUs are second dies, counted with their neighbours")
        return devices, reasons, paired

    def _gpu(self, gpu: Any) -> Device:
        name = str(gpu.get_name())
        uuid, reason = self._gpu_uuid(gpu)
        counter, power = False, "none"
        problems: list[str] = []
        try:
            if gpu.supports_get_total_energy_consumption():
                counter = gpu.get_total_energy_consumption() > 0
                if not counter:
                    problems.append("its energy counter reads 0")
            else:
                problems.append("no energy counter that zeus trusts")
        except Exception as error:
            problems.append(f"no energy counter ({_line(error)})")
        read_power: Callable[[], float] | None = None
        for kind, read in (
            ("instant", gpu.get_instant_power_usage),
            ("average", gpu.get_average_power_usage),
        ):
            try:
                if read() > 0:
                    read_power, power = read, kind
                    break
                problems.append(f"{kind} power reads 0")
            except Exception as error:
                problems.append(f"no {kind} power ({_line(error)})")
        quality = "counter" if counter else "integral" if read_power else "none"
        if quality == "integral":
            problems.append(f"{power} power is integrated instead")
        if quality != "counter":
            reason = "; ".join([*filter(None, [reason]), *problems])

        def take() -> Reading:
            energy_mj = float(gpu.get_total_energy_consumption()) if counter else math.nan
            power_mw = float(read_power()) if read_power else math.nan
            return Reading(energy_mj=energy_mj, power_mw=power_mw)

        self._reads[uuid] = take
        return Device(
            uuid=uuid, name=name, domain="gpu", source=self.name, counter=counter,
            quality=quality, reason=reason, power=power,
        )  # fmt: skip

    def _gpu_uuid(self, gpu: Any) -> tuple[str, str]:
        try:
            import amdsmi

            return f"AMD-{amdsmi.amdsmi_get_gpu_device_uuid(gpu.handle)}", ""
        except Exception as error:
            uuid = f"zeus-{self._boot()}-gpu{gpu.gpu_index}"
            return uuid, f"named by its index, without a UUID ({_line(error)})"

    def _cpus(self, reasons: list[str]) -> list[Device]:
        if not any(self._environ.get(name) for name in ZEUSD_VARIABLES):
            reasons.append(
                "zeus: no zeusd is named (ZEUSD_SOCK_PATH): RAPL without it is left to rapl"
            )
            return []
        from zeus.device.cpu import get_cpus

        cpus = get_cpus()
        devices: list[Device] = []
        for cpu in cpus.cpus:
            dram = cpu.supports_get_dram_energy_consumption()
            first = cpu.get_total_energy_consumption()
            for domain, field in (("package", "cpu_mj"), *([("dram", "dram_mj")] if dram else [])):
                value = getattr(first, field)
                if not value:
                    reasons.append(f"zeus: cpu {cpu.cpu_index}: {field} is {value}")
                    continue
                devices.append(
                    self._counted(
                        f"{domain}{cpu.cpu_index}", f"RAPL {domain} {cpu.cpu_index} by zeusd",
                        domain, _field_reader(cpu.get_total_energy_consumption, field),
                    )
                )  # fmt: skip
        if not devices:
            reasons.append("zeus: zeusd shows no processor")
        return devices

    def _chip(self, reasons: list[str]) -> list[Device]:
        from zeus.device.soc import get_soc
        from zeus.device.soc.common import ZeusSoCInitError

        try:
            chip = get_soc()
        except ZeusSoCInitError:
            return []
        first = chip.get_total_energy_consumption()
        kind = type(first).__name__
        devices: list[Device] = []
        for field, domain in CHIP.get(kind, {}).items():
            if getattr(first, field, None) is None:
                reasons.append(f"zeus: {kind}: {field} is not measured")
                continue
            devices.append(
                self._counted(
                    field.removesuffix("_mj"), f"{kind} {field}", domain,
                    _field_reader(chip.get_total_energy_consumption, field),
                )
            )  # fmt: skip
        if not devices:
            reasons.append(f"zeus: {kind}: no counter that llem knows")
        return devices

    def _counted(self, label: str, name: str, domain: str, read_mj: Callable[[], float]) -> Device:
        uuid = f"zeus-{self._boot()}-{label}"
        self._reads[uuid] = lambda: Reading(energy_mj=read_mj())
        return Device(
            uuid=uuid, name=name, domain=domain, contains=CHIP_CONTAINS.get(domain, ()),
            source=self.name, node_wide=True,
        )  # fmt: skip

    def _boot(self) -> str:
        return short_boot_id(self._boot_id)


def _field_reader(measure: Callable[[], Any], field: str) -> Callable[[], float]:
    def read_mj() -> float:
        value = getattr(measure(), field)
        if value is None:
            raise MeterError(f"{field} is gone")
        return float(value)

    return read_mj


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
