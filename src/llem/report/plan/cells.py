"""What a plan's seeds share, counted once: the cells that its page draws and lists."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llem._numerals import number


@dataclass(frozen=True)
class Cell:
    """A model on a number of tokens: `run` is one of its runs as plan.json has it.

    Costs are of all its seeds; a value that the planner could not say is NaN.
    """

    run: Mapping[str, Any]
    run_ids: tuple[str, ...]

    @property
    def seeds(self) -> int:
        return len(self.run_ids)

    @property
    def level(self) -> int:
        return int(self.run["level"])

    @property
    def params(self) -> float:
        return float(self.run["params"])

    @property
    def tokens(self) -> float:
        return float(self.run["tokens"])

    @property
    def flops_each(self) -> float:
        return number(self.run["flops"])

    @property
    def flops(self) -> float:
        return self.seeds * self.flops_each

    def predicted(self, name: str) -> float:
        """One run's `duration_s`, `gpu_hours`, `energy_j` or `memory_bytes`."""
        return number(self.run["predicted"].get(name))

    @property
    def gpu_hours(self) -> float:
        return self.seeds * self.predicted("gpu_hours")


@dataclass(frozen=True)
class Level:
    """A compute level: its cells, smallest model first, and its place from the cheapest on."""

    place: int
    cells: tuple[Cell, ...]

    @property
    def flops(self) -> float:
        """FLOPs of its largest run."""
        return max(cell.flops_each for cell in self.cells)

    @property
    def runs(self) -> int:
        return sum(cell.seeds for cell in self.cells)


def cells_of(plan: Mapping[str, Any]) -> list[Cell]:
    """The cells of a plan, in its own order.

    Takes plan.json, or the same with `cells` in place of `runs`: one run of each cell, with the
    `run_ids` of all its seeds. That is what a planner of many thousand runs has at hand.
    """
    if plan.get("cells"):
        return [Cell(run, tuple(run["run_ids"])) for run in plan["cells"]]
    found: dict[Any, tuple[Mapping[str, Any], list[str]]] = {}
    for run in plan["runs"]:
        model = run["model"]
        # Models of equal size differ in their shape: the width, or the user's own value.
        key = (run["level"], run["params"], run["tokens"], model.get("width"), model.get("value"))
        if key in found:
            found[key][1].append(run["run_id"])
        else:
            found[key] = (run, [run["run_id"]])
    return [Cell(run, tuple(names)) for run, names in found.values()]


def levels_of(cells: Sequence[Cell]) -> list[Level]:
    """The compute levels, cheapest first."""
    by_number: dict[int, list[Cell]] = {}
    for cell in cells:
        by_number.setdefault(cell.level, []).append(cell)
    ordered = sorted(by_number.values(), key=lambda group: max(c.flops_each for c in group))
    return [
        Level(place, tuple(sorted(group, key=lambda c: (c.params, c.tokens))))
        for place, group in enumerate(ordered)
    ]


def total(values: Sequence[float]) -> float:
    """Their sum; NaN where one is not known."""
    return math.fsum(values)
