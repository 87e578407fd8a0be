"""`llem measure`."""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

from llem.cli._command import INTERRUPTED, note
from llem.errors import Fault, InputError

EXAMPLE = """  llem measure --out run.h5 -- python train.py --epochs 3
  llem energy run.h5"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.h5", help="a new record")
    parser.add_argument("--interval", type=float, default=0.1, metavar="S", help="default: 0.1")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND")


def run(args: argparse.Namespace) -> int:
    from llem.energy import measure

    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    faults = []
    if not command:
        faults.append(Fault("COMMAND", "is missing", "llem measure --out run.h5 -- COMMAND"))
    if args.out.exists():
        faults.append(Fault("--out", f"{args.out} exists already; records are never overwritten"))
    if not 0.001 <= args.interval <= 60:
        faults.append(Fault("--interval", "must lie between 0.001 and 60 s"))
    if faults:
        raise InputError("the call", faults)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with measure(args.out.resolve(), interval_s=args.interval):
        try:
            status = subprocess.run(command, check=False).returncode
        except FileNotFoundError:
            raise InputError("the call", [Fault("COMMAND", f"no program {command[0]!r}")]) from None
        except KeyboardInterrupt:
            status = INTERRUPTED
    note(f"written: {args.out}; next: llem energy {args.out}")
    return status
