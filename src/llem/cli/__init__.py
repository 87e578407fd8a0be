"""The command line: one thin module per command, imported when it is called.

Exit status: 0 done, 1 the work failed, 2 the call or a file was wrong, 130 interrupted.
"""

from __future__ import annotations

import gc
import io
import os
import sys

# command -> what it does, in the order of a campaign. Each is a module of this package.
COMMANDS = {
    "quickstart": "the whole path on this machine, in minutes: a law and its optimum",
    "init": "write a campaign.yaml to start from",
    "data": "turn text into a token file, or say what one holds",
    "calibrate": "measure step time, memory and power of a few shapes",
    "plan": "turn a budget into runs and array jobs",
    "rehearse": "play the whole campaign before paying for it",
    "submit": "submit a planned campaign (SLURM), or run it here (local)",
    "resubmit": "submit again what is missing, and nothing else",
    "status": "where every run of a campaign stands",
    "wait": "wait until nothing of a campaign is queued or running",
    "cancel": "stop a campaign; what has finished stays",
    "logs": "show the log of a run",
    "run": "plan, run, aggregate, fit and report in one call",
    "aggregate": "raw records -> observations.csv",
    "results": "what came out: list, show, compare and export runs",
    "fit": "observations -> the law, its intervals and the optimum",
    "report": "one page with the answer and its plots",
    "finish": "aggregate, fit and report in one call",
    "measure": "measure the energy of any command",
    "energy": "the energy in a record, by device",
    "seal": "compress the records of what has ended, verified",
    "image": "build or verify the Apptainer image",
    "doctor": "check this machine for what a campaign needs",
}

_USAGE = """\
llem: how big should the model be, on how many tokens, and what will it cost?

usage: llem COMMAND [options]    (llem COMMAND --help tells more)

{commands}

examples:
  llem quickstart
  llem plan campaign.yaml --budget "500 GPUh" --out runs/first
  llem submit runs/first
  llem fit observations.csv --target 1e24
"""


def main(argv: list[str] | None = None) -> int:
    """Entry point of the `llem` command; returns the exit status."""
    _write_what_the_terminal_can()
    try:
        return _main(sys.argv[1:] if argv is None else argv)
    except BrokenPipeError:
        # A reader such as `head` left: what it took was enough. Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    finally:
        if argv is None:
            # The process ends here. Python would look through all that is left once more, for
            # nothing, which takes as long as to plan some thousand runs.
            gc.freeze()


def _write_what_the_terminal_can() -> None:
    """In a locale without UTF-8 a bar or an accent becomes `?`, where it would end the command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")


def _main(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        print(_USAGE.format(commands="\n".join(f"  {n:<12}{s}" for n, s in COMMANDS.items())))
        return 0 if args else 2
    if args[0] in ("-V", "--version", "version"):
        from llem._version import __version__

        print(f"llem {__version__}")
        return 0
    if args[0] not in COMMANDS:
        from llem.errors import did_you_mean

        hint = did_you_mean(args[0], list(COMMANDS)) or "see `llem --help`"
        print(f"llem: no command {args[0]!r}: {hint}", file=sys.stderr)
        return 2
    from llem.cli._command import call

    return call(args[0], args[1:], purpose=COMMANDS[args[0]])
