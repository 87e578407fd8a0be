"""Train and serve: the size that reaches a loss for the least energy over all tokens served.

    E(N) = E_train(N, D) + T j(N),    L(N, D) = the target loss

A smaller model costs less for every token that it serves, and more to be trained to the same loss,
since it needs more tokens; over many served tokens the best size lies below that of the training
alone (arXiv 2401.00448 does this for FLOPs; here both sides are measured joules).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llem._numerals import brief, format_times
from llem.scaling.answers.alternatives import Intervals, Side, exp
from llem.scaling.answers.optimum import Ensemble
from llem.scaling.answers.search import argmin, root
from llem.scaling.answers.serving import ServingLaw, Use
from llem.scaling.answers.spending import at_edge
from llem.scaling.errors import OptionError
from llem.scaling.laws.law import LOG_PARAMS_RANGE

FloatArray = NDArray[np.float64]
NAN = float("nan")

# log D of one token and of 1e52.
LOG_TOKENS_RANGE = (0.0, 120.0)
FIGURES = ("params", "tokens", "training_j", "serving_j", "total_j")


@dataclass(frozen=True)
class Lifetime:
    """The best size over a model's life, and what the training alone would choose.

    params, tokens: of the training. training_j, serving_j and total_j: joules of devices.
    j_per_token: of serving it. ci: figures to (low, high). alone: the training of least energy
    with the same loss: its params, tokens, training_j, serving_j, total_j. saving: the share of
    the total that the best saves against it. extrapolation: the best size over the range that was
    served. A value that is not known is NaN, and a warning says why.
    """

    loss: float
    served_tokens: float
    use: Use
    params: float
    tokens: float
    training_j: float
    serving_j: float
    total_j: float
    j_per_token: float
    ci: dict[str, tuple[float, float]]
    alone: dict[str, float]
    saving: float
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As in fit.json (NaN still NaN)."""
        return {
            **vars(self),
            "use": self.use.to_dict(),
            "ci": {name: list(ends) for name, ends in self.ci.items()},
            "warnings": list(self.warnings),
        }


def train_and_serve(
    ensemble: Ensemble,
    serving: ServingLaw,
    *,
    loss: float,
    served_tokens: float,
    use: Use | None = None,
) -> Lifetime:
    """The size of least energy over a life of `served_tokens` (T) that reaches `loss`.

    ensemble: of a fit whose cost laws know energy (`Fit.ensemble`). Intervals are from both laws'
    resamples, joined one to one; NaN where either has none. Raises OptionError.
    """
    energy = ensemble.costs.get("energy_j")
    if energy is None or not energy.fitted:
        reason = energy.reason if energy is not None else "energy_j was not given"
        raise OptionError("the training law", reason, "a fit with a law of energy_j")
    if not ensemble.law.has_optimum:
        raise OptionError("law", ensemble.law.name, "a law that trades size against tokens")
    if not loss > 0:
        raise OptionError("loss", loss, "a loss in nats per token")
    if not served_tokens >= 0:
        raise OptionError("served_tokens", served_tokens, "0 or more tokens")
    at = use or serving.use
    estimate = _Life(ensemble.side(False), partial(serving.per_token, use=at), loss, served_tokens)
    best, alone = estimate.best(served_tokens), estimate.best(0.0)
    log_n = best["params"]
    if not np.isfinite(log_n) or at_edge(log_n):
        return _nothing(ensemble, loss, served_tokens, at)
    drawn = _drawn(ensemble, serving, at, loss, served_tokens)
    intervals = Intervals(ensemble.interval, ensemble.level)
    ci = {
        name: intervals.positive(drawn[name], best[name]) if drawn else (NAN, NAN)
        for name in FIGURES
    }
    n = exp(log_n)
    return Lifetime(
        loss=loss,
        served_tokens=served_tokens,
        use=at,
        **{name: exp(best[name]) for name in FIGURES},
        j_per_token=float(serving.per_token(n, at)),
        ci=ci,
        alone={name: exp(alone[name]) for name in FIGURES},
        saving=1.0 - exp(best["total_j"] - alone["total_j"]),
        warnings=tuple(_warnings(ensemble, serving, n, exp(best["tokens"]), at)),
    )


@dataclass(frozen=True)
class _Life:
    """One set of parameters of both laws with shape (), or resamples with shape (k,)."""

    side: Side
    per_token: Callable[[FloatArray], FloatArray]
    loss: float
    served_tokens: float

    def log_tokens(self, log_n: FloatArray) -> FloatArray:
        """log D that reaches the loss; NaN where none does."""
        buyer, wanted = self.side.buyer, np.log(self.loss)

        def over(log_d: FloatArray) -> FloatArray:
            return np.asarray(wanted - np.log(buyer.loss(log_n, log_d)))

        return root(over, *LOG_TOKENS_RANGE, shape=buyer.shape)

    def joules(self, log_n: FloatArray, served: float) -> tuple[FloatArray, FloatArray, FloatArray]:
        """log D, joules of training, joules of serving `served` tokens."""
        log_d = self.log_tokens(log_n)
        one = self.per_token(np.exp(log_n))
        return log_d, self.side.energy.total(log_n, log_d), np.asarray(served * one)

    def best(self, served: float) -> dict[str, FloatArray]:
        """Logs of FIGURES of the size of least energy over `served` tokens; the joules told are
        those of serving all of `served_tokens`."""

        def total(log_n: FloatArray) -> FloatArray:
            _, training, serving = self.joules(log_n, served)
            with np.errstate(divide="ignore", invalid="ignore"):
                return np.asarray(np.log(training + serving))

        log_n = argmin(total, *LOG_PARAMS_RANGE, shape=self.side.buyer.shape)
        log_d, training, serving = self.joules(log_n, self.served_tokens)
        with np.errstate(divide="ignore", invalid="ignore"):
            return {
                "params": log_n,
                "tokens": log_d,
                "training_j": np.log(training),
                "serving_j": np.log(serving),
                "total_j": np.log(training + serving),
            }


def _drawn(
    ensemble: Ensemble, serving: ServingLaw, use: Use, loss: float, served_tokens: float
) -> dict[str, FloatArray]:
    """Resamples, one of each law together; empty where either has none."""
    count = min(len(ensemble.samples), len(serving.samples))
    if not count:
        return {}
    part = replace(
        ensemble,
        samples=ensemble.samples[:count],
        cost_samples={name: rows[:count] for name, rows in ensemble.cost_samples.items()},
    )
    per_token = partial(serving.drawn, use=use, samples=serving.samples.first(count))
    life = _Life(part.side(True), per_token, loss, served_tokens)
    return life.best(served_tokens)


def _nothing(ensemble: Ensemble, loss: float, served_tokens: float, use: Use) -> Lifetime:
    reason = (
        f"no size reaches a loss of {loss:g} by the law {ensemble.law.name}, or nothing holds its "
        "size: the laws of energy give size or tokens no price"
    )
    nothing = dict.fromkeys(FIGURES, NAN)
    return Lifetime(
        loss=loss,
        served_tokens=served_tokens,
        use=use,
        **nothing,
        j_per_token=NAN,
        ci=dict.fromkeys(FIGURES, (NAN, NAN)),
        alone=nothing,
        saving=NAN,
        warnings=(reason,),
    )


def _warnings(
    ensemble: Ensemble, serving: ServingLaw, params: float, tokens: float, use: Use
) -> list[str]:
    found = list(serving.warnings)
    flops = ensemble.flops_model.coefficient * params**ensemble.flops_model.exponent * tokens
    if flops > 10 * ensemble.largest_flops:
        found.append(
            f"its training is {format_times(flops / ensemble.largest_flops)} times "
            "the largest observed"
        )
    asked = {"params": params, **use.to_dict()}
    for name, (low, high) in serving.range.items():
        if not low / 1.01 <= asked[name] <= high * 1.01:
            found.append(
                f"{name} {brief(asked[name], 3)} lies outside of what was served, "
                f"{brief(low, 3)} to {brief(high, 3)}"
            )
    return found
