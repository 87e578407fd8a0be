"""The ranks of one attempt, reduced file by file: tokens, steps, time span, evaluation."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from llem.records import NodeRecord, RankRecord, RecordError, read_rank
from llem.results.clock import HostClock, translate
from llem.results.timeline import Timeline, timeline

RANK_FILE = re.compile(r"rank-(\d+)\.h5")

# Steps end together on all ranks, so they tell two hosts' clocks apart better than their wall
# clocks do, once these differ by more than a step's ends may.
SKEW_S = 0.5
SKEW_MIN_STEPS = 3

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
R = TypeVar("R", RankRecord, NodeRecord)


@dataclass(frozen=True, kw_only=True)
class RankTimes:
    """When one rank ended which step, on its host's monotonic clock, and what it read then.

    `device` is the UUID of the device that it works on and whose counter it read ("" unknown);
    `stamps_mj` are the counter's values at `stamps_ns`; of several ranks on one device the first
    has them, and its `stamped_j` by phase, alone.
    """

    rank: int
    boot_id: str
    device: str
    steps: Integers
    t1_ns: Integers
    tokens: int
    stamps_ns: Integers
    stamps_mj: Floats
    stamped_j: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """All readable ranks of an attempt.

    `steps` are distinct and sorted, `tokens` those that all ranks read in each, `unique` those of
    them that no step before had read. `span_s` is
    from the first start of a step to the last end, over all ranks. `clocks` and `lines` (those of
    the host's first rank) are by boot id. `loss` is rank 0's evaluation at `loss_step`, its last.
    `device_uuids` are the GPUs that they computed on, None where one of them did not say.
    `comparable`: moments on two hosts can be compared, to well under a step.
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

    def without_steps(self) -> Ranks:
        """Without what grows with the number of steps, for a campaign of many runs."""
        none = np.array([], dtype=np.int64)
        return replace(self, steps=none, tokens=none, unique=none, clocks={}, lines={}, ranks=())


def read_ranks(paths: Sequence[Path], *, run_id: str, rehearsed: bool = False) -> Ranks:
    """Reduce an attempt's rank files, one in memory at a time. What cannot be read is a problem."""
    seen: list[int] = []
    worlds: set[int] = set()
    hosts: dict[str, None] = {}
    tokens: dict[int, int] = {}
    unique: dict[int, int] = {}
    spans: list[tuple[HostClock, int, int]] = []
    clocks: dict[str, HostClock] = {}
    lines: dict[str, Timeline] = {}
    times: list[RankTimes] = []
    devices: set[tuple[str, str]] = set()
    reference: HostClock | None = None
    device_uuids: set[str] = set()
    loss = loss_se = math.nan
    loss_step: int | None = None
    problems: list[str] = []
    for path in sorted(paths):
        record = read_of_run(read_rank, path, run_id, problems, rehearsed=rehearsed)
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
        steps = last_of_each_step(record.steps)
        for step, count, new in zip(
            *(steps[name].tolist() for name in ("step", "tokens_rank", "tokens_unique")),
            strict=True,
        ):
            tokens[step] = tokens.get(step, 0) + count
            unique[step] = unique.get(step, 0) + new
        if len(record.clock):
            boot_id = str(record.meta.get("boot_id") or record.meta.get("host") or path.stem)
            clock = clocks.setdefault(boot_id, HostClock.of(boot_id, record.clock))
            line = timeline(steps, record.spans)
            lines.setdefault(boot_id, line)
            device = (boot_id, str(record.meta.get("device_uuid") or ""))
            times.append(_times(rank, boot_id, steps, record, line, device not in devices))
            devices.add(device)
            if reference is None or rank == 0:
                reference = clock
            if len(steps):
                spans.append((clock, int(record.steps["t0_ns"].min()), int(steps["t1_ns"].max())))
        if rank == 0 and len(record.evals):
            last = record.evals[np.argmax(record.evals["step"])]
            loss, loss_se = float(last["loss"]), float(last["loss_se"])
            loss_step = int(last["step"])
    if len(worlds) > 1:
        problems.append(f"{paths[0].parent}: ranks disagree on their number: {sorted(worlds)}")
    order = sorted(tokens)
    return Ranks(
        seen=tuple(sorted(seen)),
        world=max(worlds, default=None),
        hosts=tuple(host for host in hosts if host),
        steps=np.array(order, dtype=np.int64),
        tokens=np.array([tokens[step] for step in order], dtype=np.int64),
        unique=np.array([unique[step] for step in order], dtype=np.int64),
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
    )


def _times(
    rank: int, boot_id: str, steps: NDArray[Any], record: RankRecord, line: Timeline, first: bool
) -> RankTimes:
    at = np.concatenate([steps["t1_ns"], record.spans["t1_ns"]])
    read = np.concatenate([steps["e1_mj"], record.spans["e1_mj"]])
    kept = np.isfinite(read) & first
    stamped: dict[str, float] = {}
    if kept.any():
        for kind, joules in zip(line.kind, line.stamped_j.tolist(), strict=True):
            stamped[kind] = stamped.get(kind, 0.0) + joules
    return RankTimes(
        rank=rank,
        boot_id=boot_id,
        device=str(record.meta.get("device_uuid") or ""),
        steps=steps["step"].copy(),
        t1_ns=steps["t1_ns"].copy(),
        tokens=int(steps["tokens_rank"].sum()),
        stamps_ns=at[kept],
        stamps_mj=read[kept],
        stamped_j=stamped,
    )


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


def last_of_each_step(table: NDArray[Any]) -> NDArray[Any]:
    """One row for each step number: the last that was written."""
    reverse = table[::-1]
    _, index = np.unique(reverse["step"], return_index=True)
    rows: NDArray[Any] = reverse[index]
    return rows


def _span_s(spans: list[tuple[HostClock, int, int]], reference: HostClock | None) -> float:
    if reference is None or not spans:
        return math.nan
    first = min(translate(t0, clock, reference) for clock, t0, _ in spans)
    last = max(translate(t1, clock, reference) for clock, _, t1 in spans)
    return (last - first) / 1e9


def _number_in(path: Path) -> int:
    match = RANK_FILE.fullmatch(path.name)
    return int(match.group(1)) if match else -1
