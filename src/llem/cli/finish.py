"""`llem finish`."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from llem.cli._command import add_folder, add_json, note

if TYPE_CHECKING:
    from llem.cluster import CampaignFolder

EXAMPLE = """  llem finish runs/first
  llem finish runs/first --slurm"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_folder(parser)
    parser.add_argument("--no-seal", action="store_true",
                        help="leave the records of completed runs as they are")  # fmt: skip
    parser.add_argument("--slurm", action="store_true",
                        help="have an array of jobs read the records")  # fmt: skip
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from llem.cli._answer import tell_finished
    from llem.cluster import CampaignFolder
    from llem.pipeline import finish

    folder = CampaignFolder(args.dir)
    done = finish(folder, slurm=args.slurm, say=note)
    _notify(folder)
    status = tell_finished(done, as_json=args.json)
    if not args.no_seal:
        _seal(folder)
    return status


def _seal(folder: CampaignFolder) -> None:
    """Last, when all else is written: where the job's time ends in it nothing is lost."""
    from llem.cli._answer import Progress
    from llem.pipeline import seal_campaign

    with Progress("sealing") as progress:
        found = seal_campaign(folder, progress=progress)
    for one in found:
        if one.state in ("left", "failed"):
            note(f"not sealed: {one.reason}")


def _notify(folder: CampaignFolder) -> None:
    """Tell those who asked to be told: nobody else may look at a campaign when it ends."""
    from llem.cluster import Notifier, campaign_state

    plan = folder.load_plan()
    notifier = Notifier(folder, plan, note, over="SLURM_JOB_ID" in os.environ)
    if notifier.hooks is not None:
        # In the image there is no scheduler to ask; all arrays have ended anyway.
        notifier(campaign_state(folder, plan, ask_scheduler=False))
