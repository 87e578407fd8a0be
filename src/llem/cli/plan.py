"""`llem plan`."""

from __future__ import annotations

import argparse
import gc
from pathlib import Path
from typing import TYPE_CHECKING

from llem.cli._command import add_calibration, add_json, asked_budget, note, print_json
from llem.errors import Fault, InputError, typed

if TYPE_CHECKING:
    from llem.campaign import Budget, Campaign
    from llem.campaign.study.study import Study
    from llem.pipeline import Planned, PlannedStudy

EXAMPLE = """  llem plan campaign.yaml --budget "500 GPUh" --out runs/first
  llem plan --budget 1e12FLOP --out /tmp/try  # campaign.yaml here, or built in
  llem plan campaign.yaml --runs 200 --ask-cluster
  llem plan campaign.yaml --calibration runs/calibration
  llem plan campaign.yaml --dry-run --json
  llem plan campaign.yaml --waves 3           # a quarter now, the rest later
  llem plan --refine runs/first               # the next wave, from the records
  llem plan --refine runs/first --budget "800 GPUh"  # a new total"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("campaign", nargs="?", type=Path, metavar="CAMPAIGN.yaml")
    parser.add_argument("--budget", help="overrides the campaign's: 1e20, 3 EFLOP, 500 GPUh, 2 kWh")
    parser.add_argument("--runs", type=int, metavar="K", help="ask for so many runs")
    add_waves(parser)
    parser.add_argument(
        "--refine",
        type=Path,
        metavar="DIR",
        help="plan the next wave of the campaign in DIR with what is left of its budget",
    )
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
    # Of a large plan nothing can be collected before it is written, and looking for it takes time.
    gc.disable()
    try:
        return _run(args)
    finally:
        gc.enable()


def _run(args: argparse.Namespace) -> int:
    from llem.pipeline import plan_campaign

    budget = asked_budget(args.budget)
    own = {"ask_cluster": args.ask_cluster, "replace_old": args.replace, "write": not args.dry_run}
    planned: Planned | PlannedStudy
    if args.refine is not None:
        planned = _refine(args, budget)
    else:
        asked, base = find_any_campaign(args.campaign)
        if asked.workload == "inference":
            from llem.cli._study import planned_study

            planned = planned_study(args, asked, base, budget, **own)
        else:
            campaign = in_waves(asked, args.waves)
            planned = plan_campaign(
                campaign, out=args.out or Path(campaign.name), base=base, budget=budget,
                runs=positive("--runs", args.runs), calibration=args.calibration, **own,
            )  # fmt: skip
    if args.json:
        print_json({**planned.plan.to_dict(), "folder": str(planned.folder.root)})
    else:
        from llem.cli._show import any_plan_tables

        any_plan_tables(planned)
    where = planned.folder.root
    if args.dry_run:
        note(f"dry run: {where} was not written")
    elif planned.changed:
        then = typed("llem", "submit", where)
        note(f"written: {where}; read {planned.folder.plan_page}; next: {then}")
    else:
        note(f"{where} holds this plan already; nothing was changed")
    return 0


def _refine(args: argparse.Namespace, budget: Budget | None) -> Planned:
    """The next wave of a campaign. Raises InputError where the call asks for a first plan too."""
    from llem.cluster import CampaignFolder
    from llem.pipeline import refine_campaign

    given = {"CAMPAIGN.yaml": args.campaign, "--out": args.out, "--waves": args.waves,
             "--replace": args.replace or None}  # fmt: skip
    faults = [
        Fault(name, "goes with a first plan", "--refine takes the campaign from DIR")
        for name, value in given.items()
        if value is not None
    ]
    if faults:
        raise InputError("the call", faults)
    return refine_campaign(
        CampaignFolder(args.refine), budget=budget, runs=positive("--runs", args.runs),
        ask_cluster=args.ask_cluster, write=not args.dry_run,
    )  # fmt: skip


def positive(name: str, given: int | None) -> int | None:
    """What an option that counts was given. Raises InputError below one."""
    if given is not None and given < 1:
        raise InputError("the call", [Fault(name, f"{given} is below 1")])
    return given


def add_waves(parser: argparse.ArgumentParser) -> None:
    """The `--waves` of the commands that plan; see `in_waves`."""
    parser.add_argument(
        "--waves", type=int, metavar="K", help="plan in K waves (overrides the campaign's)"
    )


def in_waves(campaign: Campaign, waves: int | None) -> Campaign:
    """The campaign with so many waves where a number is given. Raises InputError."""
    if waves is None:
        return campaign
    from llem.campaign import MOST_WAVES

    if not 1 <= waves <= MOST_WAVES:
        text = f"{waves} is not between 1 and {MOST_WAVES}"
        raise InputError("the call", [Fault("--waves", text)])
    return campaign.model_copy(update={"waves": waves})


def find_campaign(path: Path | None) -> tuple[Campaign, Path]:
    """`find_any_campaign` for what only trainings have. Raises InputError for a study too."""
    campaign, base = find_any_campaign(path)
    if campaign.workload == "inference":
        fault = Fault("workload", "is inference: this is for campaigns of trainings")
        raise InputError(str(path or "campaign.yaml"), [fault])
    return campaign, base


def find_any_campaign(path: Path | None) -> tuple[Campaign | Study, Path]:
    """The named campaign, `campaign.yaml` here, or the built-in one; and its folder."""
    from llem.campaign import default_campaign, load_any_campaign

    if path is not None:
        return load_any_campaign(path), path.resolve().parent
    here = Path("campaign.yaml")
    if here.is_file():
        return load_any_campaign(here), Path.cwd()
    note("no campaign.yaml here: the built-in campaign (see `llem init`)")
    return default_campaign(), Path.cwd()
