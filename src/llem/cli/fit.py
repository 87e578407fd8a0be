"""`llem fit`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llem.cli._command import add_json, note, option
from llem.errors import Fault, InputError

if TYPE_CHECKING:
    from llem.scaling import Target
    from llem.scaling.optimum import Prices

EXAMPLE = """  llem fit runs/first                              # a campaign folder, after aggregate
  llem fit observations.csv --target 1e24 --bootstrap 4000
  llem fit losses.csv --target "500 kWh" --target "5000 EUR" --price-per-kwh 0.2
  llem fit losses.csv --law "E + A/N^alpha + B/D^beta" --loss squares --plot
  llem fit losses.csv --compare chinchilla,chinchilla_tied
  llem fit losses.csv --exclude run7,run9 --json > fit.json"""

COLUMNS = """\
columns: params (or N), tokens (D) and loss (L, nats per token); where they are known flops (C),
run_id, weight, params_nonembedding, unique_tokens, energy_j, duration_s, gpu_seconds, ranks,
status, reason; of intermediate checkpoints learning_rate, annealed, warmup_tokens, family"""
LOSSES = ("huber", "absolute", "squares")
UNITS = ("FLOP", "GPUh", "kWh")
PLOTS_FOLDER = "fit-plots"
# Resamples that take less than this (s) need no bar.
PATIENCE_S = 1.0


class _LawHelp(argparse.Action):
    """The names of the laws stand in the help, and are looked up only when it is read."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        from llem.scaling import law_names

        parser.epilog = f"laws: {', '.join(law_names())}\n\n{COLUMNS}\n\n{parser.epilog}"
        parser.print_help()
        parser.exit()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    # The help names the laws, which a parser made for every call should not look up.
    parser.set_defaults(help=None)
    for action in list(parser._actions):
        if "--help" in action.option_strings:
            parser._handle_conflict_resolve(None, [(o, action) for o in action.option_strings])  # type: ignore[arg-type]
    add("-h", "--help", nargs=0, action=_LawHelp, help="show this help message and exit")
    add("source", type=Path, metavar="DIR|FILE.csv")
