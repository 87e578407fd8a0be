"""Plans to render and run."""

import pytest

from llem.campaign import TokenData, campaign_from
from llem.planning import make_plan

from .scheduler import Scheduler

DATA = TokenData(path="data/python-sources.bin", dtype="uint8", tokens=10**7,
                 evaluation_tokens=65536, fingerprint="ab" * 16)  # fmt: skip

CLUSTER = {
    "name": "farm",
    "partition": "gpu",
    "account": "project_1",
    "nodes": 4,
    "gpus_per_node": 2,
    "cpus_per_rank": 2,
    "gpu": {"name": "cpu"},
    "gpu_request": "gres",
    "modules": ["Apptainer/1.4"],
    "container": {"image": "/images/llem.sif", "gpu": "none", "binds": ["/scratch"]},
    "environment": {"NCCL_DEBUG": "WARN"},
    "pack_s": 0,
    "limits": {"array_size": 8, "throttle": 2},
}


@pytest.fixture
def make():
    """Make a plan from changes to a small campaign."""

    def make(**changes):
        values = {
            "name": "small",
            "target": "1e13",
            "budget": "1e12",
            "model": {"vocabulary": 256, "context": 128},
            "layout": {"nodes": 2, "gpus_per_node": 2, "zero_stage": 1},
            "training": {"precision": "fp32"},
            "site": CLUSTER,
            **changes,
        }
        return make_plan(campaign_from(values), data=DATA)

    return make


@pytest.fixture
def sbatch(tmp_path, monkeypatch):
    """The calls of sbatch so far, as lists of words; squeue holds no job."""
    scheduler = Scheduler(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{scheduler.folder}:/usr/bin:/bin")
    return scheduler
