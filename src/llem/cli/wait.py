"""`llem wait`."""

from __future__ import annotations

import argparse

from llem.cli._command import add_folder, add_json, note, option, print_json
from llem.errors import typed

EXAMPLE = """  llem wait runs/first && llem finish runs/first
  llem wait runs/first --timeout 30m   # status 1 where it is not over then"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_folder(parser)
    parser.add_argument("--timeout", metavar="DURATION", help="wait no longer, such as 90m or 24h")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from llem._numerals import format_duration
    from llem.campaign import parse_duration
    from llem.cli._progress import watching
    from llem.cli._status import both, show, told_counts
    from llem.cluster import CampaignFolder, Notifier, summarise, wait

    timeout_s = option("--timeout", parse_duration, args.timeout) if args.timeout else None
    folder = CampaignFolder(args.dir)
    plan = folder.load_plan()
    notifier = Notifier(folder, plan, note)
    with watching(folder, plan) as watch:
        state = wait(folder, plan, watch=both(watch, notifier), timeout_s=timeout_s)
    summary = summarise(folder, plan, state)
    if args.json:
        print_json(summary.to_dict(state))
    elif state.active or state.settled:
        note(told_counts(summary.tally))
    else:
        show(summary)
    if state.active:
        told = format_duration(timeout_s or 0)
        note(f"not over after {told}: it goes on, and `{typed('llem', 'wait', args.dir)}` waits on")
    return 0 if state.settled else 1
