"""Scaling laws: fitting, intervals, optima, costs. Knows numbers only: numpy and nothing of llem.

Names load on first use, so that importing this package costs nothing at the command line.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llem.scaling.checklist import checklist
    from llem.scaling.checkpoints import Checkpoints, select_checkpoints
    from llem.scaling.chinchilla import CHINCHILLA
    from llem.scaling.compare import compare_laws
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
    from llem.scaling.formula import FormulaLaw
    from llem.scaling.isoflop import (
        IsoFlopLevel,
        PowerLaw,
        fit_power_law,
        isoflop_check,
        isoflop_levels,
    )
    from llem.scaling.laws import Law, Parameter, get_law, law_names, register_law
    from llem.scaling.optimum import Optimum
    from llem.scaling.result import Fit
    from llem.scaling.targets import Target

_HOME = {
    "CHINCHILLA": "chinchilla",
    "Checkpoints": "checkpoints",
    "CostLaw": "cost",
    "DataFault": "errors",
    "Estimator": "estimator",
    "Fit": "result",
    "FlopsModel": "flops",
    "FormulaLaw": "formula",
    "IsoFlopLevel": "isoflop",
    "Law": "laws",
    "Optimum": "optimum",
    "OptionError": "errors",
    "Parameter": "laws",
    "PowerLaw": "isoflop",
    "ScalingDataError": "errors",
    "ScalingError": "errors",
    "Target": "targets",
    "UnknownLawError": "errors",
    "checklist": "checklist",
    "compare_laws": "compare",
    "fit_cost": "cost",
    "fit_flops_model": "flops",
    "fit_law": "fit",
    "fit_power_law": "isoflop",
    "get_law": "laws",
    "isoflop_check": "isoflop",
    "isoflop_levels": "isoflop",
    "law_names": "laws",
    "register_law": "laws",
    "select_checkpoints": "checkpoints",
}

__all__ = [
    "CHINCHILLA",
    "Checkpoints",
    "CostLaw",
    "DataFault",
    "Estimator",
    "Fit",
    "FlopsModel",
    "FormulaLaw",
    "IsoFlopLevel",
    "Law",
    "Optimum",
    "OptionError",
    "Parameter",
    "PowerLaw",
    "ScalingDataError",
    "ScalingError",
    "Target",
    "UnknownLawError",
    "checklist",
    "compare_laws",
    "fit_cost",
    "fit_flops_model",
    "fit_law",
    "fit_power_law",
    "get_law",
    "isoflop_check",
    "isoflop_levels",
    "law_names",
    "register_law",
    "select_checkpoints",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
