"""`llem cancel`."""

from __future__ import annotations

import argparse

from llem.cli._command import add_folder, note

EXAMPLE = """  llem cancel runs/first"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_folder(parser)


def run(args: argparse.Namespace) -> int:
    from llem.cluster import CampaignFolder, cancel

    folder = CampaignFolder(args.dir)
    plan = folder.load_plan()
    jobs = cancel(folder, plan)
    if plan.site.executor == "local":
        trains = plan.campaign.workload == "training"
        note(f"asked the running elements to {'write a checkpoint and ' * trains}stop")
    else:
        note(f"cancelled: {', '.join(jobs)}" if jobs else "nothing was submitted")
    return 0
