"""A run that fails is tried again as its cause deserves, by real ranks of the local executor."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from llem.cluster import CampaignFolder

pytestmark = [
    pytest.mark.train,
    pytest.mark.skipif(find_spec("torch") is None, reason="torch is not installed"),
    pytest.mark.skipif(find_spec("accelerate") is None, reason="accelerate is not installed"),
]

# A model that fails as TINY_FAILS says: `memory:4` where more than four sequences come at once.
MODEL = """
import os
import torch
from torch import nn

class Tiny(nn.Module):
    def __init__(self, width, context):
        super().__init__()
        self.embedding = nn.Embedding(256, width)
        self.out = nn.Linear(width, 256)

    def forward(self, tokens):
        how, _, most = os.environ.get("TINY_FAILS", "").partition(":")
        if self.training and how == "memory" and len(tokens) > int(most):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        if self.training and how == "exception":
            raise ZeroDivisionError("the model has a fault")
        return self.out(torch.tanh(self.embedding(tokens)))
"""
CAMPAIGN = """\
name: tiny
target: 1e11 FLOP
budget: 6e8 FLOP
model:
  class: "tiny:Tiny"
  size: width
  values: [8]
  vocabulary: 256
  context: 64
  arguments: {context: 64}
data: {builtin: python-sources, evaluation_tokens: 4096}
grid: {levels: 1, sizes: 1}
training: {precision: fp32, rule: small, batch_tokens: 512}
site: laptop
"""


def llem(*words, cwd, **env):
    return subprocess.run(
        [sys.executable, "-m", "llem", *words],
        cwd=cwd, capture_output=True, text=True, check=False, env={**os.environ, **env},
    )  # fmt: skip


@pytest.fixture
def planned(tmp_path):
    (tmp_path / "tiny.py").write_text(MODEL)
    (tmp_path / "campaign.yaml").write_text(CAMPAIGN)
    done = llem("plan", "campaign.yaml", "--out", "c", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = CampaignFolder(tmp_path / "c")
    (run,) = folder.load_plan().runs
    return folder, run


def ends(folder, run):
    return folder.ends(run.run_id)


def layouts(folder, run):
    found = [
        json.loads((a / "begin.json").read_text())["layout"] for a in folder.attempts(run.run_id)
    ]
    return [(layout["micro_batch"], layout["grad_accum"]) for layout in found]


def test_too_little_memory_makes_the_micro_batch_smaller_and_the_result_no_other(planned):
    folder, run = planned
    assert run.layout.micro_batch == 8
    place = Path(folder.root).parent
    done = llem("submit", "c", cwd=place, TINY_FAILS="memory:2")
    assert done.returncode == 0, done.stderr
    told = ends(folder, run)
    assert [(end["status"], end["cause"]) for end in told] == [
        ("failed", "out-of-memory"), ("failed", "out-of-memory"), ("completed", "")]  # fmt: skip
    assert layouts(folder, run) == [(8, 1), (4, 2), (2, 4)]
    assert told[0]["error"]["type"] == "torch.OutOfMemoryError"
    assert "Tried to allocate" in told[0]["reason"]
    assert told[0]["given_up"] == ""
    # The same run with all the memory it asks for, in another folder.
    llem("plan", "campaign.yaml", "--out", "whole", cwd=place)
    assert llem("submit", "whole", cwd=place).returncode == 0
    (whole,) = ends(CampaignFolder(place / "whole"), run)
    assert told[-1]["loss"] == pytest.approx(whole["loss"], abs=1e-5)


def test_an_exception_is_tried_once_more_then_given_up_until_someone_asks(planned):
    folder, run = planned
    place = Path(folder.root).parent
    done = llem("submit", "c", cwd=place, TINY_FAILS="exception")
    assert done.returncode == 1
    told = ends(folder, run)
    assert [(end["status"], end["cause"]) for end in told] == [("failed", "exception")] * 2
    assert told[0]["error"] == {"type": "ZeroDivisionError", "message": "the model has a fault"}
    assert told[0]["given_up"] == ""
    assert told[1]["given_up"].startswith("2 tries got no further: ZeroDivisionError")
    again = llem("submit", "c", cwd=place)
    assert again.returncode == 0, again.stderr
    assert ends(folder, run)[-1]["status"] == "completed"
