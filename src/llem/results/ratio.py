"""Joules per token as a ratio of sums, with its standard error; never a mean of ratios.

    R = sum(J_i) / sum(t_i)
    se(R)^2 = n / (n - 1) * sum((J_i - R t_i)^2) / sum(t_i)^2

over clusters i (Cochran, Sampling Techniques, 3rd ed. 1977, section 6.3, without the correction
for a finite population). A mean of J_i / t_i gives a short step the weight of a long one.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llem.records.native import compiled
from llem.results.tables.observation import Observation

Floats = NDArray[np.float64]

# Fewer clusters than this say next to nothing about their spread.
LEAST_CLUSTERS = 5
# Time blocks: long enough that what a counter's period (up to 0.1 s) can move across a block's
# edge is at most 1 % of it, and as many as keep the error's own error at about a sixth.
BLOCK_S = 10.0
BLOCKS = 20


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """Joules per token over `clusters` clusters; se is NaN for fewer than two."""

    value: float
    se: float
    clusters: int


def ratio_of_sums(joules: Sequence[float] | Floats, tokens: Sequence[float] | Floats) -> Ratio:
    """The ratio of sums over clusters and its standard error; NaN in any cluster makes it NaN."""
    j, t = np.asarray(joules, dtype=float), np.asarray(tokens, dtype=float)
    n, total = len(j), float(t.sum())
    if not n or not total > 0:
        return Ratio(value=math.nan, se=math.nan, clusters=n)
    value = float(j.sum()) / total
    if n < 2:
        return Ratio(value=value, se=math.nan, clusters=n)
    spread = float(((j - value * t) ** 2).sum())
    return Ratio(value=value, se=math.sqrt(n / (n - 1) * spread) / total, clusters=n)


@dataclass(frozen=True, kw_only=True)
class Clusters:
    """What a run's error is computed from: joules and tokens of each cluster, and what it is."""

    joules: Floats
    tokens: Floats
    what: str


def time_blocks(joules: Floats, tokens: Floats, seconds: Floats) -> tuple[Floats, Floats, float]:
    """Whole steps in blocks of equal time: (joules, tokens, seconds of a block).

    Empty where the steps last for fewer than `LEAST_CLUSTERS` blocks.
    """
    total_s = float(seconds.sum())
    count = min(BLOCKS, int(total_s / BLOCK_S))
    none: Floats = np.array([])
    if count < LEAST_CLUSTERS or not math.isfinite(total_s):
        return none, none, math.nan
    native = compiled.library()
    if native is not None:
        found = native.blocks(joules, tokens, seconds, total_s=total_s, count=count)
        if found is not None:
            used = np.flatnonzero(found[0])
            if len(used) < LEAST_CLUSTERS:
                return none, none, math.nan
            return found[1][used], found[2][used], total_s / len(used)
    middle = np.cumsum(seconds) - seconds / 2
    block = np.minimum((middle / total_s * count).astype(int), count - 1)
    used = np.flatnonzero(np.bincount(block, minlength=count))
    if len(used) < LEAST_CLUSTERS:
        return none, none, math.nan
    sums: list[Any] = [
        np.bincount(block, weights=x, minlength=count)[used] for x in (joules, tokens)
    ]
    return sums[0], sums[1], total_s / len(used)


@dataclass(frozen=True, kw_only=True)
class CellRatio:
    """Joules per token of one cell of the plan (params, tokens), over its runs (seeds)."""

    params: int
    tokens_planned: float
    joules_per_token: float
    joules_per_token_se: float
    runs: int
    left_out: int


def ratios_by_cell(observations: Iterable[Observation]) -> tuple[CellRatio, ...]:
    """One ratio for each cell, runs being its clusters; runs without energy are counted apart."""
    cells: dict[tuple[int, float], list[Observation]] = defaultdict(list)
    for row in observations:
        if row.params is not None:
            cells[row.params, row.tokens_planned].append(row)
    found = []
    for (params, planned), rows in sorted(cells.items()):
        known = [r for r in rows if math.isfinite(r.energy_j) and r.tokens > 0]
        ratio = ratio_of_sums([r.energy_j for r in known], [r.tokens for r in known])
        found.append(
            CellRatio(
                params=params,
                tokens_planned=planned,
                joules_per_token=ratio.value,
                joules_per_token_se=ratio.se,
                runs=len(known),
                left_out=len(rows) - len(known),
            )
        )
    return tuple(found)
