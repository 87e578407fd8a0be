"""Tables and progress for the terminal, drawn with rich; plain lines where there is none."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from llem.campaign import Runs, format_duration, format_si

if TYPE_CHECKING:
    from llem.campaign import Replicates
    from llem.cluster import CampaignState
    from llem.planning import Dropped, Plan

PLAIN_LINE_S = 15.0
# A plan of many thousand runs has hundreds of arrays, which nobody reads.
ARRAYS_SHOWN = 20


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
    by_level: dict[int, list[Replicates]] = {}
    for some in plan.runs.replicates:
        by_level.setdefault(some.run.level, []).append(some)
    table(
        ["compute a run", "6ND", "runs", "models", "parameters", "tokens", "longest", "GPU-hours",
         "energy"],
        [_level_row(Runs(by_level[level])) for level in sorted(by_level)],
        title=f"{plan.campaign.name}: {len(plan.runs)} runs",
    )  # fmt: skip
    print()
    rows = [
        [
            array.name,
            len(array.elements),
            sum(len(element) for element in array.elements),
            f"{array.nodes} x {array.gpus_per_node}",
            array.zero_stage,
            format_duration(array.time_limit_s)
            + (f" x {array.segments}" if array.segments > 1 else ""),
        ]
        for array in plan.arrays[:ARRAYS_SHOWN]
    ]
    table(["array", "elements", "runs", "nodes x ranks", "ZeRO", "time limit"], rows)
    if len(plan.arrays) > ARRAYS_SHOWN:
        print(f"and {len(plan.arrays) - ARRAYS_SHOWN} arrays more")
    _plan_figures(plan)
    for reason, dropped in _by_reason(plan.dropped).items():
        sizes = ", ".join(dict.fromkeys(format_si(d.params) for d in dropped[:6]))
        more = f" and {len(dropped) - 6} more" if len(dropped) > 6 else ""
        print(f"left out: {sizes} parameters{more}: {reason}")
    for warning in plan.warnings:
        print(f"warning: {warning}")


def _level_row(runs: Runs) -> list[Any]:
    firsts = [some.run for some in runs.replicates]
    sizes = sorted({run.params for run in firsts})
    tokens = sorted({run.tokens for run in firsts})
    share = runs.total(lambda r: 6.0 * r.params * r.tokens) / runs.total(lambda r: r.flops)
    return [
        f"{format_si(max(run.flops for run in firsts))}FLOP",
        f"{share:.0%}",
        len(runs),
        len(sizes),
        f"{format_si(sizes[0])} - {format_si(sizes[-1])}",
        f"{format_si(tokens[0])} - {format_si(tokens[-1])}",
        format_duration(max(run.predicted.duration_s for run in firsts)),
        format_si(runs.total(lambda r: r.predicted.gpu_hours)),
        format_si(runs.total(lambda r: r.predicted.energy_j), "J"),
    ]


def _plan_figures(plan: Plan) -> None:
    """What is spent, how sure that is and what it rests on; the recipe with its rounding."""
    from llem.planning.spend import spend, uncertainty

    totals, known = plan.totals, uncertainty(plan.device)
    error = known["uncertainty"]
    spent = spend(plan.runs, plan.budget.unit, plan.site)
    print(
        f"\nexpected: {spent:.4g} of {plan.budget}  =  {format_si(totals['flops'])}FLOP, "
        f"{format_si(totals['gpu_hours'])} GPU-hours (x/ {1 + error['gpu_hours']:.2f}), "
        f"{format_si(totals['energy_j'])}J (x/ {1 + error['energy_j']:.2f})"
    )
    print(f"figures rest on: utilisation {known['source']['utilisation']}; "
          f"power {known['source']['power']}")  # fmt: skip
    told = plan.promise
    if told:
        half, twice = (told["for_budget"][k]["predicted_se_log_params"] for k in ("0.5", "2"))
        now = told["predicted_se_log_params"]
        print(
            f"promised: standard error of log N* at the target {now:.2g} if the law is right "
            f"(half the budget {half:.2g}, twice {twice:.2g}; noise {told['noise']:.1%}, "
            f"{told['laws']}), and {told['law_error_log_params']:.2g} for the law's own error"
        )
    asked = [(some, some.run.recipe, a) for some in plan.runs.replicates if (a := some.run.asked)]
    if asked:
        off = [recipe.batch_tokens / a.batch_tokens - 1 for _, recipe, a in asked]
        capped = sum(len(some) for some, r, a in asked if r.learning_rate < 0.999 * a.learning_rate)
        print(
            f"recipe: {asked[0][1].rule}; batches rounded by {min(off):+.0%} to "
            f"{max(off):+.0%} to powers of two of sequences, learning rate capped in {capped} runs"
        )
    if plan.limits is not None:
        print(f"limits: {plan.limits.source}")


def _by_reason(dropped: Iterable[Dropped]) -> dict[str, list[Dropped]]:
    found: dict[str, list[Dropped]] = {}
    for item in dropped:
        found.setdefault(item.reason, []).append(item)
    return found


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
