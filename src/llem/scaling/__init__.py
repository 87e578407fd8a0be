"""Scaling laws: fitting, intervals, optima, costs. Knows numbers only: numpy and nothing of llem.

Names load on first use, so that importing this package costs nothing at the command line.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llem.scaling.cost import CostLaw, fit_cost
    from llem.scaling.errors import (
        DataFault,
        OptionError,
        ScalingDataError,
        ScalingError,
        UnknownLawError,
    )
    from llem.scaling.estimator import Estimator
    from llem.scaling.fit import fit_law
    from llem.scaling.flops import FlopsModel, fit_flops_model
    from llem.scaling.isoflop import IsoFlopLevel, PowerLaw, fit_power_law, isoflop_levels
    from llem.scaling.laws import CHINCHILLA, LAWS, Law, get_law
    from llem.scaling.optimum import Optimum, Target
    from llem.scaling.result import Fit

_HOME = {
    "CHINCHILLA": "laws",
    "CostLaw": "cost",
    "DataFault": "errors",
    "Estimator": "estimator",
    "Fit": "result",
    "FlopsModel": "flops",
    "IsoFlopLevel": "isoflop",
    "LAWS": "laws",
    "Law": "laws",
    "Optimum": "optimum",
    "OptionError": "errors",
    "PowerLaw": "isoflop",
    "ScalingDataError": "errors",
    "ScalingError": "errors",
    "Target": "optimum",
    "UnknownLawError": "errors",
    "fit_cost": "cost",
    "fit_flops_model": "flops",
    "fit_law": "fit",
    "fit_power_law": "isoflop",
    "get_law": "laws",
    "isoflop_levels": "isoflop",
}

__all__ = [
    "CHINCHILLA",
    "LAWS",
    "CostLaw",
    "DataFault",
    "Estimator",
    "Fit",
    "FlopsModel",
    "IsoFlopLevel",
    "Law",
    "Optimum",
    "OptionError",
    "PowerLaw",
    "ScalingDataError",
    "ScalingError",
    "Target",
    "UnknownLawError",
    "fit_cost",
    "fit_flops_model",
    "fit_law",
    "fit_power_law",
    "get_law",
    "isoflop_levels",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
