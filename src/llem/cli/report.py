"""`llem report`."""

from __future__ import annotations

import argparse

from llem.cli._command import add_folder

EXAMPLE = """  llem report runs/first"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_folder(parser)


def run(args: argparse.Namespace) -> int:
    from llem.cluster import CampaignFolder
    from llem.pipeline import report_campaign

    print(report_campaign(CampaignFolder(args.dir)))
    return 0
