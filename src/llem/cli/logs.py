"""`llem logs`."""

from __future__ import annotations

import argparse

from llem.cli._command import add_folder, note
from llem.errors import Fault, InputError, did_you_mean

EXAMPLE = """  llem logs runs/first 3f2a9c1b7d04
  llem logs runs/first 3f2a9c1b7d04 --lines 200"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_folder(parser)
    parser.add_argument("run", metavar="RUN", help="a run id, as `llem status` shows it")
    parser.add_argument("--lines", type=int, default=50, help="of each log's end (default: 50)")


def run(args: argparse.Namespace) -> int:
    from llem.cluster import CampaignFolder, submitted_jobs

    folder = CampaignFolder(args.dir)
    plan = folder.load_plan()
    jobs = submitted_jobs(folder)
    for array in plan.arrays:
        for index, names in enumerate(array.elements):
            if args.run not in names:
                continue
            found = sorted(folder.logs.glob(f"{array.name}-{index}-rank*.log"))
            for job in jobs.get(array.name, []):
                found += sorted(folder.logs.glob(f"*-{job['job_id']}_{index}.log"))
            for path in found:
                print(f"==> {path} <==")
                for line in path.read_text(errors="replace").splitlines()[-args.lines :]:
                    print(line)
            if not found:
                note(f"{array.name}[{index}] has written no log yet")
            return 0
    known = [run.run_id for run in plan.runs]
    hint = did_you_mean(args.run, known) or "see `llem status`"
    raise InputError(str(args.dir), [Fault("RUN", f"no run {args.run!r} in this plan", hint)])
