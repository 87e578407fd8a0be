"""From records to the picture of their power: `llem energy --plot`."""

from __future__ import annotations

import math
from pathlib import Path

from llem._numerals import format_duration, format_energy, format_si
from llem.report.power import Panel, PowerPicture, Stretch, write_power
from llem.results import NodeEnergy, PowerTraces, device_energies, power_traces

# Points of a trace: more than the picture has pixels say nothing more.
POINTS = 690


def draw_energy(source: str | Path, out: str | Path) -> Path:
    """Draw power by device, with phases, window and idle power, as .svg, .png or .html.

    source: a node's record, or a folder of some. Raises InputError, UnavailableError.
    """
    found, traces = device_energies(source), power_traces(source, bins=POINTS)
    return write_power(power_picture(found, traces, title=Path(source).name), out)


def power_picture(found: NodeEnergy, traces: PowerTraces, *, title: str) -> PowerPicture:
    """What is drawn of energies and traces."""
    joules = {device.uuid: device for device in found.devices}
    several = len({trace.node for trace in traces.traces}) > 1
    panels = []
    for trace in traces.traces:
        device = joules.get(trace.uuid)
        told = "inside another device: not added"
        if device is not None:
            told = f"{format_energy(device.energy_j)} ({device.quality})"
            if device.duration_s > 0 and math.isfinite(device.energy_j):
                told += f", mean {format_si(device.energy_j / device.duration_s, 'W')}"
        if math.isfinite(trace.idle_w):
            told += f", idle {format_si(trace.idle_w, 'W')}"
        node = f"{trace.node} · " if several and trace.node else ""
        panels.append(
            Panel(
                label=f"{node}{trace.name or trace.domain} · {short(trace.uuid)}",
                told=told,
                edges_s=trace.edges_s.tolist(),
                power_w=trace.power_w.tolist(),
                idle_w=trace.idle_w,
            )
        )
    mean = found.energy_j / found.duration_s if found.duration_s > 0 else math.nan
    words = f"{format_energy(found.energy_j)} in {format_duration(found.duration_s)}"
    return PowerPicture(
        title=f"{title}: {words}, mean {format_si(mean, 'W')}",
        duration_s=traces.duration_s,
        panels=panels,
        stretches=[Stretch(phase=n, t0_s=a, t1_s=b) for n, a, b in traces.spans],
        phases=[(p.phase, format_energy(p.energy_j)) for p in found.phases],
        windows=traces.windows,
        notes=[*found.problems, *(d.reason for d in found.devices if d.reason)],
    )


def short(uuid: str) -> str:
    """As much of a UUID as tells devices apart: `GPU-1f2e3d4c`."""
    return uuid if len(uuid) <= 16 else uuid[:12]
