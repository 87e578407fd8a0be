"""The next wave of a plan: what is left of the budget, on the runs that tell most."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from llem._numerals import format_amount
from llem.campaign import Budget, Run, Runs, Site
from llem.errors import Fault, InputError
from llem.planning.arrays import pack
from llem.planning.cells import Bench, OwnModel
from llem.planning.fill import BudgetError
from llem.planning.hardware import Measured, device_since
from llem.planning.limits import ClusterLimits, narrowed
from llem.planning.plan import Plan, WavePlan, plan_warnings
from llem.planning.scatter import Scatter
from llem.planning.spend import cost_of, target_flops
from llem.planning.waves import (
    Learnt,
    next_wave,
    promise_of_wave,
    runs_of_wave,
    wave_share,
)
from llem.scaling import ScalingDataError

# Statuses of an observation after which a run costs no more.
ENDED = frozenset({"completed", "diverged"})


def refine_plan(
    plan: Plan,
    rows: Sequence[Mapping[str, Any]],
    *,
    budget: Budget | None = None,
    runs: int | None = None,
    own: OwnModel | None = None,
    limits: ClusterLimits | None = None,
    measured: Sequence[Measured] = (),
) -> Plan:
    """The plan with one more wave, chosen from the observations `rows` so far.

    `budget` puts another total in the place of the plan's, in the same unit. The wave spends its
    share of what is left where the campaign asks for more waves, else all of it. A run that has not
    ended is counted at its expected cost, and as a run that will be observed.

    `measured` is what the runs have shown of the device; a calibration that the plan rests on
    stands above it. Raises InputError where the runs so far carry no law, BudgetError where
    nothing is left.
    """
    budget = budget or plan.budget
    if budget.unit != plan.budget.unit:
        text = f"the plan counts in {plan.budget.unit}, this is in {budget.unit}"
        raise InputError("the call", [Fault("--budget", text)])
    by_id = {str(row["run_id"]): row for row in rows}
    number = len(plan.waves) + 1
    site = narrowed(plan.site, limits) if limits is not None else plan.site
    device = device_since(plan.device, measured, site=site)
    bench = Bench(campaign=plan.campaign, site=site, device=device, data=plan.runs[0].data, own=own)
    spent = math.fsum(_spent(run, by_id.get(run.run_id), budget.unit, site) for run in plan.runs)
    left = budget.value - spent
    if left <= 0:
        raise BudgetError(
            f"nothing is left of {budget}: {format_amount(spent, budget.unit)} are "
            "spent or under way",
            remedy="give a larger total with --budget",
        )
    value = left * wave_share(number, plan.campaign.waves)
    learnt = _learnt(rows, Scatter.expected(bench.data))
    target = target_flops(plan.campaign.target, site, device)
    pending = [run for run in plan.runs if not _ended(by_id.get(run.run_id))]
    try:
        wave = next_wave(
            bench, learnt, target_flops=target, budget=value, unit=budget.unit,
            first_level=1 + max(run.level for run in plan.runs), runs=runs, pending=pending,
        )  # fmt: skip
    except ValueError as error:
        text = f"{error}: {format_amount(value, budget.unit)} of {budget}"
        raise BudgetError(text, remedy="give a larger total with --budget") from None
    known = plan.by_id
    made = Runs.of(
        run for run in runs_of_wave(bench, wave, number=number - 1) if run.run_id not in known
    )
    arrays = pack(made, site, wave=number)
    grown = replace(
        plan,
        site=site,
        device=device,
        budget=budget,
        runs=plan.runs + made,
        arrays=plan.arrays + arrays,
        warnings=tuple(
            plan_warnings(made, arrays, plan.campaign, Budget(value, budget.unit), site, device,
                          bench.data)
        ),
        limits=limits or plan.limits,
        promise=promise_of_wave(wave),
    )  # fmt: skip
    told = WavePlan(
        number=number, kind="designed", value=value, runs=len(made), digest=grown.digest,
        observed=int(learnt.params.size), pending=len(pending),
    )  # fmt: skip
    return replace(grown, waves=(*plan.waves, told))


def _learnt(rows: Sequence[Mapping[str, Any]], prior: Scatter) -> Learnt:
    completed = [row for row in rows if row["status"] == "completed"]
    try:
        return Learnt.of(completed, prior=prior)
    except ScalingDataError as error:
        text = (
            f"{len(completed)} of {len(rows)} runs have completed, and they carry no law: {error}"
        )
        hint = "wait for more runs, or see `llem fit`"
        raise InputError("the observations", [Fault("", text, hint)]) from None


def _ended(row: Mapping[str, Any] | None) -> bool:
    return row is not None and row["status"] in ENDED


def _spent(run: Run, row: Mapping[str, Any] | None, unit: str, site: Site) -> float:
    """What a run has cost where it ended, as measured where it was; else what it will cost.

    The start of its element is in no rank's window: its expected share is added.
    """
    predicted = run.predicted
    if row is not None and _ended(row) and row["gpu_seconds"] > 0:
        start_h = max(0.0, predicted.gpu_hours - predicted.duration_s * run.layout.ranks / 3600)
        start = start_h / predicted.gpu_hours if predicted.gpu_hours > 0 else 0.0
        joules = float(row["energy_j"]) + start * predicted.energy_j
        # Without its energy a run is counted as expected where energy is paid for.
        if unit in ("GPUh", "node-h") or row["energy_j"] > 0:
            hours = float(row["gpu_seconds"]) / 3600 + start_h
            predicted = replace(predicted, gpu_hours=hours, energy_j=joules)
    return cost_of(run.flops_of_its_own, predicted, run.layout, unit=unit, site=site)
