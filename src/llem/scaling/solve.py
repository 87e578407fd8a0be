"""The global fit: many starts, the wanted Huber threshold reached step by step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llem.scaling.estimator import Estimator
from llem.scaling.newton import Minima, Problem, derivatives, minimise, refine
from llem.scaling.seeds import STARTS, seed_grid

FloatArray = NDArray[np.float64]

# A start that crawls along a flat valley is cut off; the winner is polished to the end.
START_STEPS = 60
# Starts that end within this share of the best objective found the same minimum.
AGREEMENT = 1e-8


@dataclass(frozen=True)
class Solution:
    """The best minimum found, in centred coordinates.

    gradient_norm (2-norm) and smallest_eigenvalue (of the exact Hessian) are in the centred
    coordinates (log A, log B, log E, alpha, beta) and in units of the objective; both include the
    soft walls, which are zero inside the bounds. `ends` (k, 5) are the distinct minima reached,
    best first.
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
    weight: FloatArray,
    ladder: tuple[float, ...],
    *,
    tolerance: float,
    max_steps: int = 200,
    fixed: FloatArray | None = None,
) -> Minima:
    """Minimise from each start, walking down a ladder of deltas (`Estimator.ladder`)."""
    theta = start
    for delta in ladder[:-1]:
        theta = minimise(
            problem, theta, weight, delta=delta, tolerance=1e-6, max_steps=30, fixed=fixed
        ).theta
    return minimise(
        problem,
        theta,
        weight,
        delta=ladder[-1],
        tolerance=tolerance,
        max_steps=max_steps,
        fixed=fixed,
    )


def solve(
    problem: Problem,
    weight: FloatArray,
    estimator: Estimator,
    *,
    starts: int = STARTS,
    extra: FloatArray | None = None,
) -> Solution:
    """Fit from `starts` seeds (and `extra` (k, 5) centred ones). weight: (n,)."""
    seeds = seed_grid(problem, weight, estimator, count=starts)
    if extra is not None:
        seeds = np.concatenate([seeds, extra])
    shared = weight[None, :]
    ladder = estimator.ladder(scatter(problem, seeds[0]), problem.rows)
    ends = descend(problem, seeds, shared, ladder, tolerance=1e-12, max_steps=START_STEPS)
    order = np.argsort(ends.objective, kind="stable")
    best = minimise(
        problem, ends.theta[order[:1]], shared, delta=estimator.threshold, tolerance=1e-15
    )
    best = refine(problem, best, shared, delta=estimator.threshold)
    objective = float(best.objective[0])
    near = ends.objective <= objective * (1 + AGREEMENT) + 1e-26 * float(weight.sum())
    _, gradient, hessian = derivatives(problem, best.theta[0], weight, delta=estimator.threshold)
    return Solution(
        theta=best.theta[0],
        objective=objective,
        gradient_norm=float(np.linalg.norm(gradient)),
        smallest_eigenvalue=float(np.linalg.eigvalsh(hessian)[0]),
        tried=int(seeds.shape[0]),
        agreeing=int(np.count_nonzero(near)),
        converged=bool(best.converged[0]),
        ends=_distinct(ends.theta[order], best.theta),
    )


def scatter(problem: Problem, theta: FloatArray) -> float:
    """Median absolute residual of log loss at one centred theta."""
    return float(np.median(np.abs(problem.residuals(theta))))


def _distinct(theta: FloatArray, first: FloatArray) -> FloatArray:
    """Rows of `theta` further than .02 from those kept, after `first`."""
    kept = [first[0]]
    for row in theta:
        if all(np.max(np.abs(row - other)) > 0.02 for other in kept):
            kept.append(row)
    return np.stack(kept)
