"""Algebra of formulas: a graph of shared nodes, simplified as it grows, differentiated exactly.

Every node is made once (two equal expressions are one object), so that a law and all its first and
second derivatives share what they have in common. A power with a parameter in the exponent becomes
exp(exponent log(base)), products of exponentials become the exponential of a sum, and what depends
on data alone is kept apart from what depends on parameters alone: the evaluation then touches the
full (problems x observations) block as rarely as a kernel written by hand.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from enum import Enum

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

# What a node depends on: a sum of these.
CONSTANT, DATA, PARAMETER, MIXED = 0, 1, 2, 3


class Op(Enum):
    """What a node does with its arguments."""

    CONST = "const"  # numbers[0]
    SYMBOL = "symbol"
    SUM = "sum"  # numbers[0] + numbers[1] args[0] + numbers[2] args[1] + ...
    PRODUCT = "product"  # args[0]^numbers[0] args[1]^numbers[1] ...
    EXP = "exp"
    LOG = "log"
    MIN = "min"
    MAX = "max"
    SELECT = "select"  # args[2] where args[0] <= args[1], else args[3]


class Node:
    """One expression. Made by a `Graph` only; equal expressions of a graph are the same object."""

    __slots__ = ("args", "index", "kind", "name", "numbers", "op", "positive")

    def __init__(
        self,
        index: int,
        op: Op,
        args: tuple[Node, ...],
        numbers: tuple[float, ...],
        name: str,
        kind: int,
        positive: bool,
    ) -> None:
        self.index = index
        self.op = op
        self.args = args
        self.numbers = numbers
        self.name = name
        self.kind = kind
        self.positive = positive  # surely above 0, whatever the symbols

    def __repr__(self) -> str:
        if self.op is Op.CONST:
            return f"{self.numbers[0]:g}"
        if self.op is Op.SYMBOL:
            return self.name
        if self.op is Op.SUM:
            head = [f"{self.numbers[0]:g}"] if self.numbers[0] else []
            pairs = zip(self.args, self.numbers[1:], strict=True)
            return "(" + " + ".join(head + [f"{c:g}*{a!r}" for a, c in pairs]) + ")"
        if self.op is Op.PRODUCT:
            pairs = zip(self.args, self.numbers, strict=True)
            return "*".join(f"{a!r}^{p:g}" for a, p in pairs)
        return f"{self.op.value}({', '.join(map(repr, self.args))})"


class Graph:
    """Makes nodes, and keeps each once."""

    def __init__(self) -> None:
        self._nodes: dict[tuple[object, ...], Node] = {}
        self._derivatives: dict[tuple[int, int], Node] = {}
        self.zero = self.const(0.0)
        self.one = self.const(1.0)

    def _make(
        self,
        op: Op,
        args: tuple[Node, ...] = (),
        numbers: tuple[float, ...] = (),
        name: str = "",
        *,
        kind: int = 0,
        positive: bool = False,
    ) -> Node:
        key = (op, tuple(a.index for a in args), numbers, name)
        node = self._nodes.get(key)
        if node is None:
            for a in args:
                kind |= a.kind
            node = Node(len(self._nodes), op, args, numbers, name, kind, positive)
            self._nodes[key] = node
        return node

    def const(self, value: float) -> Node:
        """A number; one that is not finite raises OverflowError."""
        value = float(value)
        if not math.isfinite(value):
            raise OverflowError("a number is not finite")
        return self._make(Op.CONST, numbers=(value,), positive=value > 0)

    def symbol(self, name: str, kind: int) -> Node:
        """A symbol that stands for data (DATA) or a parameter (PARAMETER)."""
        return self._make(Op.SYMBOL, name=name, kind=kind)

    # Sums ------------------------------------------------------------------------------------

    def add(self, *nodes: Node) -> Node:
        """Sum of nodes."""
        return self.linear([(n, 1.0) for n in nodes])

    def scale(self, node: Node, factor: float) -> Node:
        """factor x node."""
        return self.linear([(node, factor)])

    def linear(self, terms: Iterable[tuple[Node, float]], constant: float = 0.0) -> Node:
        """constant + sum of coefficient x node, with like terms collected."""
        found: dict[Node, float] = {}
        for node, c in terms:
            if node.op is Op.CONST:
                constant += c * node.numbers[0]
            elif node.op is Op.SUM:
                constant += c * node.numbers[0]
                for inner, k in zip(node.args, node.numbers[1:], strict=True):
                    found[inner] = found.get(inner, 0.0) + c * k
            else:
                found[node] = found.get(node, 0.0) + c
        found = self._factored({n: c for n, c in found.items() if c != 0.0})
        constant = self.const(constant).numbers[0]
        if not found:
            return self.const(constant)
        args = tuple(sorted(found, key=lambda n: n.index))
        coefficients = tuple(found[a] for a in args)
        if not all(map(math.isfinite, coefficients)):
            raise OverflowError("a number is not finite")
        if constant == 0.0 and coefficients == (1.0,):
            return args[0]
        positive = (
            constant >= 0 and all(c > 0 for c in coefficients) and all(a.positive for a in args)
        )
        return self._make(Op.SUM, args, (constant, *coefficients), positive=positive)

    def _factored(self, terms: dict[Node, float]) -> dict[Node, float]:
        """p x + p y + 3 p to p (x + y + 3), for p of parameters and x, y of data alone.

        One product then runs over the block instead of three, and p (log N - centre) loses no
        digits to cancellation.
        """
        groups: dict[Node, list[tuple[Node, Node, float]]] = {}
        for node, c in terms.items():
            if node.kind & PARAMETER:
                head, tail, rest = self.split(node)
                if rest is self.one:
                    groups.setdefault(head, []).append((node, tail, c))
        for head, members in groups.items():
            if len(members) < 2:
                continue
            for node, _, _ in members:
                del terms[node]
            product = self.mul(head, self.linear([(tail, c) for _, tail, c in members]))
            # A product may come back with a number in front, or vanish.
            if product.op is Op.SUM:
                pairs = zip(product.args, product.numbers[1:], strict=True)
            else:
                pairs = zip((product,), (1.0,), strict=True)
            for node, c in pairs:
                if node is not self.zero:
                    terms[node] = terms.get(node, 0.0) + c
        return terms

    def split(self, node: Node) -> tuple[Node, Node, Node]:
        """Factors of a product that hold parameters alone, data alone, and both."""
        factors = (
            zip(node.args, node.numbers, strict=True) if node.op is Op.PRODUCT else [(node, 1.0)]
        )
        parts: dict[int, list[tuple[Node, float]]] = {PARAMETER: [], DATA: [], MIXED: []}
        for factor, power in factors:
            parts[factor.kind].append((factor, power))
        heads = [self._keep(parts[k]) for k in (PARAMETER, DATA, MIXED)]
        return heads[0], heads[1], heads[2]

    def _keep(self, factors: list[tuple[Node, float]]) -> Node:
        """A product of factors that are in simplest form already."""
        if not factors:
            return self.one
        if len(factors) == 1 and factors[0][1] == 1.0:
            return factors[0][0]
        factors = sorted(factors, key=lambda f: f[0].index)
        args = tuple(a for a, _ in factors)
        positive = all(a.positive for a in args)
        return self._make(Op.PRODUCT, args, tuple(p for _, p in factors), positive=positive)

    # Products --------------------------------------------------------------------------------

    def mul(self, *nodes: Node) -> Node:
        """Product of nodes."""
        return self._product([(n, 1.0) for n in nodes])

    def raised(self, node: Node, power: float) -> Node:
        """node^power for a number."""
        return self.one if power == 0.0 else self._product([(node, power)])

    def power(self, base: Node, exponent: Node) -> Node:
        """base^exponent. With a parameter or data in the exponent, the base must be positive."""
        if exponent.op is Op.CONST:
            return self.raised(base, exponent.numbers[0])
        return self.exp(self.mul(exponent, self.log(base)))

    def _product(self, factors: Iterable[tuple[Node, float]]) -> Node:
        number = 1.0
        bases: dict[Node, float] = {}
        exponents: list[tuple[Node, float]] = []
        waiting = list(factors)
        while waiting:
            node, p = waiting.pop()
            whole = p == int(p) if math.isfinite(p) else False
            if node.op is Op.CONST:
                value = node.numbers[0]
                if value < 0 and not whole:
                    raise ValueError(f"{value:g} to the power of {p:g}")
                number *= value**p
            elif node.op is Op.EXP:
                exponents.append((node.args[0], p))
            elif node.op is Op.PRODUCT and (whole or node.positive):
                waiting += [(a, q * p) for a, q in zip(node.args, node.numbers, strict=True)]
            elif (
                node.op is Op.SUM
                and len(node.args) == 1
                and node.numbers[0] == 0.0
                and (whole or node.numbers[1] > 0)
            ):
                number *= node.numbers[1] ** p
                waiting.append((node.args[0], p))
            else:
                bases[node] = bases.get(node, 0.0) + p
        if number == 0.0:
            return self.zero
        if exponents:
            power = self.exp(self.linear(exponents))
            if power.op is Op.CONST:
                number *= power.numbers[0]
            elif power.op is Op.EXP:
                bases[power] = 1.0
            else:  # logs came out of the exponent
                rest = [(b, p) for b, p in bases.items() if p != 0.0]
                return self.scale(self._merge(power, rest), number)
        return self.scale(self._keep([(b, p) for b, p in bases.items() if p != 0.0]), number)

    def _merge(self, power: Node, factors: list[tuple[Node, float]]) -> Node:
        """power x factors, where power is a product that came out of an exponential."""
        found = dict(factors)
        number = 1.0
        if power.op is Op.SUM and len(power.args) == 1 and power.numbers[0] == 0.0:
            number, power = power.numbers[1], power.args[0]
        inner = (
            zip(power.args, power.numbers, strict=True)
            if power.op is Op.PRODUCT
            else [(power, 1.0)]
        )
        for node, p in inner:
            found[node] = found.get(node, 0.0) + p
        return self.scale(self._keep([(b, p) for b, p in found.items() if p != 0.0]), number)

    # Functions -------------------------------------------------------------------------------

    def exp(self, node: Node) -> Node:
        """e to the power of a node."""
        if node.op is Op.CONST:
            return self.const(math.exp(node.numbers[0]))
        if node.op is Op.LOG:
            return node.args[0]
        if node.op is Op.SUM:
            pairs = list(zip(node.args, node.numbers[1:], strict=True))
            logs = [(a.args[0], c) for a, c in pairs if a.op is Op.LOG]
            if logs:
                rest = [(a, c) for a, c in pairs if a.op is not Op.LOG]
                return self._product([*logs, (self.exp(self.linear(rest, node.numbers[0])), 1.0)])
        return self._make(Op.EXP, (node,), positive=True)

    def log(self, node: Node) -> Node:
        """Natural logarithm; factors that are surely positive come out of it."""
        if node.op is Op.CONST:
            return self.const(math.log(node.numbers[0]))
        if node.op is Op.EXP:
            return node.args[0]
        if node.op is Op.SUM and len(node.args) == 1 and node.numbers[0] == 0.0:
            if node.numbers[1] > 0:
                return self.add(self.const(math.log(node.numbers[1])), self.log(node.args[0]))
        elif node.op is Op.PRODUCT:
            pairs = list(zip(node.args, node.numbers, strict=True))
            out = [(self.log(a), p) for a, p in pairs if a.positive]
            if out:
                rest = self._keep([(a, p) for a, p in pairs if not a.positive])
                return self.linear([*out, (self.log(rest), 1.0)])
        return self._make(Op.LOG, (node,))

    def log_abs(self, node: Node) -> Node:
        """log |node|."""
        if node.op is Op.CONST:
            return self.const(math.log(abs(node.numbers[0])))
        if node.op is Op.PRODUCT:
            pairs = zip(node.args, node.numbers, strict=True)
            return self.linear([(self.log_abs(a), p) for a, p in pairs])
        if node.op is Op.SUM and len(node.args) == 1 and node.numbers[0] == 0.0:
            return self.linear([(self.log_abs(node.args[0]), 1.0)], math.log(abs(node.numbers[1])))
        if node.positive:
            return self.log(node)
        return self.scale(self._make(Op.LOG, (self.mul(node, node),)), 0.5)

    def minimum(self, a: Node, b: Node) -> Node:
        """The lesser of two nodes."""
        return self._extreme(Op.MIN, a, b)

    def maximum(self, a: Node, b: Node) -> Node:
        """The greater of two nodes."""
        return self._extreme(Op.MAX, a, b)

    def _extreme(self, op: Op, a: Node, b: Node) -> Node:
        if a is b:
            return a
        if a.op is Op.CONST and b.op is Op.CONST:
            choose = min if op is Op.MIN else max
            return self.const(choose(a.numbers[0], b.numbers[0]))
        logs = [
            n.args[0]
            if n.op is Op.EXP
            else self.const(math.log(n.numbers[0]))
            if n.op is Op.CONST and n.positive
            else None
            for n in (a, b)
        ]
        if logs[0] is not None and logs[1] is not None:
            return self.exp(self._extreme(op, logs[0], logs[1]))
        a, b = sorted((a, b), key=lambda n: n.index)
        positive = a.positive and b.positive if op is Op.MIN else a.positive or b.positive
        return self._make(op, (a, b), positive=positive)

    def select(self, a: Node, b: Node, then: Node, other: Node) -> Node:
        """`then` where a <= b, else `other`."""
        if then is other:
            return then
        if a.op is Op.CONST and b.op is Op.CONST:
            return then if a.numbers[0] <= b.numbers[0] else other
        positive = then.positive and other.positive
        return self._make(Op.SELECT, (a, b, then, other), positive=positive)

    # Calculus --------------------------------------------------------------------------------

    def derivative(self, node: Node, symbol: Node) -> Node:
        """Derivative of a node by a symbol. Of min and max, that of the argument that rules."""
        if node is symbol:
            return self.one
        if not node.args:
            return self.zero
        key = (node.index, symbol.index)
        known = self._derivatives.get(key)
        if known is None:
            known = self._derivatives[key] = self._derivative(node, symbol)
        return known

    def _derivative(self, node: Node, symbol: Node) -> Node:
        inner = [self.derivative(a, symbol) for a in node.args]
        if node.op is Op.SUM:
            return self.linear(list(zip(inner, node.numbers[1:], strict=True)))
        if node.op is Op.EXP:
            return self.mul(node, inner[0])
        if node.op is Op.LOG:
            return self.mul(inner[0], self.raised(node.args[0], -1.0))
        if node.op is Op.PRODUCT:
            terms = []
            pairs = list(zip(node.args, node.numbers, strict=True))
            for i, ((base, p), slope) in enumerate(zip(pairs, inner, strict=True)):
                if slope is not self.zero:
                    others = [f for j, f in enumerate(pairs) if j != i]
                    own = [(base, p - 1.0)] if p != 1.0 else []
                    terms.append((self._product([*others, *own, (slope, 1.0)]), p))
            return self.linear(terms)
        a, b = node.args[:2]
        if node.op is Op.MIN:
            return self.select(a, b, inner[0], inner[1])
        if node.op is Op.MAX:
            return self.select(a, b, inner[1], inner[0])
        return self.select(a, b, inner[2], inner[3])

    def substitute(self, node: Node, values: Mapping[Node, Node]) -> Node:
        """The node with symbols replaced; what is put in is not searched again."""
        done = dict(values)

        def walk(n: Node) -> Node:
            if n not in done:
                done[n] = self._rebuild(n, [walk(a) for a in n.args]) if n.args else n
            return done[n]

        return walk(node)

    def _rebuild(self, node: Node, args: list[Node]) -> Node:
        if node.op is Op.SUM:
            return self.linear(list(zip(args, node.numbers[1:], strict=True)), node.numbers[0])
        if node.op is Op.PRODUCT:
            return self._product(list(zip(args, node.numbers, strict=True)))
        if node.op is Op.EXP:
            return self.exp(args[0])
        if node.op is Op.LOG:
            return self.log(args[0])
        if node.op is Op.SELECT:
            return self.select(*args)
        return self._extreme(node.op, args[0], args[1])


def symbols(node: Node) -> frozenset[Node]:
    """The symbols that a node depends on."""
    return frozenset(n for n in order([node]) if n.op is Op.SYMBOL)


def order(nodes: Iterable[Node]) -> list[Node]:
    """The nodes and all below them, arguments first."""
    found: dict[Node, None] = {}

    def walk(n: Node) -> None:
        if n not in found:
            for a in n.args:
                walk(a)
            found[n] = None

    for node in nodes:
        walk(node)
    return list(found)


def evaluate(nodes: Iterable[Node], values: Mapping[Node, FloatArray]) -> list[FloatArray]:
    """Values of nodes for arrays of symbols, which broadcast together. Invalid values are NaN."""
    nodes = list(nodes)
    known: dict[Node, FloatArray] = {n: np.asarray(v, dtype=np.float64) for n, v in values.items()}
    with np.errstate(all="ignore"):
        for node in order(nodes):
            if node not in known:
                known[node] = _value(node, [known[a] for a in node.args])
    return [known[n] for n in nodes]


def _value(node: Node, args: list[FloatArray]) -> FloatArray:
    if node.op is Op.CONST:
        return np.asarray(node.numbers[0])
    if node.op is Op.SUM:
        total = np.asarray(node.numbers[0])
        for c, a in zip(node.numbers[1:], args, strict=True):
            total = total + c * a
        return total
    if node.op is Op.PRODUCT:
        product = np.asarray(1.0)
        for p, a in zip(node.numbers, args, strict=True):
            product = product * (a if p == 1.0 else a**p)
        return product
    if node.op is Op.SELECT:
        return np.where(args[0] <= args[1], args[2], args[3])
    if node.op is Op.SYMBOL:
        raise KeyError(node.name)
    functions = {Op.EXP: np.exp, Op.LOG: np.log, Op.MIN: np.minimum, Op.MAX: np.maximum}
    return np.asarray(functions[node.op](*args))
