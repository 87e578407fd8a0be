"""`llem finish`."""

from __future__ import annotations

import argparse

from llem.cli._command import add_folder, add_json

EXAMPLE = """  llem finish runs/first"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_folder(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from llem.cli._answer import tell_finished
    from llem.cluster import CampaignFolder
    from llem.pipeline import finish

    return tell_finished(finish(CampaignFolder(args.dir)), as_json=args.json)
