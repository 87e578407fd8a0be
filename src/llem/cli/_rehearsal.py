"""A rehearsal on a terminal: what happens scrolls by, and below it stands how all of it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from llem.cli._stage import box, grid_rows, scene
from llem.rehearsal import Film

if TYPE_CHECKING:
    from rich.console import Console

    from llem.rehearsal import Event, Pace, World

# Columns from which on a line has room for the date as well.
NARROW = 140
FRAMES_S = 8.0
STYLES = {"info": "", "warning": "yellow", "error": "bold red", "heading": "bold cyan"}
# Rows of the picture above the devices, and one below; lines that scroll by keep so many.
FIXED_ROWS, SCROLL_ROWS = 7, 6
# More lines than these between two frames are too many to read: the last of them are shown.
LINES_A_FRAME = 12
# What is told however much there is, and what the picture shows better.
ALWAYS, PICTURED = ("summary", "wave", "fit"), ("grid",)
LEAST_BOX, MOST_BOX = 30, 100


def play_on(
    console: Console,
    world: World,
    film: Film,
    events: Iterable[Event],
    *,
    pace: Pace,
    deadline: float,
    now: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """Play to the end at this pace; False at `deadline`.

    A frame, with the lines that scroll by above it, is one write to the terminal.
    """
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    waiting = iter(events)
    event = next(waiting, None)
    begun = now()
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while True:
            shown_s = now() - begun
            t_s = min(film.until_s, pace.at(shown_s))
            due = []
            while event is not None and event.t_s <= t_s:
                due.append(event)
                event = next(waiting, None)
            width, height = console.width, console.height
            lines = []
            for one in readable(due):
                lines += [
                    Text(told, style=STYLES[one.level], no_wrap=True)
                    for told in lines_of(one, width)
                ]
                lines += [Text(row, no_wrap=True, overflow="crop") for row in below(one, width)]
            rows = max(1, height - FIXED_ROWS - SCROLL_ROWS)
            first = world.nodes[0]
            per_node = len(first.boards)
            of_node = grid_rows(per_node, memory_total=first.boards[0].memory_bytes,
                                label=len(first.name) + 1, width=width - 1)  # fmt: skip
            boards = max(1, rows // of_node) * per_node
            room = max(FIXED_ROWS + 1, height - SCROLL_ROWS)
            foot = (
                f"REHEARSED, seed {world.seed}: nothing is trained; "
                f"{pace.speed(shown_s):,.3g} s of it each second"
            )
            picture = scene(film.at(t_s, boards=boards), width=width - 1, height=room, foot=foot)
            live.update(picture)
            if lines:
                # Printing draws the picture again below the lines, in the same write.
                live.console.print(Group(*lines))
            else:
                live.refresh()
            if event is None and t_s >= film.until_s:
                return True
            if now() >= deadline:
                return False
            sleep(1.0 / FRAMES_S)


def readable(due: Sequence[Event]) -> list[Event]:
    """What of the events between two frames is shown as lines."""
    told = [e for e in due if e.kind not in PICTURED]
    if len(told) <= LINES_A_FRAME:
        return told
    half = LINES_A_FRAME // 2
    kept = {id(e) for e in told if e.kind in ALWAYS}
    kept |= {id(e) for e in [e for e in told if e.level != "info"][-half:]}
    kept |= {id(e) for e in told[-half:]}
    return [e for e in told if id(e) in kept]


def below(event: Event, width: int) -> Iterator[str]:
    """The box of an event that has rows."""
    if event.rows:
        wide = max(LEAST_BOX, min(MOST_BOX, width - 1))
        yield from box(event.rows, title=f"summary of {event.run_id}", width=wide)


def lines_of(event: Event, width: int) -> list[str]:
    """An event in `width` columns, brief on a narrow screen and folded; 0: in one line."""
    from llem.report.folding import folded

    line = line_of(event, brief=0 < width < NARROW)
    if len(line) <= width:
        return [line]
    stamp, bracket, text = line.partition("] ")
    return folded(text, width, first=stamp + bracket, rest=" " * (len(stamp) + 4))


def line_of(event: Event, *, brief: bool = False) -> str:
    """`[2026-01-05 08:00:32] INFO 1a2b3c4d5e6f: text`; without the date and INFO where `brief`."""
    from llem.rehearsal.recording import wall_ns

    moment = time.gmtime(wall_ns(event.t_s) / 1e9)
    stamp = time.strftime("[%H:%M:%S]" if brief else "[%Y-%m-%d %H:%M:%S]", moment)
    told = f"{event.run_id}: {event.text}" if event.run_id else event.text
    if event.level == "heading":
        return f"{stamp} ==== {told} ===="
    if brief and event.level == "info":
        return f"{stamp} {told}"
    return f"{stamp} {event.level.upper():{0 if brief else 7}} {told}"
