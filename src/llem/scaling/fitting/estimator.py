"""What is minimised: a loss function of the residual log L - log Lhat, summed over observations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from llem.scaling.errors import OptionError

FloatArray = NDArray[np.float64]

Space = Literal["log", "loss"]
SPACES = ("log", "loss")
LOSSES = ("huber", "absolute", "squares")
# Absolute deviations are the limit of Huber's function as delta falls: at this delta the minimum
# differs from the limit by less than one could print.
ABSOLUTE_DELTA = 1e-9
# With fewer residuals within delta than this, the sum of Huber functions is close to one of kinks,
# and Newton needs a ladder of larger deltas to walk down.
SMOOTH_COUNT = 30
LADDER_TOP = 1e-2


@dataclass(frozen=True)
class Estimator:
    """How residuals of log loss (natural log, dimensionless) are judged.

    `loss` is "huber" (quadratic within `delta`, linear beyond), "absolute" (least absolute
    deviations: sum of |r|) or "squares" (sum of r^2/2); the last two ignore `delta`. `space`: the
    residual r is log L - log Lhat ("log"), or L - Lhat in nats ("loss"), as some papers fit.
    The objective is always the weighted SUM over observations: with the mean, stop rules of
    common minimisers end early (arXiv 2404.10102).
    """

    loss: str = "huber"
    delta: float = 1e-3
    space: Space = "log"

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise OptionError("estimator.loss", self.loss, f"one of {', '.join(LOSSES)}")
        if self.space not in SPACES:
            raise OptionError("estimator.space", self.space, f"one of {', '.join(SPACES)}")
        if not (self.delta > 0):
            raise OptionError("estimator.delta", self.delta, "a number above 0")

    @property
    def threshold(self) -> float:
        """Largest |residual| judged quadratically; infinite for least squares."""
        return {"squares": math.inf, "absolute": ABSOLUTE_DELTA}.get(self.loss, self.delta)

    @property
    def scale(self) -> float:
        """What the Huber sum is divided by to be the objective: 1, or delta for |r|."""
        return ABSOLUTE_DELTA if self.loss == "absolute" else 1.0

    def ladder(self, scatter: float, rows: int, *, ratio: float = 10**0.5) -> tuple[float, ...]:
        """Deltas to solve one after another, the last being the wanted one.

        `scatter` is the typical absolute residual of the `rows` observations; ratio: of each rung
        to the next.
        """
        wanted = self.threshold
        if rows * wanted >= SMOOTH_COUNT * scatter:
            return (wanted,)
        top = max(LADDER_TOP, scatter)
        rungs = max(2, math.ceil(math.log(top / wanted) / math.log(ratio)) + 1)
        return (*(float(v) for v in np.geomspace(top, wanted, rungs)[:-1]), wanted)

    def rho(self, residual: FloatArray) -> FloatArray:
        """Huber function of each residual: r^2/2 within delta, delta(|r| - delta/2) beyond."""
        psi = self.psi(residual)
        return psi * (residual - 0.5 * psi)

    def psi(self, residual: FloatArray) -> FloatArray:
        """Derivative of `rho`: the residual clipped to [-delta, delta]."""
        return np.clip(residual, -self.threshold, self.threshold)

    def to_dict(self) -> dict[str, Any]:
        """The `estimator` entry of fit.json."""
        delta = self.delta if self.loss == "huber" else None
        return {"loss": self.loss, "delta": delta, "space": self.space, "reduction": "sum"}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Estimator:
        """The inverse of `to_dict`."""
        delta = data.get("delta")
        return cls(data["loss"], 1e-3 if delta is None else float(delta), data["space"])
