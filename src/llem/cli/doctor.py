"""`llem doctor`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from llem.cli._command import add_json, print_json

if TYPE_CHECKING:
    from llem.cluster.doctor import Check

EXAMPLE = """  llem doctor                     # for runs on this machine
  llem doctor --site juwels-booster --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--site", default="laptop", help="a site profile's name (default: laptop)")
    parser.add_argument("--folder", type=Path, default=Path("."), help="where campaigns would lie")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from llem.campaign import load_site
    from llem.cluster.doctor import FAIL, examine

    checks = examine(load_site(args.site), folder=args.folder)
    failed = any(check.state == FAIL for check in checks)
    if args.json:
        print_json({"ok": not failed, "checks": [asdict(check) for check in checks]})
    else:
        show_checks(checks)
    return 1 if failed else 0


def show_checks(checks: list[Check]) -> None:
    """Print checks as lines `[ok] name  seen`, each remedy below."""
    width = max(len(check.name) for check in checks)
    for check in checks:
        print(f"[{check.state:>4}] {check.name:<{width}}  {check.seen}")
        if check.remedy:
            print(f"       {'':<{width}}  -> {check.remedy}")
