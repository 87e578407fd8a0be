"""What the library answers with: figures and their intervals, and rows for a notebook."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llem._numerals import brief, format_count, format_times
from llem.campaign import Budget

if TYPE_CHECKING:
    from llem.scaling import Optimum


@dataclass(frozen=True)
class Estimate:
    """A loss, or another figure, and its interval (NaN where there is none)."""

    value: float
    low: float
    high: float
    level: float
    beyond_data: bool = False

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        flag = ", beyond the data" if self.beyond_data else ""
        return f"{self.value:.4g} {interval_text((self.low, self.high))}{flag}"


@dataclass(frozen=True)
class Answer:
    """The best training at a budget: N parameters (`size` at `value`) on D tokens or samples.

    `ci` has an interval of params, tokens and loss each. `extrapolation` is the compute over that
    of the largest run; `beyond_data` says that it is more than that. `optimum` has all the rest
    (energy, GPU-hours, money).
    """

    budget: Budget
    flops: float
    params: float
    tokens: float
    loss: float
    unit: str
    size: str
    value: int | None
    ci: Mapping[str, tuple[float, float]]
    extrapolation: float
    beyond_data: bool
    warnings: tuple[str, ...]
    optimum: Optimum = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        return {
            "budget": str(self.budget), "flops": self.flops, "params": self.params,
            "tokens": self.tokens, "loss": self.loss, "unit": self.unit, "size": self.size,
            "value": self.value, "ci": {k: list(v) for k, v in self.ci.items()},
            "extrapolation": self.extrapolation, "beyond_data": self.beyond_data,
            "warnings": list(self.warnings),
        }  # fmt: skip

    def __str__(self) -> str:
        if not math.isfinite(self.params):
            return f"{self.budget}: no answer: {'; '.join(self.warnings) or 'not known'}"
        size = "" if self.value is None else f" ({self.size} about {self.value})"
        text = (
            f"{self.budget}: {format_count(self.params)} parameters "
            f"{interval_text(self.ci['params'])}"
            f"{size} on {format_count(self.tokens)} {self.unit}s "
            f"{interval_text(self.ci['tokens'])}, "
            f"loss {self.loss:.4g} {interval_text(self.ci['loss'])}"
        )
        if self.beyond_data:
            text += f"; {format_times(self.extrapolation)} times the largest run: extrapolated"
        return text

    __repr__ = __str__


@dataclass(frozen=True)
class FittedLaw:
    """The law: its name, its formula, each parameter with its interval at `level`."""

    name: str
    formula: str
    params: Mapping[str, float]
    ci: Mapping[str, tuple[float, float]]
    level: float

    def __str__(self) -> str:
        told = ", ".join(
            f"{n} = {v:.4g} {interval_text(self.ci[n])}" for n, v in self.params.items()
        )
        return f"{self.formula} with {told}"

    __repr__ = __str__


class Rows(list[dict[str, Any]]):
    """Rows of a table; as text it is Markdown, and in a notebook a table."""

    def to_markdown(self) -> str:
        if not self:
            return ""
        names = list(self[0])
        lines = [f"| {' | '.join(names)} |", f"|{'|'.join('---' for _ in names)}|"]
        lines += [f"| {' | '.join(_cell(row[n]) for n in names)} |" for row in self]
        return "\n".join(lines)

    __str__ = to_markdown

    def _repr_html_(self) -> str:
        if not self:
            return ""
        head = "".join(f"<th>{html.escape(n)}</th>" for n in self[0])
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(_cell(v))}</td>" for v in row.values()) + "</tr>"
            for row in self
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def interval_text(values: tuple[float, float]) -> str:
    if not all(map(math.isfinite, values)):
        return "[no interval]"
    return f"[{brief(values[0], 3)}, {brief(values[1], 3)}]"


def _cell(value: Any) -> str:
    if isinstance(value, tuple):
        return interval_text(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)
