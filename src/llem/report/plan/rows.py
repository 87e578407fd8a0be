"""The tables of a plan's page, as rows of text."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from llem._numerals import (
    UNKNOWN,
    format_amount,
    format_count,
    format_duration,
    format_energy,
    format_flops,
    format_hours,
    format_money,
    format_si,
    known,
    number,
    percent,
    significant,
)
from llem.report import promise
from llem.report.plan.cells import Cell, Level, total
from llem.report.plan.figures import Cost

# Rows that a person reads; what is beyond is counted.
MOST_ARRAYS = 30
DEAREST = 5


@dataclass(frozen=True)
class Table:
    """A table of the page. A column named `#...` holds numbers, `~...` names as they are typed.

    chosen: the first cell of a row that is set apart.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    chosen: str = ""

    @property
    def heads(self) -> list[tuple[str, str]]:
        """(name, class) of each column."""
        classes = {"#": "n", "~": "mono"}
        return [(name.lstrip("#~"), classes.get(name[:1], "")) for name in self.columns]


def promises(design: Mapping[str, Any]) -> Table | None:
    """Half the budget, this plan, twice the budget; None where the plan promises nothing."""
    told = promise.rows_of(design)
    keys = ("budget", "factor", "both", "noise", "law", "loss")
    return Table(
        ["Budget", "#N* within a factor of", "#Error of log N*", "#from noise", "#from the law",
         "#Error of the loss"],
        [[row[key] for key in keys] for row in told],
        chosen=promise.THIS,
    ) if told else None  # fmt: skip


def waves_in_rows(plan: Mapping[str, Any]) -> Table | None:
    """The parts in which the budget is spent; None where there is one."""
    told = plan.get("waves") or []
    asked = max(int(plan["campaign"].get("waves", 1)), len(told))
    if asked < 2:
        return None
    unit = plan["budget"]["unit"]
    rows = []
    for wave in told:
        if wave["observed"]:
            chosen = f"what {wave['observed']} runs have shown"
            chosen += f", {wave['pending']} under way" if wave["pending"] else ""
        else:
            chosen = "a grid: nothing is known yet"
        rows.append([f"{wave['number']} of {asked}", str(wave["runs"]),
                     format_amount(wave['value'], unit), chosen])  # fmt: skip
    rows += [[f"{n} of {asked}", "", "", "planned when the one before has ended"]
             for n in range(len(told) + 1, asked + 1)]  # fmt: skip
    return Table(["Wave", "#Runs", "#May cost", "Chosen by"], rows,
                 chosen=f"{len(told)} of {asked}")  # fmt: skip


def levels_in_rows(levels: Sequence[Level]) -> Table:
    rows = []
    for level in levels:
        cells = level.cells
        flops = total([c.flops for c in cells])
        six = total([6.0 * c.params * c.tokens * c.seeds for c in cells])
        rows.append([
            _named(level), percent(six / flops), str(len(cells)), str(level.runs),
            span([c.params for c in cells], format_count),
            span([c.tokens for c in cells], format_count),
            span([c.tokens / c.params for c in cells], lambda v: significant(v, 2)),
            format_duration(max(c.predicted("duration_s") for c in cells)),
            format_hours(total([c.gpu_hours for c in cells])),
            format_energy(total([c.seeds * c.predicted("energy_j") for c in cells])),
        ])  # fmt: skip
    return Table(["Compute a run", "#6ND", "#Cells", "#Runs", "#Parameters", "#Tokens", "#D / N",
                  "#Longest", "#GPUh", "#Energy"], rows)  # fmt: skip


def dearest_cells(cost: Cost) -> Table:
    """The cells that cost most, with the names of their runs."""
    rows = []
    for cell in cost.cells[:DEAREST]:
        first, *more = cell.run_ids
        names = f"{first} and {len(more)} more" if len(more) > 3 else ", ".join(cell.run_ids)
        value = cost.of_cell(cell)
        rows.append([
            format_count(cell.params), format_count(cell.tokens), _model(cell.run["model"]),
            str(cell.seeds), cost.told(value), percent(value / cost.total), names,
        ])  # fmt: skip
    return Table(["Dearest cells", "#Tokens", "Model", "#Seeds", "#Cost", "#Of all", "~Runs"], rows)


def arrays_in_rows(arrays: Sequence[Mapping[str, Any]], *, local: bool) -> Table:
    rows = []
    for array in arrays[:MOST_ARRAYS]:
        chain = int(array.get("segments", 1))
        limit = format_duration(array["time_limit_s"])
        throttle = array.get("throttle")
        rows.append([
            str(array["name"]), str(len(array["elements"])),
            str(sum(len(names) for names in array["elements"])),
            f"{array['nodes']} × {array['gpus_per_node']}", str(array["zero_stage"]),
            f"{chain} × {limit}" if chain > 1 else limit,
            UNKNOWN if local or not throttle else str(throttle),
        ])  # fmt: skip
    return Table(["~Array", "#Elements", "#Runs", "#Nodes × ranks", "#ZeRO", "#Time limit",
                  "#At a time"], rows)  # fmt: skip


def recipes(levels: Sequence[Level]) -> Table:
    rows = []
    for level in levels:
        runs = [c.run for c in level.cells]
        asked = [(r, r["asked"]) for r in runs if r.get("asked")]
        off = [r["batch_tokens"] / number(a["batch_tokens"]) - 1 for r, a in asked]
        capped = sum(r["learning_rate"] < 0.999 * number(a["learning_rate"]) for r, a in asked)
        rows.append([
            _named(level), span([r["batch_tokens"] for r in runs], format_count),
            span(off, _rounded_by) if off else "as given",
            span([r["learning_rate"] for r in runs], lambda v: f"{v:.2g}"),
            f"{capped} of {len(runs)}" if capped else "none",
            span([r["steps"] for r in runs], format_count),
            span([r["recipe"]["warmup_steps"] for r in runs], format_count),
        ])  # fmt: skip
    return Table(["Compute a run", "#Batch, tokens", "#Rounded by", "#Learning rate", "#Capped",
                  "#Steps", "#Warm-up"], rows)  # fmt: skip


def _rounded_by(share: float) -> str:
    return percent(share, places=0, signed=True).replace("-", "−")


def layouts(cells: Sequence[Cell], device: Mapping[str, Any]) -> Table:
    """Where runs go, with the most memory that any of them takes, smallest layout first."""
    memory = number(device["memory_bytes"])
    found: dict[tuple[Any, ...], list[Cell]] = {}
    for cell in cells:
        at = cell.run["layout"]
        key = (at["nodes"], at["gpus_per_node"], at["zero_stage"],
               bool(at.get("activation_checkpointing")))  # fmt: skip
        found.setdefault(key, []).append(cell)
    rows = []
    for (nodes, devices, stage, again), group in sorted(found.items()):
        most = max(c.predicted("memory_bytes") for c in group)
        rows.append([
            f"{nodes} × {devices}", str(stage) + (", activations recomputed" if again else ""),
            str(sum(c.seeds for c in group)), span([c.params for c in group], format_count),
            span([c.run["layout"]["micro_batch"] for c in group], str),
            span([c.run["layout"]["grad_accum"] for c in group], str), meter(most, memory),
        ])  # fmt: skip
    return Table(["Nodes × ranks", "ZeRO", "#Runs", "#Parameters", "#Micro-batch", "#Accumulation",
                  f"Most memory, of {format_si(memory, 'B')} ({device['name']})"],
                 rows)  # fmt: skip


def _named(level: Level) -> Markup:
    """A level's compute, with the colour of its points."""
    words = f"{format_flops(level.flops)} FLOP"
    return Markup('<span class="key l{}"></span>{}').format(level.place, words)


def _model(model: Mapping[str, Any]) -> str:
    """The shape of a model in a few words."""
    if model.get("class_path"):
        return f"{model['class_path']}, {model['size']} {model['value']}"
    return f"{model['layers']} layers, width {model['width']}, {model['heads']} heads"


def meter(used: float, there_is: float, *, share: bool = True) -> Markup | str:
    """A bar as full as the memory is, with what is used and, if asked for, its share of all."""
    if not math.isfinite(used):
        return UNKNOWN
    bar = '<span class="meter"><span style="width: {:.0f}%"></span></span>{}'
    full = used / there_is
    told = format_si(used, "B") + (f", {percent(round(full, 3))}" if share else "")
    return Markup(bar).format(100 * min(full, 1.0), told if share else told.replace(" ", "\u00a0"))


def prices_in_rows(site: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The site's prices and PUE, as far as it has them."""
    rows = []
    prices = site.get("prices") or {}
    for key, unit in (("per_gpu_hour", "a GPU-hour"), ("per_kwh", "a kWh")):
        if known(prices.get(key)):
            rows.append((f"price of {unit}", format_money(prices[key], prices.get("currency"))))
    if number(site.get("pue", 1.0)) > 1:
        rows.append(("PUE", f"{site['pue']:g}: in kWh and money, not in the energy above"))
    return rows


def span(values: Sequence[float], form: Callable[[float], str]) -> str:
    """`15.2 M to 1.25 B`; one value alone where all agree."""
    low, high = form(min(values)), form(max(values))
    return low if low == high else f"{low} to {high}"
