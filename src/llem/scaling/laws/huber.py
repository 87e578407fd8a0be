"""The Huber loss of residuals (Huber 1964).

`huber` is that of many models at once, with what its derivatives need, where the residual from
which it is linear is given; `weights` and `mean_loss` are those of one model whose noise is told by
its residuals.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

# Residuals are heeded less from so many standard deviations on (95 % efficient for normal ones),
# and these are taken as this many times the median residual, and no less than 1 %.
EDGE, OF_MEDIAN, LEAST_NOISE = 1.345, 1.4826, 0.01


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


def noise_of(r: FloatArray) -> float:
    """The standard deviation of residuals (n,), relative or of logarithms, by their median."""
    return max(LEAST_NOISE, OF_MEDIAN * float(np.sort(np.abs(r))[r.size // 2]))


def weights(r: FloatArray, *, noise: float | None = None, edge: float = EDGE) -> FloatArray:
    """Of residuals (n,): 1, and less from `edge` standard deviations on, of their own `noise` or of
    this."""
    far = edge * (noise_of(r) if noise is None else noise)
    return np.minimum(1.0, far / np.maximum(np.abs(r), 1e-12))


def mean_loss(r: FloatArray) -> float:
    """Twice the mean loss of residuals (n,): their mean square where none is far off."""
    edge = np.array([EDGE * noise_of(r)])
    return 2.0 * float(huber(r[None].copy(), np.ones((1, r.size)), edge).value[0]) / r.size
