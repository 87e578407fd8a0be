#!/usr/bin/env python3
"""How large a day of eight GPUs at 10 Hz is, how long sealing and reading it takes.

    python tests/benchmarks/record_size.py             # about four minutes
    python tests/benchmarks/record_size.py --hours 2   # scaled to a day: half a minute

The record is made by the real writer with the flushes of the real sampler, from values as noisy as
a training's: a counter in whole millijoules that moves every 20 ms, power in milliwatts that
follows steps of 0.9 s with 12 W of noise, a temperature, utilisation and clock that jitter, times
that are late by exponential 40 microseconds. Wanted: at most 70 MB sealed for the day.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

from llem.energy.recorder import READ_MASK_NS
from llem.records import SAMPLES, check_seal, digest, node_writer, read_node, samples_table, seal

GPUS, RATE_HZ, FLUSH_S = 8, 10, 2.0
WANTED_MB = 70.0
DAY_H = 24.0
TICK_S = 0.02  # how often the counter moves


def noisy(rows: int, gpu: int) -> np.ndarray:
    """What the sampler would have read of one GPU that trains."""
    chance = np.random.default_rng(gpu)
    table = np.zeros(rows, SAMPLES)
    grid = 1_234_567_890_123_456 + np.arange(rows) * (10**9 // RATE_HZ)
    late = 55_000 + chance.exponential(40_000, rows).astype("i8") + gpu * 70_000
    table["t_ns"] = grid + late
    table["read_ns"] = (45_000 * chance.lognormal(0, 0.15, rows)).astype("i8") & READ_MASK_NS
    t_s = (table["t_ns"] - grid[0]) / 1e9
    power_w = np.where((t_s / 0.9) % 1 < 0.8, 650.0, 430.0) + chance.normal(0, 12, rows)
    table["power_mw"] = np.round(power_w * 1e3)
    moved_s = np.diff(np.floor(t_s / TICK_S) * TICK_S, prepend=0.0)
    energy_mj = 3.1e12 + np.cumsum((power_w + chance.normal(0, 12, rows)) * 1e3 * moved_s)
    table["energy_mj"] = np.round(energy_mj)
    table["temperature_c"] = np.round(62 + 3 * np.sin(t_s / 600) + chance.normal(0, 0.4, rows))
    table["utilization"] = np.minimum(100, np.round(98 + chance.normal(0, 1.5, rows)))
    table["clock_mhz"] = 1980 - 15 * np.minimum(chance.poisson(1.2, rows), 10)
    table["throttle"] = np.where(chance.random(rows) < 0.2, 4, 0)
    return table


def write(path: Path, hours: float) -> None:
    """Sample after sample, device after device, flushed as the sampler flushes."""
    uuids = [f"GPU-{gpu:08d}-0000-0000-0000-000000000000" for gpu in range(GPUS)]
    attrs = {"domain": "gpu", "counter": True, "quality": "counter", "source": "nvml"}
    made = [noisy(int(hours * 3600 * RATE_HZ), gpu) for gpu in range(GPUS)]
    ticks = int(FLUSH_S * RATE_HZ)
    with node_writer(path, meta={}, devices=dict.fromkeys(uuids, attrs), flush_s=1e9) as writer:
        for start in range(0, len(made[0]), ticks):
            for uuid, table in zip(uuids, made, strict=True):
                for row in table[start : start + ticks].tolist():
                    writer.append(samples_table(uuid), row)
            writer.flush()


def timed(work, *words):
    """What it gave, and wall-clock and processor seconds."""
    wall, used = time.perf_counter(), time.process_time()
    found = work(*words)
    return found, time.perf_counter() - wall, time.process_time() - used


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hours", type=float, default=DAY_H)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    scale = DAY_H / options.hours
    with tempfile.TemporaryDirectory(prefix="llem-size-") as folder:
        path = Path(folder) / "node-a.h5"
        _, _, writing_s = timed(write, path, options.hours)
        content = digest(path)
        before, _, open_s = timed(read_node, path)
        sealed, wall_s, sealing_s = timed(seal, path)
        after, _, read_s = timed(read_node, path)
        _, _, check_s = timed(check_seal, path)
    same = content == sealed.sha256 and all(
        a.samples.tobytes() == b.samples.tobytes()
        for a, b in zip(before.devices, after.devices, strict=True)
    )
    size_mb = sealed.bytes_after * scale / 1e6
    rows = sum(len(device.samples) for device in after.devices)
    found = {
        "hours": options.hours,
        "rows": rows,
        "open_mb": sealed.bytes_before * scale / 1e6,
        "sealed_mb": size_mb,
        "bytes_per_row": sealed.bytes_after / rows,
        "writing_cpu_s": writing_s * scale,
        "sealing_wall_s": wall_s * scale,
        "sealing_cpu_s": sealing_s * scale,
        "reading_open_cpu_s": open_s * scale,
        "reading_sealed_cpu_s": read_s * scale,
        "checking_cpu_s": check_s * scale,
        "same_bits": same,
    }
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        print(f"a day of {GPUS} GPUs at {RATE_HZ} Hz, measured over {options.hours:g} h:")
        for name, value in found.items():
            print(
                f"  {name:<22}{value:.4g}" if isinstance(value, float) else f"  {name:<22}{value}"
            )
        verdict = "met" if size_mb <= WANTED_MB and same else "NOT MET"
        print(f"sealed: {size_mb:.1f} MB, wanted at most {WANTED_MB:g}: {verdict}")
    return 0 if size_mb <= WANTED_MB and same else 1


if __name__ == "__main__":
    sys.exit(main())
