"""The laws that can be fitted: what they predict, and where their optimum lies."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from llem.scaling.errors import OptionError, UnknownLawError
from llem.scaling.flops import FlopsModel

if TYPE_CHECKING:
    from llem.scaling.fitting.estimator import Space
    from llem.scaling.fitting.problem import Problem
    from llem.scaling.observations import Observations

FloatArray = NDArray[np.float64]

# Where the search for an optimum without a closed form looks: log N of models from one parameter
# to 1e18.
LOG_PARAMS_RANGE = (0.0, 41.5)


@dataclass(frozen=True)
class Parameter:
    """One parameter of a law.

    An "amplitude" is positive and multiplies a term: it is searched, and stands in `natural`
    vectors, as its log. A "shape" (an exponent) is searched as it is, between `low` and `high`,
    which bound the search. `constant` marks an amplitude that stands alone: the loss that no size
    and no data removes.
    """

    name: str
    role: Literal["amplitude", "shape"] = "amplitude"
    low: float = 0.0
    high: float = np.inf
    constant: bool = False


@dataclass(frozen=True)
class Law(ABC):
    """Loss (nats per token) as a function of parameters N and training tokens D, both counts.

    `variables` are the columns that the law reads: N, D, and where it needs them C (FLOP of the
    run) or U (unique tokens of the data). Vectors called `natural` hold the parameters in the
    order of `parameters`, amplitudes as logs, which do not overflow where their values would.
    """

    name: str
    formula: str
    source: str
    parameters: tuple[Parameter, ...]
    variables: tuple[str, ...] = ("N", "D")

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """Names of the parameters, in the order of `natural`."""
        return tuple(p.name for p in self.parameters)

    @property
    def has_optimum(self) -> bool:
        """Whether the law trades size against tokens, so that a compute budget has a best N."""
        return {"N", "D"} <= set(self.variables)

    @abstractmethod
    def bind(self, data: Observations, *, space: Space = "log") -> Problem:
        """The law bound to observations, ready for the minimiser; space: see `Estimator`."""

    @abstractmethod
    def loss(
        self,
        natural: FloatArray,
        log_params: FloatArray | float,
        log_tokens: FloatArray | float,
        *,
        log_flops: FloatArray | float | None = None,
        log_unique: FloatArray | float | None = None,
    ) -> FloatArray:
        """Loss at logs of N and D; `natural` (..., p) broadcasts against them.

        log_flops: log C, by default that of 6ND. log_unique: log U, by default log D (nothing is
        repeated).
        """

    def values(self, natural: FloatArray) -> FloatArray:
        """(..., p) of natural coordinates to the values of the parameters."""
        logs = np.array([p.role == "amplitude" for p in self.parameters])
        with np.errstate(over="ignore"):
            return np.where(logs, np.exp(np.where(logs, natural, 0.0)), natural)

    def named(self, natural: FloatArray) -> dict[str, float]:
        """Named parameters of one vector (p,)."""
        values = self.values(natural).tolist()
        return dict(zip(self.parameter_names, values, strict=True))

    def natural(self, parameters: Mapping[str, float]) -> FloatArray:
        """Named parameters to natural coordinates (p,)."""
        with np.errstate(divide="ignore"):
            return np.array(
                [
                    np.log(float(parameters[p.name]))
                    if p.role == "amplitude"
                    else float(parameters[p.name])
                    for p in self.parameters
                ]
            )

    def predict(
        self,
        parameters: Mapping[str, float],
        params: FloatArray | float,
        tokens: FloatArray | float,
        *,
        flops: FloatArray | float | None = None,
        unique_tokens: FloatArray | float | None = None,
    ) -> FloatArray:
        """Loss in nats per token at sizes `params` and `tokens` (broadcast together)."""
        return self.loss(
            self.natural(parameters),
            np.log(params),
            np.log(tokens),
            log_flops=None if flops is None else np.log(flops),
            log_unique=None if unique_tokens is None else np.log(unique_tokens),
        )

    def optimum(
        self,
        natural: FloatArray,
        flops: FloatArray | float,
        model: FlopsModel,
        *,
        log_unique: float | None = None,
    ) -> tuple[FloatArray, FloatArray]:
        """log N* and log D* that minimise the loss at `flops` FLOP. natural: (..., p).

        Searched along log D = log(C/k) - g log N; a law with a closed form overrides it.
        """
        from llem.scaling.answers.search import argmin

        log_c = np.log(np.asarray(flops, dtype=np.float64) / model.coefficient)
        shape = np.broadcast_shapes(natural.shape[:-1], log_c.shape)

        def along(log_n: FloatArray) -> FloatArray:
            log_d = log_c - model.exponent * log_n
            return self.loss(natural, log_n, log_d, log_unique=log_unique)

        log_n = argmin(along, *LOG_PARAMS_RANGE, shape=shape)
        return log_n, log_c - model.exponent * log_n

    def exponents(
        self, natural: FloatArray, model: FlopsModel, *, flops: float
    ) -> tuple[FloatArray, FloatArray]:
        """(a, b) of N* ~ C^a and D* ~ C^b near `flops` FLOP; natural (..., p).

        g is the exponent of the FLOPs model, so g a + b = 1, and a + b = 1 for C = 6ND. Without a
        closed form it is the slope over a factor of two about `flops`.
        """
        low, _ = self.optimum(natural, flops / np.sqrt(2.0), model)
        high, _ = self.optimum(natural, flops * np.sqrt(2.0), model)
        a = (high - low) / np.log(2.0)
        return a, 1.0 - model.exponent * a


def get_law(name: str | Law) -> Law:
    """The law of that name, or of that formula, or UnknownLawError naming those that exist.

    A text with an equals sign, an operator or a parenthesis is read as a formula of N and D.
    """
    if isinstance(name, Law):
        return name
    known = _known()
    plain = name.strip().replace("-", "_")
    if plain in known:
        return known[plain]
    if any(mark in name for mark in "+*/^("):
        from llem.scaling.laws.formula import FormulaLaw

        return FormulaLaw.parse(name)
    raise UnknownLawError(name, tuple(known))


def register_law(law: Law) -> Law:
    """Make a law known by its name, for `fit_law(law=...)` and `Fit.from_dict`."""
    known = _known()
    if known.get(law.name, law) != law:
        raise OptionError("law.name", law.name, "a name that no other law has")
    known[law.name] = law
    return law


_LAWS: dict[str, Law] = {}


def _known() -> dict[str, Law]:
    """The registry, filled on first use: the modules of the laws import this one."""
    if not _LAWS:
        from llem.scaling.laws.chinchilla import CHINCHILLA
        from llem.scaling.laws.shipped import SHIPPED

        _LAWS.update({law.name: law for law in (CHINCHILLA, *SHIPPED)})
    return _LAWS


def law_names() -> tuple[str, ...]:
    """Names of the laws that are known."""
    return tuple(_known())
