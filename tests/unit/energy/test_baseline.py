"""Idle power before a run, and stamps that stay cheap."""

from __future__ import annotations

import math
import re
import threading
import time

import pytest

from llem.energy import Chosen, Device, Reading, StepCounter
from llem.energy.meters.baseline import IdleWatch
from llem.energy.recorder import Recorder
from llem.records import read_node

GPU = Device(uuid="GPU-0", name="pretended", domain="gpu", source="nvml", power="instant")
SECOND = 1_000_000_000


def watched(*, seconds=4.0, power_w=lambda s: 60.0, busy=0.0, contexts=0, device=GPU, **more):
    watch = IdleWatch(contexts=lambda _uuid: contexts)
    for i in range(round(seconds * 10) + 1):
        s = i / 10
        reading = Reading(power_mw=power_w(s) * 1e3, energy_mj=60e3 * s, utilization=busy, **more)
        watch.add(device, round(s * SECOND), reading)
    return watch.rows()


def test_the_idle_power_comes_with_its_spread_its_time_and_its_context():
    [row], reasons = watched(power_w=lambda s: 60.0 + (round(s * 10) % 2), contexts=2)
    uuid, mean_mw, n, sd_mw, t0_ns, t1_ns, context = row
    assert (uuid, n, t0_ns, t1_ns, context) == (b"GPU-0", 41, 0, 4 * SECOND, 1)
    assert mean_mw == pytest.approx(60_488, abs=1)
    assert sd_mw == pytest.approx(506, abs=1)
    assert reasons == []


def test_where_power_is_not_read_the_counter_tells_it():
    [row], _ = watched(power_w=lambda _s: math.nan)
    assert row[1] == pytest.approx(60_000)


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"busy": 3.0}, "it was busy (3 % at most)"),
        ({"seconds": 0.4}, "seen for 0.4 s only"),
        ({"busy": math.nan, "contexts": None}, "whether it was idle is not known"),
    ],
)
def test_a_device_that_may_not_have_been_idle_has_no_baseline(how, told):
    rows, [reason] = watched(**how)
    assert rows == [] and told in reason


def test_processors_have_none_since_ranks_import_their_libraries_meanwhile():
    device = Device(uuid="cpu", name="x", domain="package", source="rapl")
    assert watched(device=device) == ([], [])


class Meter:
    """A GPU at 55 W that has not been touched."""

    name = "pretended"

    def read(self, device):
        return Reading(energy_mj=time.monotonic_ns() * 55e-6, power_mw=55e3, utilization=0.0)


def test_what_was_watched_before_the_first_record_stands_in_every_record(tmp_path):
    clock = iter(range(0, 10**14, SECOND // 10))
    chosen = Chosen(devices=((Meter(), GPU),), reasons=(), events=(), gpus_held=1, gpus_measured=1)
    recorder = Recorder(chosen, interval_s=0.1, monotonic_ns=lambda: next(clock))
    recorder.watch()
    for _ in range(20):
        recorder.sample()
    for name in "ab":
        recorder.begin(str(tmp_path / f"node-{name}.h5"), {})
        assert recorder.end() == ""
    for name in "ab":
        [row] = read_node(tmp_path / f"node-{name}.h5").baseline
        assert row["power_idle_mw"] == pytest.approx(55e3)
        assert (row["samples"], row["context"]) == (20, -1)


def test_ranks_that_keep_still_are_told_together_when_it_is_over(sampler, tmp_path):
    process = sampler()
    answers = []
    ask = {"baseline_s": 0.8, "cool_s": 1.0, "slope": 1.0}
    there = threading.Barrier(3)

    def rank():
        with process.link() as link:
            assert link.idle(baseline_s=0.0).ok
            there.wait()
            began = time.monotonic()
            answers.append((link.idle(**ask), time.monotonic() - began))

    threads = [threading.Thread(target=rank) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 3 and all(answer.ok for answer, _ in answers)
    # of whoever asked first; the others came to a wait that had begun
    assert max(took_s for _, took_s in answers) >= 1.0
    # no GPU here: it waits for as long as it may, and says why, to all the same
    [told] = {answer.reasons[0] for answer, _ in answers}
    assert re.match(r"not reached in [1-9]\d* s: no temperature was read", told)
    path = tmp_path / "node-a.h5"
    with process.link() as link:
        assert link.begin(path, {}).ok and link.end().ok
    events = {e["code"]: e["text"].decode() for e in read_node(path).events}
    assert events[b"thermal-floor"] == told


def test_who_has_to_leave_does_not_wait_for_the_end_of_a_pause(sampler, tmp_path):
    process = sampler()
    asked = iter([False] * 3)
    with process.link() as link:
        # it is up: a sampler that still starts is left too, but in other words
        assert link.begin(tmp_path / "node-0.h5", {}).ok and link.end().ok
        began = time.monotonic()
        answer = link.idle(baseline_s=600.0, leave=lambda: next(asked, True))
        assert time.monotonic() - began < 300
        assert not answer.ok and "left before it answered" in answer.reason
        # the same link goes on: what it is answered is what it asked
        assert link.begin(tmp_path / "node-a.h5", {}).ok
        ended = link.end()
        assert ended.ok and ended.closed


def test_the_thermal_floor_is_reached_when_temperature_stands_still():
    watch = IdleWatch(contexts=lambda _uuid: 0)
    for s in range(200):
        c = 80.0 - min(s, 120) * 0.3
        watch.add(GPU, s * SECOND, Reading(temperature_c=round(c), power_mw=1.0))
    assert watch.heating_c_per_min(since_ns=90 * SECOND) > 1.0
    assert watch.heating_c_per_min(since_ns=169 * SECOND) < 0.1
    assert math.isnan(watch.heating_c_per_min(since_ns=195 * SECOND))


def test_a_counter_is_read_at_the_asked_moment():
    counter = StepCounter("GPU-0", read_mj=lambda: 42)
    assert (counter.read(), counter.uuid, counter.reason) == (42.0, "GPU-0", "")


def test_readings_that_are_slow_are_not_begun_with():
    clock = iter(range(0, 10**12, 2_000_000))
    counter = StepCounter("GPU-0", read_mj=lambda: 42, clock_ns=lambda: next(clock))
    assert math.isnan(counter.read())
    assert counter.reason == "GPU-0: no stamps: a reading takes 2 ms"


def test_readings_that_take_too_much_of_short_steps_end():
    """20 microseconds of every millisecond are 2 % of the time."""
    now = 0

    def clock():
        nonlocal now
        now += 20_000
        return now

    counter = StepCounter("GPU-0", read_mj=lambda: 42, clock_ns=clock)
    for _ in range(255):
        now += 960_000
        assert counter.read() == 42
    counter.read()
    assert math.isnan(counter.read())
    assert "20 us a reading are too much here" in counter.reason


def test_a_driver_that_fails_ends_the_stamps_and_nothing_else():
    def lost():
        raise RuntimeError("GPU is lost")

    counter = StepCounter("GPU-0", read_mj=lost)
    assert math.isnan(counter.read()) and counter.reason == "GPU-0: no stamps: GPU is lost"
