"""`find_optimal` as a SLURM campaign: class, data and loss by import path, in a real image."""

import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from farm_site import farm_profile

MODULE = Path(__file__).parents[1] / "integration" / "foreign.py"


@pytest.mark.skipif(find_spec("torch") is None, reason="planning a foreign model needs torch here")
def test_a_users_model_goes_through_slurm_to_a_law(login, image, monkeypatch):
    import yaml

    import llem
    from llem.pipeline.optimal import find as optimal

    def as_the_user(folder, plan, **_):
        """Planned here, where torch is; submitted by the user, whom alone Apptainer lets in."""
        subprocess.run(["chown", "-R", "llem:", str(project)], check=True)
        login.llem("submit", folder.root)
        login.llem("wait", folder.root, check=False, timeout=600)

    monkeypatch.setattr(optimal, "run_campaign", as_the_user)
    project = login.home / "optimal"
    project.mkdir()
    shutil.copy(MODULE, project / "foreign.py")
    site = yaml.safe_load(farm_profile(image, pack_s=20, startup_s=5, limits={"time": "30m"}))
    words = {
        "model": "foreign:MLP",
        "size": "width",
        "sizes": [4, 8, 16, 32],
        "dataset": "foreign:points",
        "loss_fn": "foreign:loss",
        "budget": "6e7 FLOP",
        "batch": 32,
        "ratio": 2.0,
        "executor": "slurm",
        "site": site,
        "code": project,
        "out": project / "c",
        "progress": False,
    }
    result = llem.find_optimal(**words)
    done = [row for row in result.observations if row["status"] == "completed"]
    assert len(done) == len(result.observations) >= 10
    assert result.law.params["E"] >= 0
    best = result.optimum()
    low, high = best.ci["params"]
    assert low <= best.params <= high
    jobs = json.loads((project / "c" / "jobs" / "submitted.json").read_text())
    assert jobs
    # Once more: nothing is submitted, and the answer is the same.
    before = sorted(str(p) for p in (project / "c" / "runs").glob("*/attempt-*"))
    again = llem.find_optimal(**words)
    assert again.optimum().params == best.params
    assert sorted(str(p) for p in (project / "c" / "runs").glob("*/attempt-*")) == before
