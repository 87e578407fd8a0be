"""The answer: the best N and D at a target, with intervals and what they would cost."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llem.scaling.bootstrap import percentile_interval
from llem.scaling.cost import CostLaw
from llem.scaling.errors import OptionError
from llem.scaling.flops import TRUSTED_RATIO_TO_6ND, FlopsModel
from llem.scaling.laws import Law

FloatArray = NDArray[np.float64]
Interval = tuple[float, float]

EXTRAPOLATION_LIMIT = 10.0
# Unit of a target -> (quantity it limits, factor to FLOP, J or GPU seconds).
TARGET_UNITS: dict[str, tuple[str, float]] = {
    "FLOP": ("flops", 1.0),
    "J": ("energy_j", 1.0),
    "kWh": ("energy_j", 3.6e6),
    "GPUh": ("gpu_seconds", 3600.0),
}
SECONDS_PER_HOUR = 3600.0
NAN = float("nan")


@dataclass(frozen=True)
class Target:
    """Where the answer is wanted: so many FLOP, J, kWh or GPUh for one training."""

    value: float
    unit: str = "FLOP"

    def __post_init__(self) -> None:
        if self.unit not in TARGET_UNITS:
            raise OptionError("target.unit", self.unit, f"one of {', '.join(TARGET_UNITS)}")
        if not (math.isfinite(self.value) and self.value > 0):
            raise OptionError("target.value", self.value, "a finite number above 0")


@dataclass(frozen=True)
class Optimum:
    """The compute-optimal training at one target.

    flops (FLOP), params and tokens (counts), loss (nats per token), energy_j (J), gpu_hours (h);
    ci maps each of these but flops to (low, high). extrapolation_ratio is flops over the largest
    compute observed. A value that is not known is NaN, and a warning says why.
    """

    target: Target
    flops: float
    params: float
    tokens: float
    loss: float
    energy_j: float
    gpu_hours: float
    ci: dict[str, Interval]
    extrapolation_ratio: float
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """One entry of `optima` in fit.json (NaN still NaN)."""
        return {
            "target": {"value": self.target.value, "unit": self.target.unit},
            "flops": self.flops,
            "params": self.params,
            "tokens": self.tokens,
            "loss": self.loss,
            "energy_j": self.energy_j,
            "gpu_hours": self.gpu_hours,
            "ci": {name: list(interval) for name, interval in self.ci.items()},
            "extrapolation_ratio": self.extrapolation_ratio,
            "warnings": list(self.warnings),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Optimum:
        """The inverse of `to_dict`; null becomes NaN."""

        def number(value: Any) -> float:
            return NAN if value is None else float(value)

        return cls(
            target=Target(float(data["target"]["value"]), data["target"]["unit"]),
            **{
                name: number(data[name])
                for name in ("flops", "params", "tokens", "loss", "energy_j", "gpu_hours")
            },
            ci={name: (number(lo), number(hi)) for name, (lo, hi) in data["ci"].items()},
            extrapolation_ratio=number(data["extrapolation_ratio"]),
            warnings=tuple(data["warnings"]),
        )


@dataclass(frozen=True)
class Ensemble:
    """A fitted law with its bootstrap: what is needed to answer at any target.

    natural: (5,) of (log A, log B, log E, alpha, beta). samples: (k, 5) of the same, one a
    resample, k = 0 without a bootstrap. cost_samples: coefficients (k, 3) per cost law.
    """

    law: Law
    natural: FloatArray
    flops_model: FlopsModel
    costs: dict[str, CostLaw]
    largest_flops: float
    level: float
    samples: FloatArray = field(default_factory=lambda: np.empty((0, 5)))
    cost_samples: dict[str, FloatArray] = field(default_factory=dict)

    def at(self, target: Target | float) -> Optimum:
        """The optimum at a target (a plain number is FLOP), with percentile intervals.

        The FLOPs model is kept fixed over the resamples; energy and time targets are turned into
        FLOP with the fitted cost law.
        """
        wanted = target if isinstance(target, Target) else Target(float(target))
        flops, reason = self._flops_of(wanted)
        if not math.isfinite(flops):
            nothing = dict.fromkeys(("params", "tokens", "loss", "energy_j", "gpu_hours"), NAN)
            empty = dict.fromkeys(nothing, (NAN, NAN))
            return Optimum(
                wanted, NAN, **nothing, ci=empty, extrapolation_ratio=NAN, warnings=(reason,)
            )
        log_n, log_d = self.law.optimum(self.natural, flops, self.flops_model)
        loss = self.law.loss(self.natural, log_n, log_d)
        params, tokens = _exp(log_n), _exp(log_d)
        cost = {name: float(law.predict(tokens, flops)) for name, law in self.costs.items()}
        ratio = flops / self.largest_flops
        return Optimum(
            target=wanted,
            flops=flops,
            params=params,
            tokens=tokens,
            loss=float(loss),
            energy_j=cost["energy_j"],
            gpu_hours=cost["gpu_seconds"] / SECONDS_PER_HOUR,
            ci=self._intervals(flops),
            extrapolation_ratio=ratio,
            warnings=tuple(self._warnings(ratio, params)),
        )

    def _intervals(self, flops: float) -> dict[str, Interval]:
        log_n, log_d = self.law.optimum(self.samples, flops, self.flops_model)
        loss = self.law.loss(self.samples, log_n, log_d)
        tokens = np.exp(np.clip(log_d, -700, 700))
        out = {
            "params": np.exp(np.clip(log_n, -700, 700)),
            "tokens": tokens,
            "loss": loss,
            "energy_j": self._cost_samples("energy_j", tokens, flops),
            "gpu_hours": self._cost_samples("gpu_seconds", tokens, flops) / SECONDS_PER_HOUR,
        }
        return {name: percentile_interval(v, self.level) for name, v in out.items()}

    def _cost_samples(self, name: str, tokens: FloatArray, flops: float) -> FloatArray:
        c = self.cost_samples.get(name)
        if c is None:
            return np.empty(0)
        return np.asarray(c[:, 0] + c[:, 1] * tokens + c[:, 2] * flops)

    def _warnings(self, ratio: float, params: float) -> list[str]:
        out = []
        if ratio > EXTRAPOLATION_LIMIT:
            times = f"{ratio:.3g}".replace("e+0", "e").replace("e+", "e")
            out.append(
                f"the target is {times} times the largest compute observed; beyond "
                f"{EXTRAPOLATION_LIMIT:g} times, a law fitted to small runs is not evidence"
            )
        model = self.flops_model
        per_6n = float(model.flops(params, 1.0)) / (6.0 * params)
        off = max(per_6n, 1.0 / per_6n)
        if model.source != "6ND" and off > TRUSTED_RATIO_TO_6ND and ratio > EXTRAPOLATION_LIMIT:
            out.append(
                f"the FLOPs model of the observed sizes gives {per_6n:.2f} x 6N per token at the "
                f"optimum, where large models approach 6N: D* is that much off, and N* with it"
            )
        out += [law.reason for law in self.costs.values() if law.reason]
        return out

    def _flops_of(self, target: Target) -> tuple[float, str]:
        """FLOP at which the compute-optimal training uses up the target, or NaN and the reason."""
        quantity, factor = TARGET_UNITS[target.unit]
        wanted = target.value * factor
        if quantity == "flops":
            return wanted, ""
        law = self.costs[quantity]
        if not law.fitted:
            return NAN, law.reason

        def spent(log_c: float) -> float:
            flops = math.exp(log_c)
            _, log_d = self.law.optimum(self.natural, flops, self.flops_model)
            return float(law.predict(_exp(log_d), flops))

        low, high = 0.0, 200.0
        if spent(low) > wanted:
            return NAN, (
                f"the fixed cost of a run ({law.constant:.3g} {law.unit}) uses up the target"
            )
        return math.exp(_bisect(spent, wanted, low, high)), ""


def _exp(value: FloatArray | float) -> float:
    return float(np.exp(np.clip(value, -700, 700)))


def _bisect(function: Callable[[float], float], wanted: float, low: float, high: float) -> float:
    """Where an increasing function of log C reaches `wanted`."""
    for _ in range(80):
        middle = 0.5 * (low + high)
        if function(middle) < wanted:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)
