"""`llem quickstart`."""

from __future__ import annotations

import argparse
from pathlib import Path

from llem.cli._command import add_calibration, add_json, asked_budget
from llem.errors import UnavailableError

EXAMPLE = """  llem quickstart
  llem quickstart --out /tmp/first --budget 4e12FLOP"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("llem-quickstart"), metavar="DIR",
                        help="default: llem-quickstart")  # fmt: skip
    parser.add_argument("--budget", help="default: that of the built-in campaign")
    add_calibration(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from importlib.util import find_spec

    from llem.campaign import default_campaign
    from llem.cli.run import run_all

    missing = [name for name in ("torch", "accelerate") if find_spec(name) is None]
    if missing:
        raise UnavailableError(
            f"quickstart trains real models and needs {' and '.join(missing)}",
            remedy="pip install 'llem[train]'",
        )
    budget = asked_budget(args.budget)
    return run_all(default_campaign(), base=Path.cwd(), out=args.out, budget=budget,
                   calibration=args.calibration, as_json=args.json)  # fmt: skip
