#!/usr/bin/env python3
"""How fast a campaign's records are reduced, against reading the same bytes through h5py.

    python tests/benchmarks/aggregate_scale.py                      # 20 runs, 2.4 GB: two minutes
    python tests/benchmarks/aggregate_scale.py --runs 100 --steps 10000
    python tests/benchmarks/aggregate_scale.py --make FOLDER        # the folder alone, kept

The folder is made by the real writer: for each run one node of GPUs with a rank each, steps with
noise and stragglers, the counter's stamps at their ends, evaluations, checkpoints, and the samples
of every GPU at 10 Hz. All is in the system's file cache when the clocks start, which is the harder
case: from a disk both sides wait for the same bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

import numpy as np

SOURCE = Path(__file__).resolve().parents[2] / "src"
sys.path.insert(0, str(SOURCE))

from llem.records import SAMPLES, STEPS, node_writer, rank_writer, samples_table

SECOND = 1_000_000_000
BOOTED_NS = 1_234_567 * SECOND + 891
WALL_NS = 1_790_000_000 * SECOND
START_S, IDLE_W, BUSY_W, TICK_S = 30.0, 90.0, 620.0, 0.02
SLAB_ROWS = 1024
WANTED_SHARE, WANTED_AGAIN_S, WANTED_MB, WANTED_TWO = 0.6, 2.0, 500.0, 1.6


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What is made: runs of `ranks` ranks and `steps` steps of `step_s` seconds."""

    runs: int
    ranks: int
    steps: int
    step_s: float
    rate_hz: float
    seed: int = 0


def make(folder: Path, shape: Shape) -> None:
    """Write a campaign folder of this shape; the same shape gives the same values."""
    chance = np.random.default_rng(shape.seed)
    ranks = _rank_tables(shape, chance)
    devices = _device_tables(shape, chance, last_s=float(ranks[0]["t1_ns"][-1]) / 1e9)
    for rank, table in enumerate(ranks):
        device = devices[rank]
        for stamp, at in (("e0_mj", "t0_ns"), ("e1_mj", "t1_ns")):
            table[stamp] = np.round(np.interp(table[at], device["t_ns"], device["energy_mj"]))
    runs = []
    for number in range(shape.runs):
        run_id = f"{number:04x}{'5ca1e' * 2}"[:12]
        params = round(1e6 * 1.05**number)
        tokens = shape.steps * shape.ranks * 2048
        runs.append(
            {
                "run_id": run_id, "params": params, "params_nonembedding": params - 1000,
                "tokens": tokens, "flops": 6.0 * params * tokens, "seed": number % 2,
                "level": number // 10, "steps": shape.steps, "workload": "training",
                "layout": {"nodes": 1, "gpus_per_node": shape.ranks},
            }
        )  # fmt: skip
        _write_run(folder / "runs" / run_id / "attempt-0", run_id, number, ranks, devices)
    site = {"device": {"peak_flops": 9.9e14}, "pue": 1.2, "prices": {"per_kwh": 0.2}}
    plan = {"schema": "llem-plan-1", "campaign": {"name": "scale"}, "runs": runs, "site": site}
    (folder / "plan.json").write_text(json.dumps(plan))


def _rank_tables(shape: Shape, chance: np.random.Generator) -> list[np.ndarray]:
    """The steps of each rank, at nanoseconds since the run began: they end nearly together."""
    length_s = shape.step_s * (1 + 0.02 * chance.standard_normal(shape.steps))
    length_s[chance.random(shape.steps) < 0.001] *= 3
    # every 1,000 steps a checkpoint, which no step accounts for
    pause_s = np.where(np.arange(shape.steps) % 1000 == 999, 2.0, 0.0)
    end_s = START_S + np.cumsum(length_s + np.roll(pause_s, 1))
    tables = []
    for _ in range(shape.ranks):
        table = np.zeros(shape.steps, STEPS)
        early_s = np.minimum(chance.exponential(0.004, shape.steps), 0.3 * length_s)
        early_s[:: shape.ranks] = 0.0
        table["step"] = np.arange(1, shape.steps + 1)
        table["t0_ns"] = ((end_s - length_s) * 1e9).astype("i8")
        table["t1_ns"] = ((end_s - early_s) * 1e9).astype("i8")
        table["tokens_rank"] = table["tokens_unique"] = 2048
        table["loss"] = (
            2.5 + 6 / np.sqrt(table["step"]) + 0.05 * chance.standard_normal(shape.steps)
        )
        table["grad_norm"] = chance.lognormal(0, 0.2, shape.steps)
        table["lr"] = 3e-4 * np.minimum(1.0, table["step"] / (0.02 * shape.steps + 1))
        table["phase"] = np.where(table["step"] < 0.02 * shape.steps, 0, 1)
        tables.append(table)
    return tables


def _device_tables(shape: Shape, chance: np.random.Generator, *, last_s: float) -> list[np.ndarray]:
    """The samples of each GPU: a counter that moves every 20 ms, idle before the first step."""
    rows = int((last_s + 5) * shape.rate_hz)
    tables = []
    for _ in range(shape.ranks):
        table = np.zeros(rows, SAMPLES)
        at_s = np.arange(rows) / shape.rate_hz + chance.exponential(4e-5, rows)
        table["t_ns"] = (at_s * 1e9).astype("i8")
        table["read_ns"] = (45 * chance.lognormal(0, 0.15, rows)).astype("i8") << 10
        busy = (at_s > START_S) & (at_s < last_s)
        power_w = np.where(busy, BUSY_W, IDLE_W) + chance.normal(0, 12, rows) * busy
        moved_s = np.diff(np.floor(at_s / TICK_S) * TICK_S, prepend=0.0)
        table["power_mw"] = np.round(power_w * 1e3)
        table["energy_mj"] = np.round(3.1e12 + np.cumsum(power_w * 1e3 * moved_s))
        table["temperature_c"] = np.round(35 + 30 * (1 - np.exp(-at_s / 200)))
        table["utilization"] = np.where(busy, 98, 0)
        table["clock_mhz"] = 1980
        tables.append(table)
    return tables


def _write_run(
    folder: Path, run_id: str, number: int, ranks: list[np.ndarray], devices: list[np.ndarray]
) -> None:
    folder.mkdir(parents=True)
    begin_ns = BOOTED_NS + number * 100_000 * SECOND
    host = f"n{number % 16:02d}"
    meta = {
        "run_id": run_id, "attempt": 0, "host": host, "boot_id": f"boot-{host}",
        "job_id": 1000 + number, "llem": "benchmark",
    }  # fmt: skip
    uuids = [
        f"GPU-{number % 16:04d}{g:04d}-5ca1-ab1e-0000-00000000000{g}" for g in range(len(ranks))
    ]
    for rank, table in enumerate(ranks):
        own = {**meta, "rank": rank, "world": len(ranks), "device_uuid": uuids[rank]}
        with rank_writer(folder / f"rank-{rank:05d}.h5", meta=own, flush_s=1e9) as writer:
            _stamp(writer, begin_ns, table["t1_ns"][-1])
            moved = table.copy()
            for column in ("t0_ns", "t1_ns"):
                moved[column] += begin_ns
            writer.extend("steps", moved)
            last = moved[-1]
            end_ns = int(last["t1_ns"])
            if rank == 0:
                loss = 2.0 + 1 / (number + 5)
                row = (len(table), end_ns, end_ns + SECOND, loss, 0.002, 10**6)
                writer.append("evals", row)
            for step in range(1000, len(table), 1000):
                t0, t1 = int(moved["t1_ns"][step - 1]), int(moved["t0_ns"][step])
                writer.append("spans", (step, t0 + 10**6, t1 - 10**6, np.nan, np.nan, 4))
    attrs = {"domain": "gpu", "contains": [], "counter": True, "source": "nvml",
             "quality": "counter", "name": "NVIDIA H100 80GB HBM3"}  # fmt: skip
    own = {**meta, "gpus_held": len(ranks), "gpus_measured": len(ranks), "interval_s": 0.1}
    named = dict.fromkeys(uuids, attrs)
    with node_writer(folder / f"node-{host}.h5", meta=own, devices=named, flush_s=1e9) as writer:
        _stamp(writer, begin_ns, ranks[0]["t1_ns"][-1])
        moved = [table.copy() for table in devices]
        for table in moved:
            table["t_ns"] += begin_ns
        # as the sampler does: all devices grow together
        for start in range(0, len(moved[0]), SLAB_ROWS):
            for uuid, table in zip(uuids, moved, strict=True):
                writer.extend(samples_table(uuid), table[start : start + SLAB_ROWS])
    tokens = sum(int(table["tokens_rank"].sum()) for table in ranks)
    end = {
        "schema": "llem-end-1", "run_id": run_id, "attempt": 0, "status": "completed",
        "reason": "", "step": len(ranks[0]), "steps": len(ranks[0]), "tokens": tokens,
        "t0_ns": begin_ns + SECOND, "t1_ns": end_ns + 2 * SECOND, "host": host,
        "boot_id": meta["boot_id"], "hosts": [host], "ranks": len(ranks),
        "peak_memory_bytes": 4e10,
    }  # fmt: skip
    (folder / "end.json").write_text(json.dumps(end))


def _stamp(writer, begin_ns: int, last_ns: int) -> None:
    """The run's own clock in place of this process': it was another machine's, and long ago."""
    writer._file["clock"].resize((0,))
    writer._tables["clock"]._rows = 0
    for at in (0, int(last_ns)):
        wall = WALL_NS + begin_ns + at
        writer.append("clock", (begin_ns + at, wall, np.nan, np.nan))


def read_all(folder: Path) -> int:
    """Every table of every record through h5py into memory, one file after the other: bytes."""
    import h5py

    total = 0

    def read(_name: str, found: object) -> None:
        nonlocal total
        if isinstance(found, h5py.Dataset):
            total += found[()].nbytes

    for path in sorted(folder.glob("runs/*/*/*.h5")):
        with h5py.File(path, "r", locking=False) as file:
            file.visititems(read)
    return total


# A process of its own for each figure: nothing is warm but the system's files, and its peak of
# memory is its own.
CALL = """
import json, resource, sys, time
sys.path[:0] = [{source!r}, {here!r}]
from pathlib import Path
wall, used = time.perf_counter(), time.process_time()
def spent():
    own, of = (resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    used = [x.ru_utime + x.ru_stime for x in (own, of)]
    return *used, max(own.ru_maxrss, of.ru_maxrss) / 1024
{body}
own, of, peak = spent()
print(json.dumps([time.perf_counter() - wall, own - before, of, peak, result]))
"""
READ = """
import h5py
from aggregate_scale import read_all
wall = time.perf_counter(); before = spent()[0]
result = read_all(Path({folder!r}))
"""
AGGREGATE = """
import llem.cluster, llem.pipeline, llem.results
from llem.cluster import CampaignFolder
wall = time.perf_counter(); before = spent()[0]
done = llem.pipeline.aggregate_campaign(
    CampaignFolder(Path({folder!r})), workers={workers}, cached={cached}
)
result = len(done.observations)
"""


@dataclass(frozen=True, kw_only=True)
class Took:
    """What a call took: wall-clock seconds, processor seconds of it and of its workers."""

    wall_s: float
    own_s: float
    workers_s: float
    peak_mb: float
    result: int

    def path_s(self, workers: int) -> float:
        """Processor seconds one after the other, its workers' divided evenly among them: what it
        takes where each has a processor of its own."""
        return self.own_s + self.workers_s / workers


def call(body: str, **words: object) -> Took:
    """The body, run in a Python of its own."""
    code = CALL.format(
        source=str(SOURCE), here=str(Path(__file__).parent), body=body.format(**words)
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    wall, own, workers, peak, result = json.loads(out.stdout)
    return Took(wall_s=wall, own_s=own, workers_s=workers, peak_mb=peak, result=result)


def digest(folder: Path) -> dict[str, str]:
    import hashlib

    return {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.glob("results/*.csv")
    }


def measure(folder: Path, repeats: int) -> bool:
    """Print the table; whether all that is wanted was met."""
    words = {"folder": str(folder)}
    size = sum(path.stat().st_size for path in folder.glob("runs/*/*/*.h5"))
    tries: dict[str, list[Took]] = {"read": [], "one": [], "two": []}
    for _ in range(repeats):
        # in turn, so that a busy minute of the machine falls on all alike; the best of each counts
        tries["read"].append(call(READ, **words))
        tries["one"].append(call(AGGREGATE, workers=1, cached=False, **words))
        first = digest(folder)
        tries["two"].append(call(AGGREGATE, workers=2, cached=False, **words))
        same = first == digest(folder)
    read, one, two = (min(tries[name], key=lambda took: took.path_s(1)) for name in tries)
    shutil.rmtree(folder / "results", ignore_errors=True)
    call(AGGREGATE, workers=None, cached=True, **words)
    filled = digest(folder) == first
    begun = time.perf_counter()
    again = call(AGGREGATE, workers=None, cached=True, **words)
    again_s = time.perf_counter() - begun  # with Python's own start
    gigabytes = read.result / 1e9
    print(f"{size / 1e9:.2f} GB of records, {gigabytes:.2f} GB of tables, {one.result} runs\n")
    print(f"{'':34}{'wall s':>9}{'cpu s':>9}{'cpu s/GB':>9}{'peak MB':>9}")
    for name, took in (
        ("h5py, every table into memory", read), ("aggregate, 1 worker", one),
        ("aggregate, 2 workers", two), ("aggregate again, unchanged", again),
    ):  # fmt: skip
        used = took.path_s(1)
        print(f"{name:34}{took.wall_s:9.2f}{used:9.2f}{used / gigabytes:9.2f}{took.peak_mb:9.0f}")
    print("\nby processor seconds, as if each process had a processor of its own; (by the clock)")
    least = [
        ("1 worker: speed / reading's", read.path_s(1) / one.path_s(1), read.wall_s / one.wall_s,
         WANTED_SHARE),
        ("2 workers: speed / reading's", read.path_s(1) / two.path_s(2), read.wall_s / two.wall_s,
         WANTED_SHARE),
        ("2 workers: speed / 1 worker's", one.path_s(1) / two.path_s(2), one.wall_s / two.wall_s,
         WANTED_TWO),
    ]  # fmt: skip
    met = same and filled
    for name, value, by_clock, wanted in least:
        met &= value >= wanted
        told = "met" if value >= wanted else "NOT MET"
        print(f"{name:34}{value:9.2f} ({by_clock:.2f})   wanted >= {wanted:g}: {told}")
    peak = max(took.peak_mb for took in (one, two, again))
    for name, value, wanted in (
        ("unchanged, s of the clock", again_s, WANTED_AGAIN_S),
        ("largest process, MB", peak, WANTED_MB),
    ):  # fmt: skip
        met &= value <= wanted
        told = "met" if value <= wanted else "NOT MET"
        print(f"{name:34}{value:9.2f}   wanted <= {wanted:g}: {told}")
    print(f"{'same bytes from 1, 2, the cache':34}{'yes' if same and filled else 'NO':>9}")
    return met


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--step-s", type=float, default=0.1, help="seconds of a step")
    parser.add_argument("--rate-hz", type=float, default=10.0, help="samples of power a second")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--make", type=Path, metavar="FOLDER", help="make this folder and stop")
    parser.add_argument("--folder", type=Path, help="measure one that was made before")
    args = parser.parse_args()
    shape = Shape(
        runs=args.runs, ranks=args.ranks, steps=args.steps, step_s=args.step_s,
        rate_hz=args.rate_hz,
    )  # fmt: skip
    if args.make:
        args.make.mkdir(parents=True)
        make(args.make, shape)
        return 0
    if args.folder:
        return 0 if measure(args.folder, args.repeats) else 1
    with tempfile.TemporaryDirectory(prefix="llem-scale-") as scratch:
        # in a process of its own: what is started by a large process counts its memory as its own
        folder = Path(scratch) / "campaign"
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--make", str(folder)], check=True)
        return 0 if measure(folder, args.repeats) else 1


if __name__ == "__main__":
    raise SystemExit(main())
