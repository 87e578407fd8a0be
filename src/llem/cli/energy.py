"""`llem energy`."""

from __future__ import annotations

import argparse
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from llem._numerals import UNKNOWN, percent
from llem.cli._command import add_json, note, print_json
from llem.errors import Fault, InputError

if TYPE_CHECKING:
    from llem.results import NodeEnergy

EXAMPLE = """  llem energy run.h5                      # of several nodes: of all of them
  llem energy run.h5 --plot power.svg
  llem energy runs/first/runs/3f2a9c1b7d04/attempt-0 --json
  llem energy runs/first                  # every run of a campaign"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="FILE.h5|DIR",
                        help="a node's record, or a folder that holds some")  # fmt: skip
    parser.add_argument("--plot", type=Path, metavar="FILE.svg|png|html",
                        help="draw power by device, with phases and idle power")  # fmt: skip
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from llem.results import device_energies

    _check_plot(args.plot)
    found = device_energies(args.source)
    for problem in found.problems:
        note(f"problem: {problem}")
    if args.json:
        print_json(found.to_dict())
    elif found.runs:
        _tell_runs(found)
    else:
        _tell_devices(found)
        _draw(args.source)
    if args.plot:
        from llem.pipeline import draw_energy

        note(f"plot: {draw_energy(args.source, args.plot)}")
    return 0


def _check_plot(path: Path | None) -> None:
    from llem.report.power import SUFFIXES

    if path is None:
        return
    if path.suffix.lower() not in SUFFIXES:
        text = f"{path.name!r} does not say what kind of picture"
        raise InputError("the call", [Fault("--plot", text, f"one of {', '.join(SUFFIXES)}")])
    if not path.absolute().parent.is_dir():
        raise InputError("the call", [Fault("--plot", f"no folder {path.absolute().parent}")])


def _tell_devices(found: NodeEnergy) -> None:
    from llem._numerals import format_duration, format_energy
    from llem.cli._table import table
    from llem.pipeline.power import short

    # A program may read what is no terminal: there the names stay whole.
    name = short if sys.stdout.isatty() else str
    rows = [
        [
            name(device.uuid),
            device.domain,
            device.source,
            device.quality,
            format_energy(device.energy_j),
            _mean(device.energy_j, device.duration_s),
            format_duration(device.duration_s),
            percent(device.coverage, places=0),
        ]
        for device in found.devices
    ]
    columns = ["device", "domain", "source", "quality", "energy", "mean", "time", "coverage"]
    table(columns, rows)
    for reason in dict.fromkeys(device.reason for device in found.devices if device.reason):
        print(f"  {reason}")
    if found.phases:
        print()
        _tell_phases(found)
    print(f"\n{_total(found)}")


def _tell_phases(found: NodeEnergy) -> None:
    from llem._numerals import format_duration, format_energy
    from llem.cli._table import table

    rows = [
        [
            phase.phase,
            format_energy(phase.energy_j),
            percent(phase.energy_j / found.energy_j, places=1) if found.energy_j > 0 else UNKNOWN,
            _mean(phase.energy_j, phase.duration_s),
            format_duration(phase.duration_s),
        ]
        for phase in found.phases
    ]
    table(["phase", "energy", "share", "mean", "time"], rows)


def _tell_runs(found: NodeEnergy) -> None:
    from llem._numerals import format_duration, format_energy
    from llem.cli._table import table

    rows = [
        [run.run_id, format_energy(run.energy_j), _mean(run.energy_j, run.duration_s),
         format_duration(run.duration_s)]
        for run in found.runs
    ]  # fmt: skip
    table(["run", "energy", "mean", "time"], rows)
    print(f"\n{len(found.runs)} runs, {_total(found)}")


def _draw(source: Path) -> None:
    from llem.cli._trace import terminal, trace_lines
    from llem.results import power_traces

    width, colour, unicode = terminal(sys.stdout, os.environ)
    lines = trace_lines(power_traces(source), width=width, colour=colour, unicode=unicode)
    if lines:
        print()
    for line in lines:
        print(line)


def _total(found: NodeEnergy) -> str:
    from llem._numerals import format_duration, format_energy

    mean = _mean(found.energy_j, found.duration_s)
    return (
        f"{format_energy(found.energy_j)} in {format_duration(found.duration_s)}"
        + (f", mean {mean}" if not found.runs else "")
        + f" ({found.quality})"
    )


def _mean(energy_j: float, duration_s: float) -> str:
    from llem._numerals import format_si

    return format_si(energy_j / duration_s if duration_s > 0 else math.nan, "W")
