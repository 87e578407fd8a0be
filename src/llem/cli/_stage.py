"""A campaign at work as a terminal shows it: bars, the run that is followed, the grid of devices.

Each part is made of plain numbers in so many columns, so that a rehearsal and a real campaign are
drawn by the same functions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from llem._numerals import format_count, format_duration, format_energy, format_si, percent

if TYPE_CHECKING:
    from rich.console import Group
    from rich.text import Text

    from llem.rehearsal.frame import BoardNow, Frame, RunNow

RUN_ROWS = 4
LABEL, LEAST_BAR, MOST_BAR = 10, 10, 40
# From these degrees and shares of memory on a device is marked as warm and as hot.
WARM_C, HOT_C, FULL, BRIM = 75.0, 82.0, 0.85, 0.95
# Without colours the shape alone tells a device that is too hot or full.
DOT, ALARM = "\u25cf", "\u25b2"
CELL = len("0 100% 100C 1000W /G ")


def bar(label: str, share: float, words: str, *, width: int, style: str = "cyan") -> Text:
    """`label ━━━━━━━──── 63% words`, in `width` columns; bars of one width are equally long."""
    from rich.text import Text

    share = min(1.0, max(0.0, share)) if math.isfinite(share) else 0.0
    room = max(LEAST_BAR, min(MOST_BAR, width // 5))
    full = int(share * room)
    line = Text(f"{label:{LABEL}}")
    line.append("\u2501" * full, style=style)
    line.append("\u2500" * (room - full), style="dim")
    line.append(f" {percent(share, places=0):>5} ")
    line.append(words)
    line.truncate(width, overflow="ellipsis")
    return line


def campaign_lines(frame: Frame, *, width: int) -> list[Text]:
    """How far the campaign is."""
    words = [f"{frame.done} of {frame.runs} runs done", f"{frame.running} running"]
    if frame.waves > 1:
        words.insert(0, f"wave {frame.wave} of {frame.waves}")
    if frame.waiting:
        words.append(f"{frame.waiting} waiting")
    if frame.diverged:
        words.append(f"{frame.diverged} diverged")
    if frame.failed_attempts:
        words.append(f"{frame.failed_attempts} attempts lost")
    left = format_duration(max(0.0, frame.end_s - frame.t_s))
    time_words = f"{format_duration(frame.t_s)}<{left}  about {format_energy(frame.energy_j)}"
    trained = frame.tokens_done / frame.tokens if frame.tokens else 0.0
    settled = (frame.done + frame.diverged) / frame.runs if frame.runs else 0.0
    return [
        bar("campaign", settled, ", ".join(words), width=width, style="green"),
        bar("tokens", trained,
            f"{format_count(frame.tokens_done)} of {format_count(frame.tokens)}  {time_words}",
            width=width, style="green"),
    ]  # fmt: skip


def run_lines(run: RunNow | None, *, width: int) -> list[Text]:
    """The followed run: what it is, how far, what it does now, and its last step's numbers."""
    from rich.text import Text

    if run is None:
        return [Text("no run is at work", style="dim"), Text(""), Text(""), Text("")]
    again = f", attempt {run.attempt}" if run.attempt else ""
    head = Text(f"{run.run_id}  {run.title}{again}: {run.doing}", style="bold")
    head.truncate(width, overflow="ellipsis")
    words = f"step {run.step}/{run.steps}  {_time(run.elapsed_s)}<{_time(run.remaining_s)}"
    line = bar("run", run.step / run.steps if run.steps else 0.0, words, width=width)
    numbers = [
        f"loss {_number(run.loss, '.4f')}",
        f"ppl {_number(math.exp(run.loss) if run.loss < 700 else math.inf, '.4g')}",
        f"lr {_number(run.learning_rate, '.2e')}",
        f"grad {_number(run.grad_norm, '.3f')}",
        f"{format_si(run.tokens_per_s) if run.tokens_per_s == run.tokens_per_s else '-'} tok/s",
        f"MFU {_number(run.mfu, '.1%')}",
    ]
    gap = "  " if LABEL + sum(map(len, numbers)) + 2 * len(numbers) <= width else " "
    below = Text(" " * LABEL + gap.join(numbers))
    below.truncate(width, overflow="ellipsis")
    if run.stage is None:
        return [head, line, below]
    now = bar(run.stage.name, run.stage.share, run.stage.words, width=width, style="blue")
    return [head, line, now, below]


def device_grid(boards: Sequence[BoardNow], *, width: int) -> list[Text]:
    """Devices by node: a coloured dot, utilisation, temperature, power and memory of each."""
    from rich.text import Text

    lines: list[Text] = []
    for node, group in groupby(boards, key=lambda b: b.node):
        own = list(group)
        label = max(len(node) + 1, LABEL)
        cell = cell_width(own[0].memory_total)
        across = max(1, (width - label) // cell)
        for begin in range(0, len(own), across):
            line = Text(f"{node if not begin else '':{label}}")
            for board in own[begin : begin + across]:
                line.append_text(_cell(board, cell))
            line.truncate(width, overflow="ellipsis")
            lines.append(line)
    return lines


def cell_width(memory_total: float) -> int:
    """Columns of one device, a blank behind it included."""
    return CELL + (2 * len(f"{memory_total / 1e9:.0f}") if math.isfinite(memory_total) else -2)


def _cell(board: BoardNow, width: int) -> Text:
    from rich.text import Text

    if not board.run_id:
        return Text(f"{DOT} idle".ljust(width), style="dim")
    share = board.memory_bytes / board.memory_total if board.memory_total else 0.0
    style = "green"
    if board.celsius >= WARM_C or share >= FULL:
        style = "yellow"
    if board.celsius >= HOT_C or share >= BRIM or board.held_back:
        style = "red"
    words = (
        f" {_number(board.utilisation, '3.0f'):>3}% {_number(board.celsius, '3.0f'):>3}C "
        f"{'~' * board.estimated + _number(board.watts, '.0f'):>4}W"
    )
    if math.isfinite(board.memory_total):
        words += f" {board.memory_bytes / 1e9:.0f}/{board.memory_total / 1e9:.0f}G"
    cell = Text(ALARM if style == "red" else DOT, style=style)
    cell.append(words.ljust(width - 1))
    return cell


def at_work(
    runs: Sequence[RunNow], boards: Sequence[BoardNow], *, width: int, height: int
) -> list[Text]:
    """Runs that are at work now and their devices, in so many rows at most, the devices last."""
    lines = [line for run in runs for line in run_lines(run, width=width)]
    return [*lines, *device_grid(boards, width=width)][: max(0, height)]


def scene(frame: Frame, *, width: int, height: int, foot: str = "") -> Group:
    """The whole picture, in so many columns and rows at most."""
    from rich.console import Group
    from rich.text import Text

    run = run_lines(frame.run, width=width)
    # Always as many rows, so that nothing below moves.
    parts: list[Any] = [
        *campaign_lines(frame, width=width),
        *run,
        *[Text("")] * (RUN_ROWS - len(run)),
    ]
    grid = device_grid(frame.boards, width=width)
    room = max(0, height - len(parts) - (2 if foot else 1))
    parts += grid[:room]
    if foot:
        last = Text(foot, style="dim")
        last.truncate(width, overflow="ellipsis")
        parts.append(last)
    return Group(*parts)


def box(rows: Sequence[tuple[str, str]], *, title: str, width: int) -> list[str]:
    """Names and values in a frame, in `width` columns at most; plain text, for any screen."""
    from rich.cells import cell_len, set_cell_size

    names = max(cell_len(name) for name, _ in rows)
    inner = max(cell_len(title), *(names + 2 + cell_len(value) for _, value in rows))
    inner = max(1, min(inner, width - 4))
    found = ["\u250c\u2500" + "\u2500" * inner + "\u2500\u2510"]
    for text in [title, "", *(f"{_wide(name, names)}  {value}" for name, value in rows)]:
        cut = text if cell_len(text) <= inner else f"{set_cell_size(text, inner - 1)}\u2026"
        found.append(f"\u2502 {set_cell_size(cut, inner)} \u2502" if text else
                     "\u251c\u2500" + "\u2500" * inner + "\u2500\u2524")  # fmt: skip
    return [*found, "\u2514\u2500" + "\u2500" * inner + "\u2500\u2518"]


def _wide(text: str, columns: int) -> str:
    from rich.cells import set_cell_size

    return set_cell_size(text, columns)


def grid_rows(boards_per_node: int, *, memory_total: float, label: int, width: int) -> int:
    """Rows that one node takes whose name and a blank are `label` columns."""
    across = max(1, (width - max(label, LABEL)) // cell_width(memory_total))
    return math.ceil(boards_per_node / across)


def _time(seconds: float) -> str:
    return format_duration(seconds) if math.isfinite(seconds) else "-"


def _number(value: float, form: str) -> str:
    return format(value, form) if math.isfinite(value) else "-"
