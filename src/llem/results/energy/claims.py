"""Who used which device when, so that no joule is counted twice.

A claim is one attempt's window on one device. A device is known by (boot id, UUID): two ranks on
one GPU, or two "nodes" on one machine, sample the same device, and it is counted once. Where the
windows of several runs overlap on a device, each moment is divided evenly among them: the sum
over all runs is then what the device really used.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llem._numerals import percent
from llem.records import DeviceSeries, NodeRecord, RecordError, read_node
from llem.records.native import compiled
from llem.results.energy.claim import Celsius, Claim, DeviceKey, Pieces
from llem.results.energy.counter import SAMPLE_COLUMNS, EnergySeries, energy_series, passed_samples
from llem.results.energy.idle import idle_power
from llem.results.energy.slowdown import slowed_seconds
from llem.results.ranks.timeline import Cuts, Timeline
from llem.results.ranks.view import HostView

# Where a device says nothing about it: these count for all who run on the node.
NODE_WIDE = ("package", "dram", "node")

Floats = NDArray[np.float64]


def claim_devices(
    record: NodeRecord,
    *,
    owner: str,
    window: tuple[int, int] | None,
    view: HostView | None = None,
) -> list[Claim]:
    """The claims of a node's record; without a window, each device's samples are its window."""
    view = view or HostView()
    found = []
    cuts: dict[tuple[tuple[int, int], str], Cuts] = {}
    for device in record.devices:
        series = energy_series(device)
        own = _sampled(device) if window is None else window
        # what devices have in common is kept once
        key = own, device.uuid if device.uuid in view.own_lines else ""
        if key not in cuts:
            cuts[key] = view.cuts(*key)
        found.append(_claim(record, device, series, owner, cuts[key], own, view))
    return found


def _sampled(device: DeviceSeries) -> tuple[int, int]:
    """From the device's first sample to its last, those that could not be read among them: one that
    falls silent is not measured till the end."""
    if device.reduced is not None:
        return device.reduced.start_ns, device.reduced.end_ns
    times = device.samples["t_ns"]
    return (int(times.min()), int(times.max())) if len(times) else (0, 0)


def _claim(
    record: NodeRecord,
    device: DeviceSeries,
    series: EnergySeries | str,
    owner: str,
    cuts: Cuts,
    window: tuple[int, int],
    view: HostView,
) -> Claim:
    nan = math.nan
    attrs = device.attrs
    t0_ns, t1_ns = window
    if isinstance(series, EnergySeries):
        seen_j = series.between(t0_ns, t1_ns)
        covered_s = series.covered_s(t0_ns, t1_ns)
        attributed_s = covered_s
        missing_s = (t1_ns - t0_ns) / 1e9 - covered_s
        reasons = list(series.notes)
        energy_j = seen_j
        if missing_s > series.tolerance_s(t0_ns, t1_ns):
            energy_j = nan
            reasons.insert(0, f"{missing_s:.1f} s of {(t1_ns - t0_ns) / 1e9:.1f} s not sampled")
        elif missing_s > 0:
            energy_j += series.edges_j(t0_ns, t1_ns)
            attributed_s += missing_s
            reasons.append(f"{missing_s:.2f} s at the window's edges extrapolated")
    else:
        seen_j, covered_s, attributed_s, energy_j, reasons = 0.0, 0.0, 0.0, nan, [series]
    pieces: Pieces | None = None
    steps_j = celsius = None
    wait_j = nan if view.waits else 0.0
    if isinstance(series, EnergySeries):
        found = series.at(cuts.t1_ns) - series.at(cuts.t0_ns)
        slowed_s, capped_s = slowed_seconds(device, cuts.t0_ns, cuts.t1_ns)
        pieces = Pieces(cuts=cuts, energy_j=found, slowed_s=slowed_s, capped_s=capped_s)
        wait_j, odd = _wait_j(device.uuid, series, view)
        if view.line is not None:
            steps_j = _steps_j(series, view.line)
            celsius = Celsius.of(device)
        if odd:
            reasons.append(odd)
    idle_w, idle_source = idle_power(record, device, before_ns=view.first_step_ns)
    share = float(attrs.get("share", 1.0))
    if share != 1.0:
        # NVML counts the whole GPU; what the other instances' jobs used cannot be told apart
        energy_j = nan
        part = f"{percent(share, places=0)} of it" if share == share else "a part of it"
        reasons.insert(0, f"MIG: the job holds {part}, the whole was measured")
    text = "; ".join(dict.fromkeys(reasons))
    return Claim(
        owner=owner,
        path=record.path,
        job=_job(record.meta),
        host=str(record.meta.get("node") or record.meta.get("host") or ""),
        boot_id=str(record.meta.get("boot_id") or record.meta.get("host") or record.path.stem),
        uuid=device.uuid,
        name=str(attrs.get("name", "")),
        domain=str(attrs.get("domain", "")),
        contains=tuple(attrs.get("contains") or ()),
        source=str(attrs.get("source", "")),
        quality=series.quality if isinstance(series, EnergySeries) else "none",
        t0_ns=t0_ns,
        t1_ns=t1_ns,
        energy_j=energy_j,
        seen_j=seen_j,
        covered_s=covered_s,
        attributed_s=attributed_s,
        idle_w=idle_w,
        idle_source=idle_source,
        reason=f"{device.uuid}: {text}" if text else "",
        pieces=pieces,
        undivided_j=energy_j,
        wait_j=wait_j,
        steps_j=steps_j,
        celsius=celsius,
        node_wide=bool(attrs.get("node_wide", attrs.get("domain") in NODE_WIDE)),
        exclusive=str(record.meta.get("node_exclusive", "yes")),
        held=str(record.meta.get("node_exclusive_reason", "")),
        cpu_share=float(record.meta.get("node_share", 1.0)),
        gpus_held=int(record.meta.get("gpus_held", -1)),
    )


def _job(meta: Mapping[str, Any]) -> str:
    """The job that wrote a record, as accounting calls it: `123` or `123_4`; "" without one."""
    if array := meta.get("array_job_id"):
        return f"{array}_{meta.get('element', '')}"
    return str(meta.get("job_id") or "")


def _steps_j(series: EnergySeries, line: Timeline) -> Floats:
    """The energy of each step of a line: most begin where the one before has ended."""
    native = compiled.library()
    if native is None or not len(line.t1_ns):
        used: Floats = np.diff(series.at(line.t1_ns), prepend=np.nan)
    else:
        used = native.rises(series.line, np.ascontiguousarray(line.t1_ns))
    apart = line.apart
    used[apart] = series.at(line.t1_ns[apart]) - series.at(line.t0_ns[apart])
    return used


def _wait_j(uuid: str, series: EnergySeries, view: HostView) -> tuple[float, str]:
    """What a device used while ranks of it had ended a step and others had not; and what is wrong
    with its stamps against the samples, '' where they agree."""
    stamps = dict(enumerate(view.stamps.get(uuid, ()))) if math.isfinite(series.base_j) else {}
    doubtful = compiled.library() is None
    wait_j = 0.0
    for wait in view.waits:
        if wait.device in ("", uuid):
            # most ranks wait from where they read the counter
            own = [k for k, (at_ns, _) in stamps.items() if at_ns is wait.from_ns]
            read_mj = stamps.pop(own[0])[1] if own else None
            used_j, odd = _used(series, wait.from_ns, wait.to_ns, read_mj)
            wait_j += wait.weight * used_j
            doubtful |= odd
    for at_ns, read_mj in stamps.values():
        doubtful |= _used(series, at_ns, None, read_mj)[1]
    return wait_j, _stamps(series, view.stamps.get(uuid, ())) if doubtful else ""


def _used(
    series: EnergySeries,
    from_ns: NDArray[np.int64],
    to_ns: NDArray[np.int64] | None,
    read_mj: Floats | None,
) -> tuple[float, bool]:
    """The sum of what was used between these moments, and whether any reading at the former may be
    further off than it can be."""
    native = compiled.library()
    if native is None or len(series.at_s) < 2:
        used = 0.0 if to_ns is None else float((series.at(to_ns) - series.at(from_ns)).sum())
        return used, True
    found, odd = native.waits(
        series.line, np.ascontiguousarray(from_ns),
        None if to_ns is None else np.ascontiguousarray(to_ns),
        None if read_mj is None else np.ascontiguousarray(read_mj),
        base_j=series.base_j, least_j=series.least_doubt_j,
        within_ns=(series.start_ns, series.end_ns),
    )  # fmt: skip
    return found, odd > 0


def _stamps(series: EnergySeries, stamps: Sequence[tuple[NDArray[np.int64], Floats]]) -> str:
    """What is wrong with a rank's stamps against the samples; '' where they agree."""
    if math.isnan(series.base_j):
        return ""
    compared = disagree = 0
    worst = 0.0
    for at_ns, read_mj in stamps:
        # NaN, where no stamp was taken, compares as false
        off = read_mj / 1e3
        off -= series.base_j
        off -= series.at(at_ns)
        np.abs(off, out=off)
        inside = (at_ns >= series.start_ns) & (at_ns <= series.end_ns) & np.isfinite(off)
        compared += int(np.count_nonzero(inside))
        doubtful = np.flatnonzero(inside & (off > series.least_doubt_j))
        wrong = off[doubtful] > series.doubt_j(at_ns[doubtful])
        disagree += int(np.count_nonzero(wrong))
        if len(doubtful):
            worst = max(worst, float(off[inside].max()))
    if not disagree:
        return ""
    return f"{disagree} of {compared} step stamps disagree with the samples by {worst:.0f} J"


def partly(claim: Claim, part: float, why: str) -> Claim:
    """A part of a claim, as an estimate: what the device counted was not this job's alone."""
    return replace(
        claim,
        part=part,
        quality="model",
        energy_j=claim.energy_j * part,
        undivided_j=claim.undivided_j * part,
        seen_j=claim.seen_j * part,
        wait_j=claim.wait_j * part,
        attributed_s=claim.attributed_s * part,
        pieces=claim.pieces and replace(claim.pieces, energy_j=claim.pieces.energy_j * part),
        steps_j=None if claim.steps_j is None else claim.steps_j * part,
        reason="; ".join(r for r in (claim.reason, f"{claim.uuid}: {why}") if r),
    )


def divide_shared(
    claims: Sequence[Claim],
    read_series: Callable[[Claim], EnergySeries | str],
    *,
    remember: Callable[[Claim, Sequence[Claim], Callable[[], Claim]], Claim] | None = None,
) -> list[Claim]:
    """The claims, in their order, with the energy of shared moments divided evenly.

    `read_series` reads a claim's samples once more; it is called for shared devices only.
    `remember` may answer in place of its last argument, which divides a claim among these others.
    """
    by_device: dict[DeviceKey, list[int]] = defaultdict(list)
    for index, claim in enumerate(claims):
        by_device[claim.key].append(index)
    result = list(claims)
    for indices in by_device.values():
        for group in _overlapping(claims, indices):
            for index in group:
                claim = claims[index]
                others = [o for i in group if (o := claims[i]) is not claim and _meet(o, claim)]
                if not others:
                    continue
                divide = partial(_divided, claim, others, read_series)
                result[index] = remember(claim, others, divide) if remember else divide()
    return result


def _meet(one: Claim, other: Claim) -> bool:
    return one.t0_ns < other.t1_ns and other.t0_ns < one.t1_ns


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
    claim: Claim, others: Sequence[Claim], read_series: Callable[[Claim], EnergySeries | str]
) -> Claim:
    series = read_series(claim)
    if isinstance(series, str):
        return claim
    seen_j, attributed_s, shared_s = _own_part(series, claim, claim.t0_ns, claim.t1_ns, others)
    pieces = claim.pieces
    if pieces is not None:
        spans = zip(pieces.cuts.t0_ns.tolist(), pieces.cuts.t1_ns.tolist(), strict=True)
        own = [_own_part(series, claim, t0, t1, others)[0] for t0, t1 in spans]
        pieces = replace(pieces, energy_j=np.array(own))
    owners = len({o.owner for o in others})
    note = f"{claim.uuid}: shared with {owners} other run(s) for {shared_s:.1f} s, divided evenly"
    # keeps NaN, and in proportion what was extrapolated at the edges
    part = seen_j / claim.seen_j if claim.seen_j else 1.0
    if claim.covered_s * claim.part > 0:
        attributed_s *= claim.attributed_s / (claim.covered_s * claim.part)
    return replace(
        claim,
        energy_j=claim.energy_j * part,
        wait_j=claim.wait_j * part,
        seen_j=seen_j,
        attributed_s=attributed_s,
        pieces=pieces,
        reason="; ".join(r for r in (claim.reason, note) if r),
    )


def _own_part(
    series: EnergySeries, claim: Claim, t0_ns: int, t1_ns: int, others: Sequence[Claim]
) -> tuple[float, float, float]:
    """Joules and seconds of a time divided evenly among all who held the device, and how much of
    it was shared, seconds. Parts by CPUs stay what they are, as long as they make no more than
    the device."""
    edges = {t0_ns, t1_ns}
    for other in others:
        edges |= {t for t in (other.t0_ns, other.t1_ns) if t0_ns < t < t1_ns}
    joules = own_s = shared_s = 0.0
    for start, end in pairwise(sorted(edges)):
        there = [o.part for o in others if o.t0_ns <= start and end <= o.t1_ns]
        own = claim.part / max(1.0, claim.part + sum(there))
        joules += series.between(start, end) * own
        own_s += series.covered_s(start, end) * own
        shared_s += (end - start) / 1e9 if there else 0.0
    return joules, own_s, shared_s


def read_series(claim: Claim) -> EnergySeries | str:
    """The samples behind a claim, from its file once more; or why they cannot be had."""
    try:
        record = read_node(
            claim.path, columns=SAMPLE_COLUMNS, only=(claim.uuid,),
            reduce=lambda _, attrs, rows: passed_samples(attrs, rows, head_ns=0),
        )  # fmt: skip
    except RecordError as error:
        return error.message
    for device in record.devices:
        if device.uuid == claim.uuid:
            return energy_series(device)
    return f"{claim.path}: {claim.uuid} is gone"
