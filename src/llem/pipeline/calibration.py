"""Calibration: a few shapes of a campaign run for a few steps, and the device fitted to them.

The shapes are a campaign of their own, in a folder of its own, run by what runs any campaign:
what they show of a site holds for the trainings that follow.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median, stdev
from typing import TYPE_CHECKING

from llem._version import __version__
from llem.cluster import (
    CampaignFolder,
    CampaignState,
    Ledger,
    LocalOutcome,
    campaign_state,
    finite_or_none,
    resubmit,
    write_json,
)
from llem.errors import Fault, InputError, LlemError, typed
from llem.pipeline.campaigns import Planned, plan_campaign, run_campaign
from llem.planning import (
    CALIBRATION_FILE,
    LAYOUT,
    SHAPES,
    Calibration,
    DeviceFound,
    LeftOut,
    Plan,
    ShapeFound,
    StepLaw,
    StepTime,
    accelerator_of,
    calibration_plan,
    fit_steps,
    weighted_mean,
)

if TYPE_CHECKING:
    from llem.campaign import Budget, Campaign, Run
    from llem.results import Steady

LEAST_STEPS = 10


@dataclass(frozen=True)
class Calibrated:
    """What was planned, how it ended, and what was found; None where it was interrupted."""

    planned: Planned
    outcome: LocalOutcome | CampaignState
    calibration: Calibration | None

    @property
    def file(self) -> Path:
        return self.planned.folder.results / CALIBRATION_FILE


def calibrate(
    campaign: Campaign,
    *,
    out: str | Path,
    base: str | Path = ".",
    budget: Budget | None = None,
    shapes: int = SHAPES,
    steps: int | None = None,
    watch: Callable[[CampaignState], None] | None = None,
) -> Calibrated:
    """Measure `shapes` of the campaign's plan on its site, into `out`/results/calibration.json.

    `base` is the folder that relative paths of the campaign start from. Interrupted, the same call
    goes on. Raises InputError, BudgetError, and LlemError where no shape could be measured.
    """
    planned = plan_calibration(
        campaign, out=out, base=base, budget=budget, shapes=shapes, steps=steps
    )
    return run_calibration(planned, watch=watch)


def plan_calibration(
    campaign: Campaign,
    *,
    out: str | Path,
    base: str | Path = ".",
    budget: Budget | None = None,
    shapes: int = SHAPES,
    steps: int | None = None,
    replace_old: bool = False,
) -> Planned:
    """The runs of a calibration with what they are expected to cost, written into `out`."""
    faults = []
    if shapes < 1:
        faults.append(Fault("shapes", f"{shapes} is below 1"))
    if steps is not None and steps < LEAST_STEPS:
        faults.append(Fault("steps", f"{steps} is below {LEAST_STEPS}: all of it is warm-up"))
    if faults:
        raise InputError("the call", faults)
    # What it will be measured again with must not decide what is measured.
    campaign = campaign.model_copy(update={"calibration": None})
    return plan_campaign(
        campaign, out=out, base=base, budget=budget, replace_old=replace_old,
        change=lambda plan: calibration_plan(plan, shapes=shapes, steps=steps),
    )  # fmt: skip


def run_calibration(
    planned: Planned, *, watch: Callable[[CampaignState], None] | None = None
) -> Calibrated:
    """Run what is not settled yet, and reduce the records to calibration.json.

    Raises LlemError where no shape could be measured.
    """
    folder, plan = planned.folder, planned.plan
    if plan.site.executor == "slurm" and Ledger.read(folder).jobs:
        state = campaign_state(folder, plan)
        if not state.active and not state.settled:
            resubmit(folder, plan, finish=False)
    outcome = run_campaign(folder, plan, watch=watch)
    if isinstance(outcome, LocalOutcome) and outcome.interrupted:
        return Calibrated(planned, outcome, None)
    calibration = reduce_calibration(folder, plan)
    write_json(folder.results / CALIBRATION_FILE, finite_or_none(calibration.to_dict()))
    return Calibrated(planned, outcome, calibration)


def reduce_calibration(folder: CampaignFolder, plan: Plan) -> Calibration:
    """Raw records -> the shapes and the device; nothing runs. Raises LlemError without a shape."""
    from llem.results import steady_runs

    steady = {item.run_id: item for item in steady_runs(folder.root)}
    timed = [(run, steady[run.run_id]) for run in plan.runs if steady[run.run_id].step_s > 0]
    left_out = [
        LeftOut(what=f"{run.params} parameters", reason=steady[run.run_id].reason)
        for run in plan.runs
        if not steady[run.run_id].step_s > 0
    ]
    left_out += [LeftOut(what=LAYOUT, reason=dropped.reason) for dropped in plan.dropped]
    if not timed:
        reasons = "; ".join(dict.fromkeys(item.reason for item in left_out))
        raise LlemError(
            f"no shape could be measured: {reasons}",
            remedy=f"see `{typed('llem', 'status', folder.root)}`",
        )
    peak = plan.device.peak_flops
    prior = accelerator_of(plan.site).utilisation
    law = fit_steps([_step_time(run, found, peak) for run, found in timed], utilisation=prior)
    return Calibration(
        llem=__version__,
        created=_ended(folder, timed),
        campaign=plan.campaign.name,
        plan=plan.digest,
        site=plan.site.name,
        executor=plan.site.executor,
        device_name=plan.device.name,
        peak_flops=peak,
        precision=plan.runs[0].recipe.precision,
        shapes=tuple(_shape(run, found, law, peak, prior) for run, found in timed),
        left_out=tuple(left_out),
        device=_device(law, [found for _, found in timed], [run for run, _ in timed]),
    )


def _ended(folder: CampaignFolder, timed: list[tuple[Run, Steady]]) -> str:
    """When the last of the runs ended, by their records: reduced again, a file stays the same."""
    ends = [e.get("ended_ns", 0) for run, _ in timed for e in folder.ends(run.run_id)]
    return datetime.fromtimestamp(max(ends, default=0) / 1e9, UTC).isoformat(timespec="seconds")


def _step_time(run: Run, found: Steady, peak_flops: float) -> StepTime:
    work_s = run.flops / run.steps / run.layout.ranks / peak_flops
    error = found.step_error if math.isfinite(found.step_error) else 0.0
    return StepTime(work_s, run.layout.grad_accum, found.step_s, error)


def _shape(run: Run, found: Steady, law: StepLaw, peak: float, prior: float) -> ShapeFound:
    time = _step_time(run, found, peak)
    told = law.step_s(time.work_s, time.micro_steps, prior=prior)
    return ShapeFound(
        run_id=run.run_id,
        params=run.params,
        flops_per_step=run.flops / run.steps,
        batch_tokens=run.recipe.batch_tokens,
        layout=run.layout,
        status=found.status,
        steps=found.steps,
        dropped=found.dropped,
        step_s=found.step_s,
        step_error=found.step_error,
        step_median_s=found.step_median_s,
        tokens_per_s=run.recipe.batch_tokens / found.step_s,
        utilisation=time.work_s / found.step_s,
        power_w=found.power_w,
        energy_quality=found.energy_quality,
        energy_reason=found.energy_reason,
        peak_memory_bytes=found.peak_memory_bytes,
        predicted_memory_bytes=run.predicted.memory_bytes,
        startup_s=found.startup_s,
        residual=told / found.step_s - 1,
    )


def _device(law: StepLaw, found: list[Steady], runs: list[Run]) -> DeviceFound:
    from llem.records import worst_quality

    powered = [
        (s.power_w, s.step_s * s.steps * run.layout.ranks, s)
        for s, run in zip(found, runs, strict=True)
        if s.power_w > 0
    ]
    power_w, power_error = weighted_mean([(watts, weight) for watts, weight, _ in powered])
    reasons = [s.energy_reason for s in found if s.energy_reason and not s.power_w > 0]
    startup, startup_error = _median_with_error([s.startup_s for s in found])
    return DeviceFound(
        **asdict(law),
        power_w=power_w,
        power_error=power_error,
        energy_quality=worst_quality(s.energy_quality for _, _, s in powered),
        energy_reason="; ".join(dict.fromkeys(reasons)),
        startup_s=startup,
        startup_error_s=startup_error,
    )


def _median_with_error(values: list[float]) -> tuple[float, float]:
    """Median of what is known and the standard error of the mean; NaN where it is not."""
    known = [v for v in values if v >= 0]
    if not known:
        return math.nan, math.nan
    if len(known) < 2:
        return known[0], math.nan
    return median(known), stdev(known) / math.sqrt(len(known))
