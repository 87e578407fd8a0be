"""CodeCarbon's model of a processor, for those who compare with it; quality `model`.

Only where it is installed, asked for by name, and nothing is measured. llem's own model
(`cpu_model`) is the better one to fall back on: its counter is a function of time since boot, so
that no sample can be missed and all processes agree. What CodeCarbon adds is its table of thermal
design powers: TDP x (0.1 + 0.9 x load^3), of one socket whatever their number, and 4 W per thread
where the processor is not in the table. Its GPU and RAPL readers are left alone: they answer 0
where they see nothing.
"""

from __future__ import annotations

import math
from typing import Any

from llem.energy.meters.meter import Device, MeterError, Probe, Reading
from llem.energy.meters.sysfs import short_boot_id

LOAD_MODE = "cpu_load"


class CodeCarbonModel:
    """The processor by CodeCarbon's table and this machine's load."""

    name = "codecarbon"

    def __init__(self) -> None:
        self._cpu: Any = None

    def probe(self) -> Probe:
        try:
            from codecarbon.core.cpu import TDP
            from codecarbon.external.hardware import CPU
        except ImportError as error:
            missing = error.name == "codecarbon"
            return Probe(reasons=(f"codecarbon: {'not installed' if missing else error}",))
        try:
            tdp = TDP()
            self._cpu = CPU.from_utils(
                output_dir="", mode=LOAD_MODE, model=tdp.model or "unknown", tdp=tdp.tdp
            )
            power_w = self._power_w()
        except Exception as error:
            return Probe(reasons=(f"codecarbon: {str(error) or type(error).__name__}",))
        if not power_w > 0:
            return Probe(reasons=(f"codecarbon: its model gives {power_w} W",))
        device = Device(
            uuid=f"codecarbon-{short_boot_id()}",
            name=f"codecarbon: {tdp.model or 'unknown processor'}, {tdp.tdp} W",
            domain="package",
            source=self.name,
            counter=False,
            quality="model",
            reason="no meter: codecarbon's model, from the processor's name and load",
            power="model",
            node_wide=True,
        )
        return Probe(devices=(device,))

    def read(self, device: Device) -> Reading:
        try:
            return Reading(power_mw=self._power_w() * 1e3)
        except Exception as error:
            raise MeterError(f"{device.uuid}: {error}") from None

    def close(self) -> None:
        self._cpu = None

    def _power_w(self) -> float:
        power = float(self._cpu._get_power_from_cpu_load().W)
        return power if math.isfinite(power) else math.nan
