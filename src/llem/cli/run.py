"""`llem run`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from llem.cli._command import INTERRUPTED, add_calibration, add_json, add_yes, asked_budget, note
from llem.cli.plan import add_waves, find_any_campaign, in_waves, positive
from llem.errors import typed

if TYPE_CHECKING:
    from llem.campaign import Budget, Campaign
    from llem.campaign.study.study import Study
    from llem.pipeline import Planned, PlannedStudy

EXAMPLE = """  llem run campaign.yaml --out runs/first
  llem run campaign.yaml --budget 1e12FLOP  # interrupted? the same call goes on
  llem run campaign.yaml --waves 3          # each planned from those before it"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("campaign", nargs="?", type=Path, metavar="CAMPAIGN.yaml")
    parser.add_argument("--budget", help="overrides the campaign's")
    parser.add_argument("--runs", type=int, metavar="K", help="ask for so many runs")
    add_calibration(parser)
    add_waves(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: the campaign's name")
    add_yes(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:

    asked, base = find_any_campaign(args.campaign)
    budget = asked_budget(args.budget)
    if asked.workload == "inference":
        return _run_study(args, asked, base, budget)
    campaign = in_waves(asked, args.waves)
    return run_all(campaign, base=base, out=args.out or Path(campaign.name), budget=budget,
                   runs=positive("--runs", args.runs), calibration=args.calibration, yes=args.yes,
                   as_json=args.json)  # fmt: skip


def _run_study(args: argparse.Namespace, study: Study, base: Path, budget: Budget | None) -> int:
    """Plan, serve and aggregate a study; the exit status."""
    from llem.cli._answer import tell_finished
    from llem.cli._study import planned_study
    from llem.pipeline import finish

    planned = planned_study(args, study, base, budget)
    status = _run_wave(planned, yes=args.yes, as_json=args.json)
    if status == INTERRUPTED:
        return status
    # That a study carries no law, as of a server whose passes are its own, is no failure of it.
    tell_finished(finish(planned.folder), as_json=args.json)
    return status


def run_all(
    campaign: Campaign,
    *,
    base: Path,
    out: Path,
    budget: Budget | None,
    runs: int | None = None,
    calibration: Path | None = None,
    yes: bool = False,
    as_json: bool,
) -> int:
    """Plan, run and finish, wave after wave, telling each stage; the exit status."""
    from llem.cli._answer import tell_finished
    from llem.pipeline import finish, plan_campaign, refine_campaign, wave_is_due

    planned = plan_campaign(
        campaign, out=out, base=base, budget=budget, runs=runs, calibration=calibration
    )
    while True:
        status = _run_wave(planned, yes=yes, as_json=as_json)
        if status or not wave_is_due(planned.plan):
            break
        note(f"wave {len(planned.plan.waves)} of {campaign.waves} has ended: planning the next")
        planned = refine_campaign(planned.folder, after=len(planned.plan.waves))
    if status == INTERRUPTED:
        return status
    return tell_finished(finish(planned.folder), as_json=as_json) or status


def _run_wave(planned: Planned | PlannedStudy, *, yes: bool, as_json: bool) -> int:
    """Run what is planned and not settled yet; 0 where every run came to an end."""
    from llem.cli._progress import watching
    from llem.cli._show import any_plan_tables
    from llem.cli._status import both
    from llem.cli.submit import confirm_spending, local_status
    from llem.cluster import LocalOutcome, Notifier
    from llem.pipeline import run_campaign

    folder, plan = planned.folder, planned.plan
    if not as_json:
        any_plan_tables(planned)
        # Progress goes to standard error: what belongs before it must not wait in a buffer.
        print(flush=True)
    confirm_spending(folder, plan, yes=yes)
    notifier = Notifier(folder, plan, note)
    with watching(folder, plan) as watch:
        outcome = run_campaign(folder, plan, watch=both(watch, notifier))
    if isinstance(outcome, LocalOutcome):
        return local_status(outcome, folder, again="llem run")
    if not outcome.settled:
        note(f"not every run came to an end: see `{typed('llem', 'status', folder.root)}`")
        return 1
    return 0
