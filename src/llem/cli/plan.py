"""`llem plan`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from llem.cli._command import add_calibration, add_json, note, option, print_json
from llem.errors import Fault, InputError

if TYPE_CHECKING:
    from llem.campaign import Campaign

EXAMPLE = """  llem plan campaign.yaml --budget "500 GPUh" --out runs/first
  llem plan --budget 1e12FLOP --out /tmp/try      # campaign.yaml here, or the built-in one
  llem plan campaign.yaml --runs 200 --ask-cluster
  llem plan campaign.yaml --calibration runs/calibration     # of llem calibrate
  llem plan campaign.yaml --dry-run --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("campaign", nargs="?", type=Path, metavar="CAMPAIGN.yaml")
    parser.add_argument("--budget", help="overrides the campaign's: 1e20, 3 EFLOP, 500 GPUh, 2 kWh")
    parser.add_argument("--runs", type=int, metavar="K", help="ask for so many runs")
    parser.add_argument(
        "--ask-cluster",
        action="store_true",
        help="ask the scheduler here for its limits, and keep within them",
    )
    add_calibration(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: the campaign's name")
    parser.add_argument("--dry-run", action="store_true", help="show, and write nothing")
    parser.add_argument("--replace", action="store_true", help="put this plan in another's place")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from llem.campaign import parse_budget
    from llem.pipeline import plan_campaign

    campaign, base = find_campaign(args.campaign)
    budget = option("--budget", parse_budget, args.budget) if args.budget else None
    planned = plan_campaign(
        campaign, out=args.out or Path(campaign.name), base=base, budget=budget,
        runs=number_of_runs(args.runs), ask_cluster=args.ask_cluster,
        replace_old=args.replace, write=not args.dry_run, calibration=args.calibration,
    )  # fmt: skip
    if args.json:
        print_json({**planned.plan.to_dict(), "folder": str(planned.folder.root)})
    else:
        from llem.cli._show import plan_tables

        plan_tables(planned.plan)
    where = planned.folder.root
    if args.dry_run:
        note(f"dry run: {where} was not written")
    elif planned.changed:
        note(f"written: {where}; next: llem submit {where}")
    else:
        note(f"{where} holds this plan already; nothing was changed")
    return 0


def number_of_runs(given: int | None) -> int | None:
    """What `--runs` was given. Raises InputError below one."""
    if given is not None and given < 1:
        raise InputError("the call", [Fault("--runs", f"{given} is not a number of runs")])
    return given


def find_campaign(path: Path | None) -> tuple[Campaign, Path]:
    """The named campaign, `campaign.yaml` here, or the built-in one; and its folder."""
    from llem.campaign import default_campaign, load_campaign

    if path is not None:
        return load_campaign(path), path.resolve().parent
    here = Path("campaign.yaml")
    if here.is_file():
        return load_campaign(here), Path.cwd()
    note("no campaign.yaml here: the built-in campaign (see `llem init`)")
    return default_campaign(), Path.cwd()
