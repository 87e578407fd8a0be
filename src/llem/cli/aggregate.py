"""`llem aggregate`."""

from __future__ import annotations

import argparse

from llem.cli._answer import Progress
from llem.cli._command import add_folder, add_json, add_late_options, late_options, note, print_json
from llem.errors import Fault, InputError

EXAMPLE = """  llem aggregate runs/first
  llem aggregate runs/first --pue 1.2 --price-per-kwh 0.25 --json
  llem aggregate runs/first --carbon grid-2026.csv
  llem aggregate runs/first --workers 8
  llem aggregate runs/first --slurm"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_folder(parser)
    add_late_options(parser)
    parser.add_argument(
        "--slurm-energy", action="store_true",
        help="ask sacct what SLURM measured of the jobs, and tell where it disagrees",
    )  # fmt: skip
    parser.add_argument(
        "--workers", type=int, metavar="N",
        help="processes that read records (default: by the processors and the work there are)",
    )  # fmt: skip
    parser.add_argument(
        "--no-cache", action="store_true",
        help="read every record again, also of runs whose files have not changed",
    )  # fmt: skip
    parser.add_argument(
        "--slurm", action="store_true",
        help="have an array of jobs read the records, wait for it and do the last step here",
    )  # fmt: skip
    parser.add_argument(
        "--elements", type=int, metavar="N",
        help="with --slurm, jobs of the array (default: by the bytes of the records)",
    )  # fmt: skip
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from collections import Counter
    from dataclasses import asdict

    from llem.cluster import CampaignFolder
    from llem.pipeline import OBSERVATIONS_FILE, aggregate_campaign
    from llem.results import ratios_by_cell

    late = late_options(args)
    faults = []
    if args.workers is not None and args.workers < 1:
        faults.append(Fault("--workers", f"{args.workers} is below 1"))
    if args.elements is not None and args.elements < 1:
        faults.append(Fault("--elements", f"{args.elements} is below 1"))
    if args.elements is not None and not args.slurm:
        faults.append(Fault("--elements", "is for --slurm"))
    if args.slurm and args.no_cache:
        faults.append(Fault("--no-cache", "jobs reduce into the cache: not with --slurm"))
    if faults:
        raise InputError("the call", faults)
    folder = CampaignFolder(args.dir)
    with Progress("reducing runs") as progress:
        aggregation = aggregate_campaign(
            folder,
            slurm_energy=args.slurm_energy,
            workers=args.workers,
            cached=not args.no_cache,
            slurm=args.slurm,
            elements=args.elements,
            say=note,
            progress=progress,
            **late,
        )
    for problem in aggregation.problems:
        note(f"problem: {problem}")
    rows = [asdict(row) for row in aggregation.observations]
    rows += [asdict(row) for row in aggregation.served]
    if args.json:
        print_json(
            {
                "observations": rows,
                "phases": [asdict(row) for row in aggregation.phases],
                "devices": [asdict(row) for row in aggregation.devices],
                "ranks": [asdict(row) for row in aggregation.ranks],
                "cells": [asdict(row) for row in ratios_by_cell(aggregation.observations)],
                "problems": list(aggregation.problems),
            }
        )
    else:
        counts = Counter(row["status"] for row in rows)
        print(f"{len(rows)} runs: " + ", ".join(f"{n} {s}" for s, n in sorted(counts.items())))
    note(f"written: {folder.results / OBSERVATIONS_FILE}")
    return 0
