"""What runs in an element of the array that reduces records: one slice of the campaign's runs.

    python -m llem.cluster.reducer --manifest FOLDER/manifest.json --element 3

The working directory is the campaign folder. Beside the manifest it leaves parts of the cache, and
at its end `end-<element>.json`: how many runs it reduced, or why not.
"""

from __future__ import annotations

import argparse
import signal
import socket
from pathlib import Path
from typing import Any

from llem.cluster.disk.files import read_json, write_json
from llem.errors import LlemError
from llem.results import carbon_heard, reduce_slice, reducer_version

REDUCE_SCHEMA = "llem-reduce-1"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="llem.cluster.reducer")
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--element", type=int, required=True)
    args = parser.parse_args(argv)
    told = read_json(args.manifest)
    if told.get("schema") != REDUCE_SCHEMA:
        print(f"{args.manifest}: not readable on {socket.gethostname()}", flush=True)
        return 1
    # At a preemption, SLURM takes up again what it had to kill, not what ended by itself. So this
    # works on to the end of its grace, and so do its workers, which inherit it.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end: dict[str, Any] = {"host": socket.gethostname(), "reduced": 0, "reason": ""}
    try:
        end["reduced"] = _reduce(args.manifest.parent, told, args.element)
    except (LlemError, OSError) as error:
        end["reason"] = "; ".join(error.lines()) if isinstance(error, LlemError) else str(error)
        print(f"llem: {end['reason']}", flush=True)
    write_json(args.manifest.parent / f"end-{args.element}.json", end)
    return 1 if end["reason"] else 0


def _reduce(into: Path, told: dict[str, Any], element: int) -> int:
    own = reducer_version()
    if own != told["reducer"]:
        raise LlemError(
            f"this llem or its numpy is another than that which asked ({own[:8]}, not "
            f"{told['reducer'][:8]}): what it reduces could differ",
            remedy="build the image anew with this llem: `llem image build`",
        )
    return reduce_slice(
        Path.cwd(),
        told["slices"][element],
        carbon=carbon_heard(told["carbon"]),
        into=into,
        name=str(element),
    )


if __name__ == "__main__":
    raise SystemExit(main())
