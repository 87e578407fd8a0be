"""Tables of a plan and of what it rests on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llem._numerals import (
    brief,
    format_amount,
    format_count,
    format_duration,
    format_energy,
    format_flops,
    format_gpu_hours,
    format_hours,
    format_money,
    format_times,
    percent,
)
from llem.campaign import Runs, SampleData
from llem.cli._table import array_table, lines, table

if TYPE_CHECKING:
    from llem.campaign import Budget, Replicates
    from llem.pipeline import Planned, PlannedStudy
    from llem.planning import Dropped, Plan
    from llem.report.plan import Timeline


def any_plan_tables(planned: Planned | PlannedStudy) -> None:
    """What was planned, of whichever workload."""
    from llem.planning import StudyPlan

    if isinstance(planned.plan, StudyPlan):
        from llem.cli._study import study_tables

        study_tables(planned.plan)
    else:
        plan_tables(planned.plan, planned.times)


def plan_tables(plan: Plan, times: Timeline | None = None) -> None:
    """What will run and what it is expected to cost; `times` is its timeline where at hand."""
    by_level: dict[int, list[Replicates]] = {}
    for some in plan.runs.replicates:
        by_level.setdefault(some.run.level, []).append(some)
    # Within 80 columns. Energy goes with the hours: its sum is told below.
    table(
        ["FLOP a run", "6ND", "runs", "sizes", "params", "tokens", "longest", "GPUh"],
        [_level_row(Runs(by_level[level])) for level in sorted(by_level)],
        title=f"{plan.campaign.name}: {_several(len(plan.runs), 'run')}",
    )
    print()
    array_table(plan)
    print()
    lines([*_plan_figures(plan, times), *_left_out(plan), *(("warning", w) for w in plan.warnings)])


def _level_row(runs: Runs) -> list[Any]:
    firsts = [some.run for some in runs.replicates]
    share = runs.total(lambda r: 6.0 * r.params * r.tokens) / runs.total(lambda r: r.flops)
    return [
        format_flops(max(run.flops for run in firsts)),
        percent(share, places=0),
        len(runs),
        len({run.params for run in firsts}),
        _range([run.params for run in firsts]),
        _range([run.tokens for run in firsts]),
        format_duration(max(run.predicted.duration_s for run in firsts)),
        format_hours(runs.total(lambda r: r.predicted.gpu_hours)),
    ]


def of_budget(spent: float, budget: Budget) -> str:
    """`125 of 500 GPUh`: the unit once."""
    return f"{format_amount(spent, budget.unit).removesuffix(f' {budget.unit}')} of {budget}"


def _several(count: int, noun: str) -> str:
    return f"{count} {noun}" + "s" * (count != 1)


def _price(plan: Plan) -> float | None:
    """What the runs cost at the site's prices; None where it has none, or the budget is money."""
    from llem.campaign import MONEY
    from llem.planning.spend import spend

    prices = plan.site.prices
    if plan.budget.unit in MONEY or (prices.per_gpu_hour is None and prices.per_kwh is None):
        return None
    return spend(plan.runs, prices.currency, plan.site)


def _range(values: Iterable[float]) -> str:
    """`15.2-244 M`, `80 M-1.25 G`: the prefix once where both ends have the same."""
    found = sorted(values)
    low, high = format_count(found[0]), format_count(found[-1])
    if low == high:
        return low
    number, _, prefix = low.partition(" ")
    return f"{number if prefix == high.partition(' ')[2] else low}-{high}"


def _plan_figures(plan: Plan, times: Timeline | None) -> list[tuple[str, str]]:
    """What is spent, how sure that is and what it rests on; the recipe with its rounding."""
    from llem.planning.spend import spend, uncertainty
    from llem.report.promise import THIS, rows_of

    totals, known = plan.totals, uncertainty(plan.device)
    off = {key: math.exp(error) for key, error in known["uncertainty"].items()}
    spent = spend(plan.runs, plan.budget.unit, plan.site)
    flops = f"{format_flops(totals['flops'])} FLOP, " * (plan.budget.unit != "FLOP")
    expected = (
        f"{of_budget(spent, plan.budget)} = {flops}"
        f"{format_gpu_hours(totals['gpu_hours'])} (x/ {off['gpu_hours']:.2f}), "
        f"{format_energy(totals['energy_j'])} (x/ {off['energy_j']:.2f})"
    )
    if (price := _price(plan)) is not None:
        expected += f", {format_money(price, plan.site.prices.currency)}"
    source = known["source"]
    rests = f"utilisation {source['utilisation']}; power {source['power']}"
    found = [
        *_wave(plan),
        ("expected", expected),
        ("duration", _duration(plan, times)),
        ("rests on", rests),
    ]
    rows = {row["budget"]: row for row in rows_of(plan.promise)}
    if rows:
        now = rows.pop(THIS)
        others = ", ".join(f"{budget} {row['factor']}" for budget, row in rows.items())
        text = (
            f"N* at the target within a factor of {now['factor']} at 95 % ({others}); standard "
            f"error of log N* {now['both']}: {now['noise']} from noise (runs lie "
            f"{percent(plan.promise['noise'], places=1)} off a law; {plan.promise['laws']}), "
            f"{now['law']} for the law's own error"
        )
        found.append(("promised", text))
    asked = [(some, some.run.recipe, a) for some in plan.runs.replicates if (a := some.run.asked)]
    if asked:
        rounded = [recipe.batch_tokens / a.batch_tokens - 1 for _, recipe, a in asked]
        capped = sum(len(some) for some, r, a in asked if r.learning_rate < 0.999 * a.learning_rate)
        text = (
            f"{asked[0][1].rule}; batches rounded by "
            f"{percent(min(rounded), places=0, signed=True)} to "
            f"{percent(max(rounded), places=0, signed=True)} to powers of two of sequences"
        )
        if capped:
            text += f"; learning rate capped in {capped} run{'s' * (capped > 1)}"
        found.append(("recipe", text))
    if plan.limits is not None:
        found.append(("limits", plan.limits.source))
    return [*found, ("data", _data(plan))]


def _data(plan: Plan) -> str:
    """What is read, how much of it is held out, and which runs read some of it again."""
    data = plan.runs.replicates[0].run.data
    unit = "token"
    if isinstance(data, SampleData):
        unit = data.unit
        text = (
            f"{data.dataset} ({format_count(data.samples)} samples, "
            f"{format_count(data.evaluation_samples)} held out)"
        )
    else:
        whole = sum(part.weight for part in data.parts)
        files = [
            (f"{brief(part.weight / whole, 3)} x " if data.mixture else "")
            + f"{Path(part.data.path).name} ({format_count(part.data.training_tokens)} tokens, "
            f"{format_count(part.data.evaluation_tokens)} held out)"
            for part in data.parts
        ]
        text = " + ".join(files) + ", documents kept whole" * (data.packing != "stream")
    totals = plan.totals
    if not totals["runs_repeating"]:
        return f"{text}; no run reads a {unit} twice"
    over = f"{totals['runs_repeating']:.0f} of {totals['runs']:.0f} runs"
    return (
        f"{text}; {over} read {unit}s again, in up to {format_times(totals['epochs_most'])} epochs"
    )


def _wave(plan: Plan) -> Iterator[tuple[str, str]]:
    """Which part of the budget the newest runs are, where there are several."""
    waves = max(plan.campaign.waves, len(plan.waves))
    if waves == 1:
        return
    now = plan.waves[-1]
    text = (
        f"{now.number} of {waves}: {now.runs} runs for {format_amount(now.value, plan.budget.unit)}"
    )
    if now.observed:
        text += f", chosen from {now.observed} that have ended"
    if now.pending:
        text += f" and {now.pending} under way"
    if now.number < waves:
        text += "; the next one is planned from what they show (`llem plan --refine`, `llem run`)"
    yield "wave", text


def _duration(plan: Plan, times: Timeline | None) -> str:
    """How long it takes if nobody else uses the site."""
    from llem.pipeline.campaigns import by_cell
    from llem.report.plan import timeline

    found = times or timeline(by_cell(plan))
    if plan.site.executor == "local":
        return f"{format_duration(found.end_s)}, {_several(found.nodes, 'element')} at a time"
    return (
        f"{format_duration(found.end_s)} on {_several(found.nodes, 'node')} if the site were "
        "free; how long jobs wait is not known"
    )


def _left_out(plan: Plan) -> Iterator[tuple[str, str]]:
    """Sizes that have no run, by reason."""
    for reason, dropped in _by_reason(plan.dropped).items():
        sizes = ", ".join(dict.fromkeys(format_count(d.params) for d in dropped[:6]))
        more = f" and {len(dropped) - 6} more" if len(dropped) > 6 else ""
        yield "left out", f"{sizes} parameters{more}: {reason}"


def _by_reason(dropped: Iterable[Dropped]) -> dict[str, list[Dropped]]:
    found: dict[str, list[Dropped]] = {}
    for item in dropped:
        found.setdefault(item.reason, []).append(item)
    return found
