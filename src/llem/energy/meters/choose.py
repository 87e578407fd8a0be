"""Picks meters by asking each what it can measure, in this order, the models last.

    nvml, zeus         accelerators (zeus also Apple and Jetson chips, and RAPL by zeusd)
    rapl               processors and memory
    pm_counters        the whole node, and its parts
    hwmon, ipmi        the power of the node, slowly
    cpu-model          where nothing is measured; codecarbon instead where asked for by name

All that is measured is recorded, also what measures the same joules twice (a node's counter and its
GPUs'): what is summed is decided late (`llem.results.energy.domains`). Two meters that see one
device by the same UUID: the first keeps it. Where the job holds GPUs that no meter sees, that is an
event of its own, `gpu-unmeasured`: such a run's energy is unknown, and an estimate or the
processors alone must not stand in for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from llem.energy.meters.carbon_model import CodeCarbonModel
from llem.energy.meters.cpu_model import CpuModel
from llem.energy.meters.held import expected_gpus
from llem.energy.meters.meter import Device, Meter
from llem.energy.meters.node_power import HwmonMeter, IpmiMeter
from llem.energy.meters.nvml import NvmlMeter
from llem.energy.meters.pm_counters import PmCountersMeter
from llem.energy.meters.rapl import RaplMeter
from llem.energy.meters.zeus_readers import ZeusMeter

ACCELERATOR_DOMAINS = frozenset({"gpu", "module"})

# Priority order. "auto" is all of METERS, and the first of MODELS.
METERS: Mapping[str, Callable[[], Meter]] = {
    "nvml": NvmlMeter,
    "zeus": ZeusMeter,
    "rapl": RaplMeter,
    "pm_counters": PmCountersMeter,
    "hwmon": HwmonMeter,
    "ipmi": IpmiMeter,
}
MODELS: Mapping[str, Callable[[], Meter]] = {"cpu-model": CpuModel, "codecarbon": CodeCarbonModel}
AUTO = "auto"


@dataclass(frozen=True)
class Chosen:
    """The devices that will be measured, by which meter, and why not by another.

    `events` are (code, text) for the record. `gpus_held` is -1 where nothing says how many GPUs
    this job holds on this node.
    """

    devices: tuple[tuple[Meter, Device], ...]
    reasons: tuple[str, ...]
    events: tuple[tuple[str, str], ...]
    gpus_held: int
    gpus_measured: int
    meters: tuple[str, ...] = field(default=())


def parse_meters(text: str) -> tuple[str, ...]:
    """`auto`, or names with commas between -> names in order of priority. Raises ValueError."""
    if text.strip() == AUTO:
        return (*METERS, "cpu-model")
    names = {name.strip() for name in text.split(",")}
    known = (*METERS, *MODELS)
    if unknown := sorted(names - set(known)):
        raise ValueError(f"no meter {', '.join(unknown)}: expected auto or some of "
                         f"{', '.join(known)}")  # fmt: skip
    if set(MODELS) <= names:
        raise ValueError(f"give one of {', '.join(MODELS)}: the others would never be asked")
    return tuple(name for name in known if name in names)


def make_meters(names: Sequence[str]) -> tuple[list[Meter], Meter | None]:
    """The meters of these names, and the model among them."""
    models = [MODELS[name]() for name in names if name in MODELS]
    return [METERS[name]() for name in names if name in METERS], models[0] if models else None


def choose(
    meters: Sequence[Meter],
    *,
    model: Meter | None,
    environ: Mapping[str, str] = os.environ,
) -> Chosen:
    """Probe `meters`; where they find nothing, fall back to `model`."""
    devices: list[tuple[Meter, Device]] = []
    reasons: list[str] = []
    events: list[tuple[str, str]] = []
    # Also where NVML is not asked: processors alone must not pass for a job with GPUs.
    held = expected_gpus(environ)
    claimed: set[str] = set()
    paired = 0
    for meter in meters:
        probe = meter.probe()
        paired += probe.paired
        if probe.accelerators is not None:
            held = max(held or 0, probe.accelerators)
        reasons += probe.reasons
        events += [("meter-reason", reason) for reason in probe.reasons]
        for device in probe.devices:
            # two meters may see one device: the first, the better one, keeps it
            if device.uuid not in claimed:
                claimed.add(device.uuid)
                devices.append((meter, device))
    measured = _accelerators([d for _, d in devices], paired)
    if held and any(_holds_accelerators(d) for _, d in devices):
        measured = max(measured, held)
    # A MIG job holds more instances than GPUs: only "none at all" is sure there.
    partial = any(d.share != 1.0 for _, d in devices)
    if held and (measured == 0 or (measured < held and not partial)):
        text = f"the job holds {held} GPUs here, {measured} are measured"
        reasons.append(text)
        events.append(("gpu-unmeasured", text))
    if not devices and model is not None:
        probe = model.probe()
        reasons += probe.reasons
        events += [("meter-reason", reason) for reason in probe.reasons]
        devices += [(model, device) for device in probe.devices]
        for _, device in devices:
            events.append(("estimate", f"{device.uuid}: {device.reason}"))
    return Chosen(
        devices=tuple(devices),
        reasons=tuple(reasons),
        events=tuple(events),
        gpus_held=-1 if held is None else held,
        gpus_measured=measured,
        meters=tuple(dict.fromkeys(meter.name for meter, _ in devices)),
    )


def _accelerators(devices: Sequence[Device], paired: int) -> int:
    """How many accelerators are measured, each once: the meter that sees most of them counts."""
    by_source: dict[str, int] = {}
    for device in devices:
        if device.domain in ACCELERATOR_DOMAINS and device.quality != "none":
            by_source[device.source] = by_source.get(device.source, 0) + 1
    if "zeus" in by_source:
        by_source["zeus"] += paired
    # nvml's and zeus's are different devices; the parts of pm_counters are the same once more
    own = by_source.pop("nvml", 0) + by_source.pop("zeus", 0)
    return max([own, *by_source.values()])


def _holds_accelerators(device: Device) -> bool:
    """Whether it is the counter of a node with all that is in it."""
    return device.domain == "node" and device.quality == "counter" and "gpu" in device.contains
