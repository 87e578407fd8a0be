"""How many FLOPs a token costs, as a function of the size of the model.

The usual C = 6ND leaves out attention, embeddings and the last layer; the definition of C moves
the exponent of N* from .50 to .86 (arXiv 2406.19146). Where runs carry their exact FLOPs, a power
law C = k N^g D is fitted to them, which keeps the optimum in closed form.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

# Beyond this disagreement with 6ND at the optimum, a power law of small models is being asked too
# much, and the reader is told.
TRUSTED_RATIO_TO_6ND = 1.25


@dataclass(frozen=True)
class FlopsModel:
    """C = coefficient * N^exponent * D, C in FLOP of one whole training.

    `source` is "observations" (least squares of log(C/D) on log N) or "6ND". `max_error` is the
    largest relative error over the observations it was fitted to (0 for 6ND).
    """

    coefficient: float = 6.0
    exponent: float = 1.0
    source: str = "6ND"
    max_error: float = 0.0

    def flops(self, params: FloatArray | float, tokens: FloatArray | float) -> FloatArray:
        """FLOP of training `params` parameters on `tokens` tokens."""
        n = np.asarray(params, dtype=np.float64)
        return self.coefficient * n**self.exponent * np.asarray(tokens, dtype=np.float64)

    def tokens(self, params: FloatArray | float, flops: FloatArray | float) -> FloatArray:
        """Tokens that `flops` FLOP allow a model of `params` parameters."""
        n = np.asarray(params, dtype=np.float64)
        return np.asarray(flops, dtype=np.float64) / (self.coefficient * n**self.exponent)

    def to_dict(self) -> dict[str, Any]:
        """The `flops_model` entry of fit.json."""
        return {
            "coefficient": self.coefficient,
            "exponent": self.exponent,
            "source": self.source,
            "max_error": self.max_error,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> FlopsModel:
        """The inverse of `to_dict`."""
        return cls(
            coefficient=float(data["coefficient"]),
            exponent=float(data["exponent"]),
            source=str(data["source"]),
            max_error=float(data.get("max_error") or 0.0),
        )


def fit_flops_model(
    params: FloatArray, tokens: FloatArray, flops: FloatArray | None, *, weight: FloatArray
) -> FlopsModel:
    """Least squares of log(C/D) on log N over the rows with finite `flops`; 6ND without any.

    With one size only, the exponent is 1 and the coefficient the weighted mean.
    """
    if flops is None:
        return FlopsModel()
    rows = np.isfinite(flops) & (weight > 0)
    if not rows.any():
        return FlopsModel()
    log_n = np.log(params[rows])
    log_per_token = np.log(flops[rows] / tokens[rows])
    w = weight[rows] / np.sum(weight[rows])
    mean_n, mean_c = float(w @ log_n), float(w @ log_per_token)
    spread = float(w @ (log_n - mean_n) ** 2)
    exponent = 1.0
    if spread > 1e-12:
        exponent = float(w @ ((log_n - mean_n) * (log_per_token - mean_c))) / spread
    if exponent <= 0:  # FLOPs per token that fall with size cannot be extrapolated
        exponent = 1.0
    constant = mean_c - exponent * mean_n
    error = np.expm1(np.abs(log_per_token - constant - exponent * log_n))
    return FlopsModel(math.exp(constant), exponent, "observations", float(np.max(error)))
