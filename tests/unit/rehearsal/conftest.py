"""Two plans to rehearse: small models on a laptop, and larger ones on nodes of four GPUs."""

from __future__ import annotations

from pathlib import Path

import pytest

from llem.campaign.load import campaign_from
from llem.pipeline import plan_campaign
from llem.planning import Plan

GPU = {
    "name": "gpus", "target": "1e21 FLOP", "budget": "2 GPUh",
    "model": {"family": "llama", "vocabulary": 32000, "context": 1024},
    "data": {"dtype": "uint16", "evaluation_tokens": 1048576},
    "grid": {"levels": 3, "sizes": 4}, "seeds": 1,
    "training": {"batch_tokens": 524288, "checkpoint_every": 50, "evaluate_at": [0.5]},
    "layout": {"nodes": 2, "gpus_per_node": 2},
    "site": {
        "name": "gpus", "executor": "slurm", "nodes": 4, "gpus_per_node": 4,
        "gpu": {"name": "A100-40GB"}, "limits": {"time": "6h"}, "startup_s": 40,
    },
}  # fmt: skip
LAPTOP = {
    "name": "laptop", "target": "1e12 FLOP", "budget": "2e11 FLOP",
    "model": {"family": "llama", "vocabulary": 256, "context": 64},
    "data": {"builtin": "python-sources", "evaluation_tokens": 16384},
    "grid": {"levels": 3, "sizes": 4}, "training": {"precision": "fp32", "rule": "small"},
    "site": "laptop",
}  # fmt: skip


def planned(values: dict, folder: Path) -> Plan:
    campaign = campaign_from(values, source="the test")
    return plan_campaign(campaign, out=folder / "plan", base=folder, write=False).plan


@pytest.fixture(scope="session")
def gpu_plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    folder = tmp_path_factory.mktemp("gpus")
    with open(folder / "tokens.bin", "wb") as file:
        file.truncate(64 << 30)  # a hole: a rehearsal reads no token
    return planned({**GPU, "data": {**GPU["data"], "path": "tokens.bin"}}, folder)


@pytest.fixture(scope="session")
def laptop_plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return planned(LAPTOP, tmp_path_factory.mktemp("laptop"))
