"""Where an answer is wanted, and what energy and time are paid with."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from llem.scaling.errors import OptionError

# Unit of a target -> (quantity it limits, factor to FLOP, J or GPU seconds). Money stands beside.
TARGET_UNITS: dict[str, tuple[str, float]] = {
    "FLOP": ("flops", 1.0),
    "J": ("energy_j", 1.0),
    "kWh": ("energy_j", 3.6e6),
    "GPUh": ("gpu_seconds", 3600.0),
}
MONEY = "money"
CURRENCY = re.compile(r"[A-Z]{3}|money")


@dataclass(frozen=True)
class Target:
    """Where the answer is wanted: so many FLOP, J, kWh, GPUh or so much money for one training.

    unit: one of TARGET_UNITS, a currency of three capitals (EUR), or "money", which is whatever
    the prices are in. Energy is what the site pays for: that of the devices times the PUE.
    """

    value: float
    unit: str = "FLOP"

    def __post_init__(self) -> None:
        if self.unit not in TARGET_UNITS and not CURRENCY.fullmatch(self.unit):
            known = f"one of {', '.join(TARGET_UNITS)} or a currency such as EUR"
            raise OptionError("target.unit", self.unit, known)
        if not (math.isfinite(self.value) and self.value > 0):
            raise OptionError("target.value", self.value, "a finite number above 0")

    @property
    def quantity(self) -> str:
        """What is limited: flops, energy_j, gpu_seconds or money."""
        return TARGET_UNITS[self.unit][0] if self.unit in TARGET_UNITS else MONEY

    @property
    def factor(self) -> float:
        """Value in FLOP, J, GPU seconds or the currency for one of `unit`."""
        return TARGET_UNITS[self.unit][1] if self.unit in TARGET_UNITS else 1.0


@dataclass(frozen=True)
class Prices:
    """What one training is paid with: per kWh (times `pue`, 1 or more) and per GPU hour, added.

    None: nothing is paid for that. currency: what both are in.
    """

    per_kwh: float | None = None
    per_gpu_hour: float | None = None
    currency: str = MONEY
    pue: float = 1.0

    def __post_init__(self) -> None:
        for name in ("per_kwh", "per_gpu_hour"):
            price = getattr(self, name)
            if price is not None and not (math.isfinite(price) and price >= 0):
                raise OptionError(f"prices.{name}", price, "a finite number, 0 or more")
        if not (math.isfinite(self.pue) and self.pue >= 1):
            raise OptionError("prices.pue", self.pue, "a finite number, 1 or more")

    @property
    def any(self) -> bool:
        """Whether anything has a price."""
        return bool(self.per_kwh or self.per_gpu_hour)

    def refusal(self, unit: str) -> str:
        """Why nothing can be told in this unit of money; empty where it can."""
        if not self.any:
            return "a target in money needs prices: pass per_kwh, per_gpu_hour or both"
        if unit not in (MONEY, self.currency):
            return f"the target is in {unit}, the prices in {self.currency}: pass prices in {unit}"
        return ""

    def to_dict(self) -> dict[str, Any]:
        """As in fit.json."""
        return {
            "per_kwh": self.per_kwh,
            "per_gpu_hour": self.per_gpu_hour,
            "currency": self.currency,
            "pue": self.pue,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any] | None) -> Prices:
        """The inverse of `to_dict`."""
        return cls() if not data else cls(**data)
