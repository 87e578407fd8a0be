"""What a run costs, as a law of its own: energy or device time from tokens and FLOPs.

    cost = c0 + c1 tokens + c2 flops,   c0, c1, c2 >= 0

c0 is what every run pays (start, compilation), c1 what every token pays whatever the model (data,
launches, communication), c2 what the arithmetic pays. Relative least squares: a run of 10 kJ and
one of 10 MJ count the same. The residual of a run is (predicted - cost)/cost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llem.scaling.nonnegative import solve_normal

FloatArray = NDArray[np.float64]

MIN_ROWS = 3


@dataclass(frozen=True)
class CostLaw:
    """A fitted cost law, or the reason why there is none.

    quantity and unit name what is predicted ("energy_j" in J, "gpu_seconds" in s); constant is in
    that unit, per_token in unit/token, per_flop in unit/FLOP. `reason` is empty when fitted.
    `left_out` are the rows without a measurement. `mean_error` is the mean absolute relative error
    over the rows used.
    """

    quantity: str
    unit: str
    constant: float
    per_token: float
    per_flop: float
    rows: int
    left_out: tuple[int, ...]
    mean_error: float
    reason: str = ""

    @property
    def fitted(self) -> bool:
        """Whether there is a law."""
        return not self.reason

    def predict(self, tokens: FloatArray | float, flops: FloatArray | float) -> FloatArray:
        """Cost of a run in `unit`; NaN when not fitted."""
        d, c = np.asarray(tokens, dtype=np.float64), np.asarray(flops, dtype=np.float64)
        return np.asarray(self.constant + self.per_token * d + self.per_flop * c)

    def to_dict(self) -> dict[str, Any]:
        """One entry of `cost` in fit.json."""
        return {
            "quantity": self.quantity,
            "unit": self.unit,
            "constant": self.constant,
            "per_token": self.per_token,
            "per_flop": self.per_flop,
            "rows": self.rows,
            "left_out": list(self.left_out),
            "mean_error": self.mean_error,
            "reason": self.reason,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> CostLaw:
        """The inverse of `to_dict`; null becomes NaN."""

        def number(key: str) -> float:
            return float("nan") if data.get(key) is None else float(data[key])

        return cls(
            quantity=data["quantity"],
            unit=data["unit"],
            constant=number("constant"),
            per_token=number("per_token"),
            per_flop=number("per_flop"),
            rows=int(data["rows"]),
            left_out=tuple(data["left_out"]),
            mean_error=number("mean_error"),
            reason=data["reason"],
        )


def fit_cost(
    cost: FloatArray | None,
    tokens: FloatArray,
    flops: FloatArray,
    *,
    weight: FloatArray,
    quantity: str,
    unit: str,
) -> CostLaw:
    """Fit one cost law. cost, tokens, flops, weight: (n,); NaN costs are left out and named."""
    nan = float("nan")
    if cost is None:
        return CostLaw(quantity, unit, nan, nan, nan, 0, (), nan, f"{quantity} was not given")
    usable = _usable(cost) & (weight > 0)
    left_out = tuple(int(i) for i in np.flatnonzero(~_usable(cost)))
    rows = int(np.count_nonzero(usable))
    if rows < MIN_ROWS:
        reason = f"{quantity} was measured in {rows} of {cost.size} rows; {MIN_ROWS} are needed"
        return CostLaw(quantity, unit, nan, nan, nan, rows, left_out, nan, reason)
    c = fit_cost_many(cost, tokens, flops, weight=weight[None, :])[0]
    predicted = c[0] + c[1] * tokens[usable] + c[2] * flops[usable]
    share = weight[usable] / np.sum(weight[usable])
    error = float(share @ np.abs(predicted / cost[usable] - 1.0))
    return CostLaw(quantity, unit, float(c[0]), float(c[1]), float(c[2]), rows, left_out, error)


def fit_cost_many(
    cost: FloatArray, tokens: FloatArray, flops: FloatArray, *, weight: FloatArray
) -> FloatArray:
    """Coefficients (k, 3) for row weights (k, n). Rows without a finite positive cost are left out.

    A resample without any measured row gets NaN.
    """
    usable = _usable(cost)
    design = np.stack([np.ones(int(usable.sum())), tokens[usable], flops[usable]], axis=1)
    rows = design / cost[usable, None]
    w = weight[:, usable]
    # Columns of unit size, so that the normal equations keep their digits.
    size = np.max(np.abs(rows), axis=0)
    rows = rows / size
    products = (rows[:, :, None] * rows[:, None, :]).reshape(-1, 9)
    gram = (w @ products).reshape(-1, 3, 3)
    out: FloatArray = solve_normal(gram, w @ rows) / size
    out[w.sum(axis=1) <= 0] = np.nan
    return out


def _usable(cost: FloatArray) -> NDArray[np.bool_]:
    return np.isfinite(cost) & (cost > 0)
