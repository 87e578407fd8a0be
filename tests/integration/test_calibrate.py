"""`llem calibrate` on the local executor: real ranks, reduced, planned with; interrupted once."""

import json
import signal
import subprocess
import sys
import time
from importlib.util import find_spec

import pytest

from llem.cluster import CampaignFolder, campaign_state

pytestmark = [
    pytest.mark.train,
    pytest.mark.skipif(find_spec("torch") is None, reason="torch is not installed"),
    pytest.mark.skipif(find_spec("accelerate") is None, reason="accelerate is not installed"),
]

CAMPAIGN = """\
name: tiny
target: 1e12 FLOP
budget: 2e11
model: {vocabulary: 256, context: 64}
data: {builtin: python-sources, evaluation_tokens: 4096}
grid: {levels: 2, sizes: 3, ratio: 3, span: 0.4}
training: {precision: fp32, rule: small}
site: laptop
"""
CALIBRATE = ["calibrate", "campaign.yaml", "--out", "cal", "--shapes", "3", "--steps", "400"]


def llem(*words, cwd):
    command = [sys.executable, "-m", "llem", *map(str, words)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_a_calibration_goes_on_where_it_was_interrupted_and_feeds_the_planner(tmp_path):
    (tmp_path / "campaign.yaml").write_text(CAMPAIGN)
    process = subprocess.Popen(
        [sys.executable, "-m", "llem", *CALIBRATE], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    folder = CampaignFolder(tmp_path / "cal")
    for _ in range(300):
        time.sleep(0.1)
        if folder.plan_file.is_file():
            state = campaign_state(folder, folder.load_plan(), ask_scheduler=False)
            if any(r.status == "running" for r in state.runs):
                break
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=300)
    assert process.returncode == 130, told
    assert "the same `llem calibrate` goes on" in told
    assert "3 shapes of" in told and "GPUh" in told

    done = llem(*CALIBRATE, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {k: v for k, v in found.items() if k != "file"} == json.loads(
        (folder.results / "calibration.json").read_text()
    )
    assert len(found["shapes"]) == 3
    for shape in found["shapes"]:
        assert shape["status"] == "completed"
        assert shape["step_s"] > 0
        assert shape["energy_quality"] in ("counter", "integral", "model", "none")
        assert (shape["power_w"] is None) == (shape["energy_quality"] == "none")
    assert 0 < found["device"]["startup_s"] < 60

    before = llem("plan", "campaign.yaml", "--out", "a", "--json", cwd=tmp_path)
    assert "prior" in json.loads(before.stdout)["budget"]["source"]["utilisation"]
    with open(tmp_path / "campaign.yaml", "a") as file:
        file.write("calibration: cal\n")
    plan = json.loads(llem("plan", "campaign.yaml", "--out", "b", "--json", cwd=tmp_path).stdout)
    device, source = plan["site"]["device"], plan["budget"]["source"]
    assert "measured: calibration of 3 shapes on 20" in source["utilisation"]
    assert device["step_overhead_s"] == found["device"]["step_overhead_s"]
    assert plan["site"]["startup_s"] == found["device"]["startup_s"]
    if found["device"]["energy_quality"] == "model":
        assert "estimated by a model, not measured" in source["power"]

    text = (tmp_path / "campaign.yaml").read_text().replace("fp32", "bf16")
    (tmp_path / "other.yaml").write_text(text)
    refused = llem("plan", "other.yaml", "--out", "c", cwd=tmp_path)
    assert refused.returncode == 2
    assert "precision" in refused.stderr
