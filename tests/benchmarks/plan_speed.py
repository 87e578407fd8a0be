#!/usr/bin/env python3
"""How long `llem plan` takes for ten and a hundred thousand runs, against submitit's batch of 1000.

    python tests/benchmarks/plan_speed.py            # about a minute
    python tests/benchmarks/plan_speed.py --quick    # 10,000 runs and a batch of 200

llem is timed as a process, from nothing to the last file on disk: imports, planning, rendering,
plan.json, one script and one manifest per array. submitit is timed inside a process that has
imported it already: its `batch()` of 1000 calls of a function of no size, which pickles each call
and submits one array to a stand-in sbatch that only answers a job id. What is compared is the time
per run, an element of submitit's being one call; processor seconds are those of all processes.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

CAMPAIGN = """\
name: speed
target: 1e25 FLOP
model: {vocabulary: 32000, context: 2048}
site: juwels-booster
"""


def plan(runs: int, folder: Path) -> tuple[float, float, float, int]:
    """Wall-clock and processor seconds, megabytes, and bytes written of a plan of `runs` runs."""
    (folder / "campaign.yaml").write_text(CAMPAIGN)
    args = ["plan", "campaign.yaml", "--runs", str(runs), "--budget", "5e6 GPUh", "--out",
            f"out-{runs}"]  # fmt: skip
    # The peak memory of one child alone: a small process of its own starts it and tells.
    code = (
        "import resource, subprocess, sys, time; t = time.perf_counter();"
        "subprocess.run([sys.executable, '-m', 'llem', *sys.argv[1:]], check=True,"
        "stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL);"
        "r = resource.getrusage(resource.RUSAGE_CHILDREN);"
        "print(time.perf_counter() - t, r.ru_utime + r.ru_stime, r.ru_maxrss / 1024)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *args], cwd=folder, check=True, capture_output=True, text=True
    )
    wall, processor, megabytes = map(float, done.stdout.split())
    written = sum(p.stat().st_size for p in (folder / f"out-{runs}").rglob("*") if p.is_file())
    return wall, processor, megabytes, written


def submitit_batch(size: int, folder: Path) -> tuple[float, float]:
    """Wall-clock and processor seconds of submitit's batch of `size` calls."""
    import submitit

    programs = folder / "bin"
    programs.mkdir()
    for name, text in {"sbatch": "echo Submitted batch job 1", "srun": "true"}.items():
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    os.environ["PATH"] = f"{programs}:{os.environ['PATH']}"
    executor = submitit.AutoExecutor(folder=folder / "submitit", cluster="slurm")
    executor.update_parameters(timeout_min=60, slurm_array_parallelism=20)
    begun, spent = time.perf_counter(), _processor_s()
    with executor.batch():
        for number in range(size):
            executor.submit(_nothing, number)
    return time.perf_counter() - begun, _processor_s() - spent


def _nothing(number: int) -> int:
    return number


def _processor_s() -> float:
    both = (resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(r.ru_utime + r.ru_stime for r in both)


def tell(what: str, value: str, wanted: str, met: bool) -> bool:
    print(f"{what:<46} {value:>16}   wanted {wanted:<14} {'met' if met else 'NOT MET'}")
    return met


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    size = 200 if quick else 1000
    good = []
    with tempfile.TemporaryDirectory(prefix="llem-speed-") as scratch:
        folder = Path(scratch)
        plan(100, folder)  # The files of the interpreter come into the system's cache.
        wall, processor, _, written = plan(10_000, folder)
        good.append(tell("10,000 runs, wall-clock", f"{wall:.2f} s", "2 s", wall <= 2))
        print(f"{'  processor, files':<46} {processor:>11.2f} s, {written / 1e6:.0f} MB")
        each, each_processor = wall / 10_000, processor / 10_000
        if not quick:
            wall, processor, memory, written = plan(100_000, folder)
            good.append(tell("100,000 runs, wall-clock", f"{wall:.2f} s", "20 s", wall <= 20))
            print(f"{'  processor, files':<46} {processor:>11.2f} s, {written / 1e6:.0f} MB")
            good.append(tell("  peak memory", f"{memory:.0f} MiB", "1000 MB", memory <= 953))
        wall, processor = submitit_batch(size, folder)
        print(f"{f'submitit, batch of {size}':<46} {wall:>11.2f} s, {processor:.2f} s processor")
        for what, ratio in (
            ("per element against submitit, wall-clock", wall / size / each),
            ("per element against submitit, processor", processor / size / each_processor),
        ):
            good.append(tell(what, f"{ratio:.1f} x", "10 x", ratio >= 10))
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
