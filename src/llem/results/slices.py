"""A campaign's runs in slices, each reduced by a job of its own into parts of the cache.

A part is a cache file of its own (see `stored`), whole or not there: whoever aggregates next uses
it, whatever became of the job or of the call that started it.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llem.results.aggregate import planned_runs, read_plan, unchanged
from llem.results.carbon import CarbonSeries
from llem.results.reducing.reduction import Inputs, inputs_of
from llem.results.reducing.stored import PART, Store
from llem.results.reducing.workers import reduce_runs

# Runs that are done within so long of each other share a part. One that waits for the next is
# written at once (see `reduce_runs`), so that a job that is killed loses seconds.
PART_S = 5.0


@dataclass(frozen=True)
class Unreduced:
    """A run that the cache does not hold as it is now, and the bytes of its files."""

    run_id: str
    bytes: int


def unreduced(
    campaign_dir: Path, *, cache: Path, carbon: CarbonSeries | None
) -> tuple[list[Unreduced], int]:
    """The runs with records that the cache at `cache` does not hold, and how many are planned."""
    planned = planned_runs(read_plan(campaign_dir / "plan.json"))
    store = Store(cache, campaign_dir)
    found = []
    for run in planned:
        its = inputs_of(campaign_dir, run, carbon=carbon)
        # a run that has not begun takes no job to reduce
        if its.bytes:
            found.append((Unreduced(str(run["run_id"]), its.bytes), its.key))
    with store:
        left = [one for one, key in found if not store.holds(one.run_id, key)]
    return left, len(planned)


def deal(runs: Sequence[Unreduced], count: int) -> list[list[str]]:
    """The runs dealt into at most `count` slices of about as many bytes, none empty."""
    count = max(1, min(count, len(runs)))
    slices: list[list[str]] = [[] for _ in range(count)]
    filled = [0] * count
    for run in sorted(runs, key=lambda run: (-run.bytes, run.run_id)):
        least = filled.index(min(filled))
        slices[least].append(run.run_id)
        # a run of no bytes to speak of takes its time as well
        filled[least] += max(run.bytes, 1)
    return slices


def reduce_slice(
    campaign_dir: Path,
    run_ids: Collection[str],
    *,
    carbon: CarbonSeries | None,
    into: Path,
    name: str,
    workers: int | None = None,
) -> int:
    """Reduce these runs into parts `<name>-<k>.part` in the folder `into`; how many were.

    What parts of that name hold already is not done again. Also when it is interrupted, what was
    reduced is kept.
    """
    known = sorted(into.glob(f"{name}-*{PART}"))
    runs = [
        r for r in planned_runs(read_plan(campaign_dir / "plan.json")) if r["run_id"] in run_ids
    ]
    looked_ns = time.time_ns()
    inputs = [inputs_of(campaign_dir, run, carbon=carbon) for run in runs]
    for path in known:
        with Store(path, campaign_dir) as store:
            left = [
                (run, its) for run, its in zip(runs, inputs, strict=True)
                if not store.holds(str(run["run_id"]), its.key)
            ]  # fmt: skip
        runs, inputs = [run for run, _ in left], [its for _, its in left]
    serial = len(known)
    ready: list[tuple[Mapping[str, Any], Inputs, str]] = []

    def write() -> None:
        nonlocal serial
        if not ready:
            return
        # one that was killed in between may have left any number
        while (path := into / f"{name}-{serial:04d}{PART}").exists():
            serial += 1
        with Store(path, campaign_dir) as store:
            for run, its, text in ready:
                store.keep(str(run["run_id"]), its.key, text, newest_ns=its.newest_ns,
                           looked_ns=looked_ns)  # fmt: skip
        if store.problems:
            raise OSError("; ".join(store.problems))
        ready.clear()

    done = 0
    written_s = time.monotonic()
    size = sum(its.bytes for its in inputs)
    try:
        for place, text in reduce_runs(
            campaign_dir, runs, carbon=carbon, workers=workers, total_bytes=size, idle=write
        ):
            done += 1
            if unchanged(campaign_dir, runs[place], carbon, inputs[place]):
                ready.append((runs[place], inputs[place], text))
            if time.monotonic() - written_s >= PART_S:
                write()
                written_s = time.monotonic()
    finally:
        write()
    return done
