"""A formula and its derivatives as one list of numpy operations over (problems x observations).

What depends on data alone is computed once when a law is bound, what depends on parameters alone
has one column (k, 1), and only the rest runs over the whole block (k, n). A block that is needed
no more is overwritten in place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from llem.scaling.laws.expression import CONSTANT, DATA, MIXED, Graph, Node, Op, evaluate

FloatArray = NDArray[np.float64]
Function = Callable[..., FloatArray]


def _select(a: FloatArray, b: FloatArray, then: FloatArray, other: FloatArray) -> FloatArray:
    return np.where(a <= b, then, other)


FUNCTIONS: dict[Op, Function] = {
    Op.EXP: np.exp,
    Op.LOG: np.log,
    Op.MIN: np.minimum,
    Op.MAX: np.maximum,
    Op.SELECT: _select,
}


@dataclass(frozen=True)
class Step:
    """values[target] = function(*values[sources]), written over values[over] where that is >= 0."""

    function: Function
    target: int
    sources: tuple[int, ...]
    over: int = -1


@dataclass
class Plan:
    """Compiled evaluation of `outputs`. Registers: constants, data, parameters, then the rest."""

    graph: Graph
    outputs: tuple[Node, ...]
    parameters: tuple[Node, ...]
    steps: list[Step] = field(default_factory=list)
    data: dict[int, Node] = field(default_factory=dict)
    results: tuple[int, ...] = ()
    _constants: dict[int, float] = field(default_factory=dict)
    _kinds: list[int] = field(default_factory=list)
    _known: dict[Node, int] = field(default_factory=dict)
    _emitted: dict[tuple[Function, tuple[int, ...]], int] = field(default_factory=dict)
    _powers: dict[tuple[Node, float], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._first = tuple(self._register(p, p.kind) for p in self.parameters)
        self.results = tuple(self._lower(n) for n in self.outputs)
        self._overwrite()

    @property
    def full(self) -> tuple[bool, ...]:
        """Whether each output has a value per problem and row."""
        return tuple(self._kinds[r] == MIXED for r in self.results)

    def bind(self, values: Mapping[Node, FloatArray]) -> list[FloatArray | float]:
        """Registers with the constants and what depends on data alone, values (n,) per symbol."""
        registers: list[FloatArray | float] = [0.0] * len(self._kinds)
        for r, number in self._constants.items():
            registers[r] = number
        slots = list(self.data)
        for r, column in zip(slots, evaluate([self.data[r] for r in slots], values), strict=True):
            registers[r] = column
        return registers

    def rows(
        self, registers: Sequence[FloatArray | float], part: slice
    ) -> list[FloatArray | float]:
        """The registers for some of the rows."""
        out = list(registers)
        for r in self.data:
            column = out[r]
            if isinstance(column, np.ndarray) and column.ndim:
                out[r] = column[part]
        return out

    def run(
        self, registers: list[FloatArray | float], columns: Sequence[FloatArray]
    ) -> list[FloatArray]:
        """Values of the outputs; `registers` is used up. columns: (k, 1) for each parameter."""
        for r, column in zip(self._first, columns, strict=True):
            registers[r] = column
        for step in self.steps:
            args = [registers[s] for s in step.sources]
            if step.over < 0:
                registers[step.target] = step.function(*args)
            else:
                registers[step.target] = step.function(*args, out=registers[step.over])
        return [np.asarray(registers[r]) for r in self.results]

    # Compilation -----------------------------------------------------------------------------

    def _register(self, node: Node | None, kind: int) -> int:
        self._kinds.append(kind)
        index = len(self._kinds) - 1
        if node is not None:
            self._known[node] = index
        return index

    def _emit(self, function: Function, *sources: int) -> int:
        """A step, or the register of an equal one: products that begin alike share that part."""
        if function in (np.add, np.multiply):
            sources = tuple(sorted(sources))
        known = self._emitted.get((function, sources))
        if known is not None:
            return known
        kind = 0
        for s in sources:
            kind |= self._kinds[s]
        target = self._register(None, kind)
        self.steps.append(Step(function, target, sources))
        self._emitted[function, sources] = target
        return target

    def _lower(self, node: Node) -> int:
        known = self._known.get(node)
        if known is not None:
            return known
        if node.kind == CONSTANT:
            register = self._register(node, CONSTANT)
            self._constants[register] = node.numbers[0]
            return register
        if node.kind == DATA:
            register = self._register(node, DATA)
            self.data[register] = node
            return register
        if node.op is Op.SUM:
            register = self._lower_sum(node)
        elif node.op is Op.PRODUCT:
            register = self._lower_product(node, 1.0)
        else:
            register = self._emit(FUNCTIONS[node.op], *(self._lower(a) for a in node.args))
        self._known[node] = register
        return register

    def _lower_sum(self, node: Node) -> int:
        """Constants and data as one column, then parameters, then the block."""
        constant = node.numbers[0]
        terms = list(zip(node.args, node.numbers[1:], strict=True))
        data = [(a, c) for a, c in terms if a.kind == DATA]
        small = [(a, c) for a, c in terms if a.kind not in (DATA, MIXED)]
        full = [(a, c) for a, c in terms if a.kind == MIXED]
        heads: list[int] = []
        if data:
            heads.append(self._lower(self.graph.linear(data, constant)))
        if small:
            rest = 0.0 if data else constant
            if full or data:
                heads.append(self._lower(self.graph.linear(small, rest)))
            else:
                heads.append(self._chain(small, rest))
        elif not data and constant != 0.0:
            heads.append(self._lower(self.graph.const(constant)))
        if not full:
            return heads[0] if len(heads) == 1 else self._emit(np.add, *heads)
        # The sums of full blocks first: they may then be overwritten in place.
        full.sort(key=lambda t: t[1] < 0)
        total = -1
        for a, c in full:
            if total < 0 and c < 0 and heads:
                total = heads.pop()
            term, sign = self._term(a, c)
            if total < 0:
                total = term if sign > 0 else self._emit(np.negative, term)
            else:
                total = self._emit(np.add if sign > 0 else np.subtract, total, term)
        for head in heads:
            total = self._emit(np.add, total, head)
        return total

    def _chain(self, terms: list[tuple[Node, float]], constant: float) -> int:
        total = self._lower(self.graph.const(constant)) if constant != 0.0 else -1
        for a, c in sorted(terms, key=lambda t: t[1] < 0):
            term, sign = self._term(a, c)
            if total < 0:
                total = term if sign > 0 else self._emit(np.negative, term)
            else:
                total = self._emit(np.add if sign > 0 else np.subtract, total, term)
        return total

    def _term(self, node: Node, coefficient: float) -> tuple[int, int]:
        """Register and sign of coefficient x node."""
        sign = 1 if coefficient > 0 else -1
        size = abs(coefficient)
        if size == 1.0:
            return self._lower(node), sign
        if node.op is Op.PRODUCT:
            return self._lower_product(node, size), sign
        number = self._lower(self.graph.const(size))
        return self._emit(np.multiply, number, self._lower(node)), sign

    def _lower_product(self, node: Node, coefficient: float) -> int:
        """Parameters together, data together, then the block; a number goes where it is cheap."""
        head, tail, rest = self.graph.split(node)
        one = self.graph.one
        if coefficient != 1.0 and tail is not one:
            tail = self.graph.scale(tail, coefficient)
            coefficient = 1.0
        parts: list[int] = []
        if head is not one:
            parts.append(self._factors(head) if head is node else self._lower(head))
        if coefficient != 1.0:
            number = self._lower(self.graph.const(coefficient))
            parts = [self._emit(np.multiply, number, parts[0])] if parts else [number]
        if rest is not one:
            block = self._factors(rest) if rest is node else self._lower(rest)
            if tail is not one:
                block = self._emit(np.multiply, block, self._lower(tail))
            parts.insert(0, block)
        elif tail is not one:
            parts.insert(0, self._lower(tail))
        total = parts[0]
        for part in parts[1:]:
            total = self._emit(np.multiply, total, part)
        return total

    def _factors(self, node: Node) -> int:
        """Factors that are all of one kind."""
        if node.op is not Op.PRODUCT:
            return self._lower(node)
        total = -1
        for base, p in zip(node.args, node.numbers, strict=True):
            value = self._raised(base, p)
            total = value if total < 0 else self._emit(np.multiply, total, value)
        return total

    def _raised(self, base: Node, power: float) -> int:
        """base^power, each power computed once; whole ones by products, which are fast."""
        if power == 1.0:
            return self._lower(base)
        register = self._powers.get((base, power))
        if register is None:
            if power == -1.0:
                register = self._emit(np.divide, self._lower(self.graph.one), self._lower(base))
            elif abs(power) in (2.0, 3.0, 4.0):
                one = math.copysign(1.0, power)
                first, second = (power - one, one) if abs(power) != 4.0 else (2 * one, 2 * one)
                parts = self._raised(base, first), self._raised(base, second)
                register = self._emit(np.multiply, *parts)
            elif power == 0.5:
                register = self._emit(np.sqrt, self._lower(base))
            else:
                number = self._lower(self.graph.const(power))
                register = self._emit(np.power, self._lower(base), number)
            self._powers[base, power] = register
        return register

    def _overwrite(self) -> None:
        """Let a step write over a block that no later step reads."""
        last: dict[int, int] = {}
        for i, step in enumerate(self.steps):
            for s in step.sources:
                last[s] = i
        kept = set(self.results)
        made = {step.target for step in self.steps}
        for i, step in enumerate(self.steps):
            if step.function is _select or self._kinds[step.target] != MIXED:
                continue
            for s in step.sources:
                if self._kinds[s] == MIXED and last[s] == i and s not in kept and s in made:
                    self.steps[i] = Step(step.function, step.target, step.sources, s)
                    break
