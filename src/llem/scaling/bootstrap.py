"""Intervals: the fit repeated on runs drawn with replacement.

Rows of one run are not independent (they share a seed, a data order, an engine), so whole runs are
drawn and all rows of a run enter together. A draw is a vector of integer weights, never a copy of
the data, so thousands of fits run as one batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llem.scaling.estimator import Estimator
from llem.scaling.newton import Problem
from llem.scaling.solve import descend, scatter

FloatArray = NDArray[np.float64]

# A resample needs at least as many distinct (N, D) points as the law has parameters.
MIN_POINTS = 5
MAX_REDRAWS = 200
# A random share of the resamples is solved again from every known start, to see whether the warm
# start missed better minima.
CHECK_SHARE = 0.03
CHECK_LIMITS = (20, 60)
MISSED_BY = 1e-2
MISSED_SHARE = 0.05
MAX_STARTS = 6
RESCUERS = 2
# Share of the objective: far below what a resample differs from the next by.
TOLERANCE = 1e-7


@dataclass(frozen=True)
class Resamples:
    """Fits of every resample.

    theta: (k, 5) centred. weight: (k, n) row weights. redrawn: draws thrown away because they held
    too few distinct points. checked and missed: resamples solved again from all starts, and those
    of them where another start was better; rescued: whether all were then solved from the starts
    that helped most.
    """

    theta: FloatArray
    weight: FloatArray
    redrawn: int
    checked: int
    missed: int
    rescued: bool


def run_index(run_id: NDArray[np.str_] | None, rows: int) -> NDArray[np.intp]:
    """Number of the run of each row, (n,), runs in the order of their first row."""
    if run_id is None:
        return np.arange(rows)
    _, first, inverse = np.unique(run_id, return_index=True, return_inverse=True)
    rank = np.empty(first.size, dtype=np.intp)
    rank[np.argsort(first)] = np.arange(first.size)
    return np.asarray(rank[inverse], dtype=np.intp)


def draw_weights(
    params: FloatArray,
    tokens: FloatArray,
    weight: FloatArray,
    runs: NDArray[np.intp],
    *,
    resamples: int,
    seed: int,
) -> tuple[FloatArray, int]:
    """Row weights (resamples, n) of runs drawn with replacement, and how many were redrawn.

    Draws with fewer than 2 sizes, 2 token counts or 5 distinct points determine nothing and are
    drawn again.
    """
    rng = np.random.default_rng(seed)
    n_runs = int(runs.max()) + 1
    chance = np.full(n_runs, 1.0 / n_runs)
    out = np.empty((resamples, runs.size))
    points = np.unique(np.stack([params, tokens], axis=1), axis=0, return_inverse=True)[1].ravel()
    labels = (
        (np.unique(params, return_inverse=True)[1], 2),
        (np.unique(tokens, return_inverse=True)[1], 2),
        (points, MIN_POINTS),
    )
    waiting = np.arange(resamples)
    redrawn = 0
    for _ in range(MAX_REDRAWS):
        counts = rng.multinomial(n_runs, chance, size=waiting.size)
        out[waiting] = counts[:, runs] * weight
        good = np.ones(waiting.size, dtype=bool)
        for label, least in labels:
            good &= _distinct_count(out[waiting], label) >= least
        waiting = waiting[~good]
        if waiting.size == 0:
            break
        redrawn += int(waiting.size)
    return np.delete(out, waiting, axis=0), redrawn


def _distinct_count(weight: FloatArray, label: NDArray[np.intp]) -> NDArray[np.int64]:
    """How many distinct labels have weight in each row of `weight` (k, n)."""
    order = np.argsort(label, kind="stable")
    begins = np.flatnonzero(np.diff(label[order], prepend=-1))
    present = np.add.reduceat(weight[:, order], begins, axis=1) > 0
    return np.asarray(present.sum(axis=1), dtype=np.int64)


def refit(
    problem: Problem,
    weight: FloatArray,
    estimator: Estimator,
    ends: FloatArray,
    *,
    seed: int,
    redrawn: int = 0,
) -> Resamples:
    """Fit every resample: warm from the best full-data minimum, then checked.

    weight: (k, n). ends: (m, 5) distinct minima of the full data, best first.
    """
    k = weight.shape[0]
    ladder = estimator.ladder(scatter(problem, ends[0]), problem.rows)
    theta, value = _from(problem, weight, ladder, ends[0])
    starts = ends[1:MAX_STARTS]
    starts = np.concatenate([starts, _away(ends[0])])[: MAX_STARTS - 1]
    rng = np.random.default_rng([seed, 1])
    count = min(k, max(CHECK_LIMITS[0], min(CHECK_LIMITS[1], round(CHECK_SHARE * k))))
    sample = np.sort(rng.choice(k, size=count, replace=False))
    # Data without noise end at rounding error, where one minimum is as good as another.
    limit = value[sample] * (1 - MISSED_BY) - 1e-24 * weight[sample].sum(axis=1)
    better = np.stack([_from(problem, weight[sample], ladder, s)[1] < limit for s in starts])
    missed = int(np.count_nonzero(better.any(axis=0)))
    rescued = missed > MISSED_SHARE * count
    if rescued:
        # The starts that helped most in the sample go over all resamples.
        for i in np.argsort(-better.sum(axis=1), kind="stable")[:RESCUERS]:
            other, again = _from(problem, weight, ladder, starts[i])
            lower = again < value
            theta[lower], value[lower] = other[lower], again[lower]
    return Resamples(theta, weight, redrawn, count, missed, rescued)


def _from(
    problem: Problem, weight: FloatArray, ladder: tuple[float, ...], start: FloatArray
) -> tuple[FloatArray, FloatArray]:
    tiled = np.tile(start, (weight.shape[0], 1))
    ends = descend(problem, tiled, weight, ladder, tolerance=TOLERANCE, max_steps=100)
    return ends.theta, ends.objective


def _away(theta: FloatArray) -> FloatArray:
    """Starts on the far sides of the optimum: little and much irreducible loss, other slopes."""
    low_e = theta + np.array([0.0, 0.0, -2.0, 0.0, 0.0])
    low_e[3:] *= 0.5
    high_e = theta.copy()
    high_e[3:] = np.minimum(theta[3:] * 2.0, 1.5)
    left, right = theta.copy(), theta.copy()
    left[3:] = np.clip(theta[3:] * np.array([2.0, 0.5]), 0.1, 1.5)
    right[3:] = np.clip(theta[3:] * np.array([0.5, 2.0]), 0.1, 1.5)
    return np.stack([low_e, high_e, left, right])


def percentile_interval(samples: FloatArray, level: float) -> tuple[float, float]:
    """Two-sided percentile interval of a sample, (nan, nan) when it is empty."""
    finite = samples[np.isfinite(samples)]
    if finite.size == 0:
        return (float("nan"), float("nan"))
    tail = 0.5 * (1.0 - level)
    low, high = np.quantile(finite, [tail, 1.0 - tail])
    return (float(low), float(high))
