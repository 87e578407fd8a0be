"""`llem wait`."""

from __future__ import annotations

import argparse

from llem.cli._command import add_folder, add_json, note, print_json

EXAMPLE = """  llem wait runs/first && llem finish runs/first"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_folder(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from llem.cli._show import watching
    from llem.cluster import CampaignFolder, wait

    folder = CampaignFolder(args.dir)
    plan = folder.load_plan()
    with watching(plan) as watch:
        state = wait(folder, plan, watch=watch)
    if args.json:
        print_json(state.to_dict())
    note(", ".join(f"{n} {status}" for status, n in state.counts.items()))
    return 0 if state.settled else 1
