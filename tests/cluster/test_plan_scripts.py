"""What the planner renders, told to a real scheduler; a run that takes longer than a job may."""

import json
import re
import sys
from pathlib import Path

import pytest

from llem.campaign import Budget, TokenData, campaign_from, load_site, site_names
from llem.cluster import render_files
from llem.planning import make_plan
from llem.records import read_rank

sys.path.insert(0, str(Path(__file__).parent))
from farm_site import farm_site

DATA = TokenData(path="data/x.bin", dtype="uint16", tokens=10**12, evaluation_tokens=65536,
                 fingerprint="ab")  # fmt: skip
SHAPES = {
    "one-node": {"nodes": 1, "gpus_per_node": 8, "cpus_per_rank": 8, "gpu": {"name": "H100"}},
    "small-cluster": {"nodes": 16, "gpus_per_node": 4, "gpu": {"name": "A100-40GB"},
                      "gpu_request": "gres", "account": "project_1", "qos": "normal",
                      "limits": {"time": "24h", "throttle": 20}},
    "large-cluster": {"nodes": 512, "gpus_per_node": 8, "gpu": {"name": "H100"},
                      "memory_per_node": "500G", "constraint": "h100",
                      "limits": {"time": "6h", "array_size": 1001}},
    "amd": {"nodes": 64, "gpus_per_node": 8, "gpu": {"name": "MI250X"},
            "container": {"image": "/i.sif", "gpu": "rocm"}, "limits": {"time": "12h"}},
    "laptop-under-slurm": {"nodes": 1, "gpus_per_node": 1, "gpu": {"name": "cpu"},
                           "gpu_request": "none"},
}  # fmt: skip
# The farm has four nodes of four CPUs, two stand-in GPUs and 8 GB, one partition, and no accounts
# or features: sizes are cut to that and names replaced by its own, on the command line, which
# sbatch takes before the script. Arrays, times, signals and all else stay as they were rendered.
# What the farm has no name for, or no memory, and is left out.
UNKNOWN = "account|qos|constraint|mem|licenses|network"
FARM = {"nodes": 4, "ntasks-per-node": 2, "gpus-per-node": 2, "cpus-per-task": 2}


def mapped(script):
    """sbatch options that put a script within what the farm has."""
    options = ["--partition=gpu"]
    for name, most in FARM.items():
        if found := re.search(rf"^#SBATCH --{name}=(\d+)$", script, re.MULTILINE):
            options.append(f"--{name}={min(int(found[1]), most)}")
    if found := re.search(r"^#SBATCH --gres=gpu:(\d+)$", script, re.MULTILINE):
        options.append(f"--gres=gpu:{min(int(found[1]), 2)}")
    return options


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("budget", "runs"), [("1e21", None), ("1e23", None), ("1e18", 3000)])
def test_sbatch_accepts_every_script_that_is_rendered(login, shape, budget, runs):
    site = {"name": shape, **SHAPES[shape]}
    model = {"vocabulary": 32000, "context": 2048}
    campaign = campaign_from({"name": "shapes", "target": "1e25", "model": model, "site": site})
    plan = make_plan(campaign, budget=Budget(float(budget), "FLOP"), data=DATA, runs=runs)
    scripts = {n: t for n, t in render_files(plan).items() if n.endswith(".sbatch")}
    assert len(scripts) == len(plan.arrays) + 1
    for name, text in scripts.items():
        known = re.sub(rf"^#SBATCH --({UNKNOWN})=.*\n", "", text, flags=re.M)
        path = login.write("script.sbatch", known)
        done = login.run("sbatch", "--test-only", *mapped(text), path, check=False)
        assert done.returncode == 0, f"{name}: {done.stderr}"


@pytest.mark.parametrize("name", sorted(set(site_names()) - {"laptop"}))
def test_sbatch_accepts_the_scripts_for_each_shipped_site(login, name):
    site = {"base": name, "account": "project_1"}
    if load_site(name).container:
        site["container"] = {"image": "/i.sif"}
    model = {"vocabulary": 32000, "context": 2048}
    campaign = campaign_from({"name": "shapes", "target": "1e25", "model": model, "site": site})
    plan = make_plan(campaign, budget=Budget(1e21, "FLOP"), data=DATA)
    for script, text in render_files(plan).items():
        if script.endswith(".sbatch"):
            known = re.sub(rf"^#SBATCH --({UNKNOWN})=.*\n", "", text, flags=re.M)
            path = login.write("script.sbatch", known)
            done = login.run("sbatch", "--test-only", *mapped(text), path, check=False)
            assert done.returncode == 0, f"{script}: {done.stderr}"


# A GPU asked for by the task, a binding, a further option and a template of the site's own.
BOUND = {
    "gpu_request": "gpus-per-task",
    "cpu_bind": "none",
    "gpu_bind": "none",
    "extra": {"nice": 1, "no-kill": True},
    "template": "farm.sbatch.j2",
}
TEMPLATE = """\
{% extends "array.sbatch.j2" %}
{% block environment %}
{{ super() }}
export LLEM_FARM=seen
{% endblock %}
{% block launch %}
{{ super() }}
echo "before the ranks: $LLEM_FARM $CUDA_VISIBLE_DEVICES"
{% endblock %}
"""
SMALL = """\
name: bound
target: 1e11 FLOP
budget: 3e9 FLOP
model: {vocabulary: 256, context: 128}
data: {builtin: python-sources, evaluation_tokens: 32768}
grid: {levels: 1, sizes: 1}
training: {precision: fp32, rule: small, batch_tokens: 512}
layout: {nodes: 1, gpus_per_node: 2}
"""


def test_a_site_that_binds_and_has_a_template_runs(login, image):
    login.write("farm.sbatch.j2", TEMPLATE)
    login.write("bound.yaml", SMALL + farm_site(image, **BOUND))
    login.llem("plan", "bound.yaml", "--out", "bound")
    login.llem("submit", "bound", "--no-finish")
    login.llem("wait", "bound", timeout=300, check=False)
    logs = "".join(p.read_text() for p in (login.home / "bound/jobs/logs").iterdir())
    state = json.loads(login.llem("status", "bound", "--json").stdout)
    assert state["counts"] == {"completed": 1}, logs
    assert "before the ranks: seen 0,1" in logs


# About five minutes of training on one core, in jobs of two.
LONG = """\
name: long
target: 1e14 FLOP
budget: 8e12 FLOP
model: {vocabulary: 256, context: 128}
data: {builtin: python-sources, evaluation_tokens: 32768}
grid: {levels: 1, sizes: 1}
training: {precision: fp32, rule: small}
layout: {nodes: 1, gpus_per_node: 1}
"""


def test_a_run_longer_than_a_job_may_be_goes_on_in_the_next_job(login, image):
    login.write("long.yaml", LONG + farm_site(image, startup_s=20, limits={"time": "2m"}))
    login.llem("plan", "long.yaml", "--ask-cluster", "--out", "long")
    plan = json.loads((login.home / "long" / "plan.json").read_text())
    assert plan["limits"]["array_size"] == 1001
    (run,) = plan["runs"]
    assert run["predicted"]["duration_s"] > 120
    segments = plan["arrays"][0]["segments"]
    assert segments == run["segments"] > 1
    login.llem("submit", "long", "--no-finish")
    jobs = json.loads((login.home / "long/jobs/submitted.json").read_text())
    assert [len(entries) for entries in jobs.values()] == [segments]
    login.llem("wait", "long", timeout=1500, check=False)
    state = json.loads(login.llem("status", "long", "--json").stdout)
    attempts = sorted((login.home / "long/runs" / run["run_id"]).glob("attempt-*"))
    logs = "".join(p.read_text()[-3000:] for p in (login.home / "long/jobs/logs").iterdir())
    assert state["counts"] == {"completed": 1}, logs
    ends = [json.loads((a / "end.json").read_text()) for a in attempts]
    assert len(ends) >= 2
    assert [e["status"] for e in ends] == ["interrupted"] * (len(ends) - 1) + ["completed"]
    assert all("time limit is near" in e["reason"] for e in ends[:-1]), ends
    steps = [s for a in attempts for s in read_rank(a / "rank-00000.h5").steps["step"].tolist()]
    assert steps == list(range(run["steps"]))
