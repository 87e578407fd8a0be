"""A study on the real cluster: 24 deployments of real transformers models, three cycles of each.

It is planned and submitted by a user at a node that has neither torch nor transformers, served in
the image, preempted once in its middle, and ended by its own final job. The stand-in GPUs draw
constant power, one more than the other, so that what any window truly cost is power times time;
their counters move every 20 ms, as those of real ones, and a window lasts so much longer that this
is less than half a percent of it.
"""

import csv
import json
import re
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import h5py
import numpy as np
import pytest

from llem.records import Phase, RequestStatus

sys.path.insert(0, str(Path(__file__).parent))
from farm_site import farm_site
from faults import read_json, show_job, wait_for

# A job of higher priority drives others out.
pytestmark = pytest.mark.alone

SIZES = {"small": (32, 2), "middle": (64, 3), "large": (96, 4)}
BATCHES = (1, 2, 4, 8)
PRECISIONS = ("fp32", "bf16")
CYCLES = 3
RUNS = len(SIZES) * len(BATCHES) * len(PRECISIONS) * CYCLES
# 16 requests, the last of them 4.7 s after the first.
REQUESTS, RATE, TOKENS_IN, TOKENS_OUT = 16, 3.2, 24, 6
COUNTER_S, TOLERANCE = 0.02, 0.005
# Of the first and the second GPU of a node.
GPU_W = (200.0, 300.0)
STEP_W = {"FAKE_NVML_BASE_W": f"{GPU_W[0]:g}", "FAKE_NVML_STEP_W": f"{GPU_W[1] - GPU_W[0]:g}"}

MODEL = (
    "  {name}: {{config: {{model_type: llama, vocab_size: 320, hidden_size: {width}, "
    "intermediate_size: {inner}, num_hidden_layers: {layers}, num_attention_heads: 4, "
    "num_key_value_heads: 2, max_position_embeddings: 128}}}}\n"
)
STUDY = f"""\
name: study
workload: inference
prompts:
  synthetic: {{input_tokens: {TOKENS_IN}, output_tokens: {TOKENS_OUT}, count: {REQUESTS}}}
arrival: {{rate: {RATE}}}
sweep:
  grid:
    options.batch_size: {list(BATCHES)}
    options.precision: [{", ".join(PRECISIONS)}]
cycles: {CYCLES}
order: latin-square
block: 3
warmup: {{least: 1, most: 3, window: 2, spread: 0.5}}
cooldown: 1s
models:
"""


@pytest.fixture(scope="module")
def study(login, image, nvml):
    """The study at its end: its folder, the plan and which elements were driven out."""
    text = STUDY + "".join(
        MODEL.format(name=name, width=width, inner=2 * width, layers=layers)
        for name, (width, layers) in SIZES.items()
    )
    site = farm_site(image, nvml, gpu={"name": "cpu", "power_w": 250}, environment=STEP_W,
                     limits={"array_size": 4, "time": "30m"})  # fmt: skip
    login.write("study.yaml", text + site)
    before = names_in(login.home)
    login.llem("plan", "study.yaml", "--out", "study")
    folder = login.home / "study"
    login.llem("submit", "study")
    wait_for(lambda: len(ends(folder)) >= RUNS // 2, what="half of the runs", timeout_s=400,
             told=lambda: log(folder))  # fmt: skip
    preempted = preempt(login, folder)
    login.llem("wait", "study", check=False, timeout=600)
    return {
        "folder": folder,
        "plan": json.loads((folder / "plan.json").read_text()),
        "preempted": preempted,
        "new": names_in(login.home) - before,
    }


def names_in(home):
    return {path.name for path in home.iterdir()}


def preempt(login, folder, timeout_s=60):
    """Drive out whatever is at work on a node where a run has just begun to serve; the jobs."""
    found = []
    wait_for(lambda: bool(found.extend(serving_now(folder)) or found),
             what="a run that serves", timeout_s=timeout_s)  # fmt: skip
    node = found[0]["node"]
    asked = ["squeue", "--noheader", "--states=R", "--array", "--partition=gpu", "--format=%i %N"]
    lines = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.splitlines()
    driven_out = [job for job, its in map(str.split, lines) if its == node]
    where = ["--partition=urgent", f"--nodelist={node}", "--nodes=1", "--exclusive"]
    login.run("sbatch", "--parsable", *where, "--output=/dev/null", "--wrap=sleep 1")
    wait_for(lambda: all(int(show_job(job)["Restarts"]) == 1 for job in driven_out),
             what="preemption", timeout_s=60)  # fmt: skip
    return driven_out


def serving_now(folder):
    """The beginnings of attempts that have answered a few requests and have most before them."""
    found = []
    for attempt in folder.glob("runs/*/attempt-*"):
        told = read_json(attempt / "progress.json")
        if told and 0 < told["step"] <= REQUESTS // 3 and not (attempt / "end.json").exists():
            found.append(read_json(attempt / "begin.json"))
    return found


def ends(folder):
    """End records of all attempts, by their folders."""
    found = {path.parent: read_json(path) for path in folder.glob("runs/*/attempt-*/end.json")}
    return {attempt: end for attempt, end in found.items() if end is not None}


def log(folder):
    logs = sorted((folder / "jobs" / "logs").iterdir())
    return "\n".join(path.read_text(errors="replace") for path in logs)


@pytest.fixture(scope="module")
def rows(study):
    with open(study["folder"] / "results" / "observations.csv", newline="") as file:
        return list(csv.DictReader(file))


def attempts_of(study, run_id):
    found = (study["folder"] / "runs" / run_id).glob("attempt-*")
    return sorted(found, key=lambda path: int(path.name[8:]))


def samples(attempt):
    """Watts that the one GPU of an attempt truly draws, and its samples as they were recorded."""
    (path,) = attempt.glob("node-*.h5")
    with h5py.File(path) as file:
        ((uuid, device),) = [
            (name, group) for name, group in file["devices"].items() if name.startswith("GPU-")
        ]
        return GPU_W[int(uuid[-12:], 16)], device["samples"][:]


def window(attempt):
    """Seconds of the measured window, joules by the counter's samples, and the tokens made in it;
    read without llem."""
    with h5py.File(attempt / "rank-00000.h5") as file:
        spans, requests = file["spans"][:], file["requests"][:]
    (span,) = spans[spans["phase"] == Phase.SERVE]
    done = requests[requests["status"] == RequestStatus.FINISHED]
    _, read = samples(attempt)
    at_s = (read["t_ns"] - read["t_ns"][0]) / 1e9
    edges_s = [(int(span[name]) - int(read["t_ns"][0])) / 1e9 for name in ("t0_ns", "t1_ns")]
    first, last = np.interp(edges_s, at_s, read["energy_mj"] / 1e3)
    return edges_s[1] - edges_s[0], last - first, int(done["tokens_out"].sum())


def completed(study, run_id):
    (attempt,) = [a for a in attempts_of(study, run_id)
                  if (read_json(a / "end.json") or {}).get("status") == "completed"]  # fmt: skip
    return attempt


def check_windows(study, rows):
    """What a window cost is what its GPU truly drew."""
    for row in rows:
        attempt = completed(study, row["run_id"])
        watts, _ = samples(attempt)
        seconds, _, _ = window(attempt)
        assert COUNTER_S / seconds < TOLERANCE
        assert float(row["duration_s"]) == pytest.approx(seconds, rel=1e-9)
        assert float(row["energy_j"]) == pytest.approx(watts * seconds, rel=TOLERANCE)


def truth_of(study, run_id):
    """Joules that the GPUs truly drew in all attempts of a run together."""
    truth_j = 0.0
    for attempt in attempts_of(study, run_id):
        end = read_json(attempt / "end.json")
        watts, _ = samples(attempt)
        truth_j += watts * (end["t1_ns"] - end["t0_ns"]) / 1e9
    return truth_j


def statuses_at_the_end(study):
    """Run id -> how its attempts ended: one of them completed it, the last."""
    statuses = {
        run["run_id"]: [(read_json(a / "end.json") or {}).get("status")
                        for a in attempts_of(study, run["run_id"])]
        for run in study["plan"]["runs"]
    }  # fmt: skip
    assert all(found.count("completed") == 1 for found in statuses.values()), statuses
    assert all(found[-1] == "completed" for found in statuses.values()), statuses
    return statuses


def test_it_is_one_study_of_24_deployments_in_arrays(study):
    plan = study["plan"]
    runs, arrays = plan["runs"], plan["arrays"]
    assert len({run["deployment_id"] for run in runs}) == RUNS // CYCLES == 24
    assert len(runs) == RUNS == 72
    assert len(arrays) == 2 and sum(len(array["elements"]) for array in arrays) == 8
    params = {run["model"]["name"]: run["params"] for run in runs}
    assert params["small"] < params["middle"] < params["large"]


def test_every_row_is_complete(rows):
    assert len(rows) == RUNS
    wrong = [
        (row["run_id"], row["status"], row["coverage"], row["reason"], row["energy_reason"])
        for row in rows
        if (row["status"], float(row["coverage"])) != ("completed", 1.0)
        or row["energy_quality"] != "counter"
    ]
    assert not wrong
    for row in rows:
        assert int(row["requests_done"]) == REQUESTS
        assert float(row["tokens_in"]) == REQUESTS * TOKENS_IN
        assert float(row["tokens_out"]) == REQUESTS * TOKENS_OUT
        assert row["effective.precision"] == row["options.precision"]
        assert row["effective.batch_size"] == row["options.batch_size"]
        assert int(row["effective.parameters"]) == int(row["params"])


def test_what_was_driven_out_went_on_by_itself_and_nothing_was_served_twice(study, rows):
    statuses = statuses_at_the_end(study)
    again = {run: found for run, found in statuses.items() if len(found) > 1}
    # one run of each job that was there, at most: a job that leaves between two runs leaves none
    assert 1 <= len(again) <= len(study["preempted"])
    assert Counter(map(len, again.values())) == {2: len(again)}
    for run in again:
        end = read_json(attempts_of(study, run)[0] / "end.json")
        assert (end["status"], end["cause"]) == ("interrupted", "signal")
    assert {row["run_id"]: int(row["attempts"]) for row in rows} == {
        run: len(found) for run, found in statuses.items()
    }


def test_the_final_job_aggregated_and_reported(study):
    results = study["folder"] / "results"
    for name in ("observations.csv", "deployments.csv", "report.html"):
        assert (results / name).stat().st_size > 1000, log(study["folder"])


def test_a_window_costs_what_the_gpu_truly_drew(study, rows):
    check_windows(study, rows)


def test_all_attempts_together_cost_what_the_gpus_truly_drew(study, rows):
    total_j = 0.0
    for row in rows:
        truth_j = truth_of(study, row["run_id"])
        assert float(row["energy_total_j"]) == pytest.approx(truth_j, rel=TOLERANCE)
        total_j += truth_j
    told_j = sum(float(row["energy_total_j"]) for row in rows)
    assert told_j == pytest.approx(total_j, rel=TOLERANCE)


def test_the_phases_are_all_of_a_window(rows):
    parts = ("prefill_j", "decode_j", "host_j", "idle_j")
    for row in rows:
        joules = {name: float(row[name]) for name in parts}
        assert sum(joules.values()) == pytest.approx(float(row["energy_j"]), rel=1e-6)
        assert min(joules.values()) >= 0 and joules["prefill_j"] > 0 and joules["decode_j"] > 0


def test_the_energy_of_a_token_is_a_ratio_of_sums(login, study, rows):
    """As the user asks for it, against sums of what the records hold."""
    told = json.loads(
        login.llem("results", "compare", "study", "--by", "options.batch_size", "--json").stdout
    )
    joules, truth, tokens = defaultdict(float), defaultdict(float), defaultdict(int)
    for row in rows:
        attempt = completed(study, row["run_id"])
        seconds, window_j, made = window(attempt)
        watts, _ = samples(attempt)
        size = int(float(row["options.batch_size"]))
        joules[size] += window_j
        truth[size] += watts * seconds
        tokens[size] += made
    groups = {int(group["options.batch_size"]): group for group in told["groups"]}
    assert sorted(groups) == sorted(BATCHES)
    for size, group in groups.items():
        assert tokens[size] == group["tokens_out"] == RUNS // len(BATCHES) * REQUESTS * TOKENS_OUT
        assert group["j_per_token"] == pytest.approx(joules[size] / tokens[size], rel=1e-6)
        assert group["j_per_token"] == pytest.approx(truth[size] / tokens[size], rel=TOLERANCE)
        assert group["j_per_token_low"] < group["j_per_token"] < group["j_per_token_high"]
    assert len(told["ratios"]) == len(BATCHES) * (len(BATCHES) - 1) // 2


def test_the_user_sees_the_study_at_its_end(login, study):
    state = json.loads(login.llem("status", "study", "--json").stdout)
    assert state["settled"] and state["counts"] == {"completed": RUNS}
    shown = login.llem("results", "compare", "study", "--by", "model,options.batch_size")
    assert all(name in shown.stdout for name in SIZES)


def test_a_pause_is_kept_before_each_run(study):
    assert len(re.findall(r"cooled down for 1(\.\d+)? s\n", log(study["folder"]))) >= RUNS


def test_nothing_is_written_but_records(study):
    """The image is read-only, and homes of users are small: no library leaves a cache there."""
    assert study["new"] == {"study"}
    assert "Traceback" not in log(study["folder"])
