"""The energy in single node records, without a campaign around them: `llem energy`."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llem.errors import InputError
from llem.records import NodeRecord, RankRecord, RecordError, read_node, read_rank, worst_quality
from llem.results.energy.claim import Claim
from llem.results.energy.claims import claim_devices, divide_shared, read_series
from llem.results.energy.counter import EnergySeries
from llem.results.energy.domains import domains_of, select
from llem.results.ranks.marks import Span, marked_spans, measured_window, sampled_window, step_spans
from llem.results.ranks.ranks import RANK_FILE

# A run's folder among those of its campaign: .../runs/<run>/attempt-<k>.
RUN_FOLDER = re.compile(r"attempt-\d+")


@dataclass(frozen=True, kw_only=True)
class DeviceEnergy:
    """One device's energy over its samples; NaN with a reason where it is not known.

    `counted`: it is in the sum. What is not was measured as well, and `reason` says why not.
    """

    uuid: str
    name: str
    domain: str
    source: str
    quality: str
    energy_j: float
    duration_s: float
    coverage: float
    reason: str
    counted: bool = True


@dataclass(frozen=True, kw_only=True)
class PhaseTotal:
    """All devices in one phase; the phases of a record add up to the whole."""

    phase: str
    energy_j: float
    duration_s: float


@dataclass(frozen=True, kw_only=True)
class RunEnergy:
    """One run of a campaign, all its attempts."""

    run_id: str
    energy_j: float
    duration_s: float


@dataclass(frozen=True, kw_only=True)
class NodeEnergy:
    """All devices of one or several node records; no device and no moment is counted twice.

    `domains` is what `energy_j` is the energy of: gpu+package+dram.
    """

    energy_j: float
    domains: str
    duration_s: float
    devices: tuple[DeviceEnergy, ...]
    phases: tuple[PhaseTotal, ...] = ()
    runs: tuple[RunEnergy, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def quality(self) -> str:
        """The least of the devices' qualities."""
        return worst_quality(device.quality for device in self.devices)

    def to_dict(self) -> dict[str, Any]:
        """As `llem energy --json` prints it."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Source:
    """One node record, its window (None: all that was sampled) and the phases in it."""

    record: NodeRecord
    window: tuple[int, int] | None
    spans: tuple[Span, ...]


def device_energies(path: str | Path, *, window_ns: tuple[int, int] | None = None) -> NodeEnergy:
    """The energy in a node record, or in all node records below a folder.

    Of a record that `llem.measure` wrote, its window counts; `window_ns` (of the node's monotonic
    clock) takes its place. Raises InputError where no record can be read at all.
    """
    sources, problems = read_sources(path, window_ns=window_ns)
    claims: list[Claim] = []
    left_out: list[tuple[Claim, str]] = []
    spans: list[tuple[Span, ...]] = []
    for source in sources:
        selection = select(
            claim_devices(source.record, owner=str(source.record.path), window=source.window)
        )
        claims += selection.counted
        left_out += selection.left_out
        spans += [source.spans] * len(selection.counted)
    divided = divide_shared(claims, read_series)
    unmeasured = any(_refused(source.record) for source in sources)
    return NodeEnergy(
        energy_j=math.nan if unmeasured else _sum(divided),
        domains=domains_of(divided),
        duration_s=_duration_s(divided),
        devices=(
            *(_device(claim) for claim in divided),
            *(_device(claim, left_out=why) for claim, why in left_out),
        ),
        phases=_phases(claims, divided, spans),
        runs=_runs(divided) if len({_run_of(c.path) for c in divided}) > 1 else (),
        problems=tuple(problems),
    )


def read_sources(
    path: str | Path, *, window_ns: tuple[int, int] | None = None
) -> tuple[list[Source], list[str]]:
    """The node records at a path, with windows and phases, and what is wrong with some.

    `run.h5` stands for `run.node-<node>.h5` and `run.restart-<k>.h5` as well, which a measurement
    on several nodes, or of a job that was started again, leaves. Raises InputError where no
    record can be read.
    """
    path = Path(path)
    files = _files(path)
    sources: list[Source] = []
    problems: list[str] = []
    for file in files:
        try:
            record = read_node(file)
        except RecordError as error:
            problems.append(error.message)
            continue
        problems += [f"{file}: {text}" for text in _odd(record)]
        problems += record.problems
        window = window_ns or measured_window(record)
        spans = marked_spans(record) or _step_spans(record)
        sources.append(Source(record=record, window=window, spans=tuple(spans)))
    if not sources:
        told = [text.removeprefix(f"{path}: ") for text in problems]
        raise InputError(str(path), told or ["holds no node record (node-*.h5)"])
    return sources, problems


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        found = {f for f in path.rglob("*.h5") if re.search(r"(^|\.)node-.+\.h5$", f.name)}
        if not found:
            found = {f for f in path.glob("*.h5") if not RANK_FILE.fullmatch(f.name)}
        return sorted(found)
    stem = path.name.removesuffix(path.suffix)
    others = {f for kind in ("node", "restart") for f in path.parent.glob(f"{stem}.{kind}-*.h5")}
    return sorted({path, *others} if path.exists() or not others else others)


def _odd(record: NodeRecord) -> Iterable[str]:
    if record.meta.get("rehearsal"):
        yield "REHEARSED: nothing was measured"
    if text := _refused(record):
        yield text
    if not record.closed:
        yield "was not closed: it is still being written, or its writer was killed"


def _refused(record: NodeRecord) -> str:
    """What the sampler said where GPUs of the job are not measured."""
    events = record.events[record.events["code"] == b"gpu-unmeasured"]
    return str(events[0]["text"].decode("utf-8", "replace")) if len(events) else ""


def _step_spans(record: NodeRecord) -> list[Span]:
    """The phases by the steps of the lowest rank on the same machine, where there are ranks."""
    for file in sorted(record.path.parent.glob("rank-*.h5")):
        try:
            rank: RankRecord = read_rank(file)
        except RecordError:
            continue  # `llem aggregate` names it; the node's energy does not depend on it
        window = measured_window(record) or sampled_window(record)
        if rank.meta.get("boot_id") == record.meta.get("boot_id") and window is not None:
            return step_spans(rank, window)
    return []


def _phases(
    claims: Sequence[Claim], divided: Sequence[Claim], spans: Sequence[Sequence[Span]]
) -> tuple[PhaseTotal, ...]:
    """Energy by phase: each device's samples inside the spans, in the order of their beginning."""
    joules: dict[str, float] = {}
    lengths: dict[str, dict[Path, float]] = {}
    for whole, claim, found in zip(claims, divided, spans, strict=True):
        if not found:
            continue
        series = read_series(whole)
        # of a shared device each phase counts in the proportion in which the whole does
        factor = claim.energy_j / whole.seen_j if whole.seen_j else 1.0
        first: dict[str, float] = {}
        for span in found:
            joules.setdefault(span.name, 0.0)
            if isinstance(series, EnergySeries):
                joules[span.name] += factor * series.between(span.t0_ns, span.t1_ns)
            else:
                joules[span.name] = math.nan
            first[span.name] = first.get(span.name, 0.0) + (span.t1_ns - span.t0_ns) / 1e9
        for name, seconds in first.items():
            lengths.setdefault(name, {})[claim.path] = seconds
    return tuple(
        PhaseTotal(phase=name, energy_j=energy_j, duration_s=_lengths_s(lengths[name]))
        for name, energy_j in joules.items()
    )


def _lengths_s(by_record: dict[Path, float]) -> float:
    """Nodes go through a phase together, attempts one after the other."""
    by_folder: dict[Path, float] = {}
    for path, seconds in by_record.items():
        by_folder[path.parent] = max(by_folder.get(path.parent, 0.0), seconds)
    return sum(by_folder.values())


def _run_of(path: Path) -> str:
    return path.parent.parent.name if RUN_FOLDER.fullmatch(path.parent.name) else ""


def _runs(claims: Sequence[Claim]) -> tuple[RunEnergy, ...]:
    by_run: dict[str, list[Claim]] = {}
    for claim in claims:
        by_run.setdefault(_run_of(claim.path), []).append(claim)
    return tuple(
        RunEnergy(run_id=run_id, energy_j=_sum(found), duration_s=_duration_s(found))
        for run_id, found in by_run.items()
        if run_id
    )


def _sum(claims: Sequence[Claim]) -> float:
    return sum(c.energy_j for c in claims) if claims else math.nan


def _duration_s(claims: Sequence[Claim]) -> float:
    # One machine has one monotonic clock; of several, the longest time is given.
    spans: dict[str, tuple[int, int]] = {}
    for claim in claims:
        t0_ns, t1_ns = spans.get(claim.boot_id, (claim.t0_ns, claim.t1_ns))
        spans[claim.boot_id] = min(t0_ns, claim.t0_ns), max(t1_ns, claim.t1_ns)
    return max(((t1 - t0) / 1e9 for t0, t1 in spans.values()), default=math.nan)


def _device(claim: Claim, *, left_out: str = "") -> DeviceEnergy:
    return DeviceEnergy(
        uuid=claim.uuid,
        name=claim.name,
        domain=claim.domain,
        source=claim.source,
        quality=claim.quality,
        energy_j=claim.energy_j,
        duration_s=claim.duration_s,
        coverage=claim.coverage,
        reason="; ".join(r for r in (left_out and f"not added: {left_out}", claim.reason) if r),
        counted=not left_out,
    )
