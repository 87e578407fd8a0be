"""The laws that can be fitted: what they predict, and where their optimum lies."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from llem.scaling.errors import DataFault
from llem.scaling.flops import FlopsModel
from llem.scaling.observations import FIRST_ROWS, MIN_DISTINCT, VARIABLES, Observations

if TYPE_CHECKING:
    from llem.scaling.fitting.estimator import Space
    from llem.scaling.fitting.problem import Problem

FloatArray = NDArray[np.float64]

# Where the search for an optimum without a closed form looks: log N of models from one parameter
# to 1e18.
LOG_PARAMS_RANGE = (0.0, 41.5)
# Bounds of exponents: wide enough that a well posed fit never feels them.
EXPONENT_BOUNDS = (0.01, 3.0)


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

    def shortage(
        self, data: Observations, rows: NDArray[np.bool_] | None = None
    ) -> list[DataFault]:
        """Why these rows (n,), by default all, cannot determine the law; empty when they can."""
        chosen = np.flatnonzero((data.weight > 0) if rows is None else rows & (data.weight > 0))
        # The first thousand rows of a long table tell as a rule.
        few = self._shortage(data, chosen[:FIRST_ROWS])
        return few if chosen.size <= FIRST_ROWS or not few else self._shortage(data, chosen)

    def _shortage(self, data: Observations, used: NDArray[np.intp]) -> list[DataFault]:
        faults = []
        columns = []
        for variable in self.variables:
            if variable not in VARIABLES:
                continue
            name, words = VARIABLES[variable]
            column = getattr(data, name)[used]
            columns.append(column)
            found = np.unique(column).size
            if found < MIN_DISTINCT:
                message = f"at least {MIN_DISTINCT} {words} are needed, found {found}"
                faults.append(DataFault.of(name, message))
        least = len(self.parameters)
        points = np.unique(np.stack(columns, axis=1), axis=0).shape[0] if used.size else 0
        if points < least:
            path = ", ".join(VARIABLES[v][0] for v in self.variables if v in VARIABLES)
            message = (
                f"at least {least} distinct points ({', '.join(self.variables)}) are needed for "
                f"the {least} parameters of the law, found {points}"
            )
            faults.append(DataFault.of(path, message))
        return faults
