"""`llem seal`."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from llem.cli._command import add_json, note, print_json
from llem.errors import Fault, InputError

EXAMPLE = """  llem seal runs/first
  llem seal runs/first --check
  llem seal run.h5"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("places", type=Path, nargs="+", metavar="DIR|FILE.h5",
                        help="records, and folders of which all records are meant")  # fmt: skip
    parser.add_argument("--jobs", type=int, metavar="N",
                        help="processes (default: at most 4)")  # fmt: skip
    parser.add_argument("--check", action="store_true",
                        help="change nothing; compare sealed records with their seals")  # fmt: skip
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from llem.cli._answer import Progress
    from llem.pipeline import check_records, seal_records

    if args.jobs is not None and args.jobs < 1:
        raise InputError("the call", [Fault("--jobs", f"{args.jobs} is below 1")])
    work = check_records if args.check else seal_records
    with Progress("checking" if args.check else "sealing") as progress:
        found = work(args.places, jobs=args.jobs, progress=progress)
    counts = Counter(one.state for one in found)
    before, after = (
        sum(getattr(one, f"bytes_{when}") for one in found) for when in ("before", "after")
    )
    if args.json:
        files = [{**vars(one), "path": str(one.path)} for one in found]
        print_json({"counts": counts, "bytes_before": before, "bytes_after": after, "files": files})
    else:
        from llem._numerals import format_si

        told = ", ".join(f"{n} {WORDS[state]}" for state, n in sorted(counts.items()))
        size = f"; {format_si(before, 'B')} have become {format_si(after, 'B')}" if after else ""
        print(f"{len(found)} records: {told}{size}")
    for one in found:
        if one.state in ("left", "failed"):
            note(f"{one.state}: {one.reason}")
    return 1 if counts["failed"] else 0


# state -> how it is told
WORDS = {
    "sealed": "sealed",
    "before": "sealed before",
    "left": "left, since they may still be written",
    "failed": "failed",
    "right": "as their seals say",
    "open": "not sealed",
}
