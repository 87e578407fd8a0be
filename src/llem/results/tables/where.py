"""Which rows are wanted: `params>1e6 and status=completed`, parsed here and never run as code.

    expression  = term {"or" term}            term   = factor {"and" factor}
    factor      = "not" factor | "(" expression ")" | field operator value
    operator    = "=" | "==" | "!=" | "<" | "<=" | ">" | ">="  | "~" (text that holds the value)
    value       = a number (1e6, 10M, 2.5B) | a word | "some text" | unknown

A value that is not known (NaN, empty) fulfils no comparison but `= unknown`.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from llem.errors import Fault, InputError, did_you_mean

Row = Mapping[str, Any]
Test = Callable[[Row], bool]

UNKNOWN = "unknown"
NUMBERS = ("int", "float")
FACTORS = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12}
_NUMBER = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)([kKMGBT]?)")
_TOKEN = re.compile(
    r"\s*(?:(?P<sign>==|!=|<=|>=|=|<|>|~|\(|\))"
    r"|(?P<quoted>\"[^\"]*\"|'[^']*')"
    r"|(?P<word>[^\s=!<>~()\"']+))"
)
_COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq, "==": operator.eq, "!=": operator.ne, "<": operator.lt,
    "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
# A deeper expression is no question of a person's.
DEEPEST = 50


def is_known(value: Any) -> bool:
    """Whether a row's value says anything."""
    return (
        value is not None and value != "" and not (isinstance(value, float) and math.isnan(value))
    )


def known_or_none(value: Any) -> Any:
    """What is not known compares equal to itself as None: NaN does not."""
    return value if is_known(value) else None


def parse_where(
    text: str, kinds: Mapping[str, str], *, words: Mapping[str, tuple[str, ...]] | None = None
) -> Test:
    """A test of one row. `kinds` are the fields: int, float or str; `words` what some texts can be.

    Raises InputError with every unknown field and impossible comparison at once.
    """
    parser = _Parser(text, kinds, words or {})
    found = parser.expression(0)
    if parser.faults:
        raise InputError("--where", parser.faults)
    if parser.at < len(parser.tokens):
        parser.stop(f"expected `and` or `or`, found {parser.tokens[parser.at][1]!r}")
    return found


class _Parser:
    def __init__(
        self, text: str, kinds: Mapping[str, str], words: Mapping[str, tuple[str, ...]]
    ) -> None:
        self.text, self.kinds, self.words = text, kinds, words
        self.faults: list[Fault] = []
        self.tokens: list[tuple[str, str]] = []
        self.at = 0
        place = 0
        while text[place:].strip():
            match = _TOKEN.match(text, place)
            if match is None:
                self.stop(f"{text[place:].strip()[:20]!r} is not understood")
            self.tokens.append((str(match.lastgroup), match[match.lastgroup or 0]))
            place = match.end()

    def stop(self, message: str) -> NoReturn:
        raise InputError("--where", [*self.faults, Fault(self.text.strip() or "''", message)])

    def peek(self) -> str:
        kind, word = self.tokens[self.at] if self.at < len(self.tokens) else ("", "")
        return "" if kind == "quoted" else word

    def expression(self, depth: int) -> Test:
        if depth > DEEPEST:
            self.stop(f"more than {DEEPEST} brackets in one another")
        tests = [self.term(depth)]
        while self.peek().lower() == "or":
            self.at += 1
            tests.append(self.term(depth))
        return tests[0] if len(tests) == 1 else lambda row: any(test(row) for test in tests)

    def term(self, depth: int) -> Test:
        tests = [self.factor(depth)]
        while self.peek().lower() == "and":
            self.at += 1
            tests.append(self.factor(depth))
        return tests[0] if len(tests) == 1 else lambda row: all(test(row) for test in tests)

    def factor(self, depth: int) -> Test:
        if self.peek().lower() == "not":
            self.at += 1
            test = self.factor(depth + 1) if depth < DEEPEST else self.expression(depth + 1)
            return lambda row: not test(row)
        if self.peek() == "(":
            self.at += 1
            found = self.expression(depth + 1)
            if self.peek() != ")":
                self.stop("a bracket is not closed")
            self.at += 1
            return found
        return self.comparison()

    def comparison(self) -> Test:
        if self.at >= len(self.tokens):
            self.stop("expected a field, such as params>1e6")
        kind, field = self.tokens[self.at]
        if kind != "word":
            self.stop(f"expected a field, found {field!r}")
        self.at += 1
        sign = self.peek()
        if sign not in (*_COMPARE, "~"):
            self.stop(f"expected =, !=, <, <=, >, >= or ~ after {field!r}")
        self.at += 1
        if self.at >= len(self.tokens) or self.tokens[self.at][0] == "sign":
            self.stop(f"expected a value after {field}{sign}")
        kind, value = self.tokens[self.at]
        self.at += 1
        return self.made(field, sign, value[1:-1] if kind == "quoted" else value, kind == "quoted")

    def made(self, field: str, sign: str, value: str, quoted: bool) -> Test:
        of = self.kinds.get(field)
        if of is None:
            near = did_you_mean(field, list(self.kinds))
            self.faults.append(Fault(field, "there is no such field", near))
            return lambda row: False
        if value == UNKNOWN and not quoted and sign in ("=", "==", "!="):
            wanted = sign == "!="
            return lambda row: is_known(row[field]) == wanted
        if of in NUMBERS:
            return self.of_number(field, sign, value)
        if sign == "~":
            return lambda row: value in str(row[field] or "")
        if sign not in ("=", "==", "!="):
            self.faults.append(Fault(field, f"is text, which has no {sign}", "use =, != or ~"))
        known = self.words.get(field)
        if known and value not in known:
            hint = did_you_mean(value, known) or f"one of {', '.join(known)}"
            self.faults.append(Fault(field, f"is never {value!r}", hint))
        compare = _COMPARE.get(sign) or _COMPARE["="]
        return lambda row: is_known(row[field]) and bool(compare(str(row[field]), value))

    def of_number(self, field: str, sign: str, value: str) -> Test:
        match = _NUMBER.fullmatch(value)
        if match is None:
            self.faults.append(Fault(field, f"is a number, {value!r} is none"))
            return lambda row: False
        if sign == "~":
            self.faults.append(Fault(field, "is a number, which has no ~", "use =, <, > ..."))
            return lambda row: False
        number, compare = float(match[1]) * FACTORS[match[2]], _COMPARE[sign]
        return lambda row: is_known(row[field]) and bool(compare(float(row[field]), number))
