"""Runs that share a trunk, in bf16 on two nodes and over two waves: from SLURM to the law."""

import csv
import json
import sys
from pathlib import Path

import pytest

from llem.cluster import CampaignFolder

sys.path.insert(0, str(Path(__file__).parent))
from farm_site import farm_site

CAMPAIGN = """\
name: trunks
target: 4e11 FLOP
budget: 1e11 FLOP
waves: 2
model: {vocabulary: 256, context: 128}
data: {builtin: python-sources, evaluation_tokens: 32768}
grid: {levels: 2, sizes: 2, ratio: 2, span: 0.2}
training: {precision: bf16, rule: small, batch_tokens: 1024, branch_at: [0.5]}
layout: {nodes: 2, gpus_per_node: 1}
"""


@pytest.fixture(scope="module")
def done(login, image, nvml):
    site = farm_site(
        image,
        nvml,
        gpu={"name": "cpu", "power_w": 250},
        pack_s=20,
        startup_s=5,
        limits={"time": "30m"},
    )
    login.write("trunks.yaml", CAMPAIGN + site)
    login.llem("run", "trunks.yaml", "--out", "trunks", "--yes", timeout=900)
    return CampaignFolder(login.home / "trunks")


def test_each_branch_began_where_its_trunk_had_come_to(done):
    plan = done.load_plan()
    assert len(plan.waves) == 2
    branches = [run for run in plan.runs if run.trunk_steps]
    assert branches
    for run in branches:
        end = done.final_end(run.run_id)
        assert end["status"] == "completed"
        assert end["start_step"] == end["trunk"]["steps"] == run.trunk_steps
        assert plan.run(end["trunk"]["run_id"]).branch(run.steps).run_id == run.run_id


def test_both_nodes_trained_every_run_and_the_law_has_intervals(done):
    with open(done.root / "results" / "observations.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(done.load_plan().runs)
    told = {(r["status"], r["reason"], r["nodes"], r["ranks"], float(r["coverage"])) for r in rows}
    assert told == {("completed", "", "2", "2", 1.0)}
    law = json.loads((done.root / "results" / "fit.json").read_text())
    assert law["n_runs"] == len(rows)
    low, high = law["optima"][-1]["ci"]["params"]
    assert low < law["optima"][-1]["params"] < high
