"""Tables and progress for the terminal, drawn with rich; plain lines where there is none."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from llem.campaign import format_duration, format_si

if TYPE_CHECKING:
    from llem.cluster import CampaignState
    from llem.planning import Plan

PLAIN_LINE_S = 15.0


def table(columns: list[str], rows: list[list[Any]], *, title: str = "") -> None:
    """Print a table; numbers (all but the first column) are set flush right."""
    from rich.console import Console
    from rich.table import Table

    drawn = Table(title=title or None, title_justify="left", box=None, pad_edge=False)
    for index, column in enumerate(columns):
        drawn.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        drawn.add_row(*(str(cell) for cell in row))
    console = Console()
    if not console.is_terminal:
        # A file or a pipe has no width: never fold a table that another program may read.
        console = Console(width=200)
    console.print(drawn)


def plan_tables(plan: Plan) -> None:
    """What will run and what it is expected to cost."""
    values = plan.to_dict()
    rows = []
    for level in sorted({run.level for run in plan.runs}):
        runs = [run for run in plan.runs if run.level == level]
        sizes = sorted({run.params for run in runs})
        tokens = sorted({run.tokens for run in runs})
        rows.append(
            [
                f"{format_si(max(run.flops for run in runs))}FLOP",
                len(runs),
                f"{format_si(sizes[0])} - {format_si(sizes[-1])}",
                f"{format_si(tokens[0])} - {format_si(tokens[-1])}",
                format_duration(max(run.predicted.duration_s for run in runs)),
                format_si(sum(run.predicted.gpu_hours for run in runs)),
                format_si(sum(run.predicted.energy_j for run in runs), "J"),
            ]
        )
    columns = ["compute a run", "runs", "parameters", "tokens", "longest", "GPU-hours", "energy"]
    table(columns, rows, title=f"{plan.campaign.name}: {len(plan.runs)} runs")
    print()
    rows = [
        [
            array.name,
            len(array.elements),
            sum(len(element) for element in array.elements),
            f"{array.nodes} x {array.gpus_per_node}",
            array.zero_stage,
            format_duration(array.time_limit_s),
        ]
        for array in plan.arrays
    ]
    table(["array", "elements", "runs", "nodes x ranks", "ZeRO", "time limit"], rows)
    budget = values["budget"]
    print(
        f"\nexpected: {budget['spent']:.4g} of {plan.budget}"
        f"  =  {format_si(budget['flops'])}FLOP, {format_si(budget['gpu_hours'])} GPU-hours, "
        f"{format_si(budget['energy_j'])}J"
    )
    print(f"figures rest on: {plan.device.source}")
    for dropped in plan.dropped:
        print(
            f"left out: level {dropped.level}, {format_si(dropped.params)} parameters: "
            f"{dropped.reason}"
        )
    for warning in plan.warnings:
        print(f"warning: {warning}")


@contextmanager
def watching(plan: Plan) -> Iterator[Callable[[CampaignState], None]]:
    """A callback that shows the progress of a campaign by FLOPs: a bar, or a line now and then."""
    from rich.console import Console

    console = Console(stderr=True)
    flops = {run.run_id: run.flops for run in plan.runs}
    total = sum(flops.values())

    def describe(state: CampaignState) -> str:
        running = [r for r in state.runs if r.status == "running" and r.loss is not None]
        counts = ", ".join(f"{n} {status}" for status, n in state.counts.items())
        return counts + (f" | loss {running[0].loss:.3f}" if running else "")

    def done(state: CampaignState) -> float:
        return sum(
            flops[r.run_id] * (1.0 if r.status == "diverged" else r.progress) for r in state.runs
        )

    if not console.is_terminal:
        last = -PLAIN_LINE_S

        def tell(state: CampaignState) -> None:
            nonlocal last
            if time.monotonic() - last >= PLAIN_LINE_S or state.settled:
                last = time.monotonic()
                print(
                    f"[{done(state) / total:4.0%}] {describe(state)}", file=sys.stderr, flush=True
                )

        yield tell
        return
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    with Progress(
        BarColumn(bar_width=24), TaskProgressColumn(), TimeElapsedColumn(), TextColumn("<"),
        TimeRemainingColumn(), TextColumn("{task.description}"), console=console,
    ) as bar:  # fmt: skip
        task = bar.add_task("starting", total=total)
        yield lambda state: bar.update(task, completed=done(state), description=describe(state))


def status_tables(state: CampaignState, plan: Plan) -> None:
    """Every run with its state, and the counts."""
    runs = {run.run_id: run for run in plan.runs}
    rows = []
    for item in state.runs:
        run = runs[item.run_id]
        rows.append(
            [
                item.run_id,
                item.status,
                f"{item.progress:.0%}",
                "" if item.loss is None else f"{item.loss:.4f}",
                format_si(run.params),
                format_si(run.tokens),
                item.attempts,
                f"{item.array}[{item.element}]",
                item.reason,
            ]
        )
    columns = ["run", "status", "done", "loss", "params", "tokens", "attempts", "element", "reason"]
    table(columns, rows)
    print("\n" + ", ".join(f"{n} {status}" for status, n in state.counts.items()))
