"""Non-negative least squares with few unknowns, for thousands of small problems at once.

With three unknowns there are seven supports. Solving all of them and keeping the best feasible
one is exact, needs no iteration and works on a whole batch. It serves the seeds of the fit (a grid
of exponents) and the cost law (a bootstrap).
"""

from __future__ import annotations

from functools import cache
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

# Beyond so many unknowns not all supports are tried: there are 2^m - 1 of them.
MAX_ENUMERATED = 6


@cache
def _supports(unknowns: int) -> tuple[tuple[int, ...], ...]:
    """Supports in order of size; of many unknowns only those that leave out one or none."""
    sizes = range(1, unknowns + 1)
    if unknowns > MAX_ENUMERATED:
        sizes = range(unknowns - 1, unknowns + 1)
    return tuple(s for size in sizes for s in combinations(range(unknowns), size))


def solve_normal(gram: FloatArray, moment: FloatArray) -> FloatArray:
    """Minimise c'Gc/2 - c'm over c >= 0 for each problem: gram (k, m, m), moment (k, m).

    Returns (k, m): exact for up to six unknowns; of more, what is negative with all or all but one
    of them is dropped, one after another. The columns are scaled to a unit diagonal first, so units
    do not matter.
    """
    k, size = moment.shape
    diagonal = np.einsum("kii->ki", gram)
    scale = np.where(diagonal > 0, 1.0 / np.sqrt(np.where(diagonal > 0, diagonal, 1.0)), 0.0)
    g = gram * scale[:, :, None] * scale[:, None, :]
    m = moment * scale
    best = np.zeros((k, size))
    best_value = np.zeros(k)  # c = 0
    for support in _supports(size):
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
            full = np.zeros((k, size))
            full[:, s] = c
            best[better] = full[better]
            best_value[better] = value[better]
    if size > MAX_ENUMERATED:
        missing = best_value == 0.0
        if missing.any():
            best[missing] = _dropping(g[missing], m[missing])
    return best * scale


def _dropping(gram: FloatArray, moment: FloatArray) -> FloatArray:
    """Drop the most negative unknown until none is left: feasible, not always the best."""
    k, size = moment.shape
    kept = np.ones((k, size), dtype=bool)
    c: FloatArray = np.zeros((k, size))
    for _ in range(size):
        both = kept[:, :, None] & kept[:, None, :]
        # A trace on the diagonal parts columns that repeat one another.
        system = np.where(both, gram, 0.0) + np.eye(size) * np.where(kept, 1e-12, 1.0)[:, :, None]
        right = np.where(kept, moment, 0.0)
        c = np.asarray(np.linalg.solve(system, right[:, :, None])[:, :, 0], dtype=np.float64)
        worst = np.argmin(c, axis=1)
        negative = c[np.arange(k), worst] < 0
        if not negative.any():
            break
        kept[np.flatnonzero(negative), worst[negative]] = False
    return np.maximum(c, 0.0)
