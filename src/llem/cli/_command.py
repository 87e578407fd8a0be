"""What all commands share: parsing, errors as lines and exit statuses, interruption."""

from __future__ import annotations

import argparse
import errno
import json
import math
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from llem._numerals import format_gpu_hours
from llem.errors import Fault, InputError, LlemError, did_you_mean

if TYPE_CHECKING:
    from llem.campaign import Budget

INTERRUPTED = 130
# Spending less than this is not asked about.
ASK_ABOVE_GPU_HOURS = 100.0
_FULL = "free some space, or have the quota raised, and call again: what was finished is kept"
# How a filesystem says no, which is nobody's bug, and what to do about it.
REFUSED = {
    errno.EACCES: "it belongs to another user, or its mode forbids it",
    errno.EPERM: "it belongs to another user, or its mode forbids it",
    errno.EROFS: "the filesystem is mounted for reading alone: work in another folder",
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
}


class Command(Protocol):
    """A command's module: `EXAMPLE`, `add_arguments`, `run`."""

    EXAMPLE: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


class _Parser(argparse.ArgumentParser):
    """argparse with llem's way of saying what is wrong."""

    def error(self, message: str) -> NoReturn:
        hint = ""
        if message.startswith("unrecognized arguments:"):
            word = message.split(":", 1)[1].split()[0]
            known = [o for action in self._actions for o in action.option_strings]
            hint = f" ({near})" if (near := did_you_mean(word, known)) else ""
        print(f"{self.prog}: {message}{hint}; see `{self.prog} --help`", file=sys.stderr)
        raise SystemExit(2)


def call(name: str, argv: list[str], *, purpose: str) -> int:
    """Parse and run one command; every error of llem's becomes lines and a status."""
    command: Command = import_module(f"llem.cli.{name}")
    parser = _Parser(
        prog=f"llem {name}",
        description=purpose[0].upper() + purpose[1:] + ".",
        epilog=f"example:\n{command.EXAMPLE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.add_arguments(parser)
    try:
        return command.run(parser.parse_args(argv))
    except SystemExit as leave:
        return leave.code if isinstance(leave.code, int) else 1
    except LlemError as error:
        for line in error.lines():
            print(f"llem: {line}", file=sys.stderr)
        return error.exit_status
    except OSError as error:
        # A write to a full disk fails without saying of which file.
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        if error.errno not in REFUSED or (error.filename is None and not full):
            raise
        where = "" if error.filename is None else f"{error.filename}: "
        print(f"llem: {where}{error.strerror}", file=sys.stderr)
        print(f"llem:   -> {REFUSED[error.errno]}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stopped:
        told = str(stopped) or "interrupted; nothing that was finished is lost"
        print(f"llem: {told}", file=sys.stderr)
        return INTERRUPTED


def add_json(parser: argparse.ArgumentParser) -> None:
    """The `--json` of every command that prints results."""
    parser.add_argument("--json", action="store_true", help="print JSON alone on standard output")


def add_calibration(parser: argparse.ArgumentParser) -> None:
    """The `--calibration` of commands that plan."""
    parser.add_argument(
        "--calibration", type=Path, metavar="DIR|FILE",
        help="rest the figures on what `llem calibrate` measured, or of a study on one that ran "
        "on the site (overrides the campaign's)",
    )  # fmt: skip


def add_folder(parser: argparse.ArgumentParser) -> None:
    """The campaign folder that most commands take."""
    parser.add_argument("dir", type=Path, metavar="DIR", help="the campaign folder of `llem plan`")


def add_late_options(parser: argparse.ArgumentParser) -> None:
    """What is applied when records are aggregated; left out, the site's values hold."""
    group = parser.add_argument_group("applied late (default: the site's values)")
    group.add_argument(
        "--pue", type=float, metavar="X", help="power usage effectiveness, 1.0 or more"
    )
    group.add_argument(
        "--carbon", metavar="G|FILE.csv",
        help="carbon intensity: g CO2 per kWh, or a CSV with columns time and g_per_kwh",
    )  # fmt: skip
    group.add_argument("--price-per-kwh", type=float, metavar="P")
    group.add_argument("--price-per-gpu-hour", type=float, metavar="P")
    group.add_argument(
        "--idle-power", type=float, metavar="W",
        help="idle power of a device for the net energy (default: the records' own baseline)",
    )  # fmt: skip


def late_options(args: argparse.Namespace) -> dict[str, Any]:
    """The late options as keywords of `aggregate_campaign`. Raises InputError."""
    faults = []
    if args.pue is not None and args.pue < 1:
        faults.append(Fault("--pue", f"{args.pue:g} is below 1"))
    carbon: float | str | None = args.carbon
    if carbon is not None:
        try:
            carbon = float(carbon)
        except ValueError:
            pass  # a file: read where it is used
        else:
            if not (math.isfinite(carbon) and carbon >= 0):
                faults.append(Fault("--carbon", f"{args.carbon} is no carbon intensity"))
    for name in ("price_per_kwh", "price_per_gpu_hour", "idle_power"):
        if getattr(args, name) is not None and getattr(args, name) < 0:
            faults.append(Fault(f"--{name.replace('_', '-')}", "is negative"))
    if faults:
        raise InputError("the call", faults)
    return {
        "pue": args.pue,
        "carbon": carbon,
        "idle_power_w": args.idle_power,
        "price_per_kwh": args.price_per_kwh,
        "price_per_gpu_hour": args.price_per_gpu_hour,
    }


def add_yes(parser: argparse.ArgumentParser) -> None:
    """The `--yes` of commands that commit money."""
    parser.add_argument(
        "--yes", action="store_true",
        help=f"do not ask, where more than {ASK_ABOVE_GPU_HOURS:g} GPUh would be spent",
    )  # fmt: skip


def confirm(gpu_hours: float, *, what: str, yes: bool) -> None:
    """Ask before much is spent; without a terminal to ask at, `--yes` is needed.

    Raises InputError where the answer is not yes.
    """
    if yes or gpu_hours <= ASK_ABOVE_GPU_HOURS:
        return
    text = f"{what}: expected to take {format_gpu_hours(gpu_hours)}"
    if sys.stdin is not None and sys.stdin.isatty():
        print(f"{text}. Go on? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() in ("y", "yes"):
            return
        raise InputError("the call", [Fault("", "not confirmed: nothing was submitted")])
    hint = f"above {ASK_ABOVE_GPU_HOURS:g} it must be confirmed: add --yes"
    raise InputError("the call", [Fault("", text, hint)])


def print_json(value: Any) -> None:
    """JSON on standard output, NaN as null."""
    from llem.cluster.disk.files import finite_or_none

    print(json.dumps(finite_or_none(value), indent=1, allow_nan=False))


def note(text: str) -> None:
    """A line for people, on standard error, so that standard output stays for results."""
    print(text, file=sys.stderr)


def option(name: str, read: Callable[[str], Any], text: str) -> Any:
    """Read an option's text with a function that raises ValueError. Raises InputError."""
    try:
        return read(text)
    except ValueError as error:
        raise InputError("the call", [Fault(name, str(error))]) from None


def asked_budget(text: str | None) -> Budget | None:
    """What `--budget` says, None where it was not given: an empty one is a fault, since it is most
    often a shell's variable that was never set. Raises InputError."""
    from llem.campaign import parse_budget

    return None if text is None else option("--budget", parse_budget, text)
