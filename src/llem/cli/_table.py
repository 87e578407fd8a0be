"""Tables and lines of figures on the terminal."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from llem._numerals import format_duration
from llem.report.folding import folded

if TYPE_CHECKING:
    from llem.planning import AnyPlan

# A plan of many thousand runs has hundreds of arrays, which nobody reads.
ARRAYS_SHOWN = 20


def table(columns: list[str], rows: list[list[Any]], *, title: str = "") -> None:
    """Print a table; numbers (all but the first column) are set flush right.

    Drawn here, since rich takes half a millisecond a row, and a campaign has thousands of runs.
    """
    if title:
        print(title)
    cells = [columns, *([str(cell).replace("\n", " ") for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for first, *others in cells:
        words = [first.ljust(widths[0])]
        words += [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        print("  ".join(words).rstrip())


def screen_width() -> int:
    """Columns of the terminal; 0 where a file or a pipe is written, which is never folded."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 0


def lines(told: Iterable[tuple[str, str]]) -> None:
    """Print `label: text`, the texts below each other and folded where a terminal ends."""
    told = list(told)
    indent = max(len(label) for label, _ in told) + 2
    for label, text in told:
        first = f"{label}:".ljust(indent)
        print(*folded(text, screen_width(), first=first, rest=" " * indent), sep="\n")


def indented(told: Iterable[str]) -> None:
    """Print lines, each folded where a terminal ends, two columns further in than it begins."""
    for line in told:
        begins = line[: len(line) - len(line.lstrip())]
        text = line.removeprefix(begins)
        print(*folded(text, screen_width(), first=begins, rest=f"{begins}  ") or [""], sep="\n")


def array_table(plan: AnyPlan) -> None:
    """The arrays that are submitted; ZeRO's stage where they train."""
    zero = plan.campaign.workload == "training"
    rows = [
        [
            array.name,
            len(array.elements),
            sum(len(element) for element in array.elements),
            f"{array.nodes} x {array.gpus_per_node}",
            *([array.zero_stage] if zero else []),
            (f"{array.segments} x " if array.segments > 1 else "")
            + format_duration(array.time_limit_s),
        ]
        for array in plan.arrays[:ARRAYS_SHOWN]
    ]
    heads = ["array", "elements", "runs", "nodes x ranks", *["ZeRO"] * zero, "time limit"]
    table(heads, rows)
    if len(plan.arrays) > ARRAYS_SHOWN:
        print(f"and {len(plan.arrays) - ARRAYS_SHOWN} arrays more")
