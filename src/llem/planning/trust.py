"""How far a law is trusted: wherever runs can be made, or, if they contradict it, near its optimum.

A design looks for the runs from which the law's parameters can be told best, and those lie far from
the optimum. That rests on the law holding there. Where runs show that it does not hold over their
whole range, what it says near its optimum may still be right, as a parabola is right near the
minimum of any curve: the runs that follow stay there.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from llem.planning.design import Cells
from llem.planning.scatter import Scatter
from llem.scaling import CHINCHILLA, FlopsModel

FloatArray = NDArray[np.float64]

# A law is contradicted where the mean square of what cells differ from it by is so many times what
# seeds and the usual scatter of cells make of it. It is about 1 for a usual law, .4 to 2.4 for real
# tiny campaigns; 9 to 15 for a law of another kind.
CONTRADICTED = 3.0
# Noise is known where so many runs are seeds of cells that have one already.
KNOWN_NOISE_RUNS = 8
# "Near": decades of N to either side of the optimum at a run's compute, and decades of compute
# below the largest run. About what isoFLOP grids span.
NEAR_PARAMS = 0.8
NEAR_FLOPS = 2.0


def lack_of_fit(
    log_loss: FloatArray,
    tokens: FloatArray,
    cell: NDArray[np.intp],
    fitted: FloatArray,
    *,
    scatter: Scatter,
) -> float:
    """Mean square distance of cells from a fitted law over what `scatter` would make: about 1.

    log_loss, tokens, cell, fitted (n,): of each run its log loss, its tokens, the number of its
    cell and the log loss by the law. 0 where there are too few seeds, or cells, to say.
    """
    _, first, inverse, count = np.unique(
        cell, return_index=True, return_inverse=True, return_counts=True
    )
    degrees = count.size - len(CHINCHILLA.parameters)
    if degrees < 1 or log_loss.size - count.size < KNOWN_NOISE_RUNS:
        return 0.0
    mean = np.bincount(inverse, weights=log_loss) / count
    expected = scatter.of_seeds(tokens[first]) ** 2 / count + scatter.cells**2
    return float(np.sum((mean - fitted[first]) ** 2 / expected)) / degrees


def near_optimum(
    cells: Cells, laws: FloatArray, *, largest_flops: float, model: FlopsModel
) -> NDArray[np.bool_]:
    """Cells (n,) near the optimum by the middle one of laws (k, 5), and near the largest run."""
    flops = model.flops(cells.params, cells.tokens)
    log_n = np.median(CHINCHILLA.optimum(np.atleast_2d(laws)[:, None], flops, model)[0], axis=0)
    away = np.abs(np.log(cells.params) - log_n) / math.log(10.0)
    return np.asarray((away <= NEAR_PARAMS) & (flops >= largest_flops / 10**NEAR_FLOPS))
