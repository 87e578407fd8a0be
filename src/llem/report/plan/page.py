"""The page of a plan: one HTML file that needs nothing beside it, written before anything runs."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from llem._numerals import (
    format_amount,
    format_count,
    format_duration,
    format_energy,
    format_flops,
    format_gpu_hours,
    format_times,
    known,
    number,
    percent,
    significant,
)
from llem.report import promise
from llem.report.plan import figures
from llem.report.plan.cells import Cell, Level, cells_of, levels_of
from llem.report.plan.figures import Cost, Goal
from llem.report.plan.rows import (
    arrays_in_rows,
    dearest_cells,
    layouts,
    levels_in_rows,
    prices_in_rows,
    promises,
    recipes,
    span,
    waves_in_rows,
)
from llem.report.plan.timeline import Timeline, times_of
from llem.report.svg import NOT_XML
from llem.report.tables import format_target
from llem.report.templates import render

TEMPLATE = "plan.html.j2"
# Sizes that were left out, named for each reason; what is beyond is counted.
MOST_DROPPED = 6
# The report's colours of compute, cheap to dear: viridis, cut where the page is too near to it.
VIRIDIS = ("440154", "482878", "3e4a89", "31688e", "26828e", "1f9e89", "35b779", "6ece58",
           "b5de2b", "fde725")  # fmt: skip
ON_LIGHT, ON_DARK = (0.0, 0.82), (0.42, 1.0)


def render_plan_page(plan: Mapping[str, Any], *, times: Timeline | None = None) -> str:
    """The page as text, the same for the same plan. Plans of many runs are told by cell.

    plan: the content of plan.json, or the same with `cells` for `runs` (`cells_of`); `times`: its
    timeline, where it is at hand.
    """
    cells = cells_of(plan)
    levels = levels_of(cells)
    goal = _goal(plan)
    cost = Cost.of(levels)
    times = times or times_of(plan)
    local = plan["site"].get("executor") == "local"
    text = render(
        TEMPLATE,
        title=f"{plan['campaign']['name']}: the plan",
        lead=together(_lead(plan, cells, goal)),
        facts=[tuple(map(together, fact)) for fact in _facts(plan, cells, times)],
        warnings=[together(str(text)) for text in plan.get("warnings") or []],
        colours=[(colour(s, ON_LIGHT), colour(s, ON_DARK)) for s in _shares(levels)],
        promise=promises(plan["design"]),
        waves=waves_in_rows(plan),
        noise=percent(plan["design"].get("noise")),
        noise_degrees=plan["design"].get("noise_degrees"),
        laws=plan["design"].get("laws", ""),
        target=goal.name,
        design=figures.design(levels, goal),
        seeds=span([c.seeds for c in cells], str),
        beyond=format_times(goal.flops / levels[-1].flops),
        far=goal.flops > figures.FAR * levels[-1].flops,
        cost=figures.cost(cost) if cost.total > 0 else "",
        cost_unit="GPU-hours" if cost.hours else "FLOPs",
        cost_shown=figures.MOST_BARS if len(cells) > figures.MOST_BARS else 0,
        cells=len(cells),
        dearest=dearest_cells(cost),
        schedule=figures.schedule(times, plan["arrays"], local=local) if times else "",
        times=together(schedule_text(times, plan, local=local)) if times else "",
        local=local,
        arrays_drawn=min(len(plan["arrays"]), figures.MOST_ROWS),
        arrays=arrays_in_rows(plan["arrays"], local=local),
        arrays_all=len(plan["arrays"]),
        levels=levels_in_rows(levels),
        recipe=_recipe(plan, cells),
        recipes=recipes(levels),
        layouts=layouts(cells, plan["site"]["device"]),
        dropped=_dropped(plan.get("dropped") or []),
        rest=_rest(plan),
        provenance=provenance_of(plan),
    )
    return NOT_XML.sub("\ufffd", text)


def together(text: str) -> str:
    """Keeps numbers and units on one line."""
    return re.sub(r"(?<=\d) (?=[A-Za-z%µ])", "\u00a0", text)


def _goal(plan: Mapping[str, Any]) -> Goal:
    design = plan["design"]
    grid = design.get("grid") or plan["campaign"].get("grid") or {}
    return Goal(
        flops=number(design["target_flops"]),
        tokens_per_param=number(grid.get("tokens_per_param", 20.0)),
        name=format_target(design["target"]),
        factor=promise.factor(design),
    )


def _lead(plan: Mapping[str, Any], cells: Sequence[Cell], goal: Goal) -> str:
    runs = sum(c.seeds for c in cells)
    counted = f"{runs:,}".replace(",", "\u202f")
    spent = budget_told(plan["budget"], "spent")
    text = (
        f"{counted} training{'s' if runs > 1 else ''} of "
        f"{span([c.params for c in cells], format_count)} parameters, for {spent}, to say how "
        f"large a model for {goal.name} should be"
    )
    if math.isfinite(goal.factor):
        within = promise.factor_text(math.log(goal.factor), digits=2)
        text += f": within a factor of {within}, at 95 %"
    return f"{text}."


def budget_told(budget: Mapping[str, Any], key: str) -> str:
    """`500 GPUh`: a value of the budget with its unit."""
    return format_amount(budget[key], str(budget["unit"]), digits=3)


def _facts(
    plan: Mapping[str, Any], cells: Sequence[Cell], times: Timeline | None
) -> list[tuple[str, str, str]]:
    """What each figure is, the figure, and how far it may be off."""
    budget, totals = plan["budget"], plan["totals"]
    error = budget.get("uncertainty") or {}

    def off(key: str) -> str:
        value = number(error.get(key))
        return f"×/÷ {significant(math.exp(value))}" if value > 0 else ""

    share = number(budget["spent"]) / number(budget["value"])
    facts = [
        (f"of {budget_told(budget, 'value')} spent", percent(share, digits=4), ""),
        ("compute", f"{format_flops(totals['flops'])} FLOP", "exact"),
    ]
    if known(totals.get("gpu_hours")):
        facts.append(("device time", format_gpu_hours(totals["gpu_hours"]), off("gpu_hours")))
    if known(totals.get("energy_j")):
        facts.append(("energy", format_energy(totals["energy_j"]), off("energy_j")))
    if times is not None:
        facts.append(("duration", format_duration(times.end_s), "if the site were free"))
    return facts


def _shares(levels: Sequence[Level]) -> list[float]:
    """Of each level, where it lies between the cheapest and the dearest, by log compute."""
    low, high = (math.log(levels[i].flops) for i in (0, -1))
    return [(math.log(v.flops) - low) / (high - low) if high > low else 0.5 for v in levels]


def colour(share: float, ends: tuple[float, float]) -> str:
    """Between the two ends of the palette, as #rrggbb."""
    at = (ends[0] + share * (ends[1] - ends[0])) * (len(VIRIDIS) - 1)
    below = min(int(at), len(VIRIDIS) - 2)
    pair = [[int(c[i : i + 2], 16) for i in (0, 2, 4)] for c in VIRIDIS[below : below + 2]]
    mixed = (round(a + (at - below) * (b - a)) for a, b in zip(*pair, strict=True))
    return "#" + "".join(f"{value:02x}" for value in mixed)


def _recipe(plan: Mapping[str, Any], cells: Sequence[Cell]) -> str:
    recipe = cells[0].run["recipe"]
    words = (
        f"Rule {recipe['rule']}, {recipe['schedule']} schedule, {recipe['precision']}, AdamW with "
        f"weight decay {recipe['weight_decay']:g}."
    )
    if any(c.run.get("asked") for c in cells):
        words += (
            " A batch is rounded to a power of two of sequences; a learning rate is capped at "
            f"{number(plan['campaign']['training']['max_learning_rate']):g}."
        )
    return words


def _dropped(dropped: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Sizes that were left out, by reason."""
    by_reason: dict[str, list[str]] = {}
    for item in dropped:
        by_reason.setdefault(str(item["reason"]), []).append(format_count(item["params"]))
    rows = []
    for reason, every in by_reason.items():
        sizes = list(dict.fromkeys(every))
        more = len(sizes) - MOST_DROPPED
        words = ", ".join(sizes[:MOST_DROPPED]) + (f" and {more} more" if more > 0 else "")
        rows.append((words, reason))
    return rows


def schedule_text(times: Timeline, plan: Mapping[str, Any], *, local: bool) -> str:
    """What the picture shows, and what nobody knows."""
    chained = max(int(a.get("segments", 1)) for a in plan["arrays"])
    words = f"If the site were free, all of it would take {format_duration(times.end_s)}"
    if local:
        words += f", {times.nodes} element{'s' if times.nodes > 1 else ''} at a time"
    else:
        words += f" on {times.nodes} node{'s' if times.nodes > 1 else ''}"
    words += f", {percent(round(times.busy, 2))} of them busy on the average."
    if not local:
        words += " How long jobs wait in the queue is not known, and is not in it."
    if chained > 1:
        words += (
            f" Runs that take longer than a job may are chained, up to {chained} jobs in a row "
            "with some to spare; a line marks where the next begins."
        )
    return words


def _rest(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the figures rest on."""
    budget = plan["budget"]
    source, error = budget.get("source") or {}, budget.get("uncertainty") or {}
    rows = [("compute", "counted from each model's shape: exact by construction")]
    names = (("utilisation", "gpu_hours", "time"), ("power", "energy_j", "energy"))
    for key, quantity, what in names:
        if source.get(key):
            value = number(error.get(quantity))
            off = f"; {what} may be off by a factor of {significant(math.exp(value))} (one "
            off += "standard error)"
            rows.append((key, f"{source[key]}{off if value > 0 else ''}"))
    return rows + prices_in_rows(plan["site"])


def provenance_of(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Site, limits, and what made the plan."""
    site = plan["site"]
    place = [str(site.get("name", "")), str(site.get("executor", ""))]
    if site.get("partition"):
        place.append(f"partition {site['partition']}")
    place.append(
        f"{site.get('nodes', 1)} × {site.get('gpus_per_node', 1)} {site['device']['name']}"
    )
    rows = [("site", ", ".join(place))]
    rows += [(what, str(plan.get(key, ""))) for what, key in (
        ("plan", "digest"), ("llem", "llem"), ("schema", "schema"))]  # fmt: skip
    limits = plan.get("limits")
    if limits:
        rows.insert(1, ("limits", str(limits.get("source", ""))))
    return rows
