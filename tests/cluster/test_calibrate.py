"""`llem calibrate` on a real SLURM cluster: real DeepSpeed ranks, boards whose power is known."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from farm_site import farm_site

# Power of the stand-in GPUs, constant.
GPU_W = 250.0
CAMPAIGN = """\
name: farm
target: 4e11 FLOP
budget: 1.5e11 FLOP
model: {vocabulary: 256, context: 128}
data: {builtin: python-sources, evaluation_tokens: 32768}
grid: {levels: 2, sizes: 3, ratio: 3, span: 0.4}
training: {precision: fp32, rule: small, batch_tokens: 1024}
layout: {nodes: 1, gpus_per_node: 2, zero_stage: 1}
"""


def test_a_calibration_measures_steps_power_and_start_of_jobs(login, image, nvml):
    login.write("calibrate.yaml", CAMPAIGN + farm_site(image, nvml, limits={"time": "30m"}))
    call = ["calibrate", "calibrate.yaml", "--out", "cal", "--shapes", "2", "--steps", "120"]
    found = json.loads(login.llem(*call, "--json").stdout)
    assert [s["status"] for s in found["shapes"]] == ["completed"] * 2
    for shape in found["shapes"]:
        assert shape["steps"] == 96
        assert shape["layout"]["zero_stage"] == 1
        assert shape["energy_quality"] == "counter", shape
        assert shape["power_w"] == pytest.approx(GPU_W, rel=0.02)
        # from SLURM's start of the job, the image's mounting and the imports included
        assert 1 < shape["startup_s"] < 300
    login.llem("plan", "calibrate.yaml", "--calibration", "cal", "--out", "planned")
    plan = json.loads((login.home / "planned" / "plan.json").read_text())
    assert plan["site"]["device"]["power_source"].startswith("measured: calibration of 2 shapes")
    assert plan["site"]["startup_s"] == found["device"]["startup_s"]
    # everything is done: the same call submits nothing more, and says the same
    again = json.loads(login.llem(*call, "--json").stdout)
    assert again == found
    jobs = json.loads((login.home / "cal" / "jobs" / "submitted.json").read_text())
    assert {len(entries) for entries in jobs.values()} == {1}
