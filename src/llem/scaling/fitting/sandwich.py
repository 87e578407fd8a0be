"""Sandwich standard errors: the quick look at uncertainty, clustered by run.

    V = H^-1 ( sum over runs of g g' ) H^-1,   g = sum of w psi(r) J over the rows of a run

H estimates the expected Hessian. A Huber sum with a small delta has its curvature in the few rows
within delta; as in quantile regression, the density of residuals at zero is then estimated over a
wider window (Hall and Sheather 1988). Finite samples: runs/(runs - p), as for clustered errors.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from llem.scaling.fitting.estimator import Estimator
from llem.scaling.fitting.problem import Problem

FloatArray = NDArray[np.float64]

# 97.5 % point of the normal distribution, and its density at zero.
NORMAL_POINT = 1.959964
NORMAL_DENSITY = 0.3989423


def covariance(
    problem: Problem,
    theta: FloatArray,
    weight: FloatArray,
    run: NDArray[np.intp],
    estimator: Estimator,
) -> tuple[FloatArray, FloatArray]:
    """(V, H^-1), both (p, p) in centred coordinates at theta (p,). weight and run: (n,).

    Directions in which H is flat to rounding have no variance here (a pseudo-inverse): the profile
    is what tells that they are not identified.
    """
    residual = problem.residuals(theta)[0]
    jacobian = problem.jacobian(theta)
    p = theta.size
    runs = int(run.max()) + 1
    window = _window(residual, weight, runs, estimator.threshold)
    inside = weight * (np.abs(residual) <= window)
    # Within the window Huber's curvature is 1 on the share delta/window of the rows.
    share = 1.0 if math.isinf(window) else min(1.0, estimator.threshold / window)
    bread = np.linalg.pinv(share * (jacobian.T * inside) @ jacobian, hermitian=True)
    score = jacobian * (weight * estimator.psi(residual))[:, None]
    sums = np.zeros((runs, p))
    np.add.at(sums, run, score)
    meat = sums.T @ sums
    return bread @ meat @ bread * (runs / max(runs - p, 1)), bread


def _window(residual: FloatArray, weight: FloatArray, runs: int, delta: float) -> float:
    """Half width of the window around zero in which rows tell the density of residuals."""
    if math.isinf(delta):
        return delta
    used = np.abs(residual[weight > 0])
    # Hall-Sheather bandwidth at the median, in probability, for a 95 % interval.
    h = runs ** (-1 / 3) * NORMAL_POINT ** (2 / 3) * (1.5 * NORMAL_DENSITY**2) ** (1 / 3)
    return max(delta, float(np.quantile(used, min(2 * h, 1.0))))
