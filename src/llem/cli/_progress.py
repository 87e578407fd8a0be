"""How far a campaign is: one line that is drawn again in a terminal, one now and then in a log.

In a terminal the runs at work and their devices stand above it, drawn as in a rehearsal. The line
takes the width that is there: the bar shrinks first, then what matters least is left out. In a file
it is plain text without control characters, its columns below each other.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llem._numerals import format_energy, format_si, percent

if TYPE_CHECKING:
    from llem.cluster import CampaignFolder, CampaignState
    from llem.planning import AnyPlan
    from llem.rehearsal.frame import BoardNow, RunNow

PLAIN_LINE_S = 15.0
# Rows of the terminal that the runs and devices leave free: the line, and what was there before.
ROWS_LEFT = 4
NARROWEST_BAR, WIDEST_BAR = 8, 30
# Statuses of runs that count as done, that somebody should look at, and that say nothing new.
SETTLED = ("completed", "diverged")
BAD = ("failed", "lost", "cancelled")
WAITING = ("waiting", "queued")


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a line tells: the share of the campaign's FLOPs that is done, runs by status, and of
    the runs at work their losses, tokens/s together, and joules so far; NaN where not known."""

    share: float
    runs: int
    counts: Mapping[str, int]
    losses: tuple[float, ...] = ()
    tokens_per_s: float = math.nan
    energy_j: float = math.nan
    elapsed_s: float = 0.0
    left_s: float = math.nan

    def words(self) -> list[tuple[int, str]]:
        """(how soon it is left out where there is no room, text), in the order of the line."""
        counts = dict(self.counts)
        settled = sum(counts.pop(status, 0) for status in SETTLED)
        bad = ", ".join(f"{counts.pop(s)} {s}" for s in BAD if s in counts)
        rest = ", ".join(f"{n} {s}" for s, n in counts.items() if s not in WAITING)
        losses = " ".join(f"{loss:.3f}" for loss in self.losses[:2])
        more = f" +{len(self.losses) - 2}" if len(self.losses) > 2 else ""
        found = [
            (0, f"{percent(self.share, places=0):>5}"),
            (2, f"{settled:{len(str(self.runs))}d}/{self.runs} runs"),
            (1, bad),
            (6, rest),
            (4, f"loss {losses}{more}" if losses else ""),
            (5, _known(self.tokens_per_s, lambda v: f"{format_si(v):>6} tokens/s")),
            (7, _known(self.energy_j, format_energy)),
            # Always as wide, so that nothing moves.
            (3, f"left {clock(self.left_s):>7}" if self.share < 1 else ""),
        ]
        return [(place, text) for place, text in found if text]


def terminal_line(seen: Seen, *, width: int, ascii_only: bool = False) -> str:
    """The line for a terminal of `width` columns; never longer."""
    words = seen.words()
    while True:
        text = "  ".join(text for _, text in words[1:])
        room = width - len(words[0][1]) - len(text) - 3
        if room >= NARROWEST_BAR or len(words) == 1:
            break
        words.remove(max(words[1:], key=lambda word: word[0]))
    wide = min(room, WIDEST_BAR)
    bar = bar_of(seen.share, wide, ascii_only=ascii_only) if room >= NARROWEST_BAR else ""
    return " ".join(part for part in (words[0][1], bar, text) if part)[:width]


def bar_of(share: float, width: int, *, ascii_only: bool = False) -> str:
    """A bar of `width` columns, filled in eighths of one."""
    if ascii_only:
        return ("#" * round(min(1.0, max(0.0, share)) * width)).ljust(width, "-")
    eighths = round(min(1.0, max(0.0, share)) * width * 8)
    whole, rest = divmod(eighths, 8)
    return ("█" * whole + (" ▏▎▍▌▋▊▉"[rest] if rest else "")).ljust(width, "·")


def log_line(seen: Seen, *, clock: str) -> str:
    """The line for a file."""
    return f"{clock} " + "  ".join(text for _, text in seen.words())


def clock(seconds: float) -> str:
    """`1:43`, `2:03:20`; in days from 100 hours on."""
    if not math.isfinite(seconds):
        return "-:--"
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    if hours >= 100:
        return f"{hours / 24:.1f} d"
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"


def _known(value: float, shown: Callable[[float], str]) -> str:
    return shown(value) if math.isfinite(value) else ""


class Watch:
    """Turns states into what a line tells."""

    def __init__(self, plan: AnyPlan, *, now_s: Callable[[], float] = time.monotonic) -> None:
        self._flops = {run.run_id: run.flops for run in plan.runs}
        self._total = sum(self._flops.values())
        self._now_s = now_s
        self._began: tuple[float, float] | None = None

    def see(self, state: CampaignState) -> Seen:
        share = sum(
            self._flops[r.run_id] * (1.0 if r.status == "diverged" else r.progress)
            for r in state.runs
        )
        share /= self._total
        now_s = self._now_s()
        self._began = self._began or (now_s, share)
        elapsed_s, gained = now_s - self._began[0], share - self._began[1]
        working = [r for r in state.runs if r.status == "running"]
        rates = [r.tokens_per_s for r in working if r.tokens_per_s]
        joules = [r.energy_j for r in state.runs if r.energy_j is not None]
        return Seen(
            share=share,
            runs=len(state.runs),
            counts=state.counts,
            losses=tuple(r.loss for r in working if r.loss is not None),
            tokens_per_s=sum(rates) if rates else math.nan,
            energy_j=sum(j for j in joules if math.isfinite(j)) or math.nan,
            elapsed_s=elapsed_s,
            # Of what has gone by less than a hundredth nothing can be said.
            left_s=elapsed_s * (1 - share) / gained if gained > 0.01 and working else math.nan,
        )


@contextmanager
def watching(folder: CampaignFolder, plan: AnyPlan) -> Iterator[Callable[[CampaignState], None]]:
    """A callback that shows a campaign's progress on standard error."""
    from rich.console import Console

    console = Console(stderr=True)
    watch = Watch(plan)
    if not console.is_terminal:
        last = -PLAIN_LINE_S

        def tell(state: CampaignState) -> None:
            nonlocal last
            if time.monotonic() - last >= PLAIN_LINE_S or state.settled:
                last = time.monotonic()
                line = log_line(watch.see(state), clock=time.strftime("%H:%M:%S"))
                print(line, file=sys.stderr, flush=True)

        yield tell
        return
    from rich.live import Live
    from rich.text import Text

    from llem.cli._stage import at_work
    from llem.cli._status import at_work_now, boards_now

    class Line:
        """What is drawn: the newest, at whatever width and height the terminal has by then."""

        seen: Seen | None = None
        runs: Sequence[RunNow] = ()
        boards: Sequence[BoardNow] = ()

        def __rich_console__(self, console: Any, options: Any) -> Iterator[Text]:
            room = console.height - ROWS_LEFT
            yield from at_work(self.runs, self.boards, width=options.max_width, height=room)
            text = "starting"
            if self.seen:
                text = terminal_line(
                    self.seen, width=options.max_width, ascii_only=options.ascii_only
                )
            yield Text(text, no_wrap=True, overflow="crop")

    line = Line()
    # Drawn again by a thread: what else is printed meanwhile appears above it.
    with Live(line, console=console, refresh_per_second=4):

        def show(state: CampaignState) -> None:
            line.runs = at_work_now(plan, state.runs)
            line.boards = boards_now(folder, state.runs)
            line.seen = watch.see(state)

        yield show
