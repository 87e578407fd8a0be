"""Runs into SLURM arrays: short runs packed into elements, elements grouped by shape and time."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from llem.campaign import Replicates, Run, Runs, Site

# Elements of one array share one time limit: a factor of four keeps short ones easy to backfill.
TIME_CLASS = 4.0
# An element is worth its start when its runs take at least this many times as long.
PACK_STARTS = 20.0

Shape = tuple[int, int, int, str, int]
# Runs that take equally long: how many seconds, and their names, sorted.
Equal = tuple[float, list[str]]
# Elements that are equally full: how many seconds, and the names in each.
Bins = tuple[float, list[list[str]]]


@dataclass(frozen=True)
class ArrayJob:
    """One script: elements of equal shape. `elements[i]` are the run ids of index i.

    It is submitted `segments` times, each time to begin when the time before has ended: a run
    that takes longer than a job may goes on from its checkpoint.
    """

    name: str
    nodes: int
    gpus_per_node: int
    zero_stage: int
    precision: str
    time_limit_s: int
    throttle: int | None
    elements: tuple[tuple[str, ...], ...]
    segments: int = 1
    wave: int = 1

    @property
    def backend(self) -> str:
        """What serves a model in it; nothing does in an array of trainings."""
        return ""


def pack(runs: Iterable[Run], site: Site, *, wave: int = 1) -> tuple[ArrayJob, ...]:
    """Group `runs` by shape, pack short ones into elements, cut arrays at the site's limits.

    Where the site lets a user submit only so many elements, more runs share one, as far as half
    the time limit goes, unless the site asks for one run in each (`pack_s: 0`). Deterministic: the
    same runs in any order give the same arrays.
    """
    by_shape: dict[Shape, dict[float, list[str]]] = defaultdict(lambda: defaultdict(list))
    every = Runs.of(runs).replicates
    following, followers = _branches(every)
    for some in every:
        if id(some) in following:
            continue
        run, layout = some.run, some.run.layout
        seconds = run.predicted.duration_s + sum(
            other.run.predicted.duration_s for other in followers.get(id(some), ())
        )
        by_shape[
            (layout.nodes, layout.gpus_per_node, layout.zero_stage, run.recipe.precision,
             run.segments)
        ][seconds].extend(some.run_ids)  # fmt: skip
    after = {
        name: [other.run_ids[i] for other in followers[id(some)]]
        for some in every if id(some) in followers
        for i, name in enumerate(some.run_ids)
    }  # fmt: skip
    equals: dict[Shape, list[Equal]] = {
        shape: [(seconds, sorted(by_time[seconds])) for seconds in sorted(by_time, reverse=True)]
        for shape, by_time in by_shape.items()
    }
    longest = pack_length_s(site)
    filled = {shape: _elements(equals[shape], longest) for shape in equals}
    while (
        site.limits.submit is not None
        and site.pack_s != 0
        and sum(len(names) for bins in filled.values() for _, names in bins) > site.limits.submit
        and longest < 0.5 * site.limits.time
    ):
        longest = min(max(2 * longest, 60.0), 0.5 * site.limits.time)
        filled = {shape: _elements(equals[shape], longest) for shape in equals}
    jobs: list[ArrayJob] = []
    for shape in sorted(filled):
        classes: dict[int, list[Bins]] = defaultdict(list)
        for used, elements in filled[shape]:
            seconds = used + site.startup_s
            rank = math.ceil(math.log(max(seconds, 60.0), TIME_CLASS))
            classes[rank].append((seconds, elements))
        for rank in sorted(classes):
            jobs.extend(_chunks(shape, rank, classes[rank], site, wave))
    if not after:
        return tuple(jobs)
    return tuple(
        replace(
            job,
            elements=tuple(
                tuple(run_id for name in names for run_id in (name, *after.get(name, ())))
                for names in job.elements
            ),
        )
        for job in jobs
    )


def _branches(every: Sequence[Replicates]) -> tuple[set[int], dict[int, list[Replicates]]]:
    """Which of them branch off another's runs, and what follows each of these, by identity.

    A branch runs in its trunk's element, after it: there is then a checkpoint for it to begin at.
    """
    branching = {some.run_ids[0]: some for some in every if some.run.trunk_steps}
    followers = {}
    for some in every:
        names = [some.run.branch(steps).run_id for steps in some.run.branch_at]
        found = [branching[name] for name in names if name in branching]
        if found:
            followers[id(some)] = [other for other in found if other.seeds == some.seeds]
    return {id(other) for found in followers.values() for other in found}, followers


def pack_length_s(site: Site) -> float:
    """Seconds up to which an element is filled with short runs; 0 means one run each."""
    longest = site.pack_s if site.pack_s is not None else PACK_STARTS * site.startup_s
    return min(longest, 0.5 * site.limits.time)


def _elements(runs: Sequence[Equal], longest: float) -> list[Bins]:
    """First-fit decreasing into elements of at most `longest` seconds; `runs` longest first.

    Runs that take equally long are placed together, and elements that are equally full are looked
    at together: the same as one by one, in a time that hardly grows with the number of seeds.
    """
    filled: list[Bins] = []
    for seconds, names in runs:
        after: list[Bins] = []
        placed = 0
        empty: Bins = (0.0, [[] for _ in names])
        for used, elements in [*filled, empty]:
            # Twice at most: elements filled as far as they go, then one with what is left over.
            while elements and placed < len(names):
                room, full = _room(used, seconds, longest, len(names) - placed)
                if not room:
                    break
                many = min(len(elements), (len(names) - placed) // room)
                for element in elements[:many]:
                    element += names[placed : placed + room]
                    placed += room
                after.append((full, elements[:many]))
                elements = elements[many:]
            if elements and used > 0:
                after.append((used, elements))
        filled = after
    return filled


def _room(used: float, seconds: float, longest: float, most: int) -> tuple[int, float]:
    """How many runs of `seconds` fit where `used` are taken, up to `most`; what is taken then.

    Into an empty element a run fits however long it is.
    """
    count = 0
    while count < most and (used + seconds <= longest or not used):
        used += seconds
        count += 1
    return count, used


def _chunks(
    shape: Shape, time_class: int, bins: Sequence[Bins], site: Site, wave: int
) -> list[ArrayJob]:
    nodes, gpus, stage, precision, segments = shape
    # Twice the prediction and five minutes: predictions are priors until a run has been measured.
    limit = math.ceil((2 * max(s for s, _ in bins) + 300) / 60) * 60
    size = min(site.limits.array_size, site.limits.submit or site.limits.array_size)
    kind = f"t{time_class}" + (f"-s{segments}" if segments > 1 else "")
    stem = "train" if wave == 1 else f"wave{wave}"
    elements = [tuple(names) for _, alike in bins for names in alike]
    return [
        ArrayJob(
            name=f"{stem}-{nodes}x{gpus}-z{stage}-{precision}-{kind}-{start // size}",
            nodes=nodes,
            gpus_per_node=gpus,
            zero_stage=stage,
            precision=precision,
            time_limit_s=min(limit, site.limits.time),
            throttle=site.limits.throttle,
            elements=tuple(elements[start : start + size]),
            segments=segments,
            wave=wave,
        )
        for start in range(0, len(elements), size)
    ]
