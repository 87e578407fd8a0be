"""`llem run`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from llem.cli._command import add_json, add_yes, note, option
from llem.cli.plan import find_campaign, number_of_runs

if TYPE_CHECKING:
    from llem.campaign import Budget, Campaign

EXAMPLE = """  llem run campaign.yaml --out runs/first
  llem run campaign.yaml --budget 1e12FLOP      # interrupted? the same call goes on"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("campaign", nargs="?", type=Path, metavar="CAMPAIGN.yaml")
    parser.add_argument("--budget", help="overrides the campaign's")
    parser.add_argument("--runs", type=int, metavar="K", help="ask for so many runs")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: the campaign's name")
    add_yes(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from llem.campaign import parse_budget

    campaign, base = find_campaign(args.campaign)
    budget = option("--budget", parse_budget, args.budget) if args.budget else None
    return run_all(campaign, base=base, out=args.out or Path(campaign.name), budget=budget,
                   runs=number_of_runs(args.runs), yes=args.yes, as_json=args.json)  # fmt: skip


def run_all(
    campaign: Campaign,
    *,
    base: Path,
    out: Path,
    budget: Budget | None,
    runs: int | None = None,
    yes: bool = False,
    as_json: bool,
) -> int:
    """Plan, run and finish, telling each stage; the exit status."""
    from llem.cli._answer import tell_finished
    from llem.cli._show import plan_tables, watching
    from llem.cli._status import both
    from llem.cli.submit import confirm_spending, local_status
    from llem.cluster import LocalOutcome, Notifier
    from llem.pipeline import finish, plan_campaign, run_campaign

    planned = plan_campaign(campaign, out=out, base=base, budget=budget, runs=runs)
    if not as_json:
        plan_tables(planned.plan)
        # Progress goes to standard error: what belongs before it must not wait in a buffer.
        print(flush=True)
    confirm_spending(planned.folder, planned.plan, yes=yes)
    notifier = Notifier(planned.folder, planned.plan, note)
    with watching(planned.plan) as watch:
        outcome = run_campaign(planned.folder, planned.plan, watch=both(watch, notifier))
    status = 0
    if isinstance(outcome, LocalOutcome):
        status = local_status(outcome, planned.folder)
        if outcome.interrupted:
            return status
    elif not outcome.settled:
        note(f"not every run came to an end: see `llem status {out}`")
        status = 1
    return tell_finished(finish(planned.folder), as_json=as_json) or status
