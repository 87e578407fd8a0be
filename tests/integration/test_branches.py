"""A campaign whose runs have branches, on this machine: several points of the law from one run."""

import csv
import subprocess
import sys
from importlib.util import find_spec

import pytest

from llem.cluster import CampaignFolder

pytestmark = [
    pytest.mark.train,
    pytest.mark.skipif(find_spec("torch") is None, reason="torch is not installed"),
    pytest.mark.skipif(find_spec("accelerate") is None, reason="accelerate is not installed"),
]

CAMPAIGN = """\
name: tiny
target: 1e11 FLOP
budget: 2.4e10
model: {vocabulary: 256, context: 64}
data: {builtin: python-sources, evaluation_tokens: 4096}
grid: {levels: 2, sizes: 2, ratio: 2, span: 0.2}
training:
  {precision: fp32, rule: small, batch_tokens: 512, branch_at: [0.5], evaluate_at: [0.25]}
"""


def llem(*words, cwd):
    command = [sys.executable, "-m", "llem", *map(str, words)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("branches")
    (folder / "campaign.yaml").write_text(CAMPAIGN)
    llem("plan", "campaign.yaml", "--out", "c", cwd=folder)
    llem("submit", "c", cwd=folder)
    llem("aggregate", "c", cwd=folder)
    return CampaignFolder(folder / "c")


def test_every_branch_began_where_its_trunk_had_come_to(done):
    plan = done.load_plan()
    branches = [run for run in plan.runs if run.trunk_steps]
    assert len(branches) == len(plan.runs) / 2
    for run in branches:
        end = done.final_end(run.run_id)
        assert end["status"] == "completed"
        assert end["start_step"] == end["trunk"]["steps"] == run.trunk_steps
        assert plan.run(end["trunk"]["run_id"]).branch(run.steps).run_id == run.run_id


def test_the_branches_are_points_of_their_own_in_the_table(done):
    rows = {
        row["run_id"]: row
        for row in csv.DictReader((done.root / "results" / "observations.csv").open())
    }
    for run in done.load_plan().runs:
        row = rows[run.run_id]
        assert (row["status"], row["reason"], float(row["coverage"])) == ("completed", "", 1.0)
        assert float(row["tokens"]) == run.tokens
        assert float(row["tokens_trunk"]) == run.trunk_steps * run.recipe.batch_tokens


def test_evaluations_on_the_way_are_told_and_no_points(done):
    for run in done.load_plan().runs:
        told = done.final_end(run.run_id)["evaluations"]
        assert [e["step"] for e in told] == list(run.evaluate_at)
        assert all(e["phase"] == "train" for e in told)


def test_checkpoints_of_branches_are_gone_with_their_ends(done):
    assert not list(done.root.glob("runs/*/checkpoints/step-*"))
