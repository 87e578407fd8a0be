"""Formulas made ready to be fitted: in the coordinates of a search, with their derivatives."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

from llem.scaling.laws.expression import PARAMETER, Graph, Node, symbols
from llem.scaling.laws.law import Parameter
from llem.scaling.laws.parser import Formula, parse_formula
from llem.scaling.laws.program import Plan


@dataclass(frozen=True)
class Compiled:
    """A formula with its parameters in the coordinates of `natural`, and its derivatives.

    coordinates: one symbol per parameter, in the order of the law. loss: in those. offsets: for
    each amplitude i, log |factor|, to be taken at the centre of the data: coordinate - offset is
    the centred one's natural. frame, factors, rest: the loss as rest + sum factor_i A_i with
    `definitions` as symbols, for the seeds.
    """

    parameters: tuple[Parameter, ...]
    formula: Formula
    coordinates: tuple[Node, ...]
    loss: Node
    offsets: dict[int, Node]
    factors: dict[int, Node]
    rest: Node
    definitions: dict[Node, Node]

    @property
    def graph(self) -> Graph:
        return self.formula.graph

    @cached_property
    def exact_factors(self) -> bool:
        """Whether the factors of the amplitudes hold no definition that hides an amplitude."""
        logs = {self.coordinates[i] for i in self.factors}
        hidden: set[Node] = set()
        for symbol, body in self.definitions.items():
            if symbols(body) & (logs | hidden):
                hidden.add(symbol)
        return not any(symbols(f) & hidden for f in [*self.factors.values(), self.rest])

    def centred_loss(self, centre: Mapping[str, float]) -> Node:
        """The loss with every amplitude in its centred coordinate."""
        graph = self.graph
        place = {self.formula.variables[v]: graph.const(c) for v, c in centre.items()}
        moved = {}
        for i, offset in self.offsets.items():
            symbol = self.coordinates[i]
            moved[symbol] = graph.linear([(symbol, 1.0), (graph.substitute(offset, place), -1.0)])
        return graph.substitute(self.loss, moved)

    def plan(self, centre: Mapping[str, float]) -> DerivativePlan:
        """The compiled loss with first and second derivatives about a centre."""
        loss = self.centred_loss(centre)
        first = [self.graph.derivative(loss, c) for c in self.coordinates]
        second: dict[Node, list[tuple[int, int]]] = {}
        for i, slope in enumerate(first):
            for j in range(i + 1):
                curve = self.graph.derivative(slope, self.coordinates[j])
                if curve is not self.graph.zero:
                    second.setdefault(curve, []).append((i, j))
        outputs = (loss, *first, *(c for c in second if c not in first))
        index = {node: i for i, node in enumerate(outputs)}
        return DerivativePlan(
            loss=Plan(self.graph, (loss,), self.coordinates),
            all=Plan(self.graph, outputs, self.coordinates),
            curves=tuple((index[node], tuple(pairs)) for node, pairs in second.items()),
        )


@dataclass(frozen=True)
class DerivativePlan:
    """The loss alone, and the loss (output 0) with its slopes (1 ... p) and curvatures.

    curves: output number and the places (i, j), j <= i, of the Hessian where it stands.
    """

    loss: Plan
    all: Plan
    curves: tuple[tuple[int, tuple[tuple[int, int], ...]], ...]


@lru_cache(maxsize=64)
def compile_formula(
    text: str, parameters: tuple[Parameter, ...], centring: tuple[tuple[str, str], ...] = ()
) -> Compiled:
    """The formula `text` of these parameters; `centring`: see `FormulaLaw`."""
    formula = parse_formula(text)
    graph = formula.graph
    coordinates = []
    values: dict[Node, Node] = {}
    for parameter in parameters:
        symbol = formula.parameters[parameter.name]
        if parameter.role == "amplitude":
            log = graph.symbol(f"log {parameter.name}", PARAMETER)
            values[symbol] = graph.exp(log)
            coordinates.append(log)
        else:
            coordinates.append(symbol)
    given = dict(centring)
    offsets: dict[int, Node] = {}
    factors: dict[int, Node] = {}
    rest = formula.frame
    for i, parameter in enumerate(parameters):
        if parameter.role != "amplitude" or math.isfinite(parameter.high):
            continue
        symbol = formula.parameters[parameter.name]
        factors[i] = graph.substitute(graph.derivative(formula.frame, symbol), values)
        factor = graph.derivative(formula.loss, symbol)
        if parameter.name in given:
            factor = parse_formula(given[parameter.name], graph=graph).loss
        offsets[i] = graph.substitute(graph.log_abs(factor), values)
        rest = graph.substitute(rest, {symbol: graph.zero})
    return Compiled(
        parameters=parameters,
        formula=formula,
        coordinates=tuple(coordinates),
        loss=graph.substitute(formula.loss, values),
        offsets=offsets,
        factors=factors,
        rest=graph.substitute(rest, values),
        definitions={s: graph.substitute(b, values) for s, b in formula.definitions.items()},
    )
