"""What `llem plan` prints fits a terminal of 80 columns, and names the page it wrote."""

from pathlib import Path

import pytest

from llem.campaign import TokenData, campaign_from, load_campaign
from llem.cli import main
from llem.cli._show import _range, plan_tables
from llem.planning import make_plan

EXAMPLES = Path(__file__).parents[3] / "examples"
DATA = TokenData(path="x", dtype="uint8", tokens=10**7, evaluation_tokens=65536, fingerprint="ab")
CHAINED = {
    "name": "chained", "target": "1e25 FLOP", "budget": "3000 GPUh", "seeds": 2,
    "model": {"vocabulary": 32000, "context": 2048},
    "site": {"nodes": 2, "gpus_per_node": 4, "gpu": {"name": "A100-40GB"},
             "limits": {"time": "6h"}},
}  # fmt: skip
CAMPAIGNS = {
    "laptop": lambda: load_campaign(EXAMPLES / "laptop.yaml"),
    "gpu_cluster": lambda: load_campaign(EXAMPLES / "gpu_cluster.yaml"),
    "chained": lambda: campaign_from(CHAINED),
}


@pytest.mark.parametrize("name", CAMPAIGNS)
def test_the_tables_of_a_plan_fit_eighty_columns(name, capsys):
    plan = make_plan(CAMPAIGNS[name](), data=DATA)
    plan_tables(plan)
    tables, told = capsys.readouterr().out.split("\nexpected:")
    assert max(len(line.rstrip()) for line in tables.splitlines()) <= 80
    assert all(array.name in tables for array in plan.arrays)
    labels = [line.partition(":")[0] for line in told.splitlines()[1:]]
    assert labels[:4] == ["duration", "rests on", "promised", "recipe"]
    assert labels.count("warning") == len(plan.warnings)


def test_what_a_plan_costs_is_told_in_money_too_where_there_is_a_price(capsys):
    plan_tables(make_plan(CAMPAIGNS["gpu_cluster"](), data=DATA))
    told = next(t for t in capsys.readouterr().out.splitlines() if t.startswith("expected:"))
    hours = float(told.partition(" of 500 GPUh")[0].rpartition(" ")[2])
    assert float(told.rpartition(", ")[2].removesuffix(" EUR")) == pytest.approx(
        1.10 * hours, rel=1e-3
    )
    plan_tables(make_plan(CAMPAIGNS["chained"](), data=DATA))
    assert "EUR" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([15.2e6, 244e6], "15.2-244 M"),
        ([1.25e9, 80e6], "80 M-1.25 G"),
        ([5, 12], "5-12"),
        ([7e3, 7e3], "7 k"),
        ([900, 2e3], "900-2 k"),
    ],
)
def test_a_range_names_its_prefix_once(values, text):
    assert _range(values) == text


def test_the_page_is_written_beside_the_plan_and_named(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call = ["plan", str(EXAMPLES / "laptop.yaml"), "--out", "c"]
    assert main([*call, "--dry-run"]) == 0
    assert not (tmp_path / "c").exists()
    capsys.readouterr()
    assert main(call) == 0
    assert "c/plan.html" in capsys.readouterr().err
    page = (tmp_path / "c" / "plan.html").read_text()
    assert page.startswith("<!doctype html>") and "laptop: the plan" in page
    assert main(call) == 0
    assert "nothing was changed" in capsys.readouterr().err
