"""The stand-in counts what its formula in Python says, for every shape of power."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time

import pytest

# What the library says at a moment that does not move: its sensors stand for hours.
STILL_MS = 1e7
ASK = """
import json, pynvml as n
n.nvmlInit(); rows = []
for i in range(n.nvmlDeviceGetCount()):
    h = n.nvmlDeviceGetHandleByIndex(i)
    fields = n.nvmlDeviceGetFieldValues(h, [n.NVML_FI_DEV_POWER_INSTANT,
        n.NVML_FI_DEV_POWER_AVERAGE, (n.NVML_FI_DEV_POWER_INSTANT, 1)])
    rows.append({"energy_mj": n.nvmlDeviceGetTotalEnergyConsumption(h),
                 "usage_mw": n.nvmlDeviceGetPowerUsage(h), "uuid": n.nvmlDeviceGetUUID(h),
                 "fields_mw": [f.value.uiVal if f.nvmlReturn == 0 else None for f in fields]})
print(json.dumps(rows))
"""


@pytest.fixture
def ask(nvml_library, plain_environ):
    def run(gpus, **more):
        for _ in range(3):
            before = math.floor(time.time() / STILL_MS * 1e3)
            told = subprocess.run(
                [sys.executable, "-c", ASK], check=True, capture_output=True, text=True,
                env={**plain_environ, **gpus.environ(nvml_library, energy_update_ms=STILL_MS,
                                                     power_update_ms=STILL_MS, **more)},
            )  # fmt: skip
            if before == math.floor(time.time() / STILL_MS * 1e3):
                return json.loads(told.stdout), before * STILL_MS / 1e3
        raise AssertionError("three calls in a row on the edge of an hour")

    return run


@pytest.fixture
def trace(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text("seconds,watts\n0,100\n0.5,450.5\n0.75,90\n3,0\n")
    return path


SHAPES = {
    "constant": {},
    "square": {"amp_w": 400.0, "period_s": 0.3, "duty": 0.4, "shift_s": 0.07},
    "bursts": {"amp_w": 500.0, "burst_s": 0.05, "seed": 3, "duty": 0.3, "shift_s": 1.31},
    "trace": {"base_w": 0.0, "trace": True, "shift_s": 0.25},
    "module": {"amp_w": 100.0, "module_w": 250.0},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_library_and_the_formula_agree_to_the_millijoule(ask, fake_gpus, trace, shape):
    settings = dict(SHAPES[shape])
    if "trace" in settings:
        settings["trace"] = trace
    gpus = fake_gpus(gpus=3, step_w=25.0, **settings)
    rows, now_s = ask(gpus, power_window_ms=2000)
    for index, row in enumerate(rows):
        # both count in doubles from 2023 on, to some microjoules
        truth_j = gpus.energy_j(index, 1_700_000_000.0, now_s)
        assert row["energy_mj"] == pytest.approx(truth_j * 1e3, abs=1.5)
        mean_w = (gpus.energy_j(index, now_s - 2, now_s) / 2) - gpus.module_w
        assert row["usage_mw"] == pytest.approx(mean_w * 1e3, abs=1.5)
        instant, average, module = row["fields_mw"]
        assert average == row["usage_mw"]
        assert instant <= (gpus.most_w(index) - gpus.module_w) * 1e3
        assert module == (instant + 250_000 if gpus.module_w else None)


def test_a_part_time_sensor_tells_the_mean_of_its_window(ask, fake_gpus):
    gpus = fake_gpus(amp_w=300.0, period_s=0.1)
    rows, now_s = ask(gpus, instant_window_ms=25)
    expected_w = gpus.energy_j(0, now_s - 0.025, now_s) / 0.025
    assert rows[0]["fields_mw"][0] == pytest.approx(expected_w * 1e3, abs=1.5)


def test_bursts_are_on_as_often_as_asked_and_differ_by_seed(fake_gpus):
    one, other = (
        fake_gpus(base_w=0.0, amp_w=400.0, burst_s=0.05, duty=0.3, seed=s) for s in (1, 2)
    )
    cycle_s = 0.05 * 4096
    means = [g.energy_j(0, 1.7e9, 1.7e9 + cycle_s) / cycle_s for g in (one, other)]
    # half of 400 W at an even chance, 3 of 10 slots: 60 W, +- 2 by chance
    assert means == pytest.approx([60.0, 60.0], abs=7.0)
    assert one.energy_j(0, 1.7e9, 1.7e9 + 7) != other.energy_j(0, 1.7e9, 1.7e9 + 7)


@pytest.mark.parametrize("text", ["", "0,100\n", "1,100\n2,0\n", "0,100\n2,50\n1,0\n"])
def test_a_trace_that_cannot_be_played_is_no_gpu_at_all(
    nvml_library, plain_environ, fake_gpus, tmp_path, text
):
    trace = tmp_path / "bad.csv"
    trace.write_text(text)
    environ = {**plain_environ, **fake_gpus().environ(nvml_library, trace=trace)}
    done = subprocess.run([sys.executable, "-c", ASK], env=environ, check=False,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 1 and "invalid" in done.stderr.lower()


def test_uuids_are_known_beforehand(ask, fake_gpus):
    parent_uuid = sys.modules[fake_gpus.__module__].parent_uuid
    rows, _ = ask(fake_gpus(gpus=2), node="n7")
    assert [row["uuid"] for row in rows] == [parent_uuid("n7", 0), parent_uuid("n7", 1)]
