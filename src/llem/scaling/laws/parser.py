"""From the text of a formula to its graph. Nothing is ever executed: only known syntax is read.

    [L(N, D) =] EXPRESSION [where CLAUSE; CLAUSE; ...]

with + - * / ^ (or **), parentheses, numbers, exp, log, sqrt, min, max, the variables N, D, C and U,
and names: every other name is a parameter, unless a clause defines it. A clause is one of

    NAME = EXPRESSION        a definition; with a number, it holds a parameter fixed
    NAME in [LOW, HIGH]      the soft bounds of a parameter
    log NAME in [LOW, HIGH]  the same for a positive one, which is searched by its logarithm
"""

from __future__ import annotations

import ast
import re
import warnings
from dataclasses import dataclass

from llem.errors import Fault, did_you_mean
from llem.scaling.errors import ScalingError
from llem.scaling.laws.expression import DATA, PARAMETER, Graph, Node, symbols

# What a formula may read: size, tokens, compute, unique tokens.
VARIABLES = ("N", "D", "C", "U")
FUNCTIONS = {"exp": 1, "log": 1, "sqrt": 1, "min": 2, "max": 2}  # least number of arguments
MAX_LENGTH = 2000
_HEAD = re.compile(r"\s*L\s*(\([^()]*\))?\s*=(?!=)")
_WHERE = re.compile(r"\bwhere\b")
_DEFINITION = re.compile(r"\s*([^\W\d]\w*)\s*=(?!=)")
_NUMBER = r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*"
_RANGE = re.compile(rf"\s*(log\s+)?([^\W\d]\w*)\s+in\s*\[{_NUMBER},{_NUMBER}\]\s*")


class FormulaError(ScalingError):
    """A formula that cannot be read, and where: `position` is 0-based in `text`."""

    def __init__(self, text: str, position: int, message: str, hint: str | None = None) -> None:
        self.text = text
        self.position = position
        found = text[position : position + 12].strip()
        near = f" at {found!r}" if found else " at its end"
        where = f"position {position + 1}{near}"
        super().__init__(f"formula {text[:60]!r}", [Fault(where, message, hint)])


@dataclass(frozen=True)
class Formula:
    """A formula that was read.

    loss: with definitions put in. frame: with each definition as a symbol; `definitions` says what
    they stand for, each in terms of variables, parameters and those before it. `parameters` are in
    the order of their first appearance.
    """

    graph: Graph
    loss: Node
    frame: Node
    definitions: dict[Node, Node]
    variables: dict[str, Node]
    parameters: dict[str, Node]
    ranges: dict[str, tuple[float, float]]
    positive: frozenset[str]


def parse_formula(text: str, *, graph: Graph | None = None) -> Formula:
    """Read a formula, or raise FormulaError.

    In a `graph` that is given, equal names are the same symbols as in its other formulas.
    """
    if len(text) > MAX_LENGTH:
        raise FormulaError(text, MAX_LENGTH, f"longer than {MAX_LENGTH} characters")
    return _Reader(text, graph or Graph()).read()


def with_clauses(text: str, clauses: list[str]) -> str:
    """The formula with clauses after its own."""
    text = text.strip().rstrip("; ")
    if not clauses:
        return text
    return text + ("; " if _WHERE.search(text) else " where ") + "; ".join(clauses)


class _Reader:
    def __init__(self, text: str, graph: Graph) -> None:
        self.text = text
        self.graph = graph
        self.ranges: dict[str, tuple[int, bool, float, float]] = {}
        self.variables: dict[str, Node] = {}
        self.parameters: dict[str, Node] = {}
        self.bodies: dict[str, tuple[int, ast.expr]] = {}
        self.opaque: dict[str, Node] = {}

    def read(self) -> Formula:
        head = _HEAD.match(self.text)
        start = head.end() if head else 0
        where = _WHERE.search(self.text, start)
        end = where.start() if where else len(self.text)
        main = self._syntax(start, end)
        if where:
            self._clauses(where.end())
        frame = self._build(main)
        # The body of each definition, those that it needs first.
        definitions: dict[Node, Node] = {}
        self._order(definitions)
        for name, (at, _) in self.bodies.items():
            if name not in self.opaque:
                raise FormulaError(self.text, at, f"{name!r} is defined and never used")
        full: dict[Node, Node] = {}
        for symbol, body in definitions.items():
            full[symbol] = self.graph.substitute(body, full)
        loss = self.graph.substitute(frame, full)
        for name, (at, _, low, high) in self.ranges.items():
            if name not in self.parameters:
                hint = did_you_mean(name, list(self.parameters))
                raise FormulaError(self.text, at, f"no parameter is called {name!r}", hint)
            if not low < high:
                raise FormulaError(self.text, at, "the lesser bound comes first")
            if self.ranges[name][1] and low <= 0:
                raise FormulaError(self.text, at, "a positive parameter needs bounds above 0")
        if not self.parameters:
            raise FormulaError(self.text, start, "has no parameter to fit")
        if not self.variables:
            raise FormulaError(
                self.text, start, f"reads none of the variables {', '.join(VARIABLES)}"
            )
        return Formula(
            graph=self.graph,
            loss=loss,
            frame=frame,
            definitions=definitions,
            variables=self.variables,
            parameters=self.parameters,
            ranges={name: (low, high) for name, (_, _, low, high) in self.ranges.items()},
            positive=frozenset(name for name, clause in self.ranges.items() if clause[1]),
        )

    def _order(self, done: dict[Node, Node]) -> None:
        """Build the definitions that are used, in the order of the text."""

        def visit(name: str, above: tuple[str, ...]) -> None:
            symbol = self.opaque[name]
            at, body = self.bodies[name]
            if name in above:
                raise FormulaError(self.text, at, f"{name!r} is defined by itself")
            if symbol in done:
                return
            inner = self._build(body)
            for other in list(self.bodies):
                if self.opaque.get(other) in symbols(inner):
                    visit(other, (*above, name))
            done[symbol] = inner

        # What is used by a definition alone is visited from there.
        for name in [n for n in self.bodies if n in self.opaque]:
            visit(name, ())

    def _clauses(self, start: int) -> None:
        while start < len(self.text):
            end = self.text.find(";", start)
            end = len(self.text) if end < 0 else end
            if not self.text[start:end].strip():
                break
            bounds = _RANGE.fullmatch(self.text, start, end)
            head = bounds or _DEFINITION.match(self.text, start, end)
            if not head:
                raise FormulaError(
                    self.text,
                    start,
                    "expected NAME = EXPRESSION, or NAME in [LOW, HIGH]",
                    "several are parted by ';'",
                )
            group = 2 if bounds else 1
            name, at = head.group(group), head.start(group)
            if name in {*VARIABLES, *FUNCTIONS, *self.bodies, *self.ranges}:
                raise FormulaError(self.text, at, f"{name!r} has a meaning already")
            if bounds:
                low, high = float(bounds.group(3)), float(bounds.group(4))
                self.ranges[name] = (at, bounds.group(1) is not None, low, high)
            else:
                self.bodies[name] = (at, self._syntax(head.end(), end))
            start = end + 1

    def _syntax(self, start: int, end: int) -> ast.expr:
        """Python's syntax tree of a part; columns are shifted to positions of the text."""
        part = self.text[start:end]
        lead = len(part) - len(part.lstrip())
        body = part.strip()
        if not body:
            raise FormulaError(self.text, end, "an expression is missing")
        # `^` is one character where Python's `**` is two; `;` and line ends never reach it.
        python = body.replace("\n", " ").replace("\r", " ").replace("^", "**")
        places: list[int] = []
        for i, character in enumerate(body):
            places += [start + lead + i] * (2 if character == "^" else 1)
        places.append(start + lead + len(body))
        try:
            with warnings.catch_warnings():
                # Of what Python finds odd in numbers and strings, the reader speaks itself.
                warnings.simplefilter("ignore")
                tree = ast.parse(python, mode="eval").body
        except SyntaxError as error:
            # Without a place, the text ended too early.
            at = places[min(error.offset - 1, len(places) - 1) if error.offset else -1]
            raise FormulaError(self.text, at, "cannot be read") from error
        except (ValueError, RecursionError, MemoryError) as error:
            raise FormulaError(self.text, start, "cannot be read") from error
        # Python counts columns in bytes of UTF-8.
        column = {}
        count = 0
        for i, character in enumerate(python):
            column[count] = i
            count += len(character.encode())
        for node in ast.walk(tree):
            if isinstance(node, ast.expr):
                node.col_offset = places[column.get(node.col_offset, 0)]
        return tree

    def _fail(self, node: ast.expr, message: str, hint: str | None = None) -> FormulaError:
        return FormulaError(self.text, node.col_offset, message, hint)

    def _build(self, node: ast.expr) -> Node:
        try:
            return self._node(node)
        except RecursionError as error:
            raise self._fail(node, "is nested too deeply") from error

    def _node(self, node: ast.expr) -> Node:
        try:
            if isinstance(node, ast.BinOp):
                return self._binary(node)
            if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.UAdd | ast.USub):
                sign = -1.0 if isinstance(node.op, ast.USub) else 1.0
                return self.graph.scale(self._node(node.operand), sign)
            if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
                if isinstance(node.value, bool):
                    raise self._fail(node, "is not a number")
                return self.graph.const(float(node.value))
            if isinstance(node, ast.Name):
                return self._name(node)
            if isinstance(node, ast.Call):
                return self._call(node)
        except (ArithmeticError, ValueError) as error:
            raise self._fail(node, "has no finite value") from error
        raise self._fail(
            node,
            "is not part of a formula",
            f"known: numbers, names, + - * / ^, {', '.join(FUNCTIONS)}",
        )

    def _binary(self, node: ast.BinOp) -> Node:
        graph = self.graph
        a, b = self._node(node.left), self._node(node.right)
        if isinstance(node.op, ast.Add):
            return graph.add(a, b)
        if isinstance(node.op, ast.Sub):
            return graph.linear([(a, 1.0), (b, -1.0)])
        if isinstance(node.op, ast.Mult):
            return graph.mul(a, b)
        if isinstance(node.op, ast.Div):
            return graph.mul(a, graph.raised(b, -1.0))
        if isinstance(node.op, ast.Pow):
            return graph.power(a, b)
        raise self._fail(node, "has an operator that no formula knows", "known: + - * / ^")

    def _name(self, node: ast.Name) -> Node:
        name = node.id
        if name in FUNCTIONS:
            raise self._fail(node, f"{name!r} needs an argument", f"as in {name}(N)")
        if name in VARIABLES:
            symbol = self.variables.setdefault(name, self.graph.symbol(name, DATA))
            # Counts are positive, and their logs are what is centred.
            return self.graph.exp(symbol)
        if name in self.bodies:
            return self.opaque.setdefault(name, self.graph.symbol(name, DATA | PARAMETER))
        if name in ("n", "d"):
            raise self._fail(
                node,
                f"{name!r} is neither a variable nor a likely parameter",
                f"did you mean {name.upper()!r}?",
            )
        if name == "L":
            raise self._fail(node, "the loss cannot depend on itself")
        return self.parameters.setdefault(name, self.graph.symbol(name, PARAMETER))

    def _call(self, node: ast.Call) -> Node:
        graph = self.graph
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name not in FUNCTIONS:
            near = {"ln": "log", "power": "^", "pow": "^"}.get(name)
            hint = f"did you mean {near!r}?" if near else did_you_mean(name, list(FUNCTIONS))
            what = f"there is no function {name!r}" if name else "is not a function"
            raise self._fail(node, what, hint or f"known: {', '.join(FUNCTIONS)}")
        least = FUNCTIONS[name]
        count = len(node.args)
        if node.keywords or count < least or (least == 1 and count > 1):
            wanted = "one argument" if least == 1 else "two or more arguments"
            raise self._fail(node, f"{name} takes {wanted}")
        args = [self._node(a) for a in node.args]
        if name == "exp":
            return graph.exp(args[0])
        if name == "log":
            return graph.log(args[0])
        if name == "sqrt":
            return graph.raised(args[0], 0.5)
        total = args[0]
        for a in args[1:]:
            total = graph.minimum(total, a) if name == "min" else graph.maximum(total, a)
        return total
