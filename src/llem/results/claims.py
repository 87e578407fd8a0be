"""Who used which device when, so that no joule is counted twice.

A claim is one attempt's window on one device. A device is known by (boot id, UUID): two ranks on
one GPU, or two "nodes" on one machine, sample the same device, and it is counted once. Where the
windows of several runs overlap on a device, each moment is divided evenly among them: the sum
over all runs is then what the device really used.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from llem.records import DeviceSeries, NodeRecord, RecordError, read_node
from llem.results.counter import EnergySeries, energy_series

# Where a device says nothing about it: these count for all who run on the node.
NODE_WIDE = ("package", "dram", "node")

DeviceKey = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One attempt's use of one device in [t0_ns, t1_ns] of that host's monotonic clock.

    `energy_j` is NaN where it is unknown, and `reason` says why (or what is to be known about
    it). `attributed_s` are the seconds that count as this attempt's own: less than `covered_s`
    where others shared the device. `idle_w` is NaN without a baseline.

    A device that is `node_wide` counts for all who run on the node; `exclusive` (yes, no, unknown)
    says whether this job held that, `held` how this is known, `cpu_share` is the job's part of the
    node's CPUs, and `gpus_held` its number of GPUs there (-1: not known). `part` is what the claim
    is of the device: 1, or the CPUs' share after `partly`.
    """

    owner: str
    path: Path
    boot_id: str
    uuid: str
    name: str
    domain: str
    contains: tuple[str, ...]
    source: str
    quality: str
    t0_ns: int
    t1_ns: int
    energy_j: float
    seen_j: float
    covered_s: float
    attributed_s: float
    idle_w: float
    reason: str = ""
    node_wide: bool = False
    exclusive: str = "yes"
    held: str = ""
    cpu_share: float = 1.0
    gpus_held: int = -1
    part: float = 1.0

    @property
    def key(self) -> DeviceKey:
        return (self.boot_id, self.uuid)

    @property
    def duration_s(self) -> float:
        return (self.t1_ns - self.t0_ns) / 1e9


def claim_devices(record: NodeRecord, *, owner: str, window: tuple[int, int] | None) -> list[Claim]:
    """The claims of a node's record; without a window, each device's samples are its window."""
    idle_w = {
        row["uuid"].decode("utf-8", "replace"): float(row["power_idle_mw"]) / 1e3
        for row in record.baseline
    }
    claims = []
    for device in record.devices:
        series = energy_series(device)
        claims.append(_claim(record, device, series, owner, window, idle_w))
    return claims


def _claim(
    record: NodeRecord,
    device: DeviceSeries,
    series: EnergySeries | str,
    owner: str,
    window: tuple[int, int] | None,
    idle_w: Mapping[str, float],
) -> Claim:
    nan = float("nan")
    attrs = device.attrs
    if window is not None:
        t0_ns, t1_ns = window
    elif isinstance(series, EnergySeries):
        t0_ns, t1_ns = series.start_ns, series.end_ns
    else:
        times = device.samples["t_ns"]
        t0_ns, t1_ns = (int(times[0]), int(times[-1])) if len(times) else (0, 0)
    if isinstance(series, EnergySeries):
        seen_j = series.between(t0_ns, t1_ns)
        covered_s = series.covered_s(t0_ns, t1_ns)
        missing_s = (t1_ns - t0_ns) / 1e9 - covered_s
        reasons = list(series.notes)
        energy_j = seen_j
        if missing_s > series.tolerance_s(t0_ns, t1_ns):
            energy_j = nan
            reasons.insert(0, f"{missing_s:.1f} s of {(t1_ns - t0_ns) / 1e9:.1f} s not sampled")
        elif missing_s > 0:
            energy_j += series.edges_j(t0_ns, t1_ns)
            reasons.append(f"{missing_s:.2f} s at the window's edges extrapolated")
    else:
        seen_j, covered_s, energy_j, reasons = 0.0, 0.0, nan, [series]
    share = float(attrs.get("share", 1.0))
    if share != 1.0:
        # NVML counts the whole GPU; what the other instances' jobs used cannot be told apart
        energy_j = nan
        part = f"{share:.0%} of it" if share == share else "a part of it"
        reasons.insert(0, f"MIG: the job holds {part}, the whole was measured")
    text = "; ".join(dict.fromkeys(reasons))
    return Claim(
        owner=owner,
        path=record.path,
        boot_id=str(record.meta.get("boot_id") or record.meta.get("host") or record.path.stem),
        uuid=device.uuid,
        name=str(attrs.get("name", "")),
        domain=str(attrs.get("domain", "")),
        contains=tuple(attrs.get("contains") or ()),
        source=str(attrs.get("source", "")),
        quality=str(attrs.get("quality", "none")),
        t0_ns=t0_ns,
        t1_ns=t1_ns,
        energy_j=energy_j,
        seen_j=seen_j,
        covered_s=covered_s,
        attributed_s=covered_s,
        idle_w=idle_w.get(device.uuid, nan),
        reason=f"{device.uuid}: {text}" if text else "",
        node_wide=bool(attrs.get("node_wide", attrs.get("domain") in NODE_WIDE)),
        exclusive=str(record.meta.get("node_exclusive", "yes")),
        held=str(record.meta.get("node_exclusive_reason", "")),
        cpu_share=float(record.meta.get("node_share", 1.0)),
        gpus_held=int(record.meta.get("gpus_held", -1)),
    )


def partly(claim: Claim, part: float, why: str) -> Claim:
    """A part of a claim, as an estimate: what the device counted was not this job's alone."""
    return replace(
        claim,
        part=part,
        quality="model",
        energy_j=claim.energy_j * part,
        seen_j=claim.seen_j * part,
        attributed_s=claim.attributed_s * part,
        reason="; ".join(r for r in (claim.reason, f"{claim.uuid}: {why}") if r),
    )


def divide_shared(
    claims: Sequence[Claim], read_series: Callable[[Claim], EnergySeries | str]
) -> list[Claim]:
    """The claims, in their order, with the energy of shared moments divided evenly.

    `read_series` reads a claim's samples once more; it is called for shared devices only.
    """
    by_device: dict[DeviceKey, list[int]] = defaultdict(list)
    for index, claim in enumerate(claims):
        by_device[claim.key].append(index)
    result = list(claims)
    for indices in by_device.values():
        for group in _overlapping(claims, indices):
            for index in group:
                result[index] = _divided(claims[index], [claims[i] for i in group], read_series)
    return result


def _overlapping(claims: Sequence[Claim], indices: Sequence[int]) -> list[list[int]]:
    """Chains of claims on one device whose windows overlap; those that stand alone are left out."""
    groups: list[list[int]] = []
    end_ns = None
    for index in sorted(indices, key=lambda i: claims[i].t0_ns):
        claim = claims[index]
        if end_ns is None or claim.t0_ns >= end_ns:
            groups.append([])
        groups[-1].append(index)
        end_ns = claim.t1_ns if end_ns is None else max(end_ns, claim.t1_ns)
    return [group for group in groups if len(group) > 1]


def _divided(
    claim: Claim, group: Sequence[Claim], read_series: Callable[[Claim], EnergySeries | str]
) -> Claim:
    others = [
        o for o in group if o is not claim and o.t0_ns < claim.t1_ns and claim.t0_ns < o.t1_ns
    ]
    series = read_series(claim) if others else "not shared"
    if isinstance(series, str):
        return claim
    edges = {claim.t0_ns, claim.t1_ns}
    for other in others:
        edges |= {t for t in (other.t0_ns, other.t1_ns) if claim.t0_ns < t < claim.t1_ns}
    points = sorted(edges)
    seen_j = attributed_s = shared_s = 0.0
    for start, end in pairwise(points):
        there = [o.part for o in others if o.t0_ns <= start and end <= o.t1_ns]
        # Parts by CPUs stay what they are, as long as they do not make more than the device.
        own = claim.part / max(1.0, claim.part + sum(there))
        seen_j += series.between(start, end) * own
        attributed_s += series.covered_s(start, end) * own
        shared_s += (end - start) / 1e9 if there else 0.0
    owners = len({o.owner for o in others})
    note = f"{claim.uuid}: shared with {owners} other run(s) for {shared_s:.1f} s, divided evenly"
    # keeps NaN, and in proportion what was extrapolated at the edges
    energy_j = claim.energy_j * seen_j / claim.seen_j if claim.seen_j else claim.energy_j
    return replace(
        claim,
        energy_j=energy_j,
        seen_j=seen_j,
        attributed_s=attributed_s,
        reason="; ".join(r for r in (claim.reason, note) if r),
    )


def read_series(claim: Claim) -> EnergySeries | str:
    """The samples behind a claim, from its file once more; or why they cannot be had."""
    try:
        record = read_node(claim.path)
    except RecordError as error:
        return error.message
    for device in record.devices:
        if device.uuid == claim.uuid:
            return energy_series(device)
    return f"{claim.path}: {claim.uuid} is gone"
