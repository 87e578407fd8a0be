"""The ranks of one attempt, reduced file by file: tokens, steps, time span, evaluation."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from llem.records import Columns, NodeRecord, RankRecord, RecordError, read_rank
from llem.records.columns import Rows, TableRows
from llem.records.native import compiled
from llem.records.native.rows import StepRows, StepsPass
from llem.results.ranks.clock import HostClock, translate
from llem.results.ranks.served import Served, as_training, served_by
from llem.results.ranks.timeline import Timeline, stamped_by_phase, timeline

RANK_FILE = re.compile(r"rank-(\d+)\.h5")

# Steps end together on all ranks, so they tell two hosts' clocks apart better than their wall
# clocks do, once these differ by more than a step's ends may.
SKEW_S = 0.5
SKEW_MIN_STEPS = 3

# What of the steps is read, or of the forward passes of a served model.
STEP_COLUMNS = (
    "step", "t0_ns", "t1_ns", "tokens_rank", "tokens_unique", "e0_mj", "e1_mj", "phase",
    "batch", "tokens_in", "tokens_out", "context", "live", "attended",
)  # fmt: skip

# Times and stamps of ranks are kept up to so much; those of further ranks are read once more where
# they are needed, one node's at a time.
KEPT_BYTES = 64 << 20

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
R = TypeVar("R", RankRecord, NodeRecord)

NONE: Integers = np.array([], dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class RankTimes:
    """When one rank ended which step, on its host's monotonic clock, and what it read then.

    `device` is the UUID of the device that it works on and whose counter it read ("" unknown);
    `stamps` are the times of its steps' and spans' ends with the counter's values then, mJ, NaN
    where it was not read; of several ranks on one device the first has them, and its `stamped_j`
    by phase, alone. Where not `kept`, times and stamps are had by `timed`.
    """

    path: Path
    kept: bool = True
    rank: int
    host: str
    boot_id: str
    device: str
    steps: Integers
    t1_ns: Integers
    tokens: int
    stamps: tuple[tuple[Integers, Floats], ...]
    stamped_j: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """All readable ranks of an attempt.

    `steps` are distinct and sorted, `tokens` those that all ranks read in each, `unique` those of
    them that no step before had read. `span_s` is
    from the first start of a step to the last end, over all ranks. `clocks` and `lines` (those of
    the host's first rank) are by boot id. `loss` is rank 0's evaluation at `loss_step`, its last.
    `device_uuids` are the GPUs that they computed on, None where one of them did not say.
    `comparable`: moments on two hosts can be compared, to well under a step. `served` is what each
    replica of a served model says of its requests; of several, which do not keep step, `own_lines`
    are the times of the first rank of each device's replica, by boot id and UUID.
    """

    seen: tuple[int, ...]
    world: int | None
    hosts: tuple[str, ...]
    steps: Integers
    tokens: Integers
    unique: Integers
    span_s: float
    loss: float
    loss_se: float
    loss_step: int | None
    clocks: dict[str, HostClock]
    lines: dict[str, Timeline]
    ranks: tuple[RankTimes, ...]
    reference: HostClock | None
    device_uuids: frozenset[str] | None
    comparable: bool
    problems: tuple[str, ...]
    served: tuple[Served, ...] = ()
    own_lines: dict[tuple[str, str], Timeline] = field(default_factory=dict)

    def without_steps(self) -> Ranks:
        """Without what grows with the number of steps, for a campaign of many runs."""
        return replace(
            self,
            steps=NONE,
            tokens=NONE,
            unique=NONE,
            clocks={},
            lines={},
            own_lines={},
            ranks=(),
            reference=None,
        )


def read_ranks(paths: Sequence[Path], *, run_id: str, rehearsed: bool = False) -> Ranks:
    """Reduce an attempt's rank files, one in memory at a time. What cannot be read is a problem."""
    seen: list[int] = []
    worlds: set[int] = set()
    hosts: dict[str, None] = {}
    sums = _StepTokens()
    spans: list[tuple[HostClock, int, int]] = []
    clocks: dict[str, HostClock] = {}
    lines: dict[str, Timeline] = {}
    own_lines: dict[tuple[str, str], Timeline] = {}
    leads: dict[tuple[str, int], Timeline] = {}
    times: list[RankTimes] = []
    devices: set[tuple[str, str]] = set()
    reference: HostClock | None = None
    device_uuids: set[str] = set()
    served: list[Served] = []
    kept_bytes = 0
    loss = loss_se = math.nan
    loss_step: int | None = None
    problems: list[str] = []
    for path in sorted(paths):
        read = partial(_read_rank, known=sums.steps)
        record = read_of_run(read, path, run_id, problems, rehearsed=rehearsed)
        if record is None:
            continue
        rank = int(record.meta.get("rank", _number_in(path)))
        if rank in seen:
            problems.append(f"{path}: a second record of rank {rank}, left out")
            continue
        seen.append(rank)
        hosts[str(record.meta.get("host", ""))] = None
        device_uuids.add(str(record.meta.get("device_uuid") or ""))
        if isinstance(record.meta.get("world"), int):
            worlds.add(record.meta["world"])
        if (told := served_by(record)) is not None:
            served.append(told)
        replica = _replica_of(record)
        record = as_training(record)
        rows, columns = _rows_of(record, sums.steps)
        numbers = sums.add(rows)
        if len(record.clock):
            boot_id = str(record.meta.get("boot_id") or record.meta.get("host") or path.stem)
            clock = clocks.setdefault(boot_id, HostClock.of(boot_id, record.clock))
            device = (boot_id, str(record.meta.get("device_uuid") or ""))
            stamps = _stamps(rows, record.spans) if device not in devices else ()
            devices.add(device)
            stamped: dict[str, float] = {}
            if replica is not None or boot_id not in lines:
                line = timeline(columns or rows, record.spans)
                lines.setdefault(boot_id, line)
                if replica is not None and device[1]:
                    # its first rank alone knows when no request was there
                    first = leads.setdefault((boot_id, replica), line)
                    own_lines.setdefault(device, first)
            if stamps:
                stamped = stamped_by_phase(columns or rows, record.spans)
            kept_bytes += rows.t1_ns.nbytes + sum(read.nbytes for _, read in stamps)
            kept = kept_bytes <= KEPT_BYTES
            times.append(
                RankTimes(
                    path=path,
                    kept=kept,
                    rank=rank,
                    host=str(record.meta.get("node") or record.meta.get("host") or ""),
                    boot_id=boot_id,
                    device=device[1],
                    steps=numbers,
                    t1_ns=rows.t1_ns if kept else NONE,
                    tokens=rows.total,
                    stamps=stamps if kept else (),
                    stamped_j=stamped,
                )
            )
            if reference is None or rank == 0:
                reference = clock
            if len(rows):
                first_ns = rows.first_ns if columns is None else int(record.steps["t0_ns"].min())
                spans.append((clock, first_ns, rows.last_ns))
        if rank == 0 and len(record.evals):
            last = record.evals[np.argmax(record.evals["step"])]
            loss, loss_se = float(last["loss"]), float(last["loss_se"])
            loss_step = int(last["step"])
    if len(worlds) > 1:
        problems.append(f"{paths[0].parent}: ranks disagree on their number: {sorted(worlds)}")
    return Ranks(
        seen=tuple(sorted(seen)),
        world=max(worlds, default=None),
        hosts=tuple(host for host in hosts if host),
        steps=sums.steps,
        tokens=sums.tokens,
        unique=sums.unique,
        span_s=_span_s(spans, reference),
        loss=loss,
        loss_se=loss_se,
        loss_step=loss_step,
        clocks=clocks,
        lines=lines,
        ranks=tuple(times),
        reference=reference,
        device_uuids=None if "" in device_uuids else frozenset(device_uuids),
        comparable=reference is not None
        and all(c.compared or c.boot_id == reference.boot_id for c in clocks.values()),
        problems=tuple(problems),
        served=tuple(served),
        own_lines=own_lines,
    )


def timed(rank: RankTimes) -> RankTimes:
    """The rank with its times and stamps; without steps where its record has changed meanwhile."""
    if rank.kept:
        return rank
    try:
        record = as_training(_read_rank(rank.path, known=rank.steps))
    except RecordError:
        return replace(rank, steps=NONE)
    rows, _ = _rows_of(record, rank.steps)
    if rows.step is not rank.steps and not np.array_equal(rows.step, rank.steps):
        return replace(rank, steps=NONE)
    stamps = _stamps(rows, record.spans) if rank.stamped_j else ()
    return replace(rank, t1_ns=rows.t1_ns, stamps=stamps)


def _replica_of(record: RankRecord) -> int | None:
    """Which of several replicas a rank belongs to; None where there are not several."""
    several = record.workload == "inference" and int(record.meta.get("replicas", 1)) > 1
    return int(record.meta.get("replica", 0)) if several else None


class _StepTokens:
    """The tokens of each step number, summed over ranks; steps sorted."""

    def __init__(self) -> None:
        self.steps = NONE
        self._tokens = self._unique = NONE
        # what each step has of ranks that say the same of all: most add no more than a number
        self._alike = [0, 0]

    @property
    def tokens(self) -> Integers:
        return self._tokens + self._alike[0]

    @property
    def unique(self) -> Integers:
        return self._unique + self._alike[1]

    def add(self, rank: StepRows) -> Integers:
        """Add one rank's; its step numbers, as the array that ranks alike have in common."""
        steps = rank.step
        if not len(self.steps):
            self.steps = steps
            self._tokens, self._unique = np.zeros((2, len(steps)), dtype=np.int64)
        if steps is self.steps or np.array_equal(steps, self.steps):
            if isinstance(rank.tokens, int) and isinstance(rank.unique, int):
                self._alike[0] += rank.tokens
                self._alike[1] += rank.unique
            else:
                self._tokens += rank.tokens
                self._unique += rank.unique
            return self.steps
        every = np.union1d(self.steps, steps)
        old, new = np.searchsorted(every, self.steps), np.searchsorted(every, steps)
        tokens, unique = np.zeros((2, len(every)), dtype=np.int64)
        for summed, before, own in (
            (tokens, self.tokens, rank.tokens), (unique, self.unique, rank.unique)
        ):  # fmt: skip
            summed[old] = before
            summed[new] += own
        self.steps, self._tokens, self._unique, self._alike = every, tokens, unique, [0, 0]
        return steps


def _read_rank(path: Path, *, known: Integers) -> RankRecord:
    """`known`: the numbers that its steps will probably have."""
    return read_rank(path, columns=STEP_COLUMNS, reduce=lambda *of: _passed(of[-1], known))


def _rows_of(record: RankRecord, known: Integers) -> tuple[StepRows, Columns | None]:
    """A rank's steps in one pass; where they are in disorder, by their columns as well."""
    if record.reduced is not None:
        return record.reduced, None
    steps = record.steps
    if not isinstance(steps, Columns) and (found := _passed(TableRows(steps), known)) is not None:
        return found, None
    columns = last_of_each_step(Columns.of(steps))
    return StepRows.of(columns), columns


def _passed(rows: Rows, known: Integers) -> StepRows | None:
    if compiled.library() is None:
        return None
    for numbers in (known, None) if len(known) == len(rows) else (None,):
        into = StepsPass(len(rows), known=numbers)
        rows.feed(into)
        if (found := into.found()) is not None or not into.state.unlike:
            return found
    return None


def _stamps(steps: StepRows, spans: NDArray[Any]) -> tuple[tuple[Integers, Floats], ...]:
    """The readings at the ends of steps and spans; () where there is none at all."""
    if not steps.stamped and not np.isfinite(spans["e1_mj"]).any():
        return ()
    return ((steps.t1_ns, steps.e1_mj), (spans["t1_ns"], spans["e1_mj"]))


def skew_ns(reference: HostClock, there: HostClock, lines: dict[str, Timeline]) -> int | None:
    """How far `translate` to another host is off by its steps' ends; None where that is little."""
    a, b = lines.get(reference.boot_id), lines.get(there.boot_id)
    if a is None or b is None or reference.boot_id == there.boot_id:
        return None
    common, left, right = np.intersect1d(a.step, b.step, return_indices=True)
    if len(common) < SKEW_MIN_STEPS:
        return None
    first = int(a.t1_ns[left[0]])
    base = translate(first, reference, there)
    off = (b.t1_ns[right] - base) - (a.t1_ns[left] - first)
    median = int(np.median(off))
    return median if abs(median) > SKEW_S * 1e9 else None


def read_of_run(
    read: Callable[[Path], R],
    path: Path,
    run_id: str,
    problems: list[str],
    *,
    rehearsed: bool = False,
) -> R | None:
    """A record of this run, or None with what is wrong with the file added to `problems`.

    What was rehearsed is no record of a real campaign, nor the other way about.
    """
    try:
        record = read(path)
    except RecordError as error:
        problems.append(error.message)
        return None
    if record.meta.get("run_id", run_id) != run_id:
        problems.append(f"{path}: of another run, {record.meta['run_id']!r}")
        return None
    if bool(record.meta.get("rehearsal")) != rehearsed:
        what = "measured, in a rehearsed" if rehearsed else "rehearsed, in a real"
        problems.append(f"{path}: was {what} campaign: left out")
        return None
    problems += record.problems
    return record


def last_of_each_step(steps: Columns) -> Columns:
    """One row for each step number, sorted: the last that was written."""
    number = steps["step"]
    if (number[1:] > number[:-1]).all():
        return steps
    _, index = np.unique(number[::-1], return_index=True)
    return steps.take(len(steps) - 1 - index)


def _span_s(spans: list[tuple[HostClock, int, int]], reference: HostClock | None) -> float:
    if reference is None or not spans:
        return math.nan
    first = min(translate(t0, clock, reference) for clock, t0, _ in spans)
    last = max(translate(t1, clock, reference) for clock, _, t1 in spans)
    return (last - first) / 1e9


def _number_in(path: Path) -> int:
    match = RANK_FILE.fullmatch(path.name)
    return int(match.group(1)) if match else -1
