"""Laws that are given by a formula: what a user writes is parsed, differentiated and fitted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from llem.scaling.errors import OptionError
from llem.scaling.laws.compiled import Compiled, compile_formula
from llem.scaling.laws.expression import Node, evaluate, symbols
from llem.scaling.laws.formula_problem import FormulaProblem
from llem.scaling.laws.law import EXPONENT_BOUNDS, Law, Parameter
from llem.scaling.laws.parser import VARIABLES, Formula, parse_formula, with_clauses

if TYPE_CHECKING:
    from llem.scaling.fitting.estimator import Space
    from llem.scaling.observations import Observations

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class FormulaLaw(Law):
    """A law written as a formula; made by `FormulaLaw.parse`.

    Its parameters are of three kinds. An amplitude multiplies a term: the loss is linear in it,
    with a factor that holds no other amplitude; it is positive and searched as its log. A positive
    parameter (role "amplitude" with a range) is searched as its log between its bounds. A shape (an
    exponent, as a rule) is searched as it is between its bounds. `formula` holds the bounds and
    what is held fixed as well, so that it alone makes the law again. `centring` is the factor that
    stands for an amplitude's own where that one holds amplitudes (see `parse`).
    """

    centring: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(
        cls,
        text: str,
        *,
        name: str | None = None,
        source: str = "given by the user",
        shapes: Mapping[str, tuple[float, float]] | None = None,
        positive: Mapping[str, tuple[float, float]] | None = None,
        fixed: Mapping[str, float] | None = None,
        centring: Mapping[str, str] | None = None,
    ) -> FormulaLaw:
        """The law that `text` writes (see `llem.scaling.laws.parser` for what it may hold).

        shapes: soft bounds of shape parameters, where the usual ones of an exponent do not suit.
        positive: parameters that are positive, of unknown magnitude and not linear (a threshold, a
        number of repetitions), with their bounds. fixed: parameters held at a value. These three
        are written into `formula` as clauses. centring: for an amplitude in whose factor amplitudes
        hide behind definitions, the factor by which its term is centred instead, a formula of
        variables and shapes.
        """
        clauses = [
            *(f"{key} in {_bounds(pair)}" for key, pair in (shapes or {}).items()),
            *(f"log {key} in {_bounds(pair)}" for key, pair in (positive or {}).items()),
            *(f"{key} = {float(value)!r}" for key, value in (fixed or {}).items()),
        ]
        text = with_clauses(text, clauses)
        factors = dict(centring or {})
        formula = parse_formula(text)
        amplitudes = _amplitudes(formula, centred=set(factors))
        for key in factors:
            if key not in amplitudes:
                raise OptionError(f"law.centring[{key}]", factors[key], "nothing: no amplitude")
        parameters = [Parameter(key, constant=alone) for key, alone in amplitudes.items()]
        rest = [key for key in formula.parameters if key not in amplitudes]
        for key in rest:
            if key in formula.positive:
                parameters.append(Parameter(key, "amplitude", *formula.ranges[key]))
        for key in rest:
            if key not in formula.positive:
                parameters.append(
                    Parameter(key, "shape", *formula.ranges.get(key, EXPONENT_BOUNDS))
                )
        return cls(
            name=text if name is None else name,
            formula=text,
            source=source,
            parameters=tuple(parameters),
            variables=tuple(v for v in VARIABLES if v in formula.variables),
            centring=tuple(sorted(factors.items())),
        )

    @property
    def compiled(self) -> Compiled:
        """The formula in the coordinates of `natural`, and what its problems need."""
        return compile_formula(self.formula, self.parameters, self.centring)

    def bind(self, data: Observations, *, space: Space = "log") -> FormulaProblem:
        """Centre the columns that the formula reads."""
        log_n, log_d = np.log(data.params), np.log(data.tokens)
        columns = {"N": log_n, "D": log_d, "C": np.log(data.flops), "U": log_d}
        if data.unique_tokens is not None:
            # Where it is not known, nothing was repeated.
            known = np.isfinite(data.unique_tokens)
            columns["U"] = np.log(np.where(known, data.unique_tokens, data.tokens))
        columns = {v: columns[v] for v in self.variables}
        centre = {v: float(np.mean(column)) for v, column in columns.items()}
        return FormulaProblem(self.compiled, columns, centre, np.log(data.loss), space=space)

    def loss(
        self,
        natural: FloatArray,
        log_params: FloatArray | float,
        log_tokens: FloatArray | float,
        *,
        log_flops: FloatArray | float | None = None,
        log_unique: FloatArray | float | None = None,
    ) -> FloatArray:
        """Loss at logs of the variables; see `Law.loss`. A log U of NaN is that of D."""
        log_n = np.asarray(log_params, dtype=np.float64)
        log_d = np.asarray(log_tokens, dtype=np.float64)
        c = math.log(6.0) + log_n + log_d if log_flops is None else log_flops
        u = log_d if log_unique is None else np.asarray(log_unique, dtype=np.float64)
        columns = {"N": log_n, "D": log_d, "C": c, "U": np.where(np.isnan(u), log_d, u)}
        compiled = self.compiled
        values = {compiled.formula.variables[v]: np.asarray(columns[v]) for v in self.variables}
        for i, symbol in enumerate(compiled.coordinates):
            values[symbol] = natural[..., i]
        (out,) = evaluate([compiled.loss], values)
        shapes = [natural.shape[:-1], log_n.shape, log_d.shape, np.shape(c), np.shape(u)]
        return np.array(np.broadcast_to(out, np.broadcast_shapes(*shapes)))


def _bounds(pair: tuple[float, float]) -> str:
    low, high = pair
    return f"[{float(low)!r}, {float(high)!r}]"


def _amplitudes(formula: Formula, *, centred: set[str]) -> dict[str, bool]:
    """Parameters that multiply a term, in order of appearance, and whether they stand alone.

    The loss is linear in each, its factor free of those found before; where a definition hides
    amplitudes in the factor, one is given by `centring`.
    """
    graph = formula.graph
    variables = set(formula.variables.values())
    found: dict[str, bool] = {}
    members: set[Node] = set()
    for key, symbol in formula.parameters.items():
        if key in formula.ranges:
            continue
        factor = graph.derivative(formula.frame, symbol)
        if factor is graph.zero or symbols(factor) & {symbol, *members}:
            continue
        full = graph.derivative(formula.loss, symbol)
        if key in centred or not symbols(full) & {symbol, *members}:
            found[key] = not symbols(full) & variables
            members.add(symbol)
    return found
