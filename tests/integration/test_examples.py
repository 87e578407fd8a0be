"""The examples run as they are, a smaller budget apart."""

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = [
    pytest.mark.train,
    pytest.mark.skipif(find_spec("torch") is None, reason="torch is not installed"),
    pytest.mark.skipif(find_spec("accelerate") is None, reason="accelerate is not installed"),
]


def test_a_users_own_model_is_planned_trained_and_fitted(tmp_path):
    shutil.copytree(EXAMPLES / "own_model", tmp_path / "own")
    folder = tmp_path / "own"
    words = ["run", "campaign.yaml", "--budget", "4e10FLOP", "--out", "c"]
    command = [sys.executable, "-m", "llem", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    fit = json.loads((folder / "c" / "results" / "fit.json").read_text())
    assert fit["n_runs"] >= 8
    assert (folder / "c" / "results" / "plots" / "loss.png").stat().st_size > 10_000


@pytest.mark.skipif(find_spec("transformers") is None, reason="transformers is not installed")
def test_the_serving_example_finds_that_a_batch_saves_energy(tmp_path):
    import llem

    done = subprocess.run(
        [sys.executable, EXAMPLES / "serving.py", tmp_path / "s"],
        capture_output=True, text=True, check=False, env=dict(os.environ),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "model by transformers: 2 of 2 cycles" in done.stdout
    study = llem.StudyResult.read(tmp_path / "s" / "batches")
    by = {row["options.batch_size"]: row for row in study.table("options.batch_size")}
    assert by[16]["j_per_token"] < by[1]["j_per_token"]
    told = json.loads((tmp_path / "s" / "study.json").read_text())
    assert len(told["runs"]) == 6 and all(run["status"] == "completed" for run in told["runs"])
    assert set(study.law().laws) == {"energy_j", "gpu_seconds"} == set(told["laws"][0]["laws"])


def test_the_library_example_ends_in_an_optimum(tmp_path):
    (tmp_path / "small.yaml").write_text(
        (EXAMPLES / "laptop.yaml").read_text().replace("budget: 4e12", "budget: 1e11")
    )
    done = subprocess.run(
        [sys.executable, EXAMPLES / "library.py", tmp_path / "small.yaml", tmp_path / "c"],
        capture_output=True, text=True, check=False, env=dict(os.environ),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "parameters on" in done.stdout
