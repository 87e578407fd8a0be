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
class Resamples:
    """What a law could be as well, k times: `coefficients` (k, m), `caches` (k,), the values that
    the device's own cache holds, and `off` (k, parts), by how much the logarithm of what a further
    deployment costs lies off the law, by phase."""

    coefficients: FloatArray
    caches: FloatArray
    off: FloatArray

    @classmethod
    def none(cls, coefficients: int, parts: int) -> Resamples:
        return cls(np.empty((0, coefficients)), np.empty(0), np.empty((0, parts)))

    def __len__(self) -> int:
        return len(self.caches)

    def first(self, count: int) -> Resamples:
        return Resamples(self.coefficients[:count], self.caches[:count], self.off[:count])


@dataclass(frozen=True)
class ServingLaw:
    """A fitted law of what serving costs, in `unit` (J, or s of devices).

    parts: the phases, told apart or together. coefficients: (m,) of all their terms; samples: k
    resamples of them. cached: values that the device's own cache holds (C). family: what a
    model of N parameters looks like, by the models that were seen. use: the median of what was
    measured, where a question does not say. errors: see `servingfit.judge`.
    """

    quantity: str
    unit: str
    parts: tuple[Part, ...]
    coefficients: FloatArray
    samples: Resamples
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

    def features(
        self, models: Models, counts: Counts, *, cached: FloatArray | float | None = None
    ) -> FloatArray:
        """(..., m): what the coefficients are multiplied with; `cached` (...,) in place of the
        estimate's."""
        held = self.cached if cached is None else cached
        return np.concatenate(
            [columns(models, counts, p.phase, p.names, cached=held) for p in self.parts],
            axis=-1,
        )

    def predict(self, models: Models, counts: Counts) -> FloatArray:
        """The cost of runs, (...,)."""
        return np.asarray(self.features(models, counts) @ self.coefficients)

    def per_token(self, params: ArrayLike, use: Use | None = None) -> FloatArray:
        """Cost of a token that comes out, its request's prompt with it; (...,) as `params`."""
        at = use or self.use
        n = np.asarray(params, dtype=np.float64)
        features = self.features(self.family.of(n), at.of_request(n))
        return np.asarray(features @ self.coefficients / at.tokens_out)

    def drawn(
        self, params: ArrayLike, use: Use | None = None, *, samples: Resamples | None = None,
        deployed: bool = True,
    ) -> FloatArray:  # fmt: skip
        """`per_token` by each of the k resamples (or of `samples`), (..., k); params (..., k) or
        (..., 1). deployed: of a deployment, which lies off the law, in place of the law alone."""
        at, by = use or self.use, self.samples if samples is None else samples
        n = np.asarray(params, dtype=np.float64)
        n = np.broadcast_to(n, np.broadcast_shapes(n.shape, by.caches.shape))
        cost = self._drawn(self.family.of(n), at.of_request(n), by, deployed=deployed)
        return cost / at.tokens_out

    def drawn_of(self, models: Models, counts: Counts) -> FloatArray:
        """`predict` of deployments (n,) by each resample, (n, k)."""
        models = Models(*(column[:, None] for column in vars(models).values()))
        counts = Counts(*(column[:, None] for column in vars(counts).values()))
        return self._drawn(models, counts, self.samples, deployed=True)

    def _drawn(
        self, models: Models, counts: Counts, by: Resamples, *, deployed: bool
    ) -> FloatArray:
        cost = self.features(models, counts, cached=by.caches) * by.coefficients
        parts = [cost[..., part.at].sum(axis=-1) for part in self.parts]
        factors = np.exp(by.off.T) if deployed else np.ones((len(parts), 1))
        return np.asarray(sum(own * by for own, by in zip(parts, factors, strict=True)))

    def interval(
        self, params: float, use: Use | None = None, *, deployed: bool = True
    ) -> tuple[float, float]:
        """Of `per_token` at one size; NaN without resamples. deployed: see `drawn`."""
        return percentile_interval(self.drawn(params, use, deployed=deployed), self.level)

    def terms(self, phase: str | None = None) -> dict[str, float]:
        """Coefficients by name, of one phase or of the only part."""
        [part] = [p for p in self.parts if phase in (None, p.phase)]
        return dict(zip(part.names, self.coefficients[part.at].tolist(), strict=True))

    def curves(self) -> list[dict[str, Any]]:
        """Cost of a token against size at the lengths of `use`, for the least, the usual and the
        largest batch: {batch, params, value, low, high}, columns over what was served and a factor
        of two beyond; low and high of a deployment, which lies off the law."""
        low, high = self.range["params"]
        n = np.geomspace(low / 2, 2 * high, CURVE)
        found = []
        for batch in sorted({*self.range["batch"], self.use.batch}):
            at = replace(self.use, batch=batch)
            ends = np.full((2, n.size), NAN)
            if len(self.samples):
                drawn = self.drawn(n[:, None], at)
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
            drawn = self.samples.coefficients
            low, high = np.quantile(drawn, [tails, 1 - tails], axis=0)
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
