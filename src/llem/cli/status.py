"""`llem status`."""

from __future__ import annotations

import argparse

from llem.cli._command import add_folder, add_json, print_json
from llem.errors import Fault, InputError

EXAMPLE = """  llem status runs/first
  llem status runs/first --runs      # every run on a line
  llem status runs/first --watch 30  # live, until nothing works any more
  llem status runs/first --json      # docs/status.md tells of the fields"""

# How long one call may read records for the energy of finished runs.
ENERGY_S = 0.2
WATCH_S, LEAST_WATCH_S = 10.0, 2.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_folder(parser)
    parser.add_argument("--runs", action="store_true", help="every run on a line")
    parser.add_argument(
        "--watch", nargs="?", type=float, const=WATCH_S, metavar="SECONDS",
        help=f"look again every so often (default: {WATCH_S:g}) until nothing works any more",
    )  # fmt: skip
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from llem.cluster import CampaignFolder, CampaignState, campaign_state, summarise

    _check(args)
    folder = CampaignFolder(args.dir)
    plan = folder.load_plan()

    def look() -> CampaignState:
        return campaign_state(folder, plan, energy_s=ENERGY_S)

    if args.watch is not None:
        from llem.cli._status import watch_live

        watch_live(folder, plan, look, seconds=args.watch)
        return 0
    state = look()
    summary = summarise(folder, plan, state)
    if args.json:
        print_json(summary.to_dict(state))
        return 0
    from llem.cli._status import console, run_lines, show

    if args.runs:
        print("\n".join(run_lines(plan, state.runs, width=console().width)), end="\n\n")
    show(summary)
    return 0


def _check(args: argparse.Namespace) -> None:
    faults = []
    if args.watch is not None:
        if not args.watch >= LEAST_WATCH_S:
            text = f"{args.watch:g} s would flood the scheduler"
            faults.append(Fault("--watch", text, f"at least {LEAST_WATCH_S:g}"))
        if args.json or args.runs:
            faults.append(Fault("--watch", "goes with neither --json nor --runs"))
    if faults:
        raise InputError("the call", faults)
