"""What else might have been chosen, and what it changes: the law of a fit.json asked again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from llem._numerals import number
from llem.scaling import Fit, FlopsModel, Law

OWN = "this fit"


@dataclass(frozen=True)
class Choice:
    """One choice: the exponent `a` and the optimal size that it leads to, NaN where unknown."""

    label: str
    a: float
    params: float
    reason: str = ""

    @property
    def own(self) -> bool:
        """Whether this is what was chosen."""
        return self.label == OWN


def law_of(fit: Mapping[str, Any]) -> Law:
    """The law of a fit.json, by its name or from its formula."""
    return Fit.from_dict(dict(fit)).ensemble.law


def reference_flops(fit: Mapping[str, Any]) -> float:
    """Compute at which optimal sizes are compared: the first target in FLOP, else the largest."""
    for optimum in fit.get("optima") or []:
        if optimum["target"]["unit"] == "FLOP":
            return number(optimum["target"]["value"])
    return number(fit["range"]["flops"][1])


def choices(fit: Mapping[str, Any]) -> list[Choice]:
    """The fit itself, then every other choice of its `sensitivity`."""
    law = law_of(fit)
    model = FlopsModel.from_dict(dict(fit["flops_model"]))
    flops = reference_flops(fit)

    def best(params: Mapping[str, Any] | None) -> float:
        if params is None or not law.has_optimum:
            return math.nan
        named = {name: number(value) for name, value in params.items()}
        if not all(math.isfinite(v) for v in named.values()):
            return math.nan
        with np.errstate(all="ignore"):
            log_n, _ = law.optimum(law.natural(named), flops, model)
        return float(np.exp(np.minimum(log_n, 700.0)))

    own = fit["estimator"]
    out = [Choice(OWN, number((fit.get("exponents") or {}).get("a")), best(fit["params"]))]
    for entry in fit.get("sensitivity") or []:
        same = all(entry.get(key) == own.get(key) for key in ("loss", "delta"))
        if same and entry["rows"] == fit["n_observations"]:
            continue
        a = number((entry.get("exponents") or {}).get("a"))
        label = str(entry["choice"])
        out.append(Choice(label, a, best(entry["params"]), str(entry.get("reason") or "")))
    return out
