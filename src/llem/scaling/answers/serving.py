"""What serving costs: energy (or device time) of forward passes, by model size, batch and length.

`llem.scaling.answers.servingterms` tells of what terms a run's cost is the sum, `servingfit` how
they are fitted. Here is the law that comes of it, and what a token costs by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llem.scaling.answers.servingterms import TERMS, TOGETHER, Counts, Family, Models, columns
from llem.scaling.errors import OptionError
from llem.scaling.fitting.bootstrap import percentile_interval

FloatArray = NDArray[np.float64]
NAN = float("nan")

# Sizes of a curve.
CURVE = 25
# By phase, as they are read: the sum of terms with the letters of `servingterms`.
FORMULAS = {
    "prefill": "a P + l (L + 1) P + b P (W - C)+ + c (W' T + H Q) + d L w S + e L T "
    "+ g L P (w T/P - C)+",
    "decode": "a P + l (L + 1) P + b P (W + K X/P - C)+ + m P (W - C)+ + c W T + d K X + e L T "
    "+ g L P (w T/P - C)+",
    TOGETHER: "the sum of prefill and decode, with the same coefficients in both",
}


@dataclass(frozen=True)
class Use:
    """How a model is served: `batch` sequences at once, prompts and answers of so many tokens."""

    batch: float
    tokens_in: float
    tokens_out: float

    def __post_init__(self) -> None:
        for name in ("batch", "tokens_in", "tokens_out"):
            if not getattr(self, name) >= 1:
                raise OptionError(name, getattr(self, name), "1 or more")

    def of_request(self, params: FloatArray) -> Counts:
        """The counts of one request, its share of its batch's passes; columns as `params`."""
        i, o = self.tokens_in, self.tokens_out
        one = np.ones(np.shape(params))
        return Counts(
            prefills=one / self.batch,
            requests=one,
            tokens_in=one * i,
            pairs=one * i * (i + 1) / 2,
            decodes=one * (o - 1) / self.batch,
            rows=one * (o - 1),
            # after its k-th pass, 1 <= k < o, a sequence holds i + k + 1 tokens
            context=one * ((o - 1) * (i + 1) + o * (o - 1) / 2),
        )

    def to_dict(self) -> dict[str, float]:
        return dict(vars(self))


@dataclass(frozen=True)
class Part:
    """The terms of one phase, or of both together, and where their coefficients are in the law's.

    not_used: {name, reason} of the terms that the runs cannot tell.
    """

    phase: str
    names: tuple[str, ...]
    at: slice
    not_used: tuple[dict[str, str], ...] = ()


@dataclass(frozen=True)
class ServingLaw:
    """A fitted law of what serving costs, in `unit` (J, or s of devices).

    parts: the phases, told apart or together. coefficients: (m,) of all their terms; samples:
    (k, m) resamples of them. cached: values that the device's own cache holds (C). family: what a
    model of N parameters looks like, by the models that were seen. use: the median of what was
    measured, where a question does not say. errors: see `servingfit.judge`.
    """

    quantity: str
    unit: str
    parts: tuple[Part, ...]
    coefficients: FloatArray
    samples: FloatArray
    cached: float
    family: Family
    rows: int
    deployments: int
    use: Use
    range: dict[str, tuple[float, float]]
    errors: dict[str, Any]
    level: float = 0.95
    warnings: tuple[str, ...] = ()
    residuals: FloatArray = field(default_factory=lambda: np.empty(0))

    def features(self, models: Models, counts: Counts) -> FloatArray:
        """(..., m): what the coefficients are multiplied with."""
        return np.concatenate(
            [columns(models, counts, p.phase, p.names, cached=self.cached) for p in self.parts],
            axis=-1,
        )

    def predict(self, models: Models, counts: Counts) -> FloatArray:
        """The cost of runs, (...,)."""
        return np.asarray(self.features(models, counts) @ self.coefficients)

    def per_token(
        self, params: ArrayLike, use: Use | None = None, *, coefficients: FloatArray | None = None
    ) -> FloatArray:
        """Cost of a token that comes out, its request's prompt with it; (...,) as `params`.

        coefficients: (..., m) in place of the estimate's, broadcast against `params`.
        """
        at = use or self.use
        n = np.asarray(params, dtype=np.float64)
        values = self.coefficients if coefficients is None else coefficients
        features = self.features(self.family.of(n), at.of_request(n))
        return np.asarray((features * values).sum(axis=-1) / at.tokens_out)

    def interval(self, params: float, use: Use | None = None) -> tuple[float, float]:
        """Of `per_token` at one size; NaN without resamples."""
        drawn = self.per_token(np.full(len(self.samples), params), use, coefficients=self.samples)
        return percentile_interval(drawn, self.level)

    def terms(self, phase: str | None = None) -> dict[str, float]:
        """Coefficients by name, of one phase or of the only part."""
        [part] = [p for p in self.parts if phase in (None, p.phase)]
        return dict(zip(part.names, self.coefficients[part.at].tolist(), strict=True))

    def curves(self) -> list[dict[str, Any]]:
        """Cost of a token against size at the lengths of `use`, for the least, the usual and the
        largest batch: {batch, params, value, low, high}, columns over what was served and a factor
        of two beyond."""
        low, high = self.range["params"]
        n = np.geomspace(low / 2, 2 * high, CURVE)
        found = []
        for batch in sorted({*self.range["batch"], self.use.batch}):
            at = replace(self.use, batch=batch)
            ends = np.full((2, n.size), NAN)
            if len(self.samples):
                drawn = self.per_token(n[:, None], at, coefficients=self.samples[None])
                tails = (1 - self.level) / 2
                ends = np.quantile(drawn, [tails, 1 - tails], axis=1)
            found.append({
                "batch": batch, "params": n.tolist(), "value": self.per_token(n, at).tolist(),
                "low": ends[0].tolist(), "high": ends[1].tolist(),
            })  # fmt: skip
        return found

    def to_dict(self) -> dict[str, Any]:
        """As in fit.json of a study; NaN still NaN."""
        if len(self.samples):
            tails = (1 - self.level) / 2
            low, high = np.quantile(self.samples, [tails, 1 - tails], axis=0)
        else:
            low = high = np.full(len(self.coefficients), NAN)
        return {
            "quantity": self.quantity,
            "unit": self.unit,
            "parts": [
                {
                    "phase": part.phase,
                    "formula": FORMULAS[part.phase],
                    "terms": [
                        {
                            "name": name,
                            "coefficient": float(value),
                            "ci": [float(a), float(b)],
                            "unit": f"{self.unit} {TERMS[name][1]}",
                            "formula": TERMS[name][0],
                        }
                        for name, value, a, b in zip(
                            part.names, self.coefficients[part.at], low[part.at], high[part.at],
                            strict=True,
                        )
                    ],
                    "not_used": [dict(entry) for entry in part.not_used],
                }
                for part in self.parts
            ],
            "cached_values": self.cached,
            "family": {name: list(power) for name, power in self.family.powers.items()},
            "curves": self.curves(),
            "rows": self.rows,
            "deployments": self.deployments,
            "use": self.use.to_dict(),
            "range": {name: list(ends) for name, ends in self.range.items()},
            "errors": _plain(self.errors),
            "level": self.level,
            "warnings": list(self.warnings),
            "residuals": self.residuals.tolist(),
        }  # fmt: skip


def _plain(errors: Mapping[str, Any]) -> dict[str, Any]:
    return {name: dict(value) if isinstance(value, Mapping) else value
            for name, value in errors.items()}  # fmt: skip
