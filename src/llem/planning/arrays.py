"""Runs into SLURM arrays: short runs packed into elements, elements grouped by shape and time."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from llem.campaign import Run, Site

# Elements of one array share one time limit: a factor of four keeps short ones easy to backfill.
TIME_CLASS = 4.0
# An element is worth its start when its runs take at least this many times as long.
PACK_STARTS = 20.0

Shape = tuple[int, int, int, str, int]
Element = tuple[float, tuple[str, ...]]


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


def pack(runs: Sequence[Run], site: Site, *, wave: int = 1) -> tuple[ArrayJob, ...]:
    """Group `runs` by shape, pack short ones into elements, cut arrays at the site's limits.

    Where the site lets a user submit only so many elements, more runs share one, as far as half
    the time limit goes. Deterministic: the same runs in any order give the same arrays.
    """
    by_shape: dict[Shape, list[Run]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: (-run.predicted.duration_s, run.run_id)):
        layout = run.layout
        by_shape[
            (layout.nodes, layout.gpus_per_node, layout.zero_stage, run.recipe.precision,
             run.segments)
        ].append(run)  # fmt: skip
    longest = pack_length_s(site)
    filled = {shape: _elements(by_shape[shape], longest, site) for shape in by_shape}
    while (
        site.limits.submit is not None
        and sum(map(len, filled.values())) > site.limits.submit
        and longest < 0.5 * site.limits.time
    ):
        longest = min(max(2 * longest, 60.0), 0.5 * site.limits.time)
        filled = {shape: _elements(by_shape[shape], longest, site) for shape in by_shape}
    jobs: list[ArrayJob] = []
    for shape in sorted(filled):
        classes: dict[int, list[Element]] = defaultdict(list)
        for seconds, element in filled[shape]:
            classes[math.ceil(math.log(max(seconds, 60.0), TIME_CLASS))].append((seconds, element))
        for rank in sorted(classes):
            jobs.extend(_chunks(shape, rank, classes[rank], site, wave))
    return tuple(jobs)


def pack_length_s(site: Site) -> float:
    """Seconds up to which an element is filled with short runs; 0 means one run each."""
    longest = site.pack_s if site.pack_s is not None else PACK_STARTS * site.startup_s
    return min(longest, 0.5 * site.limits.time)


def _elements(runs: Sequence[Run], longest: float, site: Site) -> list[Element]:
    """First-fit decreasing into elements of at most `longest` seconds; `runs` longest first."""
    filled: list[tuple[float, list[str]]] = []
    first_open = 0
    for run in runs:
        seconds = run.predicted.duration_s
        for index in range(first_open, len(filled)):
            used, names = filled[index]
            if used + seconds <= longest:
                names.append(run.run_id)
                filled[index] = (used + seconds, names)
                break
        else:
            filled.append((seconds, [run.run_id]))
        # What is full for the shortest run so far stays full: keeps the packing near linear.
        while first_open < len(filled) and filled[first_open][0] + seconds > longest:
            first_open += 1
    return [(seconds + site.startup_s, tuple(names)) for seconds, names in filled]


def _chunks(
    shape: Shape, time_class: int, elements: Sequence[Element], site: Site, wave: int
) -> list[ArrayJob]:
    nodes, gpus, stage, precision, segments = shape
    # Twice the prediction and five minutes: predictions are priors until a run has been measured.
    limit = math.ceil((2 * max(s for s, _ in elements) + 300) / 60) * 60
    size = min(site.limits.array_size, site.limits.submit or site.limits.array_size)
    kind = f"t{time_class}" if segments == 1 else f"s{segments}"
    stem = "train" if wave == 1 else f"wave{wave}"
    return [
        ArrayJob(
            name=f"{stem}-{nodes}x{gpus}-z{stage}-{precision}-{kind}-{start // size}",
            nodes=nodes,
            gpus_per_node=gpus,
            zero_stage=stage,
            precision=precision,
            time_limit_s=min(limit, site.limits.time),
            throttle=site.limits.throttle,
            elements=tuple(names for _, names in elements[start : start + size]),
            segments=segments,
            wave=wave,
        )
        for start in range(0, len(elements), size)
    ]
