"""Non-negative least squares with three unknowns, for thousands of small problems at once.

With three unknowns there are seven supports. Solving all of them and keeping the best feasible
one is exact, needs no iteration and works on a whole batch. It serves the seeds of the fit (a grid
of exponents) and the cost law (a bootstrap).
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

SUPPORTS = tuple(s for size in (1, 2, 3) for s in combinations(range(3), size))


def solve_normal(gram: FloatArray, moment: FloatArray) -> FloatArray:
    """Minimise c'Gc/2 - c'm over c >= 0 for each problem: gram (k, 3, 3), moment (k, 3).

    Returns (k, 3). The columns are scaled to a unit diagonal first, so units do not matter.
    """
    k = moment.shape[0]
    diagonal = np.einsum("kii->ki", gram)
    scale = np.where(diagonal > 0, 1.0 / np.sqrt(np.where(diagonal > 0, diagonal, 1.0)), 0.0)
    g = gram * scale[:, :, None] * scale[:, None, :]
    m = moment * scale
    best = np.zeros((k, 3))
    best_value = np.zeros(k)  # c = 0
    for support in SUPPORTS:
        s = list(support)
        sub = g[:, s][:, :, s]
        usable = np.all(diagonal[:, s] > 0, axis=1)
        # Columns that repeat one another are served by a smaller support.
        usable &= np.abs(np.linalg.det(sub)) > 1e-13
        safe = np.where(usable[:, None, None], sub, np.eye(len(s)))
        c = np.linalg.solve(safe, m[:, s, None])[:, :, 0]
        value = -0.5 * np.sum(c * m[:, s], axis=1)
        better = usable & np.all(c >= 0, axis=1) & (value < best_value)
        if better.any():
            full = np.zeros((k, 3))
            full[:, s] = c
            best[better] = full[better]
            best_value[better] = value[better]
    return best * scale
