"""`llem energy`."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from llem.cli._command import add_json, print_json
from llem.errors import InputError

EXAMPLE = """  llem energy run.h5
  llem energy runs/first/runs/3f2a9c1b7d04/attempt-0 --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="FILE.h5|DIR",
                        help="a node's record, or a folder that holds some")  # fmt: skip
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from llem.results import device_energies

    files = sorted(args.source.rglob("node-*.h5")) if args.source.is_dir() else [args.source]
    if not files:
        raise InputError(str(args.source), ["holds no node-*.h5"])
    found = [device_energies(path) for path in files]
    devices = [asdict(device) for node in found for device in node.devices]
    energy_j = sum(node.energy_j for node in found)
    duration_s = max(node.duration_s for node in found)
    if args.json:
        print_json({"energy_j": energy_j, "duration_s": duration_s, "devices": devices})
        return 0
    from llem.campaign import format_duration, format_si
    from llem.cli._show import table

    rows = [
        [
            device["uuid"],
            device["domain"],
            device["source"],
            device["quality"],
            format_si(device["energy_j"], "J"),
            format_duration(device["duration_s"]),
            f"{device['coverage']:.0%}" if math.isfinite(device["coverage"]) else "n/a",
            device["reason"],
        ]
        for device in devices
    ]
    columns = ["device", "domain", "source", "quality", "energy", "time", "coverage", "reason"]
    table(columns, rows)
    print(f"\n{format_si(energy_j, 'J')} in {format_duration(duration_s)}")
    return 0
