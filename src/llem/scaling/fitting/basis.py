"""Which columns of a design tell something of their own, one after the other."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


def extended(basis: FloatArray, column: FloatArray, *, least: float) -> FloatArray | None:
    """The orthonormal `basis` (n, k) with the direction that `column` (n, 1) adds to it.

    None where the basis holds all but a share `least` of the column's length: what it says is said
    already.
    """
    # Twice: what one projection leaves of the basis by rounding, the second takes.
    rest = column - basis @ (basis.T @ column)
    rest = rest - basis @ (basis.T @ rest)
    size = float(np.linalg.norm(rest))
    if size <= least * float(np.linalg.norm(column)):
        return None
    return np.concatenate([basis, rest / size], axis=1)
