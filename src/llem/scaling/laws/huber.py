"""The Huber loss of many models' residuals at once (Huber 1964), with what its derivatives need."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


class Huber(NamedTuple):
    """Of each of k models: `value` (k,) is the loss; the others (k, n), with weights in them.

    `psi` is its derivative by the residual r, `secant` psi/r, `curvature` its second derivative.
    """

    value: FloatArray
    secant: FloatArray
    psi: FloatArray
    curvature: NDArray[Any]


def huber(r: FloatArray, weight: FloatArray, delta: FloatArray) -> Huber:
    """Of residuals `r` (k, n), which are overwritten; `delta` (k,) is where it becomes linear."""
    limit = delta[:, None]
    psi = np.clip(r, -limit, limit)
    inside = psi == r
    half = r - 0.5 * psi
    half *= psi
    half *= weight
    value = half.sum(axis=1)
    # psi/r is 1 inside and delta/|r| beyond; dividing only there spares 0/0 as well.
    np.divide(psi, r, out=r, where=~inside)
    r[inside] = 1.0
    r *= weight
    psi *= weight
    return Huber(value, r, psi, weight * inside)
