"""`llem fit`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llem.cli._command import add_json, note, option
from llem.errors import Fault, InputError, did_you_mean

if TYPE_CHECKING:
    from llem.scaling import Target

EXAMPLE = """  llem fit runs/first                              # a campaign folder, after aggregate
  llem fit observations.csv --target 1e24 --bootstrap 4000
  llem fit losses.csv --exclude run7,run9 --json > fit.json"""

# Other names that published tables use for the columns.
ALIASES = {"N": "params", "D": "tokens", "L": "loss", "C": "flops"}
REQUIRED = ("params", "tokens", "loss")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="DIR|FILE.csv")
    parser.add_argument("--target", action="append", default=[], metavar="AMOUNT",
                        help="where the optimum is wanted: 1e24, 2 MWh; repeatable")  # fmt: skip
    parser.add_argument("--delta", type=float, default=1e-3, help="Huber's (default: 1e-3)")
    parser.add_argument("--bootstrap", type=int, default=1000, metavar="K",
                        help="resamples for the intervals; 0: none (default: 1000)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--exclude", default="", metavar="RUN,RUN")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from llem.cli._answer import tell_fit

    faults = []
    if args.bootstrap < 0:
        faults.append(Fault("--bootstrap", "is negative"))
    if not args.delta > 0:
        faults.append(Fault("--delta", "must be above 0"))
    if faults:
        raise InputError("the call", faults)
    options: dict[str, Any] = {
        "targets": tuple(_target(text) for text in args.target),
        "bootstrap": args.bootstrap,
        "seed": args.seed,
        "delta": args.delta,
        "exclude": frozenset(filter(None, args.exclude.split(","))),
    }
    if args.source.is_dir():
        from llem.cluster import CampaignFolder
        from llem.pipeline import FIT_FILE, fit_campaign

        folder = CampaignFolder(args.source)
        fit = fit_campaign(folder, **options)
        note(f"written: {folder.results / FIT_FILE}")
    else:
        from llem.pipeline import fit_observations

        fit = fit_observations(read_table(args.source), **options)
    tell_fit(fit, as_json=args.json)
    return 0


def _target(text: str) -> Target:
    from llem.campaign import parse_budget
    from llem.scaling import Target

    budget = option("--target", parse_budget, text)
    if budget.unit not in ("FLOP", "GPUh", "kWh"):
        raise InputError("the call", [Fault("--target", f"{text!r}: FLOP, GPUh or kWh")])
    return Target(budget.value, budget.unit)


def read_table(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV with `params, tokens, loss` (or N, D, L). Raises InputError."""
    import csv

    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            header = [ALIASES.get(name.strip(), name.strip()) for name in reader.fieldnames or []]
            reader.fieldnames = header
            rows = list(reader)
    except FileNotFoundError:
        raise InputError(str(path), ["there is no such file or folder"]) from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(str(path), [f"cannot be read as CSV: {error}"]) from None
    missing = [name for name in REQUIRED if name not in header]
    if missing:
        raise InputError(
            str(path), [Fault(n, "column is missing", did_you_mean(n, header)) for n in missing]
        )
    return rows
