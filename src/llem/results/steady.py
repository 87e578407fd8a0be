"""The steady part of a run: its steps after the warm-up, and what its devices drew meanwhile.

What a calibration is made of. Time and power are those of the same window, from the end of the
warm-up to the end of the last step: starting, evaluating and leaving are no part of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llem.records import RankRecord, read_rank, worst_quality
from llem.results.aggregate import read_plan
from llem.results.attempt import Attempt, attempt_folders, read_attempt
from llem.results.energy.claim import Claim
from llem.results.energy.claims import divide_shared, read_series
from llem.results.ranks.clock import HostClock
from llem.results.ranks.ranks import read_of_run
from llem.results.warmup import steady_by_time

# Left out at the beginning of every attempt: kernels are chosen, memory is taken, caches fill.
# These are the least; what takes longer to settle is found by convergence (see `warmup`).
WARM_STEPS = 5
WARM_SHARE = 0.2
LEAST_STEPS = 4
# The mean of a block holds the pauses that a median of single steps would not count, and one
# pause for once spoils one block: the median of the blocks' means stands for both.
BLOCKS = 10
LEAST_BLOCK = 4
# A median's standard error is this many times a mean's.
MEDIAN_ERROR = math.sqrt(math.pi / 2)
# Counters are read ten times a second, and some boards renew them no more often.
LEAST_POWER_S = 1.0

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Steady:
    """One run's steady part. Unknown numbers are NaN, and a reason says why.

    step_s         seconds from one step's end to the next one's: the median of the means of
                   blocks of steps; `step_error` is one standard error of its logarithm, and
                   step_median_s the median of single steps
    power_w        energy of all devices in the window / (its seconds x ranks)
    startup_s      from the job's start to the first step of the run that its element begins with
    """

    run_id: str
    status: str
    steps: int = 0
    dropped: int = 0
    step_s: float = math.nan
    step_error: float = math.nan
    step_median_s: float = math.nan
    power_w: float = math.nan
    energy_quality: str = "none"
    energy_reason: str = ""
    peak_memory_bytes: float = math.nan
    startup_s: float = math.nan
    reason: str = ""


@dataclass(frozen=True)
class _Timed:
    """The attempt whose steps count, its window on rank 0's clock, and what was found in it."""

    number: int
    folder: Path
    window_ns: tuple[int, int]
    found: Steady


def steady_runs(campaign_dir: str | Path) -> tuple[Steady, ...]:
    """The steady part of each planned run, in the plan's order; reads files only.

    Of several attempts the one with most steps counts. Raises InputError where `plan.json`
    cannot be read.
    """
    folder = Path(campaign_dir)
    plan = read_plan(folder / "plan.json")
    first = {str(names[0]) for a in plan.get("arrays", ()) for names in a["elements"]}
    attempts: dict[str, list[Attempt]] = {}
    timed: dict[str, _Timed | Steady] = {}
    for run in plan["runs"]:
        run_id = str(run["run_id"])
        folders = attempt_folders(folder / "runs" / run_id)
        attempts[run_id] = [read_attempt(number, path, run=run) for number, path in folders]
        timed[run_id] = _timed(run_id, folders, attempts[run_id], begins=run_id in first)
    found = []
    for run in plan["runs"]:
        run_id = str(run["run_id"])
        item = timed[run_id]
        if isinstance(item, Steady):
            found.append(item)
            continue
        others = [c for other, of in attempts.items() if other != run_id for a in of
                  for c in a.claims]  # fmt: skip
        found.append(_with_power(item, run, others))
    return tuple(found)


def block_mean(periods: Floats) -> tuple[float, float]:
    """The median of the means of blocks of `periods` (n,), and its relative standard error.

    NaN for the error of fewer than two blocks.
    """
    blocks = min(BLOCKS, max(1, len(periods) // LEAST_BLOCK))
    means = np.array([part.mean() for part in np.array_split(periods, blocks)])
    middle = float(np.median(means))
    if blocks < 2:
        return middle, math.nan
    return middle, MEDIAN_ERROR * float(means.std(ddof=1)) / math.sqrt(blocks) / middle


def _timed(
    run_id: str, folders: Sequence[tuple[int, Path]], attempts: Sequence[Attempt], *, begins: bool
) -> _Timed | Steady:
    problems: list[str] = []
    best: tuple[RankRecord, Attempt] | None = None
    for (_, path), attempt in zip(folders, attempts, strict=True):
        file = path / "rank-00000.h5"
        record = read_of_run(read_rank, file, run_id, problems) if file.is_file() else None
        if record is not None and (best is None or len(record.steps) > len(best[0].steps)):
            best = record, attempt
    status = attempts[-1].status if attempts else "missing"
    if best is None:
        reason = "; ".join(problems) or "rank 0 has left no record"
        return Steady(run_id=run_id, status=status, reason=reason)
    record, attempt = best
    ends = np.sort(record.steps["t1_ns"])
    dropped = _warm_steps(attempt, ends)
    end = attempt.end
    peak = end.peak_memory_bytes if end is not None else math.nan
    found = Steady(
        run_id=run_id, status=attempt.status, dropped=min(dropped, len(ends)),
        peak_memory_bytes=peak, startup_s=_startup_s(record) if begins else math.nan,
    )  # fmt: skip
    if len(ends) - dropped < LEAST_STEPS:
        told = f": {end.reason}" if end is not None and end.reason else ""
        text = f"{len(ends)} steps, of which {dropped} are warm-up{told}"
        return replace(found, reason=text)
    periods: Floats = np.diff(ends[dropped - 1 :]) / 1e9
    step_s, error = block_mean(periods)
    found = replace(
        found, steps=len(periods), step_s=step_s, step_error=error,
        step_median_s=float(np.median(periods)),
    )  # fmt: skip
    return _Timed(attempt.number, attempt.folder, (int(ends[dropped - 1]), int(ends[-1])), found)


def _warm_steps(attempt: Attempt, ends_ns: NDArray[np.int64]) -> int:
    """How many steps are warm-up: by their energy per token where that converged, else by their
    time, and at least as many as ever."""
    least = max(WARM_STEPS, math.ceil(WARM_SHARE * len(ends_ns)))
    first: int | None = None
    if attempt.steps.steady.begins is not None:
        first = int(np.searchsorted(attempt.ranks.steps, attempt.steps.steady.begins))
    elif len(ends_ns) > 1:
        # the first step has no end before it: step i + 1 is the i-th period
        found = steady_by_time(np.diff(ends_ns) / 1e9)
        first = None if found is None else found + 1
    if first is None or len(ends_ns) - first < LEAST_STEPS:
        return least
    return max(least, first)


def _startup_s(record: RankRecord) -> float:
    began_ns = record.meta.get("job_started_ns")
    if not isinstance(began_ns, int) or not len(record.steps) or not len(record.clock):
        return math.nan
    clock = HostClock.of("", record.clock)
    return (clock.wall_of(int(record.steps["t0_ns"].min())) - began_ns) / 1e9


def _with_power(timed: _Timed, run: Mapping[str, Any], others: Sequence[Claim]) -> Steady:
    window_s = (timed.window_ns[1] - timed.window_ns[0]) / 1e9
    if window_s < LEAST_POWER_S:
        text = f"{window_s:.2g} s of steps are too short to measure power"
        return replace(timed.found, energy_reason=text)
    attempt = read_attempt(timed.number, timed.folder, run=run, window_ns=timed.window_ns)
    if attempt.end is None:
        return replace(timed.found, energy_reason="the attempt has no end record")
    # Whoever else was at work on these devices, in its steps or not, has used its part.
    claims = divide_shared([*attempt.claims, *others], read_series)[: len(attempt.claims)]
    reasons = [*attempt.energy_reasons, *(c.reason for c in claims if c.reason)]
    known = bool(claims) and not attempt.energy_reasons
    energy_j = sum(c.energy_j for c in claims) if known else math.nan
    return replace(
        timed.found,
        power_w=energy_j / (window_s * attempt.expected_ranks),
        energy_quality=worst_quality(c.quality for c in claims)
        if math.isfinite(energy_j)
        else "none",
        energy_reason="; ".join(dict.fromkeys(reasons)),
    )
