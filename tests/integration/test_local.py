"""The local executor: real ranks as processes, interrupted and continued."""

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
target: 1e11 FLOP
budget: {budget}
model: {{vocabulary: 256, context: 64}}
data: {{builtin: python-sources, evaluation_tokens: 4096}}
grid: {{levels: 2, sizes: 2, ratio: 2, span: 0.2}}
training: {{precision: fp32, rule: small, batch_tokens: 512}}
{more}
"""


def llem(*words, cwd):
    command = [sys.executable, "-m", "llem", *map(str, words)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def make(folder, *, budget, more="site: laptop"):
    (folder / "campaign.yaml").write_text(CAMPAIGN.format(budget=budget, more=more))
    done = llem("plan", "campaign.yaml", "--out", "c", cwd=folder)
    assert done.returncode == 0, done.stderr
    campaign = CampaignFolder(folder / "c")
    return campaign, campaign.load_plan()


def losses(campaign, plan):
    return {r.run_id: campaign.final_end(r.run_id)["loss"] for r in plan.runs}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("local")
    campaign, plan = make(folder, budget="1.2e10")
    result = llem("submit", "c", cwd=folder)
    assert result.returncode == 0, result.stderr
    return campaign, plan


def test_every_run_completes_with_its_records(done):
    campaign, plan = done
    state = campaign_state(campaign, plan)
    assert state.counts == {"completed": len(plan.runs)}
    for run in plan.runs:
        files = {p.name.split("-")[0] for p in campaign.attempts(run.run_id)[0].iterdir()}
        assert {"rank", "node", "end.json"} <= files


def test_a_second_submit_runs_nothing_again(done):
    campaign, plan = done
    before = {r.run_id: len(campaign.attempts(r.run_id)) for r in plan.runs}
    result = llem("submit", "c", cwd=campaign.root.parent)
    assert result.returncode == 0
    assert {r.run_id: len(campaign.attempts(r.run_id)) for r in plan.runs} == before


def test_its_energy_is_told_as_a_model_and_never_as_a_measurement(done):
    campaign, _ = done
    rows = json.loads(llem("aggregate", "c", "--json", cwd=campaign.root.parent).stdout)
    for row in rows["observations"]:
        assert row["energy_quality"] in ("model", "counter")
        assert row["energy_j"] > 0
        assert row["tokens"] == row["tokens_planned"]


@pytest.mark.parametrize("shards", ["zero_stage: 1", "sharding: fsdp2"])
def test_two_ranks_on_this_machine_come_to_the_same_losses_as_one(done, tmp_path, shards):
    one, plan = done
    layout = f"layout: {{nodes: 1, gpus_per_node: 2, {shards}}}\n"
    site = "site: {name: two, executor: local, gpus_per_node: 2, gpu: {name: cpu}}"
    two, plan_two = make(tmp_path, budget="1.2e10", more=layout + site)
    assert [r.run_id for r in plan_two.runs] == [r.run_id for r in plan.runs]
    result = llem("submit", "c", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert losses(two, plan) == pytest.approx(losses(one, plan), abs=1e-3)


def test_an_interrupted_campaign_goes_on_to_the_same_losses(done, tmp_path):
    campaign, plan = make(tmp_path, budget="1.2e10")
    command = [sys.executable, "-m", "llem", "submit", "c"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    for _ in range(600):
        state = campaign_state(campaign, plan, ask_scheduler=False)
        if any(r.status == "running" for r in state.runs):
            break
        time.sleep(0.1)
    # It stands still meanwhile, or it might be over before the second one has begun.
    process.send_signal(signal.SIGSTOP)
    held = llem("submit", "c", cwd=tmp_path)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    _, told = process.communicate(timeout=300)
    assert process.returncode == 130, told
    assert "goes on" in told
    assert held.returncode == 1
    assert "in use by" in held.stderr
    again = llem("submit", "c", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert losses(campaign, plan) == losses(*done)


def test_a_rank_that_fails_is_named_with_the_end_of_its_log(tmp_path):
    campaign, plan = make(tmp_path, budget="1.2e10")
    data = tmp_path / "c" / "data" / "python-sources.bin"
    data.write_bytes(data.read_bytes()[:100_000])
    result = llem("submit", "c", cwd=tmp_path)
    assert result.returncode == 1
    assert "failed; the end of" in result.stderr
    state = campaign_state(campaign, plan)
    assert "failed" in state.counts
    assert all(
        "changed after the campaign was planned" in r.reason
        for r in state.runs
        if r.status == "failed"
    )
