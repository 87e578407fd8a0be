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


@dataclass(frozen=True)
class ArrayJob:
    """One sbatch call: elements of equal shape. `elements[i]` are the run ids of index i."""

    name: str
    nodes: int
    gpus_per_node: int
    zero_stage: int
    precision: str
    time_limit_s: int
    throttle: int | None
    elements: tuple[tuple[str, ...], ...]


def pack(runs: Sequence[Run], site: Site) -> tuple[ArrayJob, ...]:
    """Group `runs` by shape, pack short ones into elements, cut arrays at the site's limit.

    Deterministic: the same runs in any order give the same arrays.
    """
    by_shape: dict[tuple[int, int, int, str], list[Run]] = defaultdict(list)
    for run in runs:
        layout = run.layout
        shape = (layout.nodes, layout.gpus_per_node, layout.zero_stage, run.recipe.precision)
        by_shape[shape].append(run)
    jobs: list[ArrayJob] = []
    for shape in sorted(by_shape):
        classes: dict[int, list[tuple[float, tuple[str, ...]]]] = defaultdict(list)
        for seconds, element in _elements(by_shape[shape], site):
            classes[math.ceil(math.log(max(seconds, 60.0), TIME_CLASS))].append((seconds, element))
        for rank in sorted(classes):
            jobs.extend(_chunks(shape, rank, classes[rank], site))
    return tuple(jobs)


def _elements(runs: Sequence[Run], site: Site) -> list[tuple[float, tuple[str, ...]]]:
    """First-fit decreasing into elements of at most `pack_s` seconds."""
    longest = site.pack_s if site.pack_s is not None else PACK_STARTS * site.startup_s
    longest = min(longest, 0.5 * site.limits.time)
    order = sorted(runs, key=lambda run: (-run.predicted.duration_s, run.run_id))
    filled: list[tuple[float, list[str]]] = []
    first_open = 0
    for run in order:
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
    shape: tuple[int, int, int, str],
    time_class: int,
    elements: Sequence[tuple[float, tuple[str, ...]]],
    site: Site,
) -> list[ArrayJob]:
    nodes, gpus, stage, precision = shape
    # Twice the prediction and five minutes: predictions are priors until a run has been measured.
    limit = math.ceil((2 * max(s for s, _ in elements) + 300) / 60) * 60
    size = site.limits.array_size
    return [
        ArrayJob(
            name=f"train-{nodes}x{gpus}-z{stage}-{precision}-t{time_class}-{start // size}",
            nodes=nodes,
            gpus_per_node=gpus,
            zero_stage=stage,
            precision=precision,
            time_limit_s=min(limit, site.limits.time),
            throttle=site.limits.throttle,
            elements=tuple(names for _, names in elements[start : start + size]),
        )
        for start in range(0, len(elements), size)
    ]
