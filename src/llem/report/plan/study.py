"""The page of a study's plan: what will be served, in which order, at what cost, and when."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from llem._numerals import (
    UNKNOWN,
    format_count,
    format_duration,
    format_energy,
    format_gpu_hours,
    format_hours,
    format_si,
    number,
    significant,
)
from llem.report import svg
from llem.report.plan import figures
from llem.report.plan.cells import Cell, cells_of
from llem.report.plan.figures import Cost
from llem.report.plan.page import (
    ON_DARK,
    ON_LIGHT,
    budget_told,
    colour,
    provenance_of,
    schedule_text,
    together,
)
from llem.report.plan.rows import MOST_ARRAYS, Table, meter, prices_in_rows, span
from llem.report.plan.timeline import Timeline, times_of
from llem.report.svg import NOT_XML, Axis
from llem.report.templates import render

TEMPLATE = "studyplan.html.j2"
# Rows that a person reads; what is beyond is counted.
MOST_DEPLOYMENTS = 100
MOST_NAMED = 8
MOST_ORDERED = 24
ROW = 20.0
ORDERS = {
    "sequential": "all cycles of a deployment, then of the next",
    "interleaved": "each deployment once, then each again",
    "reverse": "each deployment once, then each again, every second cycle backwards",
    "shuffled": "each cycle in a random order of its own",
    "latin-square": "each cycle in another row of a Latin square, in which each deployment is "
    "equally often in each place and after each other",
}


def render_study_page(plan: Mapping[str, Any], *, times: Timeline | None = None) -> str:
    """The page as text, the same for the same plan.

    plan: plan.json with `cells` in the place of runs: of each deployment one run's `predicted`,
    `layout`, `params`, `tokens` and `backend`, what sets it apart (`told`, by name) and the
    `run_ids` of its cycles. `times`: its timeline, where it is at hand.
    """
    cells = cells_of(plan)
    times = times or times_of_study(plan)
    local = plan["site"].get("executor") == "local"
    cost = Cost(True, tuple(sorted(cells, key=lambda c: -c.gpu_hours)), {0: 0})
    names = {run_id: cell for cell in cells for run_id in cell.run_ids}
    largest = max((e for a in plan["arrays"] for e in a["elements"]), key=len)
    order, order_left = _order(largest, names)
    cycles = max(int(plan["design"]["cycles"]), 1)
    shares = [0.5 if cycles == 1 else c / (cycles - 1) for c in range(cycles)]
    text = render(
        TEMPLATE,
        title=f"{plan['campaign']['name']}: the plan",
        lead=together(_lead(plan, cells)),
        facts=[tuple(map(together, fact)) for fact in _facts(plan, times)],
        warnings=[together(str(text)) for text in plan.get("warnings") or []],
        colours=[(colour(s, ON_LIGHT), colour(s, ON_DARK)) for s in shares],
        deployments=_deployments(cost, plan["site"]["device"]),
        count=len(cells),
        same=together(_same(cells)),
        excluded=_excluded(plan.get("excluded") or []),
        duplicates=_duplicates(plan.get("duplicates") or []),
        cost=figures.cost(cost, named=_name, what="deployment"),
        cost_shown=figures.MOST_BARS if len(cells) > figures.MOST_BARS else 0,
        rest=_rest(plan),
        laws=_laws(plan["laws"]),
        overlap=any(law["overlap"] for law in plan["laws"].values()),
        order=order,
        order_left=order_left,
        order_text=together(_order_text(plan)),
        schedule=figures.schedule(times, plan["arrays"], local=local) if times else "",
        times=together(schedule_text(times, plan, local=local)) if times else "",
        local=local,
        arrays_drawn=min(len(plan["arrays"]), figures.MOST_ROWS),
        arrays=_arrays(plan["arrays"], local=local),
        arrays_all=len(plan["arrays"]),
        provenance=provenance_of(plan),
    )
    return NOT_XML.sub("\ufffd", text)


def times_of_study(plan: Mapping[str, Any]) -> Timeline | None:
    """The timeline, with the start of a backend in each element."""
    arrays = [
        {**array, "start_s": plan["laws"][array["backend"]]["start_s"]} for array in plan["arrays"]
    ]
    return times_of({**plan, "arrays": arrays})


def _lead(plan: Mapping[str, Any], cells: Sequence[Cell]) -> str:
    cycles, totals = int(plan["design"]["cycles"]), plan["totals"]
    runs = f"{int(totals['runs']):,}".replace(",", "\u202f")
    return (
        f"{len(cells)} deployment{'s' if len(cells) > 1 else ''} of models of "
        f"{span([c.params for c in cells], format_count)} parameters, in {cycles} "
        f"cycle{'s' if cycles > 1 else ''}: {runs} run{'s' if totals['runs'] > 1 else ''} that "
        f"answer {format_count(totals['requests'])} requests, for "
        f"{budget_told(plan['budget'], 'spent')}."
    )


def _facts(plan: Mapping[str, Any], times: Timeline | None) -> list[tuple[str, str, str]]:
    budget, totals = plan["budget"], plan["totals"]
    error = budget["uncertainty"]

    def off(key: str) -> str:
        return f"×/÷ {significant(math.exp(number(error[key])))}"

    facts = [
        ("tokens out", format_count(totals["tokens"]), "exact"),
        ("device time", format_gpu_hours(totals["gpu_hours"]), off("gpu_hours")),
        ("energy", format_energy(totals["energy_j"]), off("energy_j")),
        ("elements", str(totals["elements"]), ""),
    ]
    if times is not None:
        facts.append(("duration", format_duration(times.end_s), "if the site were free"))
    return facts


def _name(cell: Cell) -> str:
    told = " ".join(f"{key}={value}" for key, value in cell.run["told"].items())
    return told or str(cell.run["deployment_id"])


def _deployments(cost: Cost, device: Mapping[str, Any]) -> Table:
    memory = number(device["memory_bytes"])
    shown = cost.cells[:MOST_DEPLOYMENTS]
    keys = list(shown[0].run["told"])
    rows = []
    for cell in shown:
        at = cell.run["layout"]
        rows.append([
            str(cell.run["deployment_id"]), *(str(cell.run["told"][key]) for key in keys),
            f"{at['nodes']} × {at['gpus_per_node']}", format_duration(cell.predicted("duration_s")),
            format_hours(cell.gpu_hours),
            meter(cell.predicted("memory_bytes"), memory, share=False),
        ])  # fmt: skip
    return Table(
        ["~Deployment", *(f"#{key}" for key in keys), "#Ranks", "#A cycle",
         "#GPUh", f"Memory, of {format_si(memory, 'B')}"],
        rows,
    )  # fmt: skip


def _same(cells: Sequence[Cell]) -> str:
    found = []
    for key, form in (("backend", str), ("params", format_count)):
        values = {cell.run[key] for cell in cells}
        if len(values) == 1:
            words = form(values.pop())
            found.append(f"{words} parameters" if key == "params" else words)
    return ", ".join(found)


def _words(what: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in what.items()) or "all"


def _some(names: Sequence[str]) -> str:
    more = len(names) - MOST_NAMED
    return "; ".join(names[:MOST_NAMED]) + (f"; and {more} more" if more > 0 else "")


def _excluded(excluded: Sequence[Mapping[str, Any]]) -> Table | None:
    by_reason: dict[tuple[str, str], list[str]] = {}
    for item in excluded:
        reason, words = str(item["reason"]), _words(item["what"])
        if item["by"] == "memory":
            # Each needs something else: one line for all of them.
            reason, words = (
                "more memory than a device has",
                f"{words} ({reason.partition(' on each')[0]})",
            )
        by_reason.setdefault((reason, str(item["by"])), []).append(words)
    rows = [
        [str(len(names)), reason, "a rule of the file" if by == "rule" else "what it needs",
         _some(names)]
        for (reason, by), names in by_reason.items()
    ]  # fmt: skip
    return Table(["#How many", "Why", "By", "Which"], rows) if rows else None


def _duplicates(duplicates: Sequence[Mapping[str, Any]]) -> Table | None:
    by_first: dict[str, list[str]] = {}
    for item in duplicates:
        by_first.setdefault(str(item["deployment_id"]), []).append(_words(item["what"]))
    rows = [[first, _some(names)] for first, names in list(by_first.items())[:MOST_DEPLOYMENTS]]
    return Table(["~Served as", "What would be the same"], rows) if rows else None


def _rest(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    source, error = plan["budget"]["source"], plan["budget"]["uncertainty"]

    def off(key: str, what: str) -> str:
        factor = significant(math.exp(number(error[key])))
        return f"{what} may be off by a factor of {factor} (one standard error)"

    rows = [
        ("times", f"{source['time']}; {off('gpu_hours', 'time')}"),
        ("power", f"{source['power']}; {off('energy_j', 'energy')}"),
        ("memory", f"weights, cache of a full batch, tensors of a prefill; {off('memory', 'it')}"),
    ]
    return rows + prices_in_rows(plan["site"])


def _laws(laws: Mapping[str, Mapping[str, Any]]) -> Table:
    rows = [
        [
            backend, format_si(law["layer_s"], "s"), format_si(law["graph_layer_s"], "s"),
            format_si(law["bandwidth"], "B/s"), format_si(law["cache_bandwidth"], "B/s"),
            ", ".join(f"{name} {format_si(rate, 'FLOP/s')}" for name, rate in law["rates"].items()),
            format_si(law["start_s"], "s"), format_si(law["load_s"], "s"),
        ]
        for backend, law in laws.items()
    ]  # fmt: skip
    return Table(
        ["Backend", "#Host, a layer", "#with graphs", "#Weights", "#Cache", "Products", "#Start",
         "#Each run besides"], rows,
    )  # fmt: skip


def _order_text(plan: Mapping[str, Any]) -> str:
    design = plan["design"]
    cycles = int(design["cycles"])
    held = [len(names) // cycles for a in plan["arrays"] for names in a["elements"]]
    words = f"{str(design['order']).capitalize()}: {ORDERS.get(design['order'], '')}. "
    words += f"An element holds {span(held, str)} deployment{'s' if max(held) > 1 else ''} with "
    return words + "all cycles, so that these ran on the same nodes."


def _order(element: Sequence[str], names: Mapping[str, Cell]) -> tuple[str, int]:
    """The runs of an element in time, a row for each deployment; how many rows are not drawn."""
    rows: dict[int, int] = {}
    for run_id in element:
        rows.setdefault(id(names[run_id]), len(rows))
    left, right = 208.0, figures.WIDTH - 12
    whole = sum(names[run_id].predicted("duration_s") for run_id in element)
    if len(element) < 2 or not whole > 0:
        return "", 0
    x = Axis(0.0, whole, left, right)
    shown = min(len(rows), MOST_ORDERED)
    floor = 12 + ROW * shown + 4
    ticks = svg.time_ticks(whole)
    parts = svg.across(x, ticks, figures.clock(ticks[-1] - ticks[-2]), top=8, floor=floor)
    cells = {id(names[run_id]): names[run_id] for run_id in element}.values()
    keys = [k for k in next(iter(cells)).run["told"] if len({c.run["told"][k] for c in cells}) > 1]
    at = 0.0
    named = set()
    for run_id in element:
        cell = names[run_id]
        row, until = rows[id(cell)], at + cell.predicted("duration_s")
        if row < shown:
            base = 12 + ROW * (row + 1) - 4
            if row not in named:
                named.add(row)
                words = " ".join(f"{key}={cell.run['told'][key]}" for key in keys) or _name(cell)
                words = words if len(words) <= 32 else words[:31] + "…"
                parts.append(svg.text((0, base - 3), words, "tick"))
            cycle = cell.run_ids.index(run_id)
            told = f"{_name(cell)}, cycle {cycle}: {format_duration(until - at)}"
            ends = (x.at(at), max(x.at(until) - 0.5, x.at(at) + 0.5))
            parts.append(svg.bar(*ends, base - ROW + 7, base, f"bar l{cycle}", told=told))
        at = until
    picture = svg.picture(figures.WIDTH, floor + 26, parts,
                          told="The runs of an element, one after the other")  # fmt: skip
    return picture, len(rows) - shown


def _arrays(arrays: Sequence[Mapping[str, Any]], *, local: bool) -> Table:
    rows = [
        [
            str(array["name"]), str(len(array["elements"])),
            str(sum(len(names) for names in array["elements"])),
            f"{array['nodes']} × {array['gpus_per_node']}", str(array["backend"]),
            format_duration(array["time_limit_s"]),
            UNKNOWN if local or not array.get("throttle") else str(array["throttle"]),
        ]
        for array in arrays[:MOST_ARRAYS]
    ]  # fmt: skip
    return Table(["~Array", "#Elements", "#Runs", "#Nodes × ranks", "Backend", "#Time limit",
                  "#At a time"], rows)  # fmt: skip
