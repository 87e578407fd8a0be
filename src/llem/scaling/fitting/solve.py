"""The global fit: many starts, the wanted Huber threshold reached step by step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llem.scaling.fitting.estimator import Estimator
from llem.scaling.fitting.minimiser import Minima, Weights, derivatives, minimise, refine
from llem.scaling.fitting.problem import FLOOR_LOG_SHARE, NEGLIGIBLE_LOG_SHARE, Problem

FloatArray = NDArray[np.float64]

STARTS = 16
# A start that crawls along a flat valley is cut off; the winner is polished to the end.
START_STEPS = 60
# Starts that end within this share of the best objective found the same minimum.
AGREEMENT = 1e-8
# Share of the objective that Newton's model may still promise where a fit counts as converged.
CONVERGED = 1e-10
# Of longer tables the starts walk over a sample of rows; where they end, all rows take over.
# Reach of the leaps along a flat valley, in the flat coordinate, and their points.
LEAPS = (3.0, 1.0, 0.3, 0.1)
LEAP_POINTS = 13
# How many of the ends are pursued where descents creep, and the steps of delta then.
FINALISTS = 3
FINE_RATIO = 1.5
POLISH_STEPS = 2000
# Below this delta the objective is one of kinks, and hops about the end follow.
KINKED = 1e-5
HOP_RUNGS = 4
MAX_HOPS = 5
HOP_SIZES = np.array([0.02, 0.1, 0.5])
HOPS_EACH = 12
# A term below this share of the loss, as minus its log, is also tried as absent.
SMALL_LOG_SHARE = 3.0
LONG_TABLE = 6_000
SAMPLE_ROWS = 3_000
SURVIVORS = 4


@dataclass(frozen=True)
class Solution:
    """The best minimum found, in centred coordinates.

    gradient_norm (2-norm) and smallest_eigenvalue (of the exact Hessian) are in the centred
    coordinates (amplitudes as logs) that no bound stops, and in units of the objective. `ends`
    (k, p) are the distinct minima reached, best first.
    """

    theta: FloatArray
    objective: float
    gradient_norm: float
    smallest_eigenvalue: float
    tried: int
    agreeing: int
    converged: bool
    ends: FloatArray


def descend(
    problem: Problem,
    start: FloatArray,
    weight: FloatArray | Weights,
    ladder: tuple[float, ...] | FloatArray,
    *,
    tolerance: float,
    max_steps: int = 200,
    fixed: FloatArray | None = None,
    basis: FloatArray | None = None,
) -> Minima:
    """Minimise from each start, walking down a ladder of deltas (`Estimator.ladder`).

    ladder: deltas common to all starts, or (rungs, k) for each its own.
    """
    theta = start
    for delta in ladder[:-1]:
        theta = minimise(
            problem,
            theta,
            weight,
            delta=delta,
            tolerance=1e-6,
            max_steps=30,
            fixed=fixed,
            basis=basis,
        ).theta
    return minimise(
        problem,
        theta,
        weight,
        delta=ladder[-1],
        tolerance=tolerance,
        max_steps=max_steps,
        fixed=fixed,
        basis=basis,
    )


def solve(
    problem: Problem,
    weight: FloatArray,
    estimator: Estimator,
    *,
    starts: int = STARTS,
    extra: FloatArray | None = None,
) -> Solution:
    """Fit from `starts` seeds (and `extra` (k, p) centred ones). weight: (n,)."""
    sample, sample_weight = _sample(problem, weight)
    seeds = sample.seeds(sample_weight, estimator, count=starts)
    if extra is not None:
        seeds = np.concatenate([seeds, extra])
    shared = weight[None, :]
    ladder = estimator.ladder(scatter(sample, seeds[0]), problem.rows)
    ends = descend(
        sample, seeds, sample_weight[None, :], ladder, tolerance=1e-12, max_steps=START_STEPS
    )
    objective = ends.objective
    if sample is not problem:
        first = _distinct(ends.theta[np.argsort(objective, kind="stable")])[:SURVIVORS]
        ends = descend(problem, first, shared, ladder, tolerance=1e-12, max_steps=START_STEPS)
    order = np.argsort(ends.objective, kind="stable")
    candidates = ends.theta[order[:1]]
    delta = estimator.threshold
    if len(ladder) > 1 or not ends.converged[order[0]]:
        few = _distinct(ends.theta[order])[:FINALISTS]
        if len(ladder) > 1:
            # Kinks: the way down decides where a descent ends, so the best go it in small steps.
            slow = estimator.ladder(ladder[0], problem.rows, ratio=FINE_RATIO)
            few = descend(problem, few, shared, slow, tolerance=1e-12).theta
        # A flat valley, or kinks, in which the descents creep: leap along it.
        leaps = [leap(problem, theta, weight, delta=delta) for theta in few]
        candidates = np.concatenate([candidates, few, leaps])
    candidates = np.concatenate([candidates, _without_a_term(problem, candidates[0])])
    best = minimise(
        problem, candidates, shared, delta=delta, tolerance=1e-15, max_steps=POLISH_STEPS
    )
    best = best.take(np.argsort(best.objective, kind="stable")[:1])
    if delta <= KINKED:
        best = _hop(problem, best, shared, ladder[-HOP_RUNGS:])
    best = refine(problem, best, shared, delta=delta)
    found = float(best.objective[0])
    # Where a sample was walked, its starts agree with one another, not with the full table.
    least = found if sample is problem else float(objective.min())
    near = objective <= least * (1 + AGREEMENT) + 1e-26 * float(sample_weight.sum())
    local, stopped = derivatives(problem, best.theta[0], weight, delta=delta)
    free = np.flatnonzero(~stopped)
    gradient = local.gradient[0, free]
    hessian = local.hessian[0][np.ix_(free, free)]
    return Solution(
        theta=best.theta[0],
        objective=found,
        gradient_norm=float(np.linalg.norm(gradient)),
        smallest_eigenvalue=float(np.linalg.eigvalsh(hessian)[0]),
        tried=int(seeds.shape[0]),
        agreeing=int(np.count_nonzero(near)),
        converged=_decrement(gradient, hessian) <= CONVERGED * found + 1e-26 * float(weight.sum()),
        ends=_distinct(
            np.concatenate([best.theta, lifted(problem, best.theta[0]), ends.theta[order]])
        ),
    )


def _decrement(gradient: FloatArray, hessian: FloatArray) -> float:
    """What Newton's model at one point still promises to gain, in units of the objective."""
    step = np.linalg.lstsq(hessian, gradient, rcond=1e-14)[0]
    return float(0.5 * abs(gradient @ step))


def _hop(
    problem: Problem, best: Minima, shared: FloatArray, ladder: tuple[float, ...] | FloatArray
) -> Minima:
    """Leave the corner of kinks that all starts were led into: hops about it, while they help."""
    rng = np.random.default_rng(problem.rows)
    for _ in range(MAX_HOPS):
        size = np.repeat(HOP_SIZES, HOPS_EACH)[:, None]
        moves = size * rng.standard_normal((size.size, problem.dimension))
        starts = np.clip(best.theta + moves, problem.lower, problem.upper)
        ends = descend(problem, starts, shared, ladder, tolerance=1e-13)
        found = ends.take(np.argsort(ends.objective, kind="stable")[:1])
        if not found.objective[0] < best.objective[0] * (1 - AGREEMENT):
            return best
        best = found
    return best


def _without_a_term(problem: Problem, theta: FloatArray) -> FloatArray:
    """theta with each small term at its floor: the way there by steps in the log is long."""
    small = np.flatnonzero(
        np.isfinite(problem.lower)
        & ~np.isfinite(problem.upper)
        & (theta < problem.lower + FLOOR_LOG_SHARE - SMALL_LOG_SHARE)
    )
    out = np.tile(theta, (small.size, 1))
    out[np.arange(small.size), small] = problem.lower[small]
    return out


def lifted(problem: Problem, theta: FloatArray) -> FloatArray:
    """theta with its terms at the floor lifted, (1, p), or (0, p) where none is there.

    From the floor nothing climbs, since a term of exp(-30) has no slope to speak of: other data
    (a resample) that want the term need a start above it.
    """
    floor = problem.lower + FLOOR_LOG_SHARE
    gone = np.isfinite(problem.lower) & ~np.isfinite(problem.upper)
    gone &= theta < floor - NEGLIGIBLE_LOG_SHARE
    if not gone.any():
        return np.empty((0, theta.size))
    return np.where(gone, floor - SMALL_LOG_SHARE, theta)[None, :]


def leap(problem: Problem, theta: FloatArray, weight: FloatArray, *, delta: float) -> FloatArray:
    """Minimise along the flattest direction of a valley, the rest fitted again at each point.

    theta (p,) centred, weight (n,); returns the best point found (p,). Where the data hardly tell
    one parameter, its valley is long and bent, and any descent creeps; as a function of that
    parameter alone the minimum is plain.
    """
    for reach in LEAPS:
        local, stopped = derivatives(problem, theta, weight, delta=delta)
        free = np.flatnonzero(~stopped)
        flat = np.zeros(theta.size)
        flat[free] = np.linalg.eigh(local.hessian[0][np.ix_(free, free)])[1][:, 0]
        held = int(np.argmax(np.abs(flat)))
        moves = reach * np.linspace(-1.0, 1.0, LEAP_POINTS)
        starts = theta + moves[:, None] * flat / flat[held]
        inside = np.all((starts >= problem.lower) & (starts <= problem.upper), axis=1)
        if not inside.any():
            return theta
        starts = starts[inside]
        fixed = np.zeros(starts.shape)
        fixed[:, held] = 1.0
        ends = minimise(
            problem,
            starts,
            weight[None, :],
            delta=delta,
            tolerance=1e-10,
            fixed=fixed,
            max_steps=30,
        )
        best = int(np.argmin(ends.objective))
        if ends.objective[best] < float(local.value[0]):
            theta = ends.theta[best]
    return theta


def scatter(problem: Problem, theta: FloatArray) -> float:
    """Median absolute residual of log loss at one centred theta."""
    return float(np.median(np.abs(problem.residuals(theta))))


def _sample(problem: Problem, weight: FloatArray) -> tuple[Problem, FloatArray]:
    """The problem itself, or a sample of the rows of a long one with their weights."""
    if problem.rows <= LONG_TABLE:
        return problem, weight
    rng = np.random.default_rng(problem.rows)
    rows = np.sort(rng.choice(problem.rows, size=SAMPLE_ROWS, replace=False))
    return problem.only(rows), weight[rows]


def _distinct(theta: FloatArray) -> FloatArray:
    """Rows of `theta` further than .02 from those kept before them."""
    kept = [theta[0]]
    for row in theta[1:]:
        if all(np.max(np.abs(row - other)) > 0.02 for other in kept):
            kept.append(row)
    return np.stack(kept)
