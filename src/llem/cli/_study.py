"""Tables of a study's plan, and a study from its file to its end."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llem._numerals import (
    format_count,
    format_duration,
    format_energy,
    format_gpu_hours,
    format_hours,
    format_si,
)
from llem.cli._show import of_budget
from llem.cli._table import array_table, lines, table
from llem.errors import Fault, InputError

if TYPE_CHECKING:
    from llem.campaign import Budget
    from llem.campaign.study.study import Study
    from llem.pipeline import PlannedStudy
    from llem.planning import StudyPlan

# Of a study of thousands nobody reads every deployment; plan.json has them all.
SHOWN = 40
# Exclusions and duplicates that are told by name.
TOLD = 4


def planned_study(
    args: argparse.Namespace, study: Study, base: Path, budget: Budget | None, **options: Any
) -> PlannedStudy:
    """The plan that a call asks for; `options` are further ones of `plan_study`. Raises InputError
    for options that are of trainings."""
    from llem.pipeline import plan_study

    faults = [
        Fault(name, "is of trainings, and this is a study of deployments")
        for name, value in (("--runs", args.runs), ("--waves", args.waves))
        if value is not None
    ]
    if faults:
        raise InputError("the call", faults)
    return plan_study(
        study, out=args.out or Path(study.name), base=base, budget=budget,
        calibration=args.calibration, **options,
    )  # fmt: skip


def study_tables(plan: StudyPlan) -> None:
    """What will be served and what it is expected to cost."""
    study, cells = plan.campaign, plan.runs.replicates
    title = (
        f"{study.name}: {len(cells)} deployment{'s' if len(cells) > 1 else ''} x {study.cycles} "
        f"cycle{'s' if study.cycles > 1 else ''} = {len(plan.runs)} runs"
    )
    heads = ["deployment", *plan.told(cells[0].run), "GPUs", "a cycle", "GPUh", "memory"]
    rows = [
        [
            some.run.deployment.deployment_id,
            *plan.told(some.run).values(),
            f"{some.run.layout.nodes} x {some.run.layout.gpus_per_node}",
            format_duration(some.run.predicted.duration_s),
            format_hours(some.run.predicted.gpu_hours * len(some)),
            format_si(some.run.predicted.memory_bytes, "B"),
        ]
        for some in cells[:SHOWN]
    ]
    table(heads, rows, title=title)
    if len(cells) > SHOWN:
        print(f"and {len(cells) - SHOWN} deployments more")
    print()
    array_table(plan)
    print()
    lines([*_figures(plan), *_left_out(plan), *(("warning", w) for w in plan.warnings)])


def _figures(plan: StudyPlan) -> Iterator[tuple[str, str]]:
    from llem.planning.study.plan import spent

    study, totals, known = plan.campaign, plan.totals, plan.uncertainty
    together = [len(names) // study.cycles for a in plan.arrays for names in a.elements]
    text = f"{study.order}, within elements of {_range(min(together), max(together))} deployment"
    yield "order", text + ("s" if max(together) > 1 else "")
    off = {key: math.exp(error) for key, error in known["uncertainty"].items()}
    cost = spent(plan.runs, plan.budget.unit, plan.site)
    # Without a budget there is nothing to be a part of.
    expected = f"{of_budget(cost, plan.budget)} = " if study.budget is not None else ""
    text = (
        f"{expected}{format_count(totals['requests'])} requests, "
        f"{format_count(totals['tokens'])} tokens out, "
        f"{format_gpu_hours(totals['gpu_hours'])} (x/ {off['gpu_hours']:.2f}), "
        f"{format_energy(totals['energy_j'])} (x/ {off['energy_j']:.2f}), memory "
        f"x/ {off['memory']:.2f}; each at one standard error"
    )
    yield "expected", text
    source = known["source"]
    yield "rests on", f"times: {source['time']}; power: {source['power']}"
    if plan.limits is not None:
        yield "limits", plan.limits.source
    models = {id(m): m for some in plan.runs.replicates if (m := some.run.deployment.model)}
    told = {f"{m.name} ({format_count(m.params)} parameters)" for m in models.values()}
    yield "models", ", ".join(sorted(told))


def _range(low: int, high: int) -> str:
    return str(low) if low == high else f"{low}-{high}"


def _left_out(plan: StudyPlan) -> Iterator[tuple[str, str]]:
    """What is not served, by reason; what is double, and of what."""
    from llem.planning.study.plan import named

    by_reason: dict[str, list[str]] = {}
    for item in plan.excluded:
        reason, name = item.reason, named(item.what)
        if item.by == "memory":
            # Each needs something else: one line for all of them.
            reason, name = "more memory than a device has", f"{name} {reason.partition(' on ')[0]}"
        by_reason.setdefault(reason, []).append(name)
    for reason, names in by_reason.items():
        yield "excluded", f"{len(names)}: {reason} ({_some(names)})"
    if plan.duplicates:
        names = [f"{named(d.what)} = {d.deployment_id}" for d in plan.duplicates]
        yield "double", f"{len(names)} are what others are already ({_some(names)})"


def _some(names: list[str]) -> str:
    more = f"; and {len(names) - TOLD} more" if len(names) > TOLD else ""
    return "; ".join(names[:TOLD]) + more
