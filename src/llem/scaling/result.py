"""The result of a fit, and its form on disk (fit.json)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llem.scaling.answers.cost import CostLaw
from llem.scaling.answers.optimum import Ensemble, Optimum, Target
from llem.scaling.errors import OptionError
from llem.scaling.fitting.estimator import Estimator
from llem.scaling.flops import FlopsModel
from llem.scaling.judging.checklist import checklist
from llem.scaling.laws.law import Law
from llem.scaling.laws.registry import get_law, law_names

FloatArray = NDArray[np.float64]
Interval = tuple[float, float]

SCHEMA = "llem.fit/1"
# Plain entries of fit.json, in the order of the file.
PLAIN = (
    "starts",
    "identified",
    "identification",
    "ci",
    "standard_errors",
    "profiles",
    "exponents",
    "range",
    "excluded",
    "held_out",
    "leave_one_out",
    "sensitivity",
    "definitions",
    "isoflop",
    "residuals",
    "provenance",
)


@dataclass(frozen=True)
class Fit:
    """A fitted law with its intervals, optima and judgement; see `to_dict` for the file.

    params: the law's parameters by name, with loss in nats per token, N and D as counts.
    objective: the weighted sum of the estimator over all rows. gradient_norm and
    smallest_eigenvalue: at the optimum, in centred coordinates with amplitudes as logs.
    standard_errors: the sandwich's and the bootstrap's, by parameter. profiles: see
    `Profile.to_dict`. definitions: the answer under other ways to count N and C.
    optima: one per target. frontier: optima over the observed range of compute and beyond to the
    targets (for plots). costs: the laws of energy_j and gpu_seconds. warnings: plain sentences.
    The bootstrap samples live in `ensemble`, which a Fit read back from a file lacks intervals
    of: `optimum` then answers without them.
    """

    law: str
    formula: str
    source: str
    estimator: Estimator
    n_observations: int
    n_runs: int
    params: dict[str, float]
    objective: float
    gradient_norm: float
    smallest_eigenvalue: float
    flops_model: FlopsModel
    costs: dict[str, CostLaw]
    optima: tuple[Optimum, ...]
    frontier: tuple[Optimum, ...]
    warnings: tuple[str, ...]
    starts: dict[str, int]
    identified: dict[str, bool]
    identification: dict[str, str]
    ci: dict[str, Any]
    standard_errors: dict[str, dict[str, float]]
    profiles: dict[str, Any]
    exponents: dict[str, float] | None
    range: dict[str, list[float]]
    excluded: list[dict[str, Any]]
    held_out: dict[str, Any]
    leave_one_out: dict[str, Any]
    sensitivity: list[dict[str, Any]]
    definitions: list[dict[str, Any]]
    isoflop: dict[str, Any]
    residuals: dict[str, Any]
    provenance: dict[str, Any]
    ensemble: Ensemble = field(repr=False, compare=False)

    def predict(self, params: ArrayLike, tokens: ArrayLike) -> FloatArray:
        """Loss in nats per token at sizes `params` and `tokens` (broadcast together)."""
        n, d = np.asarray(params, dtype=np.float64), np.asarray(tokens, dtype=np.float64)
        return self.ensemble.law.predict(self.params, n, d)

    def optimum(self, target: Target | float) -> Optimum:
        """The compute-optimal training at a target (a plain number is FLOP)."""
        return self.ensemble.at(target)

    def to_dict(self) -> dict[str, Any]:
        """The content of fit.json: plain JSON types, NaN and infinity as null."""
        out: dict[str, Any] = {
            "schema": SCHEMA,
            "law": self.law,
            "formula": self.formula,
            "source": self.source,
            "estimator": self.estimator.to_dict(),
            "n_observations": self.n_observations,
            "n_runs": self.n_runs,
            "params": self.params,
            "objective": self.objective,
            "gradient_norm": self.gradient_norm,
            "smallest_eigenvalue": self.smallest_eigenvalue,
            "flops_model": self.flops_model.to_dict(),
            "costs": {name: law.to_dict() for name, law in self.costs.items()},
            "optima": [o.to_dict() for o in self.optima],
            "frontier": [o.to_dict() for o in self.frontier],
            "assumptions": self.ensemble.assumptions(),
            "warnings": list(self.warnings),
        }
        out.update({name: getattr(self, name) for name in PLAIN})
        plain = _plain(out)
        assert isinstance(plain, dict)
        plain["checklist"] = checklist(plain)
        return plain

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Fit:
        """Read what `to_dict` wrote; OptionError for another schema."""
        if data.get("schema") != SCHEMA:
            raise OptionError("schema", data.get("schema"), SCHEMA)
        law = _law(data)
        params = {n: _number(data["params"][n]) for n in law.parameter_names}
        flops_model = FlopsModel.from_dict(data["flops_model"])
        costs = {name: CostLaw.from_dict(v) for name, v in data["costs"].items()}
        return cls(
            law=law.name,
            formula=data["formula"],
            source=data["source"],
            estimator=Estimator.from_dict(data["estimator"]),
            n_observations=int(data["n_observations"]),
            n_runs=int(data["n_runs"]),
            params=params,
            objective=_number(data["objective"]),
            gradient_norm=_number(data["gradient_norm"]),
            smallest_eigenvalue=_number(data["smallest_eigenvalue"]),
            flops_model=flops_model,
            costs=costs,
            optima=tuple(Optimum.from_dict(o) for o in data["optima"]),
            frontier=tuple(Optimum.from_dict(o) for o in data["frontier"]),
            warnings=tuple(data["warnings"]),
            ensemble=Ensemble(
                law=law,
                natural=law.natural(params),
                flops_model=flops_model,
                costs=costs,
                largest_flops=float(data["range"]["flops"][1]),
                level=float(data["ci"]["level"]),
                **Ensemble.read_assumptions(data["assumptions"]),
            ),
            **{name: data[name] for name in PLAIN},
        )


def _law(data: dict[str, Any]) -> Law:
    """The law of a fit.json: by its name, or from its formula where a user gave it."""
    if data["law"] in law_names():
        return get_law(data["law"])
    from llem.scaling.laws.formula import FormulaLaw

    return FormulaLaw.parse(data["formula"], name=data["law"], source=data["source"])


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def _plain(value: Any) -> Any:
    """Plain JSON types; numbers that JSON does not know become null."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, np.ndarray):
        return [_plain(v) for v in value.tolist()]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
