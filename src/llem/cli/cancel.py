"""`llem cancel`."""

from __future__ import annotations

import argparse

from llem.cli._command import add_folder, note

EXAMPLE = """  llem cancel runs/first      # status 0, also where nothing works on it
  llem resubmit runs/first    # goes on with what was stopped"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_folder(parser)


def run(args: argparse.Namespace) -> int:
    from llem.cluster import CampaignFolder, cancel

    folder = CampaignFolder(args.dir)
    plan = folder.load_plan()
    done = cancel(folder, plan)
    if done.at_work_here:
        trains = plan.campaign.workload == "training"
        note(f"asked the running elements to {'write a checkpoint and ' * trains}stop")
    elif done.jobs:
        note(f"cancelled: {', '.join(done.jobs)}; next: llem status {args.dir}")
    elif done.ended:
        jobs = f"its {done.ended} jobs have" if done.ended > 1 else "its one job has"
        note(f"nothing to cancel: {jobs} ended, or the scheduler has forgotten them")
    elif plan.site.executor == "local":
        note("nothing to cancel: nothing works on it here")
    else:
        note("nothing to cancel: nothing was submitted")
    return 0
