"""`llem measure`."""

from __future__ import annotations

import argparse
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llem._numerals import format_energy
from llem.campaign import parse_interval
from llem.cli._command import note, option, print_json
from llem.errors import Fault, InputError, LlemError

if TYPE_CHECKING:
    from llem.pipeline import Measured

EXAMPLE = """  llem measure --out run.h5 -- python train.py --epochs 3
  srun -N2 --ntasks-per-node=4 llem measure --out run.h5 -- python train.py
                      # one process a node samples: run.node-<node>.h5 of each
  llem energy run.h5

exit status: the command's; 128+n where signal n ended it"""

# What is passed on to the command. SIGKILL cannot be, and the terminal's stop needs not.
PASSED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1,
          signal.SIGUSR2)  # fmt: skip
# Linux: a signal from the kernel (the terminal's Ctrl-C) has a positive si_code.
FROM_A_PROCESS = 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.h5", help="a new record")
    parser.add_argument("--interval", default="100 ms", metavar="T",
                        help="between samples: 0.1, 100 ms, 1 s (default: 100 ms)")  # fmt: skip
    parser.add_argument(
        "--meters",
        default="auto",
        metavar="NAMES",
        help="nvml,rapl: these alone (default: auto, all that can be read)",
    )
    parser.add_argument("--json", action="store_true",
                        help="print the energy as JSON on standard output, where the command's "
                             "own goes to standard error")  # fmt: skip
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND")


def run(args: argparse.Namespace) -> int:
    from llem.energy import find_launch, parse_meters
    from llem.pipeline import measure

    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    faults = []
    if not command:
        faults.append(Fault("COMMAND", "is missing", "llem measure --out run.h5 -- COMMAND"))
    elif shutil.which(command[0]) is None:
        faults.append(Fault("COMMAND", f"no program {command[0]!r}"))
    launch = find_launch(os.environ)
    # Of several processes the first has made the record before the last one looks.
    if not launch.shared and launch.record_path(args.out).exists():
        text = f"{launch.record_path(args.out)} exists already; records are never overwritten"
        faults.append(Fault("--out", text))
    interval_s = math.nan
    try:
        interval_s = option("--interval", sampling_interval, args.interval)
    except InputError as error:
        faults += error.faults
    try:
        parse_meters(args.meters)
    except ValueError as error:
        faults.append(Fault("--meters", str(error)))
    if faults:
        raise InputError("the call", faults)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    meta = {"command": command}
    with measure(
        args.out.resolve(), interval_s=interval_s, meters=args.meters, meta=meta
    ) as measured:
        status = run_passing_signals(command, stdout=sys.stderr if args.json else None)
    _tell(measured, args, several=launch.several_nodes)
    return status


def sampling_interval(text: str) -> float:
    """Seconds from `0.1`, `100 ms`, `1 s`. Raises ValueError."""
    seconds = parse_interval(text)
    if not 0.001 <= seconds <= 60:
        raise ValueError(f"{text!r} does not lie between 1 ms and 60 s")
    return seconds


def run_passing_signals(command: Sequence[str], *, stdout: Any = None) -> int:
    """Run a command in this process' group; its status, 128+n where signal n ended it.

    Signals that reach this process alone are passed on; those that the command got as well are
    not, since a second one means "at once" to many programs.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [*PASSED, signal.SIGCHLD])
    try:
        child = subprocess.Popen(
            command,
            stdout=stdout,
            preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, before) and None,
        )
        while child.poll() is None:
            info = signal.sigwaitinfo([*PASSED, signal.SIGCHLD])
            if info.si_signo != signal.SIGCHLD and not command_has_it(info):
                child.send_signal(info.si_signo)
        # what came too late for the command is not for llem either
        while signal.sigtimedwait([*PASSED, signal.SIGCHLD], 0) is not None:
            pass
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return 128 - child.returncode if child.returncode < 0 else child.returncode


def command_has_it(info: signal.struct_siginfo, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether a signal went to the command as well: from the terminal, or to a whole SLURM step."""
    if info.si_code > FROM_A_PROCESS:
        return True
    try:
        sender = Path(f"/proc/{info.si_pid}/comm").read_text().strip()
    except OSError:
        return False
    return sender.startswith("slurmstepd") and environ.get("SLURM_STEP_ID", "").isdigit()


def _tell(measured: Measured, args: argparse.Namespace, *, several: bool) -> None:
    """One line, from the last process of each node: it has seen the whole."""
    from llem._numerals import format_duration, format_si

    if not (measured.last or measured.lost):
        return
    for reason in measured.notes:
        note(f"energy: {reason}")
    try:
        found = measured.result
    except LlemError as error:
        note(f"energy: {error.message}")
        return
    if args.json:
        told = {**found.to_dict(), "mean_power_w": measured.mean_power_w,
                "quality": found.quality, "record": str(measured.path)}  # fmt: skip
        print_json(told)
    where = f"{measured.path.stem.partition('.node-')[2]}: " if several else ""
    devices = len(found.devices)
    note(
        f"{where}{format_energy(found.energy_j)} in {format_duration(found.duration_s)}, mean "
        f"{format_si(measured.mean_power_w, 'W')} ({found.quality}, {devices} "
        f"device{'s' if devices != 1 else ''}): {measured.path}"
    )
    for device in found.devices:
        if device.reason and not math.isfinite(device.energy_j):
            note(f"energy: {device.reason}")
