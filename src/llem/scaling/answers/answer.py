"""What is told about one target."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from llem.scaling.answers.targets import Target

NAN = float("nan")
FIGURES = ("params", "tokens", "loss", "energy_j", "gpu_hours", "money")

Interval = tuple[float, float]


@dataclass(frozen=True)
class Optimum:
    """The best training at one target.

    flops (FLOP), params and tokens (counts), loss (nats per token), energy_j (J, of the devices),
    gpu_hours (h), money (in `currency`). ci maps figures to (low, high): beyond 10 times the
    largest compute with the `allowance` for the law's own error, ci_parameters without.
    extrapolation_ratio is flops over the largest compute observed. flop_optimal: at a target in
    energy, time or money, the FLOP-optimal training that costs the same, and what it gives away.
    equal_loss: at a target in FLOP, the training of least energy that reaches the same loss.
    cloud: resamples of params, tokens and loss, thinned. layout: what the costs assume. A value
    that is not known is NaN, and a warning says why.
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
    money: float = NAN
    currency: str = ""
    ci_parameters: dict[str, Interval] = field(default_factory=dict)
    allowance: dict[str, Any] | None = None
    flop_optimal: dict[str, Any] | None = None
    equal_loss: dict[str, Any] | None = None
    cloud: dict[str, list[float]] = field(default_factory=dict)
    layout: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """One entry of `optima` in fit.json (NaN still NaN)."""
        return {
            "target": {"value": float(self.target.value), "unit": self.target.unit},
            "flops": self.flops,
            "params": self.params,
            "tokens": self.tokens,
            "loss": self.loss,
            "energy_j": self.energy_j,
            "gpu_hours": self.gpu_hours,
            "money": self.money,
            "currency": self.currency,
            "ci": {name: list(interval) for name, interval in self.ci.items()},
            "ci_parameters": {n: list(interval) for n, interval in self.ci_parameters.items()},
            "extrapolation_ratio": self.extrapolation_ratio,
            "allowance": self.allowance,
            "flop_optimal": self.flop_optimal,
            "equal_loss": self.equal_loss,
            "cloud": self.cloud,
            "layout": self.layout,
            "warnings": list(self.warnings),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Optimum:
        """The inverse of `to_dict`; null becomes NaN."""

        def intervals(entry: dict[str, Any]) -> dict[str, Interval]:
            return {name: (_number(lo), _number(hi)) for name, (lo, hi) in entry.items()}

        numbers = ("flops", "extrapolation_ratio", *FIGURES)
        return cls(
            target=Target(float(data["target"]["value"]), data["target"]["unit"]),
            **{name: _number(data[name]) for name in numbers},
            currency=data["currency"],
            ci=intervals(data["ci"]),
            ci_parameters=intervals(data["ci_parameters"]),
            allowance=_with_nan(data["allowance"]),
            flop_optimal=_with_nan(data["flop_optimal"]),
            equal_loss=_with_nan(data["equal_loss"]),
            cloud=data["cloud"],
            layout=data["layout"],
            warnings=tuple(data["warnings"]),
        )


def _number(value: Any) -> float:
    return NAN if value is None else float(value)


def _with_nan(value: Any) -> Any:
    """Null becomes NaN at any depth below; an entry that is null itself stays None."""
    if isinstance(value, dict):
        return {k: NAN if v is None else _with_nan(v) for k, v in value.items()}
    if isinstance(value, list):
        return [NAN if v is None else _with_nan(v) for v in value]
    return value
