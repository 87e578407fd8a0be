"""Unmodified pynvml on the stand-in library, through the real sampler process."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from llem.energy.meters.nvml import _timed
from llem.records import read_node
from llem.results import device_energies
from llem.results.ranks.clock import HostClock

ASK = """
import json, sys
from llem.energy import NvmlMeter, MeterError
meter = NvmlMeter(); probe = meter.probe(); rows = []
for device in probe.devices:
    try: reading = vars(meter.read(device))
    except MeterError as error: reading = str(error)
    rows.append([device.attrs() | {"uuid": device.uuid}, reading])
print(json.dumps([rows, probe.reasons, probe.accelerators])); meter.close(); meter.close()
"""


@pytest.fixture
def ask(nvml_library, fake_gpus, plain_environ):
    """Probe and read once in a process that has the stand-in as its NVML."""

    def run(environ=None, gpus=1, **settings):
        import json

        fake = fake_gpus(gpus=gpus, base_w=300.0, step_w=50.0).environ(nvml_library, **settings)
        done = subprocess.run(
            [sys.executable, "-c", ASK], env={**plain_environ, **fake, **(environ or {})},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return json.loads(done.stdout)

    return run


def test_a_gpu_reads_counter_power_and_the_rest(ask):
    [[device, reading]], reasons, _ = ask()
    assert (device["quality"], device["domain"], device["power"]) == ("counter", "gpu", "instant")
    assert reading["power_mw"] == 300_000 and reading["energy_mj"] > 0
    assert reading["clock_mhz"] == 1410 and reading["temperature_c"] == 45
    # what a reader of the figures has to know of the board
    assert (device["power_limit_w"], device["persistence"]) == (700.0, 1)
    assert reasons == []


def test_without_a_counter_power_is_to_be_integrated(ask):
    [[device, reading]], reasons, _ = ask(no_energy=1)
    assert (device["quality"], device["counter"]) == ("integral", False)
    assert math.isnan(reading["energy_mj"]) and "no energy counter" in reasons[0]
    # averages leave out no moment; moments do
    assert device["power"] == "average" and "average power is integrated" in reasons[0]


def test_without_the_power_field_the_average_is_taken_and_named(ask):
    [[device, reading]], _, _ = ask(no_field=1)
    assert device["power"] == "average" and reading["power_mw"] == pytest.approx(300_000, rel=0.01)


def test_without_counter_and_power_the_device_is_there_and_unmeasured(ask):
    [[device, reading]], reasons, _ = ask(no_energy=1, no_power=1)
    assert device["quality"] == "none" and "no power" in reasons[0]
    assert math.isnan(reading["energy_mj"]) and math.isnan(reading["power_mw"])


def test_a_cgroup_that_renumbers_is_seen_through(ask):
    rows, _, expected = ask({"SLURM_STEP_GPUS": "2,3"}, gpus=4, visible="2,3")
    assert [reading["power_mw"] for _, reading in rows] == [400_000, 450_000]
    assert expected == 2


def test_without_a_cgroup_slurms_numbers_are_nvmls(ask):
    rows, _, _ = ask({"SLURM_STEP_GPUS": "1,3"}, gpus=4)
    assert [reading["power_mw"] for _, reading in rows] == [350_000, 450_000]


def test_an_instance_reads_its_parent_and_says_its_share(ask):
    rows, _, _ = ask(mig=2)
    uuid = rows[0][0]["uuid"].replace("GPU-", "MIG-").replace("9a01-000000000000", "9a02-00000000")
    [[device, reading]], reasons, expected = ask({"CUDA_VISIBLE_DEVICES": uuid + "0001"}, mig=2)
    assert device["uuid"].startswith("GPU-") and device["share"] == pytest.approx(3 / 7)
    assert reading["power_mw"] == 300_000 and "MIG" in reasons[0] and expected == 1


def test_a_grace_hopper_counts_its_whole_module_and_is_asked_for_the_modules_power(ask):
    [[device, reading]], _, _ = ask(name="NVIDIA GH200 480GB", module_w=200)
    assert (device["domain"], device["contains"]) == ("module", ["gpu", "package", "dram"])
    assert (device["power"], reading["power_mw"]) == ("instant", 500_000)


def test_a_module_that_tells_no_power_of_its_own_is_not_given_the_gpus(ask):
    [[device, reading]], _, _ = ask(name="NVIDIA GH200 480GB")
    assert (device["quality"], device["power"]) == ("counter", "none")
    assert math.isnan(reading["power_mw"])
    [[device, _]], _, _ = ask(name="NVIDIA GH200 480GB", no_energy=1)
    assert device["quality"] == "none"


def test_no_library_and_no_gpu_are_reasons(ask):
    rows, reasons, _ = ask({"LD_LIBRARY_PATH": "/nowhere"})
    assert rows == [] and "Not Found" in reasons[0]
    rows, reasons, _ = ask(gpus=0)
    assert rows == [] and reasons == ["nvml: the driver shows no GPU"]


def test_a_gpu_that_is_lost_is_an_error_of_that_reading(ask):
    rows, reasons, _ = ask(lost_at_s=1)
    assert rows == [] and "GPU is lost" in reasons[0]


# Shapes of power, and what makes them hard. A counter that moves every D can only bound a window's
# energy to P_max * D, so where power swings far D is short enough for half a percent.
LOADS = {
    "constant": ({"gpus": 4, "step_w": 50.0}, {}),
    "square 0.2 s": ({"base_w": 100.0, "amp_w": 300.0, "period_s": 0.2}, {"energy_update_ms": 5}),
    "square 1 s, short high": (
        {"base_w": 80.0, "amp_w": 600.0, "period_s": 1.0, "duty": 0.3},
        {"energy_update_ms": 5},
    ),
    "latency 500 us": (
        {"gpus": 2, "amp_w": 200.0, "period_s": 0.7},
        {"latency_us": 500, "energy_update_ms": 5},
    ),
}


@pytest.mark.slow
def test_energy_through_the_whole_chain_is_within_half_a_percent(
    nvml_library, fake_gpus, sampler, tmp_path
):
    """Four nodes at once, 4 s each: sampler, record and reduction against the analytic integral."""

    def measure(name):
        settings, _ = LOADS[name]
        gpus = fake_gpus(**settings)
        process = processes[name]
        path = tmp_path / f"node-{name.replace(' ', '_')}.h5"
        with process.link() as link:
            answer = link.begin(path, {})
            assert answer.ok, answer.reason
            time.sleep(4.0)
            assert link.end().ok
        return path, gpus

    processes = {
        name: sampler(fake_gpus(**settings).environ(nvml_library, **more))
        for name, (settings, more) in LOADS.items()
    }
    with ThreadPoolExecutor(len(LOADS)) as pool:
        measured = dict(zip(LOADS, pool.map(measure, LOADS), strict=True))
    for name, (path, gpus) in measured.items():
        record = read_node(path)
        clock = HostClock.of("", record.clock)
        found = {d.uuid: d.energy_j for d in device_energies(path).devices}
        assert len(found) == gpus.gpus
        for index, device in enumerate(record.devices):
            t = device.samples["t_ns"]
            t0_s, t1_s = (clock.wall_of(int(x)) / 1e9 for x in (t[0], t[-1]))
            truth = gpus.energy_j(index, t0_s, t1_s)
            error = found[device.uuid] / truth - 1
            print(f"{name} GPU {index}: {truth:.1f} J, error {error:+.4%}")
            assert t1_s - t0_s > 3.9
            # A machine busy with other tests may stop the sampler inside a reading; it says so.
            late_s = float(device.samples["read_ns"][[0, -1]].sum()) / 1e9
            most_w = gpus.base_w + index * gpus.step_w + gpus.amp_w
            assert abs(error) < 0.005 + max(0.0, late_s - 0.01) * most_w / truth, name
            assert np.all(np.isfinite(device.samples["power_mw"]))


def test_a_counter_read_late_is_read_again_and_bears_the_time_of_its_reading():
    """A process that is stopped between clock and counter, twice, for a tenth of a second."""
    pauses, ended = [0.1, 0.1, 0.0], []

    def read():
        time.sleep(pauses.pop(0))
        ended.append(time.monotonic_ns())
        return float(len(ended))

    value, at_ns = _timed(read)
    assert value == 3.0 and at_ns > ended[1]
