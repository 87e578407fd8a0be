#!/usr/bin/env python3
"""What the sampler costs: of a core, of memory, and of a training beside it.

    python tests/benchmarks/sampler_cost.py                 # about 12 minutes
    python tests/benchmarks/sampler_cost.py --quick         # the sampler alone, half a minute
    python tests/benchmarks/sampler_cost.py --one-core      # training and sampler share one core

Part one: the real sampler process on eight GPUs of the stand-in NVML at 10 Hz, each call of which
takes no time or 500 microseconds; beside it a bare loop that makes the same NVML calls on the same
grid and keeps nothing. Processor seconds are the kernel's own count in nanoseconds, of all threads.
Wanted: at most 0.5 % of a core where a call takes no time.

Part two: one training of llem in this process, with a sampler beside it that is stopped (A) and let
go on (B) by signals every second, in the order A B B A, so that a drift of the machine cancels and
every second of one is compared with one beside it. What is told is the mean of log(B/A) over such
blocks, with its standard error. Processor seconds are the training's alone: on a core of its own
the sampler costs only caches there; with --one-core the wall clock tells all. Wanted: at most
0.5 %.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent / "src"), str(TESTS / "nvml")]

from build import build
from fake_nvml import FakeGpus

from llem.energy import start_sampler

GPUS, INTERVAL_S = 8, 0.1
WANTED = 0.005
# The length of a segment, and how many steps after a signal are not counted.
SEGMENT_S, SKIPPED = 1.0, 2
SHARE_S = 15.0

BARE = """
import sys, time
from llem.energy import NvmlMeter
meter = NvmlMeter()
devices = meter.probe().devices
print(len(devices), flush=True)
due = time.monotonic()
while True:
    for device in devices:
        meter.read(device)
    due += float(sys.argv[1])
    time.sleep(max(0.0, due - time.monotonic()))
"""


def processor_s(pid: int) -> float:
    """Of all threads of a process, from the scheduler's count in nanoseconds."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def share_of_core(pid: int, seconds: float) -> float:
    before, began = processor_s(pid), time.monotonic()
    time.sleep(seconds)
    return (processor_s(pid) - before) / (time.monotonic() - began)


def memory_mb(pid: int) -> tuple[float, float]:
    """Proportional and private resident memory."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    kb = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return kb["Pss"] / 1024, (kb["Private_Dirty"] + kb["Private_Clean"]) / 1024


def alone(environ: dict[str, str], seconds: float) -> dict[str, float]:
    """The sampler by itself, and the bare loop."""
    with tempfile.TemporaryDirectory(prefix="llem-cost-") as folder:
        began = time.monotonic()
        place = Path(folder) / "s" / "x.sock"
        process = start_sampler(place, interval_s=INTERVAL_S, environ=environ)
        with process, process.link() as link:
            answer = link.begin(Path(folder) / "node-a.h5", {})
            started_s = time.monotonic() - began
            assert answer.ok and len(answer.devices) == GPUS, answer
            start_cpu_s = processor_s(process.process.pid)
            share_of_core(process.process.pid, 1.0)
            share = share_of_core(process.process.pid, seconds)
            proportional, private = memory_mb(process.process.pid)
            assert link.end().ok
    loop = subprocess.Popen([sys.executable, "-c", BARE, str(INTERVAL_S)], env=environ,
                            stdout=subprocess.PIPE, text=True)  # fmt: skip
    try:
        assert int(loop.stdout.readline()) == GPUS
        share_of_core(loop.pid, 1.0)
        bare = share_of_core(loop.pid, seconds)
    finally:
        loop.kill()
        loop.wait()
    return {
        "share": share,
        "bare": bare,
        "start_s": started_s,
        "start_cpu_s": start_cpu_s,
        "memory_mb": proportional,
        "private_mb": private,
    }


def make_run(folder: Path, steps: int):
    """A tiny decoder on the sources of Python's own modules."""
    import sysconfig

    from llem.campaign import Decoder, Layout, Predicted, Recipe, Run
    from llem.campaign.data.tokenfile import token_file, write_tokens

    context, windows = 64, 16
    path = folder / "sources.bin"
    if not path.exists():
        stdlib = Path(sysconfig.get_path("stdlib"))
        names = ("argparse", "inspect", "typing", "subprocess", "tarfile", "threading", "zipfile")
        write_tokens(path, ((stdlib / f"{name}.py").read_bytes() for name in names))
    return Run(
        model=Decoder(layers=4, width=64, heads=4, mlp_width=256, vocabulary=256, context=context),
        tokens=steps * windows * context,
        steps=steps,
        seed=0,
        recipe=Recipe(batch_tokens=windows * context, learning_rate=1e-3, warmup_steps=5),
        data=token_file(path, evaluation_tokens=16 * context + 1),
        layout=Layout(gpus_per_node=1, zero_stage=0, micro_batch=windows, grad_accum=1),
        predicted=Predicted(duration_s=1.0, gpu_hours=1.0, energy_j=1.0, memory_bytes=1.0),
        checkpoint_steps=0,
    )


def beside(environ: dict[str, str], *, seconds: float) -> dict[str, tuple[float, float, int]]:
    """A training, the sampler stopped or going: mean of log(B/A), standard error, blocks."""
    import torch

    from llem.training import start_world, train

    torch.set_num_threads(1)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    with tempfile.TemporaryDirectory(prefix="llem-cost-") as name, start_world() as world:
        folder = Path(name)

        def run(words: str, steps: int, each_step) -> None:
            train(
                make_run(folder, steps),
                attempt_dir=folder / words,
                checkpoints_dir=folder / f"{words}-checkpoints",
                world=world,
                meta={},
                should_stop=each_step,
            )

        used = time.process_time()
        run("first", 100, lambda: None)
        per_step = (time.process_time() - used) / 100
        length = max(10, round(SEGMENT_S / per_step))
        blocks = max(3, round(seconds / (4 * length * per_step)))
        process = start_sampler(folder / "s" / "x.sock", interval_s=INTERVAL_S, environ=environ)
        with process, process.link() as link:
            answer = link.begin(folder / "node-a.h5", {})
            assert answer.ok and len(answer.devices) == GPUS, answer
            segments = Segments(process.process.pid, length)
            run("second", 4 * length * blocks + 1, segments)
            os.kill(process.process.pid, signal.SIGCONT)
            assert link.end().ok
    return segments.ratios()


class Segments:
    """Called after each step: stops the sampler (A) or lets it go on (B), and adds up times."""

    def __init__(self, pid: int, length: int) -> None:
        self._pid, self._length = pid, length
        self._step = 0
        self._last = (0.0, 0.0)
        self._sums: list[list[float]] = []

    def __call__(self) -> None:
        now = time.perf_counter(), time.process_time()
        within = self._step % self._length
        if within == 0:
            going = "ABBA"[len(self._sums) % 4] == "B"
            os.kill(self._pid, signal.SIGCONT if going else signal.SIGSTOP)
            self._sums.append([0.0, 0.0])
        elif within > SKIPPED:
            for kind in (0, 1):
                self._sums[-1][kind] += now[kind] - self._last[kind]
        self._step += 1
        self._last = time.perf_counter(), time.process_time()

    def ratios(self) -> dict[str, tuple[float, float, int]]:
        whole = self._sums[: len(self._sums) // 4 * 4]
        found = {}
        for kind, name in enumerate(("wall", "processor")):
            logs = []
            for a1, b1, b2, a2 in zip(*(whole[i::4] for i in range(4)), strict=True):
                logs.append(math.log((b1[kind] + b2[kind]) / (a1[kind] + a2[kind])))
            error = statistics.stdev(logs) / math.sqrt(len(logs))
            found[name] = (statistics.mean(logs), error, len(logs))
        return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="the sampler alone")
    parser.add_argument("--one-core", action="store_true", help="all on the last core")
    parser.add_argument("--seconds", type=float, default=600.0, help="of the training, processor's")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.one_core:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    source = str(TESTS.parent / "src")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "CUDA_"))}
    with tempfile.TemporaryDirectory(prefix="llem-nvml-") as folder:
        library = build(folder)

        def environ(latency_us: int) -> dict[str, str]:
            fake = FakeGpus(gpus=GPUS, amp_w=300.0).environ(library, latency_us=latency_us)
            return {**kept, "PYTHONPATH": source, **fake}

        found = {"alone": {us: alone(environ(us), SHARE_S) for us in (0, 500)}}
        if not options.quick:
            found["beside"] = beside(environ(0), seconds=options.seconds)
    if options.json:
        print(json.dumps(found, indent=1))
    met = True
    for us, one in found["alone"].items():
        good = us > 0 or one["share"] <= WANTED
        met &= good
        verdict = "" if us else f" (wanted {WANTED:.1%}: {'met' if good else 'NOT MET'})"
        print(
            f"{GPUS} GPUs, 10 Hz, {us} us a call: {one['share']:.2%} of a core{verdict}, bare loop "
            f"{one['bare']:.2%}; {one['memory_mb']:.0f} MB ({one['private_mb']:.0f} of its own); "
            f"first sample after {one['start_s']:.2f} s ({one['start_cpu_s']:.2f} s of a core)"
        )
    for kind, (mean, error, blocks) in found.get("beside", {}).items():
        good = mean - 2 * error <= WANTED
        met &= good
        verdict = "met" if mean + 2 * error <= WANTED else "not excluded" if good else "NOT MET"
        told = f"{mean:+.2%} +- {error:.2%} (wanted {WANTED:.1%}: {verdict})"
        print(f"training, {kind} seconds, {blocks} blocks: {told}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
