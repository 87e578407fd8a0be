"""Intervals: the fit repeated under random weights of the runs.

Rows of one run are not independent (they share a seed, a data order, an engine), so a run is
weighted as a whole, all its rows together. A draw is a vector of weights, never a copy of the
data, so thousands of fits run as one batch.

The default draws one Gamma weight of mean 1 and variance v for every run (a generalised bootstrap
of estimating equations, Chatterjee and Bose 2005; v = 1 is the Bayesian bootstrap), and takes plain
percentiles. All runs stay in every resample, so a designed grid of runs never falls apart.

    v = (t/z)^2 / (1 - p/R) * exp(-3 kink p / sqrt(n R))

R runs, n rows, p parameters. The first factor is the degrees of freedom that the fit used up:
without it a smooth estimator's intervals are too narrow by (R - p)/R, and few runs need Student's t
rather than the normal z. The second takes back what kinks add: where most residuals lie beyond
Huber's delta (kink: twice that share, at most 1) the bootstrap of few rows is too wide, as that of
a median is. Its form and the 3 are calibrated, not derived: see `tests/benchmarks/coverage.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from llem.scaling.fitting.estimator import Estimator
from llem.scaling.fitting.problem import Problem
from llem.scaling.fitting.solve import descend, lifted, scatter

FloatArray = NDArray[np.float64]
Resampling = Literal["runs", "rows"]

# Draws are made so many at a time, each part from a seed of its own: a long table need not hold
# all its weights at once, and the draws do not depend on how they are asked for.
CHUNK = 64
KEPT_ELEMENTS = 8_000_000
# Resamples fitted between two reports of progress.
SLICE = 1000
# A random share of the resamples is solved again from every known start, to see whether the warm
# start missed better minima.
CHECK_SHARE = 0.03
CHECK_LIMITS = (20, 60)
CHECK_ELEMENTS = 4_000_000
MISSED_BY = 1e-2
MISSED_SHARE = 0.05
MAX_STARTS = 6
RESCUERS = 2
# Share of the objective that Newton's model still promises at the end: far below rounding of f.
TOLERANCE = 1e-13
# Calibrated by the coverage benchmark.
KINK = 3.0
# With fewer runs to spare the series for Student's t, and any interval, is a guess.
LEAST_SPARE = 3


@dataclass(frozen=True)
class Draws:
    """Weights of `count` resamples of n rows.

    "rows": rows drawn with replacement (multinomial counts), as most papers do. "runs": a Gamma
    weight of mean 1 and this `variance` for every run, divided by their mean.
    """

    resampling: Resampling
    count: int
    seed: int
    run: NDArray[np.intp]
    weight: FloatArray
    variance: float = 1.0

    @property
    def units(self) -> int:
        """How many are drawn from: rows or runs."""
        return int(self.weight.size if self.resampling == "rows" else self.run.max() + 1)

    def take(self, index: NDArray[np.intp]) -> FloatArray:
        """Row weights of the resamples `index` (m,): shape (m, n)."""
        out = np.empty((index.size, self.weight.size))
        chunk = index // CHUNK
        for c in np.unique(chunk):
            mine = chunk == c
            drawn = self._chunk(int(c))[index[mine] % CHUNK]
            out[mine] = (drawn if self.resampling == "rows" else drawn[:, self.run]) * self.weight
        return out

    def slices(self, size: int = SLICE) -> Iterator[tuple[NDArray[np.intp], FloatArray]]:
        """All resamples in order, so many at a time: their numbers and row weights (m, n)."""
        size = max(1, min(size, KEPT_ELEMENTS // self.weight.size))
        for begin in range(0, self.count, size):
            index = np.arange(begin, min(begin + size, self.count))
            yield index, self.take(index)

    def _chunk(self, number: int) -> FloatArray:
        rng = np.random.default_rng([self.seed, number])
        units = self.units
        if self.resampling == "rows":
            # Counts of indices drawn one by one: the multinomial, several times as fast.
            drawn = rng.integers(units, size=(CHUNK, units)) + units * np.arange(CHUNK)[:, None]
            counts = np.bincount(drawn.ravel(), minlength=CHUNK * units)
            return counts.reshape(CHUNK, units).astype(float)
        weights = rng.gamma(1.0 / self.variance, self.variance, size=(CHUNK, units))
        return np.asarray(weights * (units / weights.sum(axis=1, keepdims=True)))


def weight_variance(
    residual: FloatArray,
    weight: FloatArray,
    run: NDArray[np.intp],
    estimator: Estimator,
    *,
    parameters: int,
    level: float,
) -> float:
    """The variance v of the weights of runs (see the head of this module).

    residual (n,): of the full fit. weight (n,): counts of equal rows. run (n,): number of the run.
    """
    used = weight > 0
    n = float(weight[used].sum())
    runs = int(np.unique(run[used]).size)
    kink = min(1.0, 2.0 * float(weight @ (np.abs(residual) > estimator.threshold)) / n)
    spare = max(runs - parameters, LEAST_SPARE)
    smooth = student_ratio(spare, NormalDist().inv_cdf(0.5 + 0.5 * level)) ** 2
    smooth /= spare / (spare + parameters)
    return smooth * math.exp(-KINK * kink * parameters / math.sqrt(n * runs))


def student_ratio(degrees: float, z: float) -> float:
    """Student's t quantile over the normal's, z (Cornish-Fisher, Abramowitz and Stegun 26.7.5)."""
    g1 = (z**3 + z) / 4
    g2 = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    g3 = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return (z + g1 / degrees + g2 / degrees**2 + g3 / degrees**3) / z


@dataclass(frozen=True)
class Resamples:
    """Fits of every resample.

    theta: (k, p) centred. objective: (k,). draws: the weights. checked and missed: resamples solved
    again from all starts, and those of them where another start was better; rescued: whether all
    were then solved from the starts that helped most.
    """

    theta: FloatArray
    objective: FloatArray
    draws: Draws
    checked: int
    missed: int
    rescued: bool


def refit(
    problem: Problem,
    draws: Draws,
    estimator: Estimator,
    ends: FloatArray,
    *,
    watch: Callable[[int, int], None] | None = None,
) -> Resamples:
    """Fit every resample: warm from the best full-data minimum, then checked.

    ends: (m, p) distinct minima of the full data, best first. watch: told (done, all) as the
    resamples are fitted.
    """
    k = draws.count
    ladder = estimator.ladder(scatter(problem, ends[0]), problem.rows)
    theta, value = np.empty((k, ends.shape[1])), np.empty(k)
    raised = lifted(problem, ends[0])
    for index, weight in draws.slices():
        theta[index], value[index] = _from(problem, weight, ladder, ends[0])
        for start in raised:
            _keep_lower(theta, value, index, *_from(problem, weight, ladder, start))
        if watch is not None:
            watch(int(index[-1]) + 1, k)
    starts = np.concatenate([ends[1:MAX_STARTS], _away(problem, ends[0])])[: MAX_STARTS - 1]
    rng = np.random.default_rng([draws.seed, k])
    count = max(CHECK_LIMITS[0], min(CHECK_LIMITS[1], round(CHECK_SHARE * k)))
    count = min(k, count, max(1, CHECK_ELEMENTS // problem.rows))
    sample = np.sort(rng.choice(k, size=count, replace=False))
    weight = draws.take(sample)
    # Data without noise end at rounding error, where one minimum is as good as another.
    limit = value[sample] * (1 - MISSED_BY) - 1e-24 * weight.sum(axis=1)
    better = np.stack([_from(problem, weight, ladder, s)[1] < limit for s in starts])
    missed = int(np.count_nonzero(better.any(axis=0)))
    rescued = missed > MISSED_SHARE * count
    if rescued:
        # The starts that helped most in the sample go over all resamples.
        for i in np.argsort(-better.sum(axis=1), kind="stable")[:RESCUERS]:
            for index, weight in draws.slices():
                _keep_lower(theta, value, index, *_from(problem, weight, ladder, starts[i]))
    return Resamples(theta, value, draws, count, missed, rescued)


def _keep_lower(
    theta: FloatArray,
    value: FloatArray,
    index: NDArray[np.intp],
    other: FloatArray,
    again: FloatArray,
) -> None:
    """Take what another start found, where it is lower, in place."""
    lower = again < value[index]
    theta[index[lower]], value[index[lower]] = other[lower], again[lower]


def _from(
    problem: Problem, weight: FloatArray, ladder: tuple[float, ...], start: FloatArray
) -> tuple[FloatArray, FloatArray]:
    tiled = np.tile(start, (weight.shape[0], 1))
    ends = descend(problem, tiled, weight, ladder, tolerance=TOLERANCE, max_steps=100)
    return ends.theta, ends.objective


def _away(problem: Problem, theta: FloatArray) -> FloatArray:
    """Starts on the far sides of the optimum: every bounded coordinate halved, and doubled."""
    bounded = np.isfinite(problem.upper)
    half, twice = theta.copy(), theta.copy()
    half[bounded] *= 0.5
    twice[bounded] *= 2.0
    return np.clip(np.stack([half, twice]), problem.lower, problem.upper)


def percentile_interval(samples: FloatArray, level: float) -> tuple[float, float]:
    """Two-sided percentile interval of a sample, (nan, nan) when it is empty."""
    finite = samples[np.isfinite(samples)]
    if finite.size == 0:
        return (float("nan"), float("nan"))
    tail = 0.5 * (1.0 - level)
    low, high = np.quantile(finite, [tail, 1.0 - tail])
    return (float(low), float(high))
