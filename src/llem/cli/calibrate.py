"""`llem calibrate`."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llem._numerals import (
    UNKNOWN,
    format_count,
    format_duration,
    format_energy,
    format_gpu_hours,
    format_si,
    percent,
)
from llem.cli._command import add_json, add_yes, asked_budget, note, print_json
from llem.cli.plan import find_campaign
from llem.errors import typed

if TYPE_CHECKING:
    from llem.pipeline import Calibrated, Planned
    from llem.planning import Calibration, ShapeFound

EXAMPLE = """  llem calibrate campaign.yaml --out runs/calibration
  llem plan campaign.yaml --calibration runs/calibration
  llem calibrate campaign.yaml --out runs/cal --shapes 8 --steps 100 --json"""

LEFT_OUT_SHOWN = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("campaign", nargs="?", type=Path, metavar="CAMPAIGN.yaml")
    parser.add_argument("--out", type=Path, metavar="DIR",
                        help="default: the campaign's name and -calibration")  # fmt: skip
    parser.add_argument("--budget", help="overrides the campaign's: its plan gives the shapes")
    parser.add_argument("--shapes", type=int, metavar="K", help="how many shapes; default: 5")
    parser.add_argument("--steps", type=int, metavar="S",
                        help="steps of each; default: 40, or as many as take 6 s")  # fmt: skip
    parser.add_argument("--replace", action="store_true", help="put it in another one's place")
    add_yes(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from llem.cli._progress import watching
    from llem.cli.submit import confirm_spending, local_status
    from llem.cluster import LocalOutcome
    from llem.pipeline import plan_calibration, run_calibration
    from llem.planning import SHAPES

    campaign, base = find_campaign(args.campaign)
    budget = asked_budget(args.budget)
    planned = plan_calibration(
        campaign, out=args.out or Path(f"{campaign.name}-calibration"), base=base, budget=budget,
        shapes=SHAPES if args.shapes is None else args.shapes, steps=args.steps,
        replace_old=args.replace,
    )  # fmt: skip
    _tell_cost(planned)
    confirm_spending(planned.folder, planned.plan, yes=args.yes)
    with watching(planned.folder, planned.plan) as watch:
        done = run_calibration(planned, watch=watch)
    status = 0
    if isinstance(done.outcome, LocalOutcome):
        status = local_status(done.outcome, planned.folder, again="llem calibrate")
    elif not done.outcome.settled:
        note(
            f"not every shape came to an end: see `{typed('llem', 'status', planned.folder.root)}`"
        )
        status = 1
    if done.calibration is not None:
        _tell(done, done.calibration, as_json=args.json)
    return status


def _tell_cost(planned: Planned) -> None:
    """What will be spent, before it is."""
    plan = planned.plan
    hours = plan.totals["gpu_hours"]
    note(
        f"{len(plan.runs)} shapes of {format_count(min(r.params for r in plan.runs))} to "
        f"{format_count(max(r.params for r in plan.runs))} parameters, "
        f"{min(r.steps for r in plan.runs)} to {max(r.steps for r in plan.runs)} steps each: about "
        f"{format_gpu_hours(hours)}, {format_energy(plan.totals['energy_j'])}, longest "
        f"{format_duration(max(r.predicted.duration_s for r in plan.runs) + plan.site.startup_s)}"
    )
    if plan.dropped:
        shown = "; ".join(dropped.reason for dropped in plan.dropped[:LEFT_OUT_SHOWN])
        more = len(plan.dropped) - LEFT_OUT_SHOWN
        note(f"not measured: {shown}" + (f"; and {more} more" if more > 0 else ""))


def _tell(done: Calibrated, calibration: Calibration, *, as_json: bool) -> None:
    if as_json:
        print_json({**calibration.to_dict(), "file": str(done.file)})
        return
    from llem.cli._table import table
    from llem.planning import LAYOUT

    table(
        ["parameters", "nodes x ranks", "ZeRO", "micro-batch", "steps", "step", "tokens/s",
         "of the peak", "power", "memory", "start", "fit"],
        [_row(shape) for shape in calibration.shapes],
        title=f"{calibration.device_name} at {calibration.site}, {calibration.precision}",
    )  # fmt: skip
    print()
    for line in device_lines(calibration):
        print(line)
    for item in calibration.left_out:
        if item.what != LAYOUT:
            print(f"left out: {item.what}: {item.reason}")
    then = typed("llem", "plan", "--calibration", done.planned.folder.root)
    note(f"written: {done.file}; next: {then}")


def device_lines(calibration: Calibration) -> list[str]:
    """What the planner will take, each figure with its error or the reason why there is none."""
    found = calibration.device
    overhead = f"{format_duration(found.step_overhead_s)} a micro-step"
    if math.isfinite(found.step_overhead_error_s):
        overhead += f" +- {format_duration(found.step_overhead_error_s)}"
    if found.utilisation > 0:
        error = f"+- {percent(found.utilisation_error, places=0)}"
        steps = f"utilisation {found.utilisation:.3g} {error} of the peak and {overhead}"
    else:
        steps = f"{overhead}, which hides the work: the utilisation stays a prior"
    lines = [f"{steps}; a shape is {percent(found.scatter, places=0)} off (root mean square)"]
    if found.power_w > 0:
        how = {"model": "estimated by a model, not measured"}.get(found.energy_quality, "measured")
        lines.append(
            f"power {format_si(found.power_w, 'W')} +- "
            f"{percent(found.power_error, places=0)} a device: {how}"
        )
    else:
        # Every shape has a reason of its own in the file; the first says what to look for.
        first = found.energy_reason.partition("; ")[0]
        lines.append(f"power not measured: {first or 'no meter'}")
    if found.startup_s >= 0:
        lines.append(f"an element takes {format_duration(found.startup_s)} to start")
    return lines


def _row(shape: ShapeFound) -> list[Any]:
    layout = shape.layout
    model = " (model)" if shape.energy_quality == "model" else ""
    error = f" +- {percent(shape.step_error, places=0)}" if math.isfinite(shape.step_error) else ""
    return [
        format_count(shape.params),
        f"{layout.nodes} x {layout.gpus_per_node}",
        layout.zero_stage,
        layout.micro_batch,
        shape.steps,
        f"{format_si(shape.step_s, 's')}{error}",
        format_si(shape.tokens_per_s),
        percent(shape.utilisation, places=1),
        f"{format_si(shape.power_w, 'W')}{model}" if shape.power_w > 0 else UNKNOWN,
        format_si(shape.peak_memory_bytes, "B") if shape.peak_memory_bytes > 0 else UNKNOWN,
        format_duration(shape.startup_s) if shape.startup_s >= 0 else UNKNOWN,
        percent(shape.residual, places=0, signed=True),
    ]
