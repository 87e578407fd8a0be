"""Scaling laws: fitting, intervals, optima, costs. Knows numbers only: numpy and nothing of llem.

Names load on first use, so that importing this package costs nothing at the command line.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llem.scaling.answers.cost import CostLaw, fit_cost
    from llem.scaling.answers.features import Layout
    from llem.scaling.answers.lifetime import Lifetime, train_and_serve
    from llem.scaling.answers.optimum import Optimum
    from llem.scaling.answers.serving import ServingLaw, Use, fit_serving
    from llem.scaling.answers.targets import Prices, Target
    from llem.scaling.checkpoints import Checkpoints, select_checkpoints
    from llem.scaling.errors import (
        DataFault,
        OptionError,
        ScalingDataError,
        ScalingError,
        UnknownLawError,
    )
    from llem.scaling.fit import fit_law
    from llem.scaling.fitting.estimator import Estimator
    from llem.scaling.flops import FlopsModel, fit_flops_model
    from llem.scaling.judging.checklist import checklist
    from llem.scaling.judging.compare import compare_laws
    from llem.scaling.judging.isoflop import (
        IsoFlopLevel,
        PowerLaw,
        fit_power_law,
        isoflop_check,
        isoflop_levels,
    )
    from llem.scaling.laws.chinchilla import CHINCHILLA
    from llem.scaling.laws.formula import FormulaLaw
    from llem.scaling.laws.law import Law, Parameter
    from llem.scaling.laws.registry import get_law, law_names, register_law
    from llem.scaling.result import Fit

_HOME = {
    "CHINCHILLA": "laws.chinchilla",
    "Checkpoints": "checkpoints",
    "CostLaw": "answers.cost",
    "DataFault": "errors",
    "Estimator": "fitting.estimator",
    "Fit": "result",
    "FlopsModel": "flops",
    "FormulaLaw": "laws.formula",
    "IsoFlopLevel": "judging.isoflop",
    "Law": "laws.law",
    "Lifetime": "answers.lifetime",
    "Optimum": "answers.optimum",
    "OptionError": "errors",
    "Layout": "answers.features",
    "Parameter": "laws.law",
    "Prices": "answers.targets",
    "PowerLaw": "judging.isoflop",
    "ScalingDataError": "errors",
    "ScalingError": "errors",
    "ServingLaw": "answers.serving",
    "Target": "answers.targets",
    "UnknownLawError": "errors",
    "Use": "answers.serving",
    "checklist": "judging.checklist",
    "compare_laws": "judging.compare",
    "fit_cost": "answers.cost",
    "fit_flops_model": "flops",
    "fit_law": "fit",
    "fit_power_law": "judging.isoflop",
    "fit_serving": "answers.serving",
    "get_law": "laws.registry",
    "isoflop_check": "judging.isoflop",
    "isoflop_levels": "judging.isoflop",
    "law_names": "laws.registry",
    "register_law": "laws.registry",
    "select_checkpoints": "checkpoints",
    "train_and_serve": "answers.lifetime",
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
    "Layout",
    "Lifetime",
    "Optimum",
    "OptionError",
    "Parameter",
    "PowerLaw",
    "Prices",
    "ScalingDataError",
    "ScalingError",
    "ServingLaw",
    "Target",
    "UnknownLawError",
    "Use",
    "checklist",
    "compare_laws",
    "fit_cost",
    "fit_flops_model",
    "fit_law",
    "fit_power_law",
    "fit_serving",
    "get_law",
    "isoflop_check",
    "isoflop_levels",
    "law_names",
    "register_law",
    "select_checkpoints",
    "train_and_serve",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
