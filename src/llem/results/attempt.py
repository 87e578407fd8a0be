"""One attempt at a run, read from its folder and reduced; the files are the only source."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from llem.records import NodeRecord, RecordError, read_node
from llem.records.columns import Rows
from llem.results.carbon import CarbonSeries
from llem.results.energy.claim import Claim
from llem.results.energy.claims import claim_devices
from llem.results.energy.counter import SAMPLE_COLUMNS, passed_samples
from llem.results.energy.domains import select
from llem.results.ranks.clock import HostClock, translate
from llem.results.ranks.endrecord import EndRecord, read_end
from llem.results.ranks.ranks import RANK_FILE, SKEW_S, Ranks, read_of_run, read_ranks, skew_ns
from llem.results.ranks.timeline import Timeline
from llem.results.ranks.view import step_ends, view_of
from llem.results.steps import StepSums, sum_steps
from llem.results.stragglers import RankRow, rank_rows, waited

ATTEMPT_FOLDER = re.compile(r"attempt-(\d+)")
# A node's record of more bytes than this is read device by device.
LARGE_BYTES = 64 << 20
FAR_NS = 1 << 62
NODE_FILE = re.compile(r"node-(.+)\.h5")


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """What is left of one attempt. `energy_reasons` say why its energy is not known;
    `energy_notes` what was measured and could not be counted as this attempt's."""

    number: int
    folder: Path
    end: EndRecord | None
    ranks: Ranks
    expected_ranks: int
    nodes_seen: int
    expected_nodes: int
    claims: tuple[Claim, ...]
    energy_reasons: tuple[str, ...]
    duration_s: float
    expected_devices: int
    problems: tuple[str, ...]
    energy_notes: tuple[str, ...] = ()
    steps: StepSums = field(default_factory=StepSums)
    rank_rows: tuple[RankRow, ...] = ()

    @property
    def began(self) -> bool:
        """Whether it left any measurement or end record: one that did not used nothing we know."""
        return self.end is not None or bool(self.ranks.seen) or self.nodes_seen > 0

    @property
    def status(self) -> str:
        return self.end.status if self.end is not None else "unfinished"


def attempt_folders(run_folder: Path) -> list[tuple[int, Path]]:
    """The attempts of a run, oldest first."""
    found = []
    if run_folder.is_dir():
        for path in run_folder.iterdir():
            match = ATTEMPT_FOLDER.fullmatch(path.name)
            if match and path.is_dir():
                found.append((int(match.group(1)), path))
    return sorted(found)


def read_attempt(
    number: int,
    folder: Path,
    *,
    run: Mapping[str, Any],
    window_ns: tuple[int, int] | None = None,
    carbon: CarbonSeries | None = None,
) -> Attempt:
    """Read all files of an attempt. Nothing in them is fatal: what is wrong becomes a problem.

    `window_ns` on rank 0's monotonic clock takes the place of the end record's window. `carbon`
    is what the energy's pieces are told the intensity of.
    """
    run_id = str(run["run_id"])
    problems: list[str] = []
    rehearsed = bool(run.get("rehearsal"))
    end = read_end(folder / "end.json", run_id=run_id, rehearsed=rehearsed)
    if isinstance(end, str):
        problems.append(end)
        end = None
    if end is not None and window_ns is not None:
        end = replace(end, t0_ns=window_ns[0], t1_ns=window_ns[1])
    rank_paths, node_paths = _files(folder, problems)
    ranks = read_ranks(rank_paths, run_id=run_id, rehearsed=rehearsed)
    problems += ranks.problems
    layout = run.get("layout") or {}
    per_node = int(layout.get("gpus_per_node", 1))
    expected_ranks = (
        (end.ranks if end else None) or ranks.world or int(layout.get("nodes", 1)) * per_node
    )
    hosts = (end.hosts if end else ()) or ranks.hosts
    expected_nodes = len(set(hosts)) or int(layout.get("nodes", 1))

    if end is not None and end.window_ns is None and not rank_paths and not node_paths:
        # Its ranks never came together: no window began, so nothing of it is missing.
        return _unmeasured_attempt(number, folder, end, ranks, expected_nodes, problems)

    claims: list[Claim] = []
    lines: dict[str, Timeline] = {}
    waits: dict[int, tuple[float, float]] = {}
    reasons: list[str] = []
    skews = {boot_id: _skew(ranks, clock) for boot_id, clock in ranks.clocks.items()}
    ends = step_ends(ranks, skews)
    nodes_seen = unmeasured_gpus = 0
    owner = f"{run_id}/attempt-{number}"
    # One node's samples are in memory at a time, of a large record one device's; of the claims a
    # few numbers are kept, and eight bytes a step until the attempt's end.
    for path in node_paths:
        large = _is_large(path)
        read = partial(_read_node, ranks=ranks)
        head = partial(read, only=()) if large else read
        record = read_of_run(head, path, run_id, problems, rehearsed=rehearsed)
        if record is None:
            continue
        nodes_seen += 1
        boot_id = str(record.meta.get("boot_id") or record.meta.get("host") or record.path.stem)
        clock = _clock(boot_id, record, ranks)
        skew = skews.get(boot_id, 0)
        window = _window(boot_id, record, clock, end, ranks, skew)
        off_ns = skew or (clock.off_ns if clock is not None else 0)
        if abs(off_ns) > SKEW_S * 1e9 and window is not None:
            how = "by the steps" if skew else "as measured by the ranks"
            problems.append(
                f"{path}: its wall clock is {off_ns / 1e9:+.2f} s off rank 0's: aligned {how}"
            )
        view = view_of(boot_id, clock, ranks, skew=skew, ends=ends, carbon=carbon)
        waits |= waited(view.waits)
        if view.line is not None:
            lines[boot_id] = view.line
        for part in _device_by_device(record, read, problems) if large else (record,):
            claims += claim_devices(part, owner=owner, window=window, view=view)
        if short := _short_of(record):
            unmeasured_gpus += short
            held = record.meta["gpus_held"]
            reasons.append(f"{path.name}: {short} of the job's {held} GPUs here are not measured")
        if end is not None and end.window_ns is not None and window is None:
            reasons.append(f"{path.name}: its clock cannot be tied to rank 0's")
    if nodes_seen < expected_nodes:
        found = {m.group(1) for p in node_paths if (m := NODE_FILE.fullmatch(p.name))}
        names = sorted(set(hosts) - found) or ["unnamed"]
        reasons.append(
            f"{expected_nodes - nodes_seen} of {expected_nodes} node records missing or unreadable "
            f"({', '.join(names)})"
        )
    selection = select(claims)
    counted = list(selection.counted)
    if len(ranks.seen) == expected_ranks:
        counted = [_said_unused(claim, ranks.device_uuids) for claim in counted]
    if nodes_seen and not counted:
        reasons.append("no device was measured")
    steps = sum_steps(ranks, counted, lines, end.window_ns if end is not None else None)
    # Whatever grows with a run's steps ends here.
    counted = [replace(claim, steps_j=None, celsius=None) for claim in counted]
    return Attempt(
        number=number,
        folder=folder,
        end=end,
        ranks=ranks,
        expected_ranks=expected_ranks,
        nodes_seen=nodes_seen,
        expected_nodes=expected_nodes,
        claims=tuple(counted),
        energy_reasons=tuple(reasons),
        duration_s=_duration_s(end, ranks, counted),
        expected_devices=_expected_devices(counted, nodes_seen, expected_nodes, per_node)
        + unmeasured_gpus,
        problems=tuple(problems),
        energy_notes=selection.notes,
        steps=steps,
        rank_rows=rank_rows(run_id, number, ranks, waits, skews),
    )


def _unmeasured_attempt(
    number: int, folder: Path, end: EndRecord, ranks: Ranks, nodes: int, problems: list[str]
) -> Attempt:
    return Attempt(
        number=number,
        folder=folder,
        end=end,
        ranks=ranks,
        expected_ranks=0,
        nodes_seen=0,
        expected_nodes=nodes,
        claims=(),
        energy_reasons=(),
        duration_s=0.0,
        expected_devices=0,
        problems=(*problems, f"{folder}: ended before anything was measured ({end.reason})"),
    )


def _read_node(path: Path, *, ranks: Ranks, only: Collection[str] | None = None) -> NodeRecord:
    def reduce(meta: Mapping[str, Any], attrs: Mapping[str, Any], rows: Rows) -> Any:
        # idle power is looked for before the first step: of a host without ranks, anywhere
        line = ranks.lines.get(str(meta.get("boot_id") or meta.get("host") or path.stem))
        first = line.t0_ns[:1].tolist() if line is not None else []
        return passed_samples(attrs, rows, head_ns=first[0] if first else FAR_NS)

    return read_node(path, columns=SAMPLE_COLUMNS, only=only, reduce=reduce)


def _is_large(path: Path) -> bool:
    try:
        return path.stat().st_size > LARGE_BYTES
    except OSError:
        return False


def _device_by_device(
    head: NodeRecord, read: Callable[..., NodeRecord], problems: list[str]
) -> Iterator[NodeRecord]:
    for uuid in head.uuids:
        try:
            part = read(head.path, only=(uuid,))
        except RecordError as error:
            problems.append(error.message)
            continue
        problems += [text for text in part.problems if text not in head.problems]
        yield part


def _files(folder: Path, problems: list[str]) -> tuple[list[Path], list[Path]]:
    ranks, nodes = [], []
    for path in sorted(folder.glob("*.h5")):
        if RANK_FILE.fullmatch(path.name):
            ranks.append(path)
        elif NODE_FILE.fullmatch(path.name):
            nodes.append(path)
        else:
            problems.append(f"{path}: neither rank-*.h5 nor node-*.h5, left out")
    return ranks, nodes


def _clock(boot_id: str, record: NodeRecord, ranks: Ranks) -> HostClock | None:
    """The node's clock: a rank's of the same host where that was compared with rank 0's."""
    of_rank = ranks.clocks.get(boot_id)
    if of_rank is not None and (of_rank.compared or not len(record.clock)):
        return of_rank
    return HostClock.of(boot_id, record.clock) if len(record.clock) else None


def _skew(ranks: Ranks, there: HostClock) -> int:
    """What `there` is off by after translation, ns; 0 where that is little or not known."""
    if ranks.reference is None or 0 not in ranks.seen:
        return 0
    return skew_ns(ranks.reference, there, ranks.lines) or 0


def _window(
    boot_id: str,
    record: NodeRecord,
    clock: HostClock | None,
    end: EndRecord | None,
    ranks: Ranks,
    skew: int,
) -> tuple[int, int] | None:
    """The attempt's window on this node's monotonic clock; None: all that was sampled."""
    if end is None or end.window_ns is None:
        return None
    same_host = end.boot_id == boot_id if end.boot_id else end.host == record.meta.get("host")
    reference = ranks.reference if 0 in ranks.seen else None
    if reference is None or clock is None:
        return end.window_ns if same_host else None
    t0_ns, t1_ns = (translate(t, reference, clock) + skew for t in end.window_ns)
    return t0_ns, t1_ns


def _said_unused(claim: Claim, used: frozenset[str] | None) -> Claim:
    """The claim, which says so where the job held a GPU that none of its ranks computed on."""
    if used is None or claim.uuid in used or claim.domain not in ("gpu", "module"):
        return claim
    if any(uuid.startswith("MIG-") for uuid in used):
        return claim  # an instance's name does not say whose it is
    told = f"{claim.uuid}: a GPU that no rank uses"
    return replace(claim, reason="; ".join(r for r in (told, claim.reason) if r))


def _short_of(record: NodeRecord) -> int:
    """How many GPUs the job held on that node without their energy's being measured."""
    held = int(record.meta.get("gpus_held", -1))
    measured = int(record.meta.get("gpus_measured", 0))
    said = any(event["code"] == b"gpu-unmeasured" for event in record.events)
    return held - measured if said or (held > 0 and measured == 0) else 0


def _duration_s(end: EndRecord | None, ranks: Ranks, claims: list[Claim]) -> float:
    if end is not None and end.window_ns is not None:
        return (end.window_ns[1] - end.window_ns[0]) / 1e9
    known = [claim.duration_s for claim in claims]
    if ranks.span_s == ranks.span_s:
        known.append(ranks.span_s)
    return max(known, default=math.nan)


def _expected_devices(
    claims: list[Claim], nodes_seen: int, expected_nodes: int, per_node: int
) -> int:
    if not nodes_seen or not claims:
        return expected_nodes * per_node
    missing = max(0, expected_nodes - nodes_seen)
    return len(claims) + missing * round(len(claims) / nodes_seen)
