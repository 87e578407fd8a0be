"""Where to start: the law is linear in (E, A, B) once (alpha, beta) are fixed.

Every pair of a grid of exponents gets its best (E, A, B) in closed form (variable projection), so
five unknowns are searched in two dimensions and nothing depends on guessed magnitudes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from llem.scaling.estimator import Estimator
from llem.scaling.newton import EXPONENT_BOUNDS, Problem
from llem.scaling.nonnegative import solve_normal

FloatArray = NDArray[np.float64]

GRID_SIDE = 24
STARTS = 16


def exponent_grid(side: int = GRID_SIDE) -> FloatArray:
    """Pairs (alpha, beta), shape (side^2, 2), closer together where exponents are small."""
    low, high = EXPONENT_BOUNDS
    line = np.geomspace(low * 1.2, high, side)
    alpha, beta = np.meshgrid(line, line, indexing="ij")
    return np.stack([alpha.ravel(), beta.ravel()], axis=1)


def seed_grid(
    problem: Problem, weight: FloatArray, estimator: Estimator, *, count: int = STARTS
) -> FloatArray:
    """The `count` most promising starts (count, 5), best first, in centred coordinates.

    (E, A, B) minimise the squares of relative errors of the loss, clipped at zero by
    non-negative least squares; the grid points are then ranked by the wanted objective. Of the
    neighbours of a point only the better are kept, so that the starts lie in different valleys.
    """
    pairs = exponent_grid()
    line = np.unique(pairs[:, 0])
    side = line.size
    inverse_loss = np.exp(-problem.z)
    p = np.exp(-line[:, None] * problem.x) * inverse_loss  # (side, n)
    q = np.exp(-line[:, None] * problem.y) * inverse_loss
    c = inverse_loss
    w = weight
    gram = np.empty((side, side, 3, 3))
    gram[:, :, 0, 0] = np.sum(w * c * c)
    gram[:, :, 0, 1] = gram[:, :, 1, 0] = (p @ (w * c))[:, None]
    gram[:, :, 0, 2] = gram[:, :, 2, 0] = (q @ (w * c))[None, :]
    gram[:, :, 1, 1] = ((p * p) @ w)[:, None]
    gram[:, :, 2, 2] = ((q * q) @ w)[None, :]
    gram[:, :, 1, 2] = gram[:, :, 2, 1] = (p * w) @ q.T
    moment = np.empty((side, side, 3))
    moment[:, :, 0] = np.sum(w * c)
    moment[:, :, 1] = (p @ w)[:, None]
    moment[:, :, 2] = (q @ w)[None, :]
    linear = solve_normal(gram.reshape(-1, 3, 3), moment.reshape(-1, 3))

    # A term clipped to zero starts a little above it: from exactly nothing no gradient leads back.
    smallest = np.exp(problem.floor() + 2.0)
    logs = np.log(np.maximum(linear, smallest))
    theta = np.empty((side * side, 5))
    theta[:, 0], theta[:, 1], theta[:, 2] = logs[:, 1], logs[:, 2], logs[:, 0]
    theta[:, 3:] = pairs
    value = np.empty(side * side)
    block = max(1, 65536 // problem.rows)
    for begin in range(0, side * side, block):
        part = slice(begin, begin + block)
        value[part] = estimator.rho(problem.residuals(theta[part])) @ w
    return theta[_spread(value.reshape(side, side), count)]


def _spread(value: FloatArray, count: int) -> NDArray[np.intp]:
    """Flat indices of `count` grid points: half the best of all, half the best local minima."""
    side = value.shape[0]
    padded = np.pad(value, 1, constant_values=np.inf)
    around = np.stack(
        [
            padded[1 + i : 1 + i + side, 1 + j : 1 + j + side]
            for i in (-1, 0, 1)
            for j in (-1, 0, 1)
            if (i, j) != (0, 0)
        ]
    )
    is_valley = np.all(value[None] <= around, axis=0).ravel()
    order = np.argsort(value.ravel(), kind="stable")
    valleys = order[is_valley[order]][: count // 2]
    # Every second of the ranked points: close neighbours lead to the same place.
    rest = [i for i in order[::2] if i not in set(valleys.tolist())]
    chosen = list(valleys) + rest[: count - valleys.size]
    chosen.sort(key=lambda i: float(value.ravel()[i]))
    return np.array(chosen, dtype=np.intp)
