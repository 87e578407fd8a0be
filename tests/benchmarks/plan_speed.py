#!/usr/bin/env python3
"""How long `llem plan` takes for ten and a hundred thousand runs, against submitit's batch of 1000.

    python tests/benchmarks/plan_speed.py            # about a minute
    python tests/benchmarks/plan_speed.py --quick    # 10,000 runs alone, each timing once

llem is timed as a process, from nothing to the last file on disk: imports, planning, rendering,
plan.json, one script and one manifest per array. submitit's `batch()` of 1000 calls of a function
of no size pickles each call and submits one array to a stand-in sbatch that only answers a job id.
It is timed in both ways: the batch alone, in a process that has imported submitit already, and as
a process too. What is compared is the time per run, an element of submitit's being one call.

The timings of both take turns, and of several the median counts; processor seconds are those of
all processes and of the system on their behalf.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
# As installed: both are imported from compiled files.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

REPEATS = 7
CAMPAIGN = """\
name: speed
target: 1e25 FLOP
model: {vocabulary: 32000, context: 2048}
site: juwels-booster
"""


# A small process of its own starts the one that is timed, whose peak memory is then its alone.
TIMED = """\
import json, resource, subprocess, sys, time
begun = time.perf_counter()
done = subprocess.run(sys.argv[1:], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
wall = time.perf_counter() - begun
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([wall, used.ru_utime + used.ru_stime, used.ru_maxrss, done.stdout.decode()]))
"""

SUBMITIT = """\
import json, resource, sys, time
import submitit

def spent():
    both = (resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(r.ru_utime + r.ru_stime for r in both)

def nothing(number):
    return number

executor = submitit.AutoExecutor(folder="submitit", cluster="slurm")
executor.update_parameters(timeout_min=60, slurm_array_parallelism=20)
begun, before = time.perf_counter(), spent()
with executor.batch():
    for number in range(int(sys.argv[1])):
        executor.submit(nothing, number)
print(json.dumps([time.perf_counter() - begun, spent() - before]))
"""


@dataclass(frozen=True)
class Timing:
    """Wall-clock and processor seconds."""

    wall_s: float
    processor_s: float


def timed(args: list[str], folder: Path) -> tuple[Timing, float, str]:
    """How long a process takes in `folder`, its peak memory in MiB, and what it prints."""
    command = [sys.executable, "-c", TIMED, sys.executable, *args]
    done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    wall_s, processor_s, peak_kib, printed = json.loads(done.stdout)
    return Timing(wall_s, processor_s), peak_kib / 1024, printed


def plan(runs: int, scratch: Path) -> tuple[Timing, float, int]:
    """Timing, peak memory in MiB and bytes written of a plan of `runs` runs."""
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        folder = Path(name)
        (folder / "campaign.yaml").write_text(CAMPAIGN)
        args = ["-m", "llem", "plan", "--runs", str(runs), "--budget", "5e6 GPUh", "--out", "out"]
        timing, peak, _ = timed(args, folder)
        written = sum(p.stat().st_size for p in (folder / "out").rglob("*") if p.is_file())
        return timing, peak, written


def submitit_batch(size: int, scratch: Path) -> tuple[Timing, Timing]:
    """Timing of submitit's batch of `size` calls: the batch alone, and the whole process."""
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        whole, _, printed = timed(["-c", SUBMITIT, str(size)], Path(name))
        return Timing(*json.loads(printed)), whole


def stand_ins(folder: Path) -> None:
    """sbatch and srun that only answer, first on the path."""
    folder.mkdir()
    for name, text in {"sbatch": "echo Submitted batch job 1", "srun": "true"}.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    os.environ["PATH"] = f"{folder}:{os.environ['PATH']}"


def median(timings: list[Timing]) -> Timing:
    return Timing(
        statistics.median(t.wall_s for t in timings),
        statistics.median(t.processor_s for t in timings),
    )


def least(timings: list[Timing]) -> float:
    """Processor seconds when others disturbed least; submitit's grow tenfold on a busy disk."""
    return min(t.processor_s for t in timings)


def told(timings: list[Timing]) -> str:
    middle = median(timings)
    return f"{middle.wall_s:.3f} s   {middle.processor_s:.3f} s ({least(timings):.3f})"


def tell(what: str, value: str, wanted: str, met: bool) -> bool:
    print(f"{what:<58} {value:>9}   wanted {wanted:<10} {'met' if met else 'NOT MET'}")
    return met


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    sizes = (10_000,) if quick else (10_000, 100_000)
    size = 1000
    plans: dict[int, list[Timing]] = {runs: [] for runs in sizes}
    peaks: dict[int, float] = {}
    batch: list[Timing] = []
    process: list[Timing] = []
    with tempfile.TemporaryDirectory(prefix="llem-speed-") as name:
        scratch = Path(name)
        stand_ins(scratch / "bin")
        # The files of the interpreter and of both packages come into the system's cache.
        plan(100, scratch)
        submitit_batch(10, scratch)
        for _ in range(1 if quick else REPEATS):
            for runs in sizes:
                timing, peaks[runs], written = plan(runs, scratch)
                plans[runs].append(timing)
            alone, whole = submitit_batch(size, scratch)
            batch.append(alone)
            process.append(whole)
    print(f"{'':<40} wall-clock  processor (least)")
    for runs in sizes:
        print(f"{f'llem plan, {runs:,} runs, as a process':<40} {told(plans[runs])}")
    print(f"{'  megabytes written, of the largest':<40} {written / 1e6:.0f}")
    print(f"{f'submitit, a batch of {size}':<40} {told(batch)}")
    print(f"{f'submitit, a batch of {size}, as a process':<40} {told(process)}\n")

    good = []
    for runs, limit_s in zip(sizes, (2, 20), strict=False):
        wall_s = median(plans[runs]).wall_s
        good.append(tell(f"{runs:,} runs, wall-clock", f"{wall_s:.2f} s", f"{limit_s} s",
                         wall_s <= limit_s))  # fmt: skip
    if not quick:
        peak = peaks[sizes[-1]]
        good.append(tell(f"{sizes[-1]:,} runs, peak memory", f"{peak:.0f} MiB", "1000 MB",
                         peak <= 953))  # fmt: skip
    for runs in sizes:
        each = median(plans[runs])
        for other, timings in (("batch", batch), ("process", process)):
            theirs = median(timings)
            for kind, ratio in (
                ("wall-clock", theirs.wall_s / size / (each.wall_s / runs)),
                ("processor", theirs.processor_s / size / (each.processor_s / runs)),
                ("least processor", least(timings) / size / (least(plans[runs]) / runs)),
            ):
                met = tell(f"{runs:,} runs against submitit's {other}, {kind}",
                           f"{ratio:.1f} x", "10 x a run", ratio >= 10)  # fmt: skip
                # What is asked for: ten thousand runs as a process against the batch alone.
                if runs == sizes[0] and other == "batch":
                    good.append(met)
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
