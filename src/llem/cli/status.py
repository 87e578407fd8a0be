"""`llem status`."""

from __future__ import annotations

import argparse

from llem.cli._command import add_folder, add_json, print_json

EXAMPLE = """  llem status runs/first
  llem status runs/first --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_folder(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from llem.cluster import CampaignFolder, campaign_state

    folder = CampaignFolder(args.dir)
    plan = folder.load_plan()
    state = campaign_state(folder, plan)
    if args.json:
        print_json(state.to_dict())
    else:
        from llem.cli._show import status_tables

        status_tables(state, plan)
    return 0
