#!/usr/bin/env python3
"""From the start of a rank's process to the end of its first step, on the CPU.

    python tests/benchmarks/rank_start.py                                  # 5 starts
    python tests/benchmarks/rank_start.py --zero 1 --python ENV/bin/python # with DeepSpeed there
    python tests/benchmarks/rank_start.py --imports                        # what imports cost

Each start is an element of a small campaign, in a process of its own as the local executor makes
it: imports, the sampler, the world, the attempt, the model, the first step. Clocks are the kernel's
own (CLOCK_MONOTONIC), which the record of the rank is stamped with too. Processor seconds are those
of the whole element, its few steps and its sampler included. Wanted: under 15 s; exit status 1
where it is not.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from llem.campaign import campaign_from
from llem.cluster import CampaignFolder
from llem.pipeline import plan_campaign
from llem.records import read_rank

WANTED_S = 15.0
CAMPAIGN = {
    "name": "start",
    "target": "1e11 FLOP",
    "budget": "3e9 FLOP",
    "model": {"vocabulary": 256, "context": 64},
    "data": {"builtin": "python-sources", "evaluation_tokens": 4096},
    "grid": {"levels": 1, "sizes": 1},
    "training": {"precision": "fp32", "rule": "small"},
    "site": "laptop",
}
# The packages whose imports are told one by one.
SHOWN = 14


def plan(place: Path, zero_stage: int) -> tuple[CampaignFolder, str]:
    layout = {"layout": {"zero_stage": zero_stage}} if zero_stage else {}
    planned = plan_campaign(campaign_from({**CAMPAIGN, **layout}), out=place)
    return planned.folder, planned.plan.arrays[0].name


def command(python: str, array: str) -> list[str]:
    return [python, "-m", "llem.cluster.element", "--manifest", f"jobs/{array}.jsonl",
            "--element", "0"]  # fmt: skip


def environment() -> dict[str, str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return {
        **os.environ, "SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_JOB_ID": "1",
        "SUBMITIT_LOCAL_NTASKS": "1", "SUBMITIT_LOCAL_JOB_NUM_NODES": "1",
        "SUBMITIT_LOCAL_NODEID": "0", "SUBMITIT_LOCAL_GLOBALID": "0",
        "SUBMITIT_LOCAL_LOCALID": "0", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
    }  # fmt: skip


def start(python: str, zero_stage: int) -> tuple[float, float, float]:
    """Seconds to the attempt's beginning and to the first step's end; processor seconds in all."""
    with tempfile.TemporaryDirectory(prefix="llem-start-") as name:
        folder, array = plan(Path(name) / "c", zero_stage)
        begun_ns, begun_wall_ns = time.monotonic_ns(), time.time_ns()
        with open(folder.root / "log", "w") as log:
            process = subprocess.Popen(
                command(python, array), cwd=folder.root, env=environment(),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit((folder.root / "log").read_text())
        (attempt,) = folder.runs.glob("*/attempt-0")
        record = read_rank(attempt / "rank-00000.h5")
        begin = json.loads((attempt / "begin.json").read_text())
        return (
            (begin["started_ns"] - begun_wall_ns) / 1e9,
            (int(record.steps["t1_ns"][0]) - begun_ns) / 1e9,
            usage.ru_utime + usage.ru_stime,
        )


def imports(python: str, zero_stage: int) -> None:
    """What importing costs, by package: seconds in its own modules and in those it pulls in."""
    with tempfile.TemporaryDirectory(prefix="llem-start-") as name:
        folder, array = plan(Path(name) / "c", zero_stage)
        timed = [python, "-X", "importtime", *command(python, array)[1:]]
        done = subprocess.run(
            timed, cwd=folder.root, env=environment(), capture_output=True, text=True, check=True
        )
    own: dict[str, float] = {}
    for line in done.stderr.splitlines():
        if not line.startswith("import time:") or "self [us]" in line:
            continue
        self_us, _, module = line.removeprefix("import time:").split("|")
        parts = module.strip().split(".")
        package = ".".join(parts[:2]) if parts[0] in ("torch", "llem") else parts[0]
        own[package] = own.get(package, 0.0) + float(self_us) / 1e6
    print(f"{sum(own.values()):6.2f} s  all imports")
    for package, seconds in sorted(own.items(), key=lambda item: -item[1])[:SHOWN]:
        print(f"{seconds:6.2f} s  {package}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--zero", type=int, default=0, help="ZeRO stage: 1 to 3 load DeepSpeed")
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--imports", action="store_true")
    args = parser.parse_args()
    print("load", *(f"{load:.1f}" for load in os.getloadavg()), "on", os.cpu_count(), "processors")
    if args.imports:
        imports(args.python, args.zero)
        return 0
    found = [start(args.python, args.zero) for _ in range(args.starts)]
    begun, first, cpu = zip(*found, strict=True)
    for label, values in (
        ("attempt begun", begun), ("first step done", first), ("processor seconds in all", cpu),
    ):  # fmt: skip
        print(
            f"{label:>25}: median {statistics.median(values):5.2f} s, "
            f"{min(values):5.2f} to {max(values):5.2f}"
        )
    met = statistics.median(first) < WANTED_S
    print(f"wanted: first step under {WANTED_S:.0f} s: {'met' if met else 'NOT MET'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
