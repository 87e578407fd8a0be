"""How the state of a campaign is drawn: at a glance, by run, live, or as lines in a log."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from llem._numerals import (
    format_count,
    format_duration,
    format_energy,
    format_gpu_hours,
    format_hours,
    percent,
)
from llem.campaign import Run

if TYPE_CHECKING:
    from rich.console import Console, Group, RenderableType
    from rich.text import Text

    from llem.cluster import CampaignFolder, CampaignState, RunState, Summary
    from llem.cluster.state.summary import CellRow, Tally
    from llem.planning import AnyPlan
    from llem.rehearsal.frame import BoardNow, RunNow

# NVML: slowed by its temperature (software, hardware) or by a failing supply.
HELD_BACK = 0x20 | 0x40 | 0x80
# Of more rows nobody reads all; `--runs` prints every run.
ARRAYS_SHOWN, CELLS_SHOWN, NODES_SHOWN, RUNS_SHOWN = 12, 24, 6, 2
BAR_WIDTH = 24
STYLES = {
    "done": "green", "running": "cyan", "stopped": "yellow", "failed": "bold red",
    "diverged": "yellow",
}  # fmt: skip
COUNTED = ("done", "running", "queued", "waiting", "diverged", "stopped", "failed")
# Width of what is printed where there is no terminal to ask.
PLAIN_WIDTH = 160


def console() -> Console:
    """The terminal, or a stream as wide as $COLUMNS or a good deal."""
    from rich.console import Console

    found = Console(highlight=False, markup=False)
    if found.is_terminal:
        return found
    width = os.environ.get("COLUMNS", "")
    return Console(
        highlight=False, markup=False, width=int(width) if width.isdigit() else PLAIN_WIDTH
    )


def show(summary: Summary) -> None:
    """Print `llem status`; without a terminal no line ends in spaces."""
    screen = console()
    if screen.is_terminal:
        screen.print(glance(summary, width=screen.width))
        return
    with screen.capture() as caught:
        screen.print(glance(summary, width=screen.width))
    print("\n".join(line.rstrip() for line in caught.get().splitlines()))


def glance(
    summary: Summary,
    *,
    width: int,
    live: bool = False,
    at_work: Sequence[RunNow] = (),
    boards: Sequence[BoardNow] = (),
) -> Group:
    """The whole of `llem status` but the runs, in `width` columns.

    What failed stands last, nearest to the prompt; `live` first, where a low window cuts the end.
    The runs `at_work` and their `boards` are drawn as a rehearsal draws those that it follows.
    """
    from rich.console import Group

    from llem.cli._stage import device_grid
    from llem.cli._stage import run_lines as lines_of

    cells = _chosen(summary.cells)
    tables: list[RenderableType] = []
    for table, more, what in (
        (_arrays(summary, width), len(summary.arrays) - ARRAYS_SHOWN, "arrays"),
        (_cells(cells, width), len(summary.cells) - len(cells), "cells")
        if summary.workload == "training"
        else (_deployments(cells, width), len(summary.cells) - len(cells), "deployments"),
    ):
        tables += ["", table, *([f"and {more} {what} more"] if more > 0 else [])]
    causes: list[RenderableType] = ["", _causes(summary)] if summary.causes else []
    following: list[RenderableType] = ["", f"next: {summary.next}"]
    if live:
        runs: list[RenderableType] = []
        for run in at_work:
            runs += ["", *lines_of(run, width=width)]
        if boards:
            runs += ["", *device_grid(boards, width=width)]
        return Group(_head(summary), *causes, *runs, *tables, *following)
    return Group(_head(summary), *tables, *causes, *following)


def at_work_now(plan: AnyPlan, runs: Sequence[RunState]) -> list[RunNow]:
    """Some of the runs that train now; NaN for what no file of theirs tells."""
    from llem.rehearsal.frame import RunNow
    from llem.rehearsal.story import title
    from llem.training.schedule import learning_rate

    found: list[RunNow] = []
    for item in runs:
        if item.status != "running" or len(found) == RUNS_SHOWN:
            continue
        run = plan.by_id[item.run_id]
        if not isinstance(run, Run):
            continue
        step, rate = round(item.progress * run.steps), item.tokens_per_s or math.nan
        # Of a CPU the table's peak is a guess that no utilisation can be told by.
        peak = math.nan if plan.device.cpu else plan.device.peak_flops * run.layout.ranks
        found.append(
            RunNow(
                run_id=run.run_id, title=title(run), doing="training" if step else "starting",
                attempt=max(0, item.attempts - 1), step=step, steps=run.steps,
                loss=math.nan if item.loss is None else item.loss,
                learning_rate=learning_rate(run.recipe, step=max(0, step - 1), steps=run.steps),
                grad_norm=math.nan, tokens_per_s=rate,
                mfu=rate * float(run.model.flops_per_token) / peak,
                elapsed_s=item.device_s / run.layout.ranks,
                remaining_s=(run.steps - step) * run.recipe.batch_tokens / rate,
            )
        )  # fmt: skip
    return found


def boards_now(folder: CampaignFolder, runs: Sequence[RunState]) -> list[BoardNow]:
    """The devices of the same runs, as their samplers saw them last; memory is in no record."""
    from llem.records import latest_samples
    from llem.rehearsal.frame import BoardNow

    found: dict[tuple[str, str], BoardNow] = {}
    for item in [r for r in runs if r.status == "running"][:RUNS_SHOWN]:
        place = folder.run(item.run_id) / f"attempt-{item.attempts - 1}"
        for path in sorted(place.glob("node-*.h5"))[:NODES_SHOWN]:
            for index, device in enumerate(latest_samples(path)):
                last = device.samples[-1]
                found[device.host, device.uuid] = BoardNow(
                    node=device.host, index=index,
                    name=str(device.attrs.get("name", "")), run_id=item.run_id,
                    utilisation=float(last["utilization"]), celsius=float(last["temperature_c"]),
                    watts=device.watts, memory_bytes=math.nan, memory_total=math.nan,
                    held_back=bool(last["throttle"] & HELD_BACK),
                    estimated=device.attrs.get("quality") == "model",
                )  # fmt: skip
    return sorted(found.values(), key=lambda b: (b.node, b.index))


def told_counts(tally: Tally) -> str:
    """`12 of 40 runs done, 3 running, 5 failed`."""
    words = [f"{tally.done} of {tally.runs} run{'s' if tally.runs != 1 else ''} done"]
    words += [f"{getattr(tally, n)} {n}" for n in COUNTED[1:] if getattr(tally, n)]
    return ", ".join(words)


def _head(summary: Summary) -> RenderableType:
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    tally = summary.tally
    grid.add_row(_text(summary.name, "bold"), _text(told_counts(tally)))
    full = round(BAR_WIDTH * tally.progress)
    bar = _text("").append("━" * full, "green")
    bar.append("╌" * (BAR_WIDTH - full), "dim")
    bar.append(
        f" {percent(tally.progress, places=1)} of {format_count(summary.tokens)} tokens"
        f" ({format_count(summary.tokens_done)})"
    )
    grid.add_row(_done(summary), bar)
    share = summary.gpu_hours / summary.gpu_hours_budget if summary.gpu_hours_budget else 0.0
    hours = f"{format_hours(summary.gpu_hours)} of {format_gpu_hours(summary.gpu_hours_budget)}"
    told = f"({percent(share, places=1)}); budget {summary.budget}"
    if summary.budget == "none":
        told = f"that were expected ({percent(share, places=0)}); no budget"
    grid.add_row("used", _text(f"{hours} {told}"))
    if summary.finished_runs:
        measured = f"{summary.energy_runs} of {summary.finished_runs} finished runs"
        energy = f"{format_energy(summary.energy_j)} in {measured}"
        grid.add_row("energy", energy if summary.energy_runs else f"not known of {measured[5:]}")
    if summary.estimate is not None:
        to_go = f"about {format_duration(summary.estimate.seconds)} ({summary.estimate.basis})"
        grid.add_row("to go", _text(to_go))
    for note in summary.notes:
        grid.add_row(_text("note", "yellow"), _text(note))
    return grid


def _arrays(summary: Summary, width: int) -> RenderableType:
    shown = summary.arrays[:ARRAYS_SHOWN]
    columns, counts = _counts(shown)
    rows = [
        [
            a.name,
            a.job_id or "-",
            str(a.elements),
            str(a.gpus),
            *counted,
            percent(a.progress, places=0),
        ]
        for a, counted in zip(shown, counts, strict=True)
    ]
    heads = ["array", "job", "elements", "devices", *columns, _done(summary)]
    return _table(heads, rows, width=width, spare=("devices", "elements", "job"))


def _cells(shown: Sequence[CellRow], width: int) -> RenderableType:
    columns, counts = _counts(shown)
    rows = [
        [str(c.level), format_count(c.params), format_count(c.tokens), str(c.runs), *counted,
         percent(c.progress, places=0), _loss(c)]
        for c, counted in zip(shown, counts, strict=True)
    ]  # fmt: skip
    heads = ["level", "params", "tokens", "seeds", *columns, "trained", "loss"]
    return _table(heads, rows, width=width, spare=("level", "seeds"))


def _deployments(shown: Sequence[CellRow], width: int) -> RenderableType:
    columns, counts = _counts(shown)
    rows = [
        [c.label, format_count(c.params), format_count(c.tokens), str(c.runs), *counted,
         percent(c.progress, places=0)]
        for c, counted in zip(shown, counts, strict=True)
    ]  # fmt: skip
    heads = ["deployment", "params", "tokens", "cycles", *columns, "served"]
    return _table(heads, rows, width=width, spare=("tokens", "params", "cycles"))


def _done(summary: Summary) -> str:
    """What has become of tokens, in a word."""
    return "trained" if summary.workload == "training" else "served"


def _loss(cell: CellRow) -> str:
    if cell.loss == cell.loss:
        return f"{cell.loss:.4f}"
    return f"~{cell.loss_now:.3f}" if cell.loss_now == cell.loss_now else ""


def _chosen(cells: Sequence[CellRow]) -> list[CellRow]:
    """The cells to show, in their order: of too many, those that fail or run go first."""
    ranked = sorted(
        cells, key=lambda c: (not c.failed, not c.stopped, not c.running, c.done == c.runs)
    )
    kept = {id(cell) for cell in ranked[:CELLS_SHOWN]}
    return [cell for cell in cells if id(cell) in kept]


def _counts(rows: Sequence[Tally]) -> tuple[list[str], list[list[str]]]:
    """Columns of counts that say anything, and their cells."""
    names = [n for n in COUNTED if n == "done" or any(getattr(row, n) for row in rows)]
    return names, [[str(getattr(row, n) or "") for n in names] for row in rows]


def _causes(summary: Summary) -> RenderableType:
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for cause in summary.causes:
        style = STYLES["failed"]
        if cause.retry == "never" or cause.stopped == cause.runs:
            style = STYLES["stopped"]
        nodes = ", ".join(cause.nodes[:NODES_SHOWN])
        if len(cause.nodes) > NODES_SHOWN:
            nodes += f" and {len(cause.nodes) - NODES_SHOWN} more"
        where = f" on {nodes}" if nodes else ""
        words = f"{cause.runs} run{'s' if cause.runs != 1 else ''}{where}, as {cause.run_id}"
        grid.add_row(_text(cause.name, style), _text(f"{words}: {cause.text}".rstrip(": ")))
        grid.add_row("", _text(f"→ {cause.advice}", "dim"))
    return grid


def _table(
    heads: list[str], rows: list[list[str]], *, width: int, spare: Sequence[str]
) -> RenderableType:
    """A table without lines; columns of `spare` go, in their order, until it fits into `width`."""
    from rich.table import Table

    gap = 2
    widths = {h: max(len(row[i]) for row in [heads, *rows]) for i, h in enumerate(heads)}
    for head in spare:
        if sum(widths.values()) + gap * (len(widths) - 1) <= width:
            break
        del widths[head]
    drawn = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="dim")
    for head in widths:
        words = head in ("array", "job", "deployment")
        drawn.add_column(head, justify="left" if words else "right", no_wrap=True)
    for row in rows:
        cells = dict(zip(heads, row, strict=True))
        drawn.add_row(*(_text(cells[head], STYLES.get(head, "")) for head in widths))
    return drawn


def _text(text: str, style: str = "") -> Text:
    from rich.text import Text

    return Text(text, style=style)


def run_lines(plan: AnyPlan, runs: Sequence[RunState], *, width: int) -> Iterable[str]:
    """Every run on a line, cut at `width`; plain text, since a campaign may have many thousands."""
    served = plan.campaign.workload == "inference"
    heads = ["run", "status", *(("served", "") if served else ("trained", "loss")), "params",
             "tokens", "cycle" if served else "seed", "tries", "element", "why"]  # fmt: skip
    rows = [heads]
    for item in runs:
        run = plan.by_id[item.run_id]
        why = item.reason
        if item.cause is not None:
            where = f" on {item.cause.node}" if item.cause.node else ""
            why = f"{item.cause.name}{where}: {item.cause.text}".rstrip(": ")
        rows.append(
            [
                item.run_id,
                item.status,
                percent(item.progress, places=0),
                "" if item.loss is None else f"{item.loss:.4f}",
                format_count(run.params),
                format_count(run.tokens),
                str(run.seed),
                str(item.attempts),
                f"{item.array}[{item.element}]",
                why,
            ]
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(heads) - 1)]
    for row in rows:
        cells = [
            cell.ljust(w) if i in (0, 1, 8) else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row[:-1], widths, strict=True))
        ]
        line = f"{'  '.join(cells)}  {row[-1]}".rstrip()
        yield line if len(line) <= width else line[: width - 1] + "…"


def progress_line(summary: Summary, state: CampaignState) -> str:
    """One line for a log: when, how far, what, how much of the budget."""
    words = [time.strftime("%H:%M:%S"), f"[{percent(summary.tally.progress, places=0):>5}]"]
    words.append(told_counts(summary.tally))
    words.append(f"| {format_gpu_hours(summary.gpu_hours)}")
    if summary.estimate is not None:
        words.append(f"| about {format_duration(summary.estimate.seconds)} to go")
    if state.scheduler.problem:
        words.append("| the scheduler does not answer")
    return " ".join(words)


def watch_live(
    folder: CampaignFolder,
    plan: AnyPlan,
    look: Callable[[], CampaignState],
    *,
    seconds: float,
    sleep: Callable[[float], None] = time.sleep,
) -> CampaignState:
    """Show the campaign until nothing works on it any more: live, or a line a poll in a log."""
    from llem.cluster import summarise

    screen = console()
    if not screen.is_terminal:
        while True:
            state = look()
            print(progress_line(summarise(folder, plan, state), state), flush=True)
            if not state.active:
                return state
            sleep(seconds)
    from rich.live import Live

    with Live(console=screen, auto_refresh=False, vertical_overflow="ellipsis") as live:
        while True:
            state = look()
            live.update(
                glance(summarise(folder, plan, state), width=screen.width, live=True,
                       at_work=at_work_now(plan, state.runs),
                       boards=boards_now(folder, state.runs)),
                refresh=True,
            )  # fmt: skip
            if not state.active:
                return state
            sleep(seconds)


def both(*watchers: Callable[[Any], None]) -> Callable[[Any], None]:
    """One callback of several."""

    def watch(state: Any) -> None:
        for one in watchers:
            one(state)

    return watch
