"""Samplers of eight GPUs, killed with SIGKILL at random moments: what they acknowledged is there.

LLEM_KILLS is how many are killed at each rate (20; 100 is what the project promises).
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from llem.energy import SamplerLink
from llem.records import SampleFlag, read_node

KILLS = int(os.environ.get("LLEM_KILLS", "20"))
AT_ONCE, GPUS = 8, 8
LIFE_S, FLUSH_S = 4.0, 2.0
# How late a sampler may be on a machine that is busy with seven others.
SLACK_S = 1.5

MANY = """
import os, sys
from llem.energy.sampler import main
import h5py  # imported once for all
folder, interval, first, last = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
for i in range(first, last):
    if os.fork() == 0:
        os._exit(main(["--socket", f"{folder}/{i}.sock", "--interval", interval]))
for _ in range(first, last):
    os.wait()
"""


@dataclass
class Victim:
    """One sampler: `rows` it has acknowledged, `seen` were then in the file, device by device."""

    path: Path
    link: SamplerLink
    pid: int
    rows: int = 0
    seen: list[int] = field(default_factory=lambda: [1] * GPUS)  # by the answer to begin
    asked: int = 0
    killed_ns: int = 0
    doing: list[str] = field(default_factory=list)


@pytest.mark.slow
@pytest.mark.parametrize("rate_hz", [10, 100])
def test_killed_samplers_lose_no_acknowledged_sample(
    tmp_path, plain_environ, nvml_library, fake_gpus, rate_hz
):
    environ = {**plain_environ, **fake_gpus(gpus=GPUS, amp_w=300.0).environ(nvml_library)}
    chance = random.Random(rate_hz)
    victims: list[Victim] = []
    for first in range(0, KILLS, AT_ONCE):
        numbers = range(first, min(first + AT_ONCE, KILLS))
        victims += _kill_some(tmp_path, environ, numbers, 1 / rate_hz, chance)
    lost = [_lost(victim) for victim in victims]
    unseen_s = [_unseen_s(victim) for victim in victims]
    print(
        f"\n{rate_hz} Hz, {GPUS} GPUs: {len(victims)} of {KILLS} files open; acknowledged "
        f"{sum(v.rows for v in victims)} samples by {sum(v.asked for v in victims)} answers and "
        f"{sum(len(v.doing) for v in victims)} kills beside one, lost {sum(lost)}; "
        f"the last buffer: mean {np.mean(unseen_s):.2f} s, longest {max(unseen_s):.2f} s"
    )
    assert len(victims) == KILLS and sum(v.rows > 0 for v in victims) > KILLS / 4
    assert lost == [0] * KILLS
    assert max(unseen_s) < FLUSH_S + 1 / rate_hz + SLACK_S


def _kill_some(folder, environ, numbers, interval_s, chance):
    """Start samplers, ask some to flush now and then, kill each at its moment."""
    place = folder / "s"
    place.mkdir(mode=0o700, exist_ok=True)
    words = [str(place), str(interval_s), str(numbers.start), str(numbers.stop)]
    parent = subprocess.Popen([sys.executable, "-c", MANY, *words], env=environ,
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    victims = []
    for i in numbers:
        path = folder / f"node-{i}.h5"
        link = SamplerLink(place / f"{i}.sock", timeout_s=30)
        answer = link.begin(path, {"run_id": "a"})
        assert answer.ok and len(answer.devices) == GPUS, answer.reason
        victims.append(Victim(path, link, read_node(path).meta["pid"]))
    start = time.monotonic()
    todo = []
    for victim in victims:
        life_s = chance.uniform(0.0, LIFE_S)
        todo.append((start + life_s, "kill", victim))
        if chance.random() < 0.5:  # the others flush by themselves alone
            times = [chance.uniform(0.0, life_s) for _ in range(int(life_s * 3))]
            todo += [(start + t, "flush", victim) for t in times]
    for at, what, victim in sorted(todo, key=lambda item: item[0]):
        time.sleep(max(0.0, at - time.monotonic()))
        if what == "flush":
            answer = victim.link.flush()
            assert answer.ok, answer.reason
            victim.rows, victim.asked = answer.rows, victim.asked + 1
            victim.seen = [len(device.samples) for device in read_node(victim.path).devices]
            assert sum(victim.seen) >= answer.rows
            continue
        if chance.random() < 0.5:
            _ask_and_leave(victim)
            time.sleep(chance.uniform(0.0, 0.004))
        victim.killed_ns = time.monotonic_ns()
        os.kill(victim.pid, signal.SIGKILL)
    assert parent.wait(30) == 0
    for victim in victims:
        victim.link.close()
    return victims


def _ask_and_leave(victim):
    """A flush that may be under way when the kill comes; nobody waits for its answer."""
    with socket.socket(socket.AF_UNIX) as raw:
        raw.connect(str(victim.link.socket_path))
        raw.sendall(b'{"op": "flush"}\n')
    victim.doing.append("flush")


def _lost(victim):
    """Acknowledged samples that are not in the file; everything else about it must be right."""
    import h5py

    record = read_node(victim.path)
    assert not record.closed and not record.problems and len(record.devices) == GPUS
    for device in record.devices:
        samples = device.samples
        assert np.all(np.diff(samples["t_ns"]) > 0)
        assert np.all(np.diff(samples["energy_mj"]) >= 0)
        assert not np.any(samples["flags"] & SampleFlag.READ_FAILED)
    # as docs/records.md says, without llem
    with h5py.File(victim.path, "r", libver="latest", swmr=True, locking=False) as file:
        plain = [len(group["samples"][()]) for group in file["devices"].values()]
    found = [len(device.samples) for device in record.devices]
    assert plain == found
    return sum(max(0, seen - now) for seen, now in zip(victim.seen, found, strict=True))


def _unseen_s(victim):
    """From the last sample that is in the file to the kill."""
    last_ns = min(d.samples["t_ns"][-1] for d in read_node(victim.path).devices)
    return (victim.killed_ns - last_ns) / 1e9
