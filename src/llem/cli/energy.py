"""`llem energy`."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from llem.cli._command import add_json, note, print_json

EXAMPLE = """  llem energy run.h5
  llem energy runs/first/runs/3f2a9c1b7d04/attempt-0 --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="FILE.h5|DIR",
                        help="a node's record, or a folder that holds some")  # fmt: skip
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from llem.results import device_energies

    found = device_energies(args.source)
    for problem in found.problems:
        note(f"problem: {problem}")
    if args.json:
        print_json(found.to_dict())
        return 0
    from llem.campaign import format_duration, format_si
    from llem.cli._show import table

    rows = [
        [
            device.uuid,
            device.domain,
            device.source,
            device.quality,
            format_si(device.energy_j, "J"),
            format_duration(device.duration_s),
            f"{device.coverage:.0%}" if math.isfinite(device.coverage) else "n/a",
            device.reason,
        ]
        for device in found.devices
    ]
    columns = ["device", "domain", "source", "quality", "energy", "time", "coverage", "reason"]
    table(columns, rows)
    print(f"\n{format_si(found.energy_j, 'J')} in {format_duration(found.duration_s)}")
    return 0
