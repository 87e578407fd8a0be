"""`llem resubmit`."""

from __future__ import annotations

import argparse

from llem.cli._command import add_folder, add_json, note

EXAMPLE = """  llem resubmit runs/first      # after a cancel, a failure or a time limit"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_folder(parser)
    parser.add_argument("--no-finish", action="store_true", help="no job that fits at the end")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from llem.cli.submit import run_here, tell
    from llem.cluster import CampaignFolder, resubmit

    folder = CampaignFolder(args.dir)
    plan = folder.load_plan()
    if plan.site.executor == "local":
        return run_here(folder, plan, as_json=args.json)
    done = resubmit(folder, plan, finish=not args.no_finish)
    if not done.new:
        note("nothing is missing that is not queued or running")
    return tell(done, args)
