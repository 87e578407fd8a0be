"""A rehearsal on a terminal: what happens scrolls by, and below it stands how all of it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from llem.cli._stage import grid_rows, scene

if TYPE_CHECKING:
    from rich.console import Console

    from llem.rehearsal import Attempt, Event, World

FRAMES_S = 8.0
STYLES = {"info": "", "warning": "yellow", "error": "bold red", "heading": "bold cyan"}
# Rows of the picture above the devices, and one below; lines that scroll by keep so many.
FIXED_ROWS, SCROLL_ROWS = 6, 6
# More lines than these between two frames are too many to read: the last of them are shown.
LINES_A_FRAME = 12


def play_on(
    console: Console,
    world: World,
    attempts: Sequence[Attempt],
    events: Iterable[Event],
    *,
    follow: str,
    speed: float,
    deadline: float,
    now: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """Play to the end at `speed` seconds of the campaign a second; False at `deadline`."""
    from rich.live import Live

    from llem.cli.rehearse import line_of
    from llem.rehearsal import Film

    film = Film(world, attempts, follow=follow)
    waiting = iter(events)
    event = next(waiting, None)
    begun = now()
    foot = f"REHEARSED, seed {world.seed}: nothing is trained; {speed:,.0f} s of it each second"
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while True:
            t_s = min(film.end_s, (now() - begun) * speed)
            due = []
            while event is not None and event.t_s <= t_s:
                due.append(event)
                event = next(waiting, None)
            if len(due) > LINES_A_FRAME:
                told = [e for e in due if e.level != "info"][-LINES_A_FRAME // 2 :]
                due = sorted({*told, *due[-LINES_A_FRAME // 2 :]}, key=lambda e: e.t_s)
            for one in due:
                live.console.print(line_of(one), style=STYLES[one.level], overflow="ellipsis",
                                   no_wrap=True)  # fmt: skip
            width, height = console.width, console.height
            rows = max(1, height - FIXED_ROWS - SCROLL_ROWS)
            first = world.nodes[0]
            per_node = len(first.boards)
            of_node = grid_rows(per_node, memory_total=first.boards[0].memory_bytes,
                                label=len(first.name) + 1, width=width - 1)  # fmt: skip
            boards = max(1, rows // of_node) * per_node
            room = max(FIXED_ROWS + 1, height - SCROLL_ROWS)
            picture = scene(film.at(t_s, boards=boards), width=width - 1, height=room, foot=foot)
            live.update(picture, refresh=True)
            if event is None and t_s >= film.end_s:
                return True
            if now() >= deadline:
                return False
            sleep(1.0 / FRAMES_S)
