"""Power over time in a terminal: bars of eighths by device, an axis of watts and one of time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from llem._numerals import format_si

if TYPE_CHECKING:
    from llem.results import PowerTraces, Trace

BLOCKS = " ▁▂▃▄▅▆▇█"
PLAIN_BLOCKS = " .:-=+*%#"
NO_DATA, PLAIN_NO_DATA = "·", "?"
LABEL = 9
NARROWEST = 40
# More devices than this are counted and not drawn: the plot as a file shows more.
MOST_DEVICES = 16
# Lines of each device, by how many devices there are; even, so that one is in the middle.
ROWS = ((1, 8), (2, 6), (4, 4))
# ANSI colours of phases, in their order; the first is the bars' own.
BAR_COLOUR = "36"
PHASE_COLOURS = ("44", "43", "42", "45", "46", "41", "47")
KEYS = "abcdefghijklmnopqrstuvwxyz"


def trace_lines(
    found: PowerTraces, *, width: int, colour: bool = False, unicode: bool = True
) -> list[str]:
    """The traces as lines of at most `width` characters; [] where nothing can be drawn."""
    width = max(width, NARROWEST)
    cells = width - LABEL - 2
    shown = [t for t in found.traces if any(math.isfinite(w) for w in t.power_w)][:MOST_DEVICES]
    if not shown or not found.duration_s > 0:
        return []
    drawn = [(trace, binned(trace, cells, found.duration_s)) for trace in shown]
    top_w = ceiling(max(w for _, powers in drawn for w in powers if math.isfinite(w)))
    rows = next((r for most, r in ROWS if len(shown) <= most), 1)
    lines: list[str] = []
    for trace, powers in drawn:
        lines.append(_head(trace, powers, width))
        lines += _bars(powers, top_w, rows, colour=colour, unicode=unicode)
    lines += _time_axis(found.duration_s, cells, unicode=unicode)
    lines += _phases(found, cells, width, colour=colour)
    if len(found.traces) > len(shown):
        lines.append(f"and {len(found.traces) - len(shown)} devices more, not drawn here")
    return lines


def binned(trace: Trace, cells: int, duration_s: float) -> list[float]:
    """Mean watts of each of `cells` equal parts of the time; NaN where there is no sample."""
    import numpy as np

    edges = np.linspace(0.0, duration_s, cells + 1)
    known = np.isfinite(trace.power_w)
    widths = np.diff(trace.edges_s)
    joules = np.concatenate([[0.0], np.cumsum(np.where(known, trace.power_w, 0.0) * widths)])
    seconds = np.concatenate([[0.0], np.cumsum(known * widths)])
    used = np.diff(np.interp(edges, trace.edges_s, joules))
    covered = np.diff(np.interp(edges, trace.edges_s, seconds))
    least = 0.25 * duration_s / cells
    return [float(j / s) if s > least else math.nan for j, s in zip(used, covered, strict=True)]


def ceiling(watts: float) -> float:
    """The round number at or above, of 1, 1.2, 1.5, 2, ... 10 times a power of ten."""
    if not watts > 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(watts))
    for factor in (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9, 10):
        if watts <= factor * power * (1 + 1e-9):
            return factor * power
    return 10 * power


def _head(trace: Trace, powers: Sequence[float], width: int) -> str:
    known = [w for w in powers if math.isfinite(w)]
    figures = [f"mean {_watts(sum(known) / len(known))}", f"most {_watts(max(known))}"]
    if math.isfinite(trace.idle_w):
        figures.append(f"idle {_watts(trace.idle_w)}")
    if not trace.counted:
        figures.append("not added: inside another")
    told = ", ".join(figures)
    names = (f"{trace.node} {trace.uuid} {trace.name}", f"{trace.node} {trace.uuid}", trace.uuid)
    room = width - len(told) - 2
    name = next((n for n in names if len(n) <= room), names[-1][: max(room, 8)])
    return f"{name}  {told}"


def _bars(
    powers: Sequence[float], top_w: float, rows: int, *, colour: bool, unicode: bool
) -> list[str]:
    blocks = BLOCKS if unicode else PLAIN_BLOCKS
    missing = NO_DATA if unicode else PLAIN_NO_DATA
    edge = "┤" if unicode else "|"
    lines = []
    for row in range(rows, 0, -1):
        cells = []
        for watts in powers:
            if not math.isfinite(watts):
                cells.append(missing if row == 1 else " ")
                continue
            eighths = round(8 * (rows * watts / top_w - (row - 1)))
            # what draws little still draws
            least = 1 if row == 1 and watts > 0 else 0
            cells.append(blocks[min(8, max(least, eighths))])
        label = ""
        if row == rows:
            label = _watts(top_w)
        elif rows >= 4 and row == rows // 2:
            label = _watts(top_w * row / rows)
        text = "".join(cells).rstrip()
        lines.append(f"{label:>{LABEL}} {edge}{_paint(text, BAR_COLOUR, colour)}".rstrip())
    return lines


def _time_axis(duration_s: float, cells: int, *, unicode: bool) -> list[str]:
    from llem.report.power import time_label
    from llem.report.svg import time_ticks

    corner, line, tick = ("└", "─", "┬") if unicode else ("+", "-", "+")
    marks, labels = [line] * cells, [" "] * (cells + LABEL)
    for at_s in time_ticks(duration_s, max(2, cells // 12)):
        column = min(cells - 1, round(at_s / duration_s * cells))
        marks[column] = tick
        text = time_label(at_s, duration_s)
        start = max(0, min(column - len(text) // 2, cells - len(text)))
        if all(c == " " for c in labels[max(0, start - 1) : start + len(text) + 1]):
            labels[start : start + len(text)] = text
    return [
        f"{_watts(0):>{LABEL}} {corner}{''.join(marks)}",
        f"{'':>{LABEL + 2}}{''.join(labels).rstrip()}",
    ]


def _phases(found: PowerTraces, cells: int, width: int, *, colour: bool) -> list[str]:
    """Which phase each column is: a letter, and with colours its ground; then the letters' names.

    A column that several phases share shows the one that takes most of it.
    """
    names = list(dict.fromkeys(name for name, _, _ in found.spans))
    if not names:
        return []
    known = names[: len(KEYS)]
    row = []
    for i in range(cells):
        t0, t1 = (found.duration_s * k / cells for k in (i, i + 1))
        shares: dict[str, float] = {}
        for name, begin, end in found.spans:
            shares[name] = shares.get(name, 0.0) + max(0.0, min(end, t1) - max(begin, t0))
        most = max(shares, key=lambda name: shares[name])
        row.append(known.index(most) if shares[most] > 0 and most in known else -1)
    text = ""
    for k, group in groupby(row):
        same = (" " if k < 0 else KEYS[k]) * len(list(group))
        text += _paint(same, f"30;{PHASE_COLOURS[k % len(PHASE_COLOURS)]}", colour and k >= 0)
    legend = [f"{KEYS[k]} {name}" for k, name in enumerate(known)]
    lines = [f"{'phase':>{LABEL}}  {text}".rstrip()]
    line = " " * (LABEL + 1)
    for entry in legend:
        if len(line) + len(entry) + 1 > width and line.strip():
            lines.append(line.rstrip())
            line = " " * (LABEL + 1)
        line += f" {entry},"
    return [*lines, line.rstrip(",")[:width]]


def _watts(watts: float) -> str:
    return format_si(watts, "W")


def _paint(text: str, code: str, colour: bool) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if colour and text else text


def terminal(stream: Any, environ: Any) -> tuple[int, bool, bool]:
    """(width, colours, unicode) of a stream: 80 plain columns where it is no terminal."""
    import shutil

    unicode = (stream.encoding or "").lower().replace("-", "") == "utf8"
    is_terminal = stream.isatty() and environ.get("TERM") != "dumb"
    width = shutil.get_terminal_size((80, 24)).columns if is_terminal else 80
    return width, is_terminal and not environ.get("NO_COLOR"), unicode
