"""A reduction is the same text with the passes in C and without, whatever a record holds."""

from __future__ import annotations

import os
import random
from pathlib import Path

import h5py
import numpy as np
import pytest

from llem.records import SAMPLES, STEPS, node_writer, rank_writer, samples_table
from llem.records.native import compiled
from llem.results.reducing.workers import reduce_to_text

SECOND = 1_000_000_000
BEGAN_NS = 10_000_000 * SECOND + 123


def steps_of(chance: np.random.Generator, rows: int) -> np.ndarray:
    table = np.zeros(rows, STEPS)
    ends = BEGAN_NS + 30 * SECOND + np.cumsum(chance.normal(0.1, 0.004, rows) * 1e9).astype("i8")
    table["step"] = np.arange(1, rows + 1)
    table["t1_ns"], table["t0_ns"] = ends, ends - SECOND // 12
    table["tokens_rank"] = table["tokens_unique"] = 2048
    table["phase"] = np.arange(rows) > 40
    return table


def samples_of(chance: np.random.Generator, rows: int) -> np.ndarray:
    table = np.zeros(rows, SAMPLES)
    table["t_ns"] = BEGAN_NS + np.cumsum(chance.normal(0.1, 0.001, rows) * 1e9).astype("i8")
    table["read_ns"] = chance.integers(30, 60, rows) << 10
    busy = np.arange(rows) > 300
    power_w = 90 + 500 * busy + chance.normal(0, 9, rows)
    table["power_mw"] = power_w * 1e3
    table["energy_mj"] = np.round(3e12 + np.cumsum(power_w * 100))
    table["temperature_c"] = np.round(40 + 20 * (1 - np.exp(-np.arange(rows) / 400)))
    table["utilization"] = 97 * busy
    return table


def spoil(steps: np.ndarray, samples: np.ndarray, chance: random.Random) -> None:
    """One or two things that records of real machines have."""
    n, m = len(steps), len(samples)
    i, j = chance.randrange(1, n - 9), chance.randrange(1, m - 30)
    for kind in chance.sample(range(14), chance.choice([0, 1, 2])):
        if kind == 0:
            steps["step"][i : i + 5] = steps["step"][i - 1]
        elif kind == 1:
            steps["t1_ns"][i] -= 3 * SECOND
        elif kind == 2:
            steps["e1_mj"][i] = np.nan
        elif kind == 3:
            steps["e1_mj"][i:] += 4e6
        elif kind == 4:
            samples["energy_mj"][j:] -= samples["energy_mj"][j]
        elif kind == 5:
            samples["energy_mj"][j : j + 20] = samples["energy_mj"][j]
        elif kind == 6:
            samples["energy_mj"][j] = np.nan
        elif kind == 7:
            samples["power_mw"][j] = np.nan
        elif kind == 8:
            samples["power_mw"] = np.nan
        elif kind == 9:
            samples["t_ns"][j] -= SECOND
        elif kind == 10:
            samples["flags"][j] = 1
        elif kind == 11:
            samples["temperature_c"][j] = np.nan
        elif kind == 12:
            samples["power_mw"] *= 1.3
        else:
            steps["phase"][i::7] = 2


def flip(path: Path, chance: random.Random) -> None:
    """Bits of plain rows, of which HDF5 knows nothing."""
    with h5py.File(path) as file:
        tables: list[h5py.Dataset] = []
        file.visititems(lambda _, f: tables.append(f) if isinstance(f, h5py.Dataset) else None)
        found = max(tables, key=len).id
        info = found.get_chunk_info(chance.randrange(found.get_num_chunks()))
    content = bytearray(path.read_bytes())
    for _ in range(20):
        content[info.byte_offset + chance.randrange(info.size)] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


@pytest.mark.parametrize("seed", range(40))
def test_a_reduction_is_the_same_without_a_compiler(planted, own_clock, host, monkeypatch, seed):
    if compiled.library() is None:
        pytest.skip(compiled.status().reason)
    plain, chance = random.Random(seed), np.random.default_rng(seed)
    run_id = planted.run(steps=1500, per_node=2)
    folder = planted.attempt(run_id)
    meta = {"run_id": run_id, "attempt": 0, "host": "n0", "boot_id": host().boot_id}
    kind = {"domain": "gpu", "contains": [], "counter": seed % 5 != 4, "source": "nvml",
            "quality": "counter" if seed % 5 != 4 else "integral", "name": "pretended"}  # fmt: skip
    uuids, rows = ["GPU-0", "GPU-1"], 1500
    every = []
    for rank, uuid in enumerate(uuids):
        samples, steps = samples_of(chance, 1900), steps_of(chance, rows)
        for name in ("e0_mj", "e1_mj"):
            at = steps["t1_ns" if name == "e1_mj" else "t0_ns"]
            steps[name] = np.round(np.interp(at, samples["t_ns"], samples["energy_mj"]))
        spoil(steps, samples, plain)
        every.append(samples)
        own = {**meta, "rank": rank, "world": 2, "device_uuid": uuid}
        with rank_writer(folder / f"rank-{rank:05d}.h5", meta=own) as writer:
            own_clock(writer, host())
            writer.extend("steps", steps)
            for place in sorted(plain.sample(range(1, rows), 3)):
                t0, t1 = int(steps["t1_ns"][place - 1]), int(steps["t0_ns"][place])
                writer.append("spans", (place, t0, t1, np.nan, steps["e0_mj"][place], 4))
    with node_writer(folder / "node-n0.h5", meta=meta, devices=dict.fromkeys(uuids, kind)) as node:
        own_clock(node, host())
        for uuid, samples in zip(uuids, every, strict=True):
            node.extend(samples_table(uuid), samples)
    planted.end(run_id, ranks=2, window_s=(29.0, 185.0), step=rows)
    if seed % 3 == 2:
        flip(folder / plain.choice(["rank-00000.h5", "node-n0.h5"]), plain)
    if seed % 8 == 7:
        path = folder / plain.choice(["rank-00001.h5", "node-n0.h5"])
        os.truncate(path, path.stat().st_size * 2 // 3)

    with np.errstate(all="ignore"):
        ours = reduce_to_text(planted.folder, planted.runs[0], None)
        monkeypatch.setattr(compiled, "library", lambda: None)
        assert ours == reduce_to_text(planted.folder, planted.runs[0], None)
