"""The power of each device over time, for pictures: from the counter, so areas are energies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llem.records import DeviceSeries
from llem.results.energy.claims import claim_devices
from llem.results.energy.counter import EnergySeries, energy_series
from llem.results.energy.devices import Source, read_sources
from llem.results.energy.domains import select
from llem.results.ranks.clock import HostClock
from llem.results.ranks.marks import Span, sampled_window

# A bin narrower than this many samples would show when the counter moved, not the power.
BIN_SAMPLES = 2.0

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Trace:
    """One device's mean power in bins: `edges_s` (n + 1,) since the beginning, `power_w` (n,).

    NaN where the device was not sampled. `idle_w` is its baseline, NaN without one; `counted` is
    false for a device that lies inside another (a GPU in a module): it is drawn, not added.
    """

    uuid: str
    name: str
    node: str
    domain: str
    quality: str
    edges_s: Floats
    power_w: Floats
    peak_w: float
    idle_w: float
    counted: bool = True


@dataclass(frozen=True, kw_only=True)
class PowerTraces:
    """All devices on one axis of time, seconds since the first record's beginning.

    `spans` are (name, from, to) in seconds; `windows` are what counts of each record. `began_s`
    is the beginning as Unix time.
    """

    traces: tuple[Trace, ...]
    spans: tuple[tuple[str, float, float], ...]
    windows: tuple[tuple[float, float], ...]
    duration_s: float
    began_s: float
    problems: tuple[str, ...] = ()


def power_traces(path: str | Path, *, bins: int = 600) -> PowerTraces:
    """Read the traces of a node record, or of all below a folder; at most `bins` points each.

    Raises InputError where no record can be read at all.
    """
    sources, problems = read_sources(path)
    placed = [(source, _Axis.of(source)) for source in sources]
    placed = [(source, axis) for source, axis in placed if axis is not None]
    if not placed:
        return PowerTraces(
            traces=(), spans=(), windows=(), duration_s=math.nan, began_s=math.nan,
            problems=(*problems, "no sample at all"),
        )  # fmt: skip
    origin_ns = min(axis.wall(axis.first_ns) for _, axis in placed if axis)
    end_ns = max(axis.wall(axis.last_ns) for _, axis in placed if axis)
    traces: list[Trace] = []
    spans: list[tuple[str, float, float]] = []
    windows: dict[tuple[float, float], None] = {}
    for source, axis in placed:
        assert axis is not None
        chosen = select(claim_devices(source.record, owner="", window=source.window))
        counted = {claim.uuid for claim in chosen.counted}
        idle = {r["uuid"].decode(): float(r["power_idle_mw"]) / 1e3 for r in source.record.baseline}
        for device in source.record.devices:
            traces.append(
                _trace(
                    device, axis, origin_ns, end_ns, bins,
                    node=str(source.record.meta.get("node") or source.record.meta.get("host", "")),
                    idle_w=idle.get(device.uuid, math.nan),
                    counted=device.uuid in counted,
                )
            )  # fmt: skip
        if not spans:
            spans = [_seconds(span, axis, origin_ns) for span in source.spans]
        elif source.spans and _seconds(source.spans[0], axis, origin_ns)[1] >= spans[-1][2]:
            # another attempt's, after the first one's
            spans += [_seconds(span, axis, origin_ns) for span in source.spans]
        t0_ns, t1_ns = source.window or (axis.first_ns, axis.last_ns)
        windows[_pair(axis.wall(t0_ns), axis.wall(t1_ns), origin_ns)] = None
    return PowerTraces(
        traces=tuple(_one_of_each(traces)),
        spans=tuple(spans),
        windows=tuple(windows),
        duration_s=(end_ns - origin_ns) / 1e9,
        began_s=origin_ns / 1e9,
        problems=tuple(problems),
    )


@dataclass(frozen=True)
class _Axis:
    """A record's samples on the wall clock, by its clock stamps."""

    clock: HostClock | None
    first_ns: int
    last_ns: int

    @classmethod
    def of(cls, source: Source) -> _Axis | None:
        sampled = sampled_window(source.record)
        if sampled is None:
            return None
        clock = HostClock.of("", source.record.clock) if len(source.record.clock) else None
        return cls(clock, *sampled)

    def wall(self, mono_ns: int) -> int:
        return self.clock.wall_of(mono_ns) if self.clock else mono_ns


def _trace(
    device: DeviceSeries, axis: _Axis, origin_ns: int, end_ns: int, bins: int, *, node: str,
    idle_w: float, counted: bool,
) -> Trace:  # fmt: skip
    series = energy_series(device)
    whole_s = (end_ns - origin_ns) / 1e9
    if isinstance(series, EnergySeries):
        most = int(whole_s / (BIN_SAMPLES * series.interval_s)) if series.interval_s > 0 else 1
        edges: Floats = np.linspace(0.0, whole_s, max(1, min(bins, most)) + 1)
        start_s = (axis.wall(series.start_ns) - origin_ns) / 1e9
        joules = np.interp(edges, start_s + series.at_s, series.joules)
        power_w: Floats = np.diff(joules) / np.diff(edges)
        # where the samples cover a part of a bin, its power is that part's
        inside = np.clip(edges, start_s, start_s + float(series.at_s[-1]))
        covered = np.diff(inside)
        with np.errstate(invalid="ignore", divide="ignore"):
            power_w = np.where(
                covered > 0.25 * np.diff(edges), power_w * np.diff(edges) / covered, np.nan
            )
    else:
        edges = np.array([0.0, whole_s])
        power_w = np.array([np.nan])
    drawn = device.samples["power_mw"]
    drawn = drawn[np.isfinite(drawn)]
    return Trace(
        uuid=device.uuid,
        name=str(device.attrs.get("name", "")),
        node=node,
        domain=str(device.attrs.get("domain", "")),
        quality=str(device.attrs.get("quality", "none")),
        edges_s=edges,
        power_w=power_w,
        peak_w=float(drawn.max()) / 1e3 if len(drawn) else math.nan,
        idle_w=idle_w,
        counted=counted,
    )


def _one_of_each(traces: Sequence[Trace]) -> list[Trace]:
    """A device of several records (attempts, "nodes" on one machine) once, its traces joined."""
    by_key: dict[tuple[str, str], Trace] = {}
    for trace in traces:
        known = by_key.get((trace.node, trace.uuid))
        by_key[trace.node, trace.uuid] = trace if known is None else _joined(known, trace)
    return list(by_key.values())


def _joined(a: Trace, b: Trace) -> Trace:
    finer, other = (a, b) if len(a.power_w) >= len(b.power_w) else (b, a)
    middles = (finer.edges_s[1:] + finer.edges_s[:-1]) / 2
    index = np.clip(np.searchsorted(other.edges_s, middles) - 1, 0, len(other.power_w) - 1)
    power_w = np.where(np.isfinite(finer.power_w), finer.power_w, other.power_w[index])
    return Trace(
        **{
            **finer.__dict__,
            "power_w": power_w,
            "peak_w": float(np.nanmax([a.peak_w, b.peak_w])),
            "counted": a.counted or b.counted,
        }
    )


def _seconds(span: Span, axis: _Axis, origin_ns: int) -> tuple[str, float, float]:
    return (span.name, *_pair(axis.wall(span.t0_ns), axis.wall(span.t1_ns), origin_ns))


def _pair(t0_ns: int, t1_ns: int, origin_ns: int) -> tuple[float, float]:
    return (t0_ns - origin_ns) / 1e9, (t1_ns - origin_ns) / 1e9
