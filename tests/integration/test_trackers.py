"""Trackers of the user's own: shipped with the campaign, fed by real ranks, never in the way."""

import json
import subprocess
import sys
from importlib.util import find_spec

import pytest

from llem.records import read_rank

pytestmark = [
    pytest.mark.train,
    pytest.mark.skipif(find_spec("torch") is None, reason="torch is not installed"),
    pytest.mark.skipif(find_spec("accelerate") is None, reason="accelerate is not installed"),
]

CAMPAIGN = """\
name: shown
target: 1e12 FLOP
budget: 2e10
model: {vocabulary: 256, context: 64}
data: {builtin: python-sources, evaluation_tokens: 4096}
grid: {levels: 1, sizes: 2, span: 0.3}
training: {precision: fp32, rule: small}
site: laptop
trackers: ["shown:Keeps", "shown:Raises"]
"""
SHOWN = """\
import json


class Keeps:
    def on_start(self, run, meta):
        self.path = f"kept-{run['run_id']}.jsonl"

    def on_step(self, row):
        self.keep("step", row)

    def on_evaluation(self, row):
        self.keep("evaluation", row)

    def on_end(self, outcome):
        self.keep("end", outcome)

    def keep(self, *values):
        with open(self.path, "a") as file:
            print(json.dumps(values), file=file)


class Raises:
    def on_evaluation(self, row):
        raise ValueError("who asked?")
"""


def test_trackers_are_fed_and_one_that_fails_is_told_of_and_costs_nothing(tmp_path):
    (tmp_path / "campaign.yaml").write_text(CAMPAIGN)
    (tmp_path / "shown.py").write_text(SHOWN)
    command = [sys.executable, "-m", "llem", "run", "campaign.yaml", "--out", "c"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    # So few runs may leave the fit nothing to say; the trainings have all ended well.
    ends = [json.loads(p.read_text()) for p in tmp_path.glob("c/runs/*/attempt-0/end.json")]
    assert len(ends) >= 2, done.stderr
    assert {end["status"] for end in ends} == {"completed"}
    events = []
    for end in ends:
        lines = (tmp_path / "c" / f"kept-{end['run_id']}.jsonl").read_text().splitlines()
        told = [json.loads(line) for line in lines]
        assert told[-3][0] == "step" and told[-3][1]["step"] == end["steps"]
        assert told[-2] == ["evaluation", {**told[-2][1], "loss": end["loss"]}]
        assert told[-1][1]["status"] == "completed"
        (record,) = tmp_path.glob(f"c/runs/{end['run_id']}/attempt-0/rank-*.h5")
        events += [e["text"] for e in read_rank(record).events if e["code"] == b"callback"]
    assert events and set(events) == {b"tracker shown:Raises: ValueError: who asked?"}
    log = "".join(path.read_text() for path in tmp_path.glob("c/jobs/logs/*rank0.log"))
    assert log.count("who asked?; the training goes on") == len(events)
