"""Picks meters by asking each what it can measure: measured devices first, the model last.

Where NVML finds GPUs, they are measured. Where nothing is measured, the CPU model estimates, and
says so. Where the job holds GPUs that no meter sees, that is an event of its own,
`gpu-unmeasured`: such a run's energy is unknown, and an estimate of the processors must not stand
in for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from llem.energy.meter import Device, Meter

ACCELERATOR_DOMAINS = frozenset({"gpu", "module"})


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


def choose(meters: Sequence[Meter], *, model: Meter | None) -> Chosen:
    """Probe `meters`; where they find nothing, fall back to `model`."""
    devices: list[tuple[Meter, Device]] = []
    reasons: list[str] = []
    events: list[tuple[str, str]] = []
    held: int | None = None
    claimed: set[str] = set()
    for meter in meters:
        probe = meter.probe()
        if probe.accelerators is not None:
            held = max(held or 0, probe.accelerators)
        reasons += probe.reasons
        events += [("meter-reason", reason) for reason in probe.reasons]
        for device in probe.devices:
            # two meters may see one device: the first, the better one, keeps it
            if device.uuid not in claimed:
                claimed.add(device.uuid)
                devices.append((meter, device))
    measured = sum(d.domain in ACCELERATOR_DOMAINS and d.quality != "none" for _, d in devices)
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
