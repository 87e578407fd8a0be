"""The examples are campaigns that run as they are: each is planned here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from llem.cli import main

EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.mark.parametrize("name", sorted(p.name for p in EXAMPLES.glob("*.yaml")))
def test_each_campaign_plans(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["plan", str(EXAMPLES / name), "--out", "c", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["budget"]["spent"] >= 0.9 * plan["budget"]["value"]
    assert len(plan["runs"]) >= 8
    if plan["site"]["executor"] == "slurm":
        assert main(["submit", "c", "--dry-run"]) == 0
        assert "#SBATCH --array=" in capsys.readouterr().out


def test_every_campaign_is_named_in_the_readme():
    text = (EXAMPLES / "README.md").read_text()
    assert all(p.name in text for p in EXAMPLES.iterdir() if p.name != "README.md")


@pytest.mark.slow
def test_the_mixture_is_prepared_and_planned(tmp_path):
    command = [sys.executable, EXAMPLES / "mixture.py", "mixture"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    plan = json.loads((tmp_path / "mixture" / "campaign" / "plan.json").read_text())
    data = plan["runs"][0]["data"]
    assert [part["weight"] for part in data["mixture"]] == [3, 1]
    assert data["packing"] == "documents" and len(plan["runs"]) >= 8
