"""`llem logs`."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING, Any

from llem.cli._command import add_folder, note
from llem.errors import Fault, InputError

if TYPE_CHECKING:
    from pathlib import Path

    from llem.cluster import CampaignFolder
    from llem.cluster.state.logs import LogPart

EXAMPLE = """  llem logs runs/first 3f2a9c               # what its last attempt wrote
  llem logs runs/first 3f2a9c --attempt 0
  llem logs runs/first 3f2a9c --follow      # until the run has ended"""

FOLLOW_S = 0.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_folder(parser)
    parser.add_argument("run", metavar="RUN", help="a run id of `llem status --runs`, or its start")
    parser.add_argument("--attempt", type=int, metavar="K", help="default: the last")
    parser.add_argument("--rank", type=int, metavar="N", help="its own log (local executor)")
    parser.add_argument("--lines", type=int, metavar="K", help="only so many, from the end")
    parser.add_argument("--follow", action="store_true", help="go on as it grows; Ctrl-C ends it")


def run(args: argparse.Namespace) -> int:
    from llem.cluster import CampaignFolder, Ledger
    from llem.cluster.state.logs import element_logs, find_run

    faults = [
        Fault(f"--{name}", "is negative")
        for name in ("attempt", "rank", "lines")
        if (value := getattr(args, name)) is not None and value < 0
    ]
    if faults:
        raise InputError("the call", faults)
    folder = CampaignFolder(args.dir)
    plan = folder.load_plan()
    run_id, array, index = find_run(plan, args.run)
    paths = element_logs(folder, plan, Ledger.read(folder).by_name, array, index)
    if plan.site.executor == "local":
        wanted = f"-rank{args.rank or 0}.log"
        paths = [path for path in paths if path.name.endswith(wanted)]
    elif args.rank is not None:
        note("under SLURM the ranks of an element share one log: all of them are shown")
    if not paths:
        note(f"{array}[{index}] has written no log yet")
        return 0
    part = _part(paths, run_id, args.attempt, ranks_mark=not args.rank)
    _show(part, args.lines)
    if args.follow:
        _follow(folder, run_id, part)
    return 0


def _part(paths: list[Path], run_id: str, attempt: int | None, *, ranks_mark: bool) -> LogPart:
    """The part of the logs that was asked for. Raises InputError where there is no such attempt."""
    from llem.cluster.state.logs import LogPart, parts_of

    # Only rank 0 says when a run begins.
    parts = [p for path in paths for p in parts_of(path, run_id)] if ranks_mark else []
    if attempt is not None:
        found = [part for part in parts if part.attempt == attempt]
        if not found:
            known = ", ".join(str(p.attempt) for p in parts) or "none"
            text = f"no log holds attempt {attempt} of {run_id}"
            raise InputError("the call", [Fault("--attempt", text, f"found: {known}")])
        return found[-1]
    last = paths[-1]
    if parts and parts[-1].path == last:
        return parts[-1]
    # No word of this run in the newest log: what stopped its element before it began is there.
    return LogPart(last, 0, last.stat().st_size)


def _show(part: LogPart, lines: int | None) -> None:
    which = "" if part.attempt is None else f", attempt {part.attempt}"
    # Whoever pipes the log on gets the log alone.
    note(f"==> {part.path}{which} <==")
    found = part.lines()
    for line in found[len(found) - min(lines, len(found)) :] if lines is not None else found:
        print(line)
    sys.stdout.flush()


def _follow(folder: CampaignFolder, run_id: str, part: LogPart) -> None:
    """Print what is written behind `part` until the run has a final end."""
    with open(part.path, "rb") as file:
        file.seek(part.end)
        while True:
            ended: Any = folder.final_end(run_id)
            text = file.read()
            if text:
                sys.stdout.write(text.decode("utf-8", "replace"))
                sys.stdout.flush()
            elif ended:
                return
            else:
                time.sleep(FOLLOW_S)
