"""The isoFLOP method: at each compute level a parabola of loss in log N, whose vertex is N*.

It needs no law, which makes it a cross-check. It is biased even without noise, by the width of the
grid, by sampling off centre and by the asymmetry of the true curve (arXiv 2603.22339), so it is
never the answer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

# Runs whose compute lies within this factor of the smallest of a level belong to it.
LEVEL_FACTOR = 1.25
MIN_SIZES = 3


@dataclass(frozen=True)
class IsoFlopLevel:
    """One compute level: `params` = N* (count) and `loss` (nats) at the vertex, NaN if refused.

    `flops` is the geometric mean of the level. curve = (c0, c1, c2) of loss = c0 + c1 t + c2 t^2
    with t = log N - log_centre. `refusal` says why there is no minimum; empty when there is one.
    """

    flops: float
    rows: tuple[int, ...]
    params: float
    loss: float
    curve: tuple[float, float, float]
    log_centre: float
    refusal: str

    def to_dict(self) -> dict[str, Any]:
        """One entry of `isoflop.levels` in fit.json."""
        return {
            "flops": self.flops,
            "rows": list(self.rows),
            "params": self.params,
            "loss": self.loss,
            "curve": list(self.curve),
            "log_centre": self.log_centre,
            "refusal": self.refusal,
        }


@dataclass(frozen=True)
class PowerLaw:
    """y = coefficient * x^exponent."""

    coefficient: float
    exponent: float

    def predict(self, x: FloatArray | float) -> FloatArray:
        """y at x."""
        return np.asarray(self.coefficient * np.asarray(x, dtype=np.float64) ** self.exponent)


def compute_levels(flops: FloatArray, *, factor: float = LEVEL_FACTOR) -> list[NDArray[np.intp]]:
    """Rows of each compute level, lowest first: those within `factor` of the level's smallest."""
    order = np.argsort(flops, kind="stable")
    levels: list[list[int]] = []
    begin = -math.inf
    for i in order:
        value = float(flops[i])
        if not value <= begin * factor:
            levels.append([])
            begin = value
        levels[-1].append(int(i))
    return [np.array(level, dtype=np.intp) for level in levels]


def isoflop_levels(
    params: FloatArray,
    loss: FloatArray,
    flops: FloatArray,
    *,
    weight: FloatArray | None = None,
    factor: float = LEVEL_FACTOR,
) -> list[IsoFlopLevel]:
    """Fit a parabola of loss in log N to every compute level. All inputs (n,)."""
    w = np.ones_like(loss) if weight is None else weight
    return [
        _fit_level(rows, params[rows], loss[rows], flops[rows], w[rows])
        for rows in compute_levels(flops, factor=factor)
    ]


def _fit_level(
    rows: NDArray[np.intp], params: FloatArray, loss: FloatArray, flops: FloatArray, w: FloatArray
) -> IsoFlopLevel:
    nan = float("nan")
    level = float(np.exp(np.mean(np.log(flops))))
    log_n = np.log(params)
    centre = float(np.mean(log_n))
    index = tuple(int(i) for i in rows)

    def refuse(reason: str, curve: tuple[float, float, float] = (nan, nan, nan)) -> IsoFlopLevel:
        return IsoFlopLevel(level, index, nan, nan, curve, centre, reason)

    used = w > 0
    sizes = np.unique(params[used]).size
    if sizes < MIN_SIZES:
        return refuse(f"{sizes} model size{'' if sizes == 1 else 's'}; {MIN_SIZES} are needed")
    t = log_n - centre
    root = np.sqrt(w)
    design = np.stack([np.ones_like(t), t, t * t], axis=1)
    c0, c1, c2 = (float(v) for v in np.linalg.lstsq(design * root[:, None], loss * root)[0])
    if c2 <= 0:
        return refuse("the curve has no minimum (it bends downward)", (c0, c1, c2))
    vertex = -c1 / (2 * c2)
    if vertex <= float(t[used].min()):
        return refuse("the minimum lies below the smallest model tried", (c0, c1, c2))
    if vertex >= float(t[used].max()):
        return refuse("the minimum lies above the largest model tried", (c0, c1, c2))
    best = c0 + c1 * vertex + c2 * vertex**2
    return IsoFlopLevel(level, index, math.exp(centre + vertex), best, (c0, c1, c2), centre, "")


def fit_power_law(x: FloatArray, y: FloatArray, *, weight: FloatArray | None = None) -> PowerLaw:
    """Weighted least squares of log y on log x; NaN with fewer than two distinct x."""
    log_x, log_y = np.log(x), np.log(y)
    w = np.ones_like(log_x) if weight is None else np.asarray(weight, dtype=np.float64)
    if np.unique(log_x).size < 2:
        return PowerLaw(float("nan"), float("nan"))
    w = w / np.sum(w)
    mean_x, mean_y = float(w @ log_x), float(w @ log_y)
    exponent = float(w @ ((log_x - mean_x) * (log_y - mean_y)) / (w @ (log_x - mean_x) ** 2))
    return PowerLaw(math.exp(mean_y - exponent * mean_x), exponent)
