"""A campaign's folder: its law in fit.json, its prices, the end of it all."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from llem.campaign import campaign_from
from llem.cluster import CampaignFolder
from llem.errors import InputError
from llem.pipeline import campaigns, finish, fit_campaign, report_campaign
from llem.pipeline.declaring import declared_of
from llem.pipeline.fitting import campaign_prices, campaign_table
from llem.results.tables.observation import Observation, write_observations
from llem.scaling import checklist
from llem.scaling.judging.checklist import open_items

PLAN = {
    "campaign": {"name": "tiny", "law": "chinchilla"},
    "design": {"target_flops": 1e19},
    "digest": "abc",
    "llem": "1.0",
    "site": {"pue": 1.5, "prices": {"per_kwh": 0.2, "per_gpu_hour": None, "currency": "CHF"}},
}


def observations(*, shift=1.0):
    rows = []
    for i, c in enumerate(np.geomspace(1e16, 1e18, 4)):
        for j, factor in enumerate(np.geomspace(0.25, 4.0, 5)):
            params = round(shift * factor * 0.08 * c**0.5136)
            tokens = c / 6 / params
            rows.append(
                Observation(
                    run_id=f"run-{i}{j}",
                    status="completed",
                    params=params,
                    tokens=tokens,
                    flops=c,
                    loss=1.8 + 480 / params**0.35 + 2100 / tokens**0.37,
                    energy_j=1e3 + 1e-11 * c,
                    duration_s=c / 1e13,
                    ranks=2,
                    nodes=1,
                    expected_steps=100,
                )
            )
    return tuple(rows)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "plan.json").write_text(json.dumps(PLAN))
    (tmp_path / "results").mkdir()
    write_observations(observations(), tmp_path / "results" / "observations.csv")
    return CampaignFolder(tmp_path)


def test_law_target_and_prices_are_the_campaigns_and_its_sites(folder):
    fit = fit_campaign(folder, bootstrap=0)
    assert json.loads((folder.results / "fit.json").read_text()) == fit
    assert fit["law"] == "chinchilla"
    assert fit["optima"][0]["target"] == {"value": 1e19, "unit": "FLOP"}
    assert fit["optima"][0]["currency"] == "CHF"
    assert fit["provenance"]["plan"] == "abc"


def test_prices_that_are_given_stand_in_the_place_of_the_sites(folder):
    prices = campaign_prices(folder, per_kwh=0.4, per_gpu_hour=2.0)
    assert prices.to_dict() == {
        "per_kwh": 0.4,
        "per_gpu_hour": 2.0,
        "currency": "CHF",
        "pue": 1.5,
    }


def test_columns_of_the_records_are_those_of_the_fit(folder):
    table = campaign_table(folder)
    assert table.source.endswith("observations.csv")
    assert set(table.number("ranks")) == {2.0}
    assert set(table.number("steps")) == {100.0}


def test_without_observations_it_is_said_what_to_do(folder):
    (folder.results / "observations.csv").unlink()
    for call in (fit_campaign, report_campaign):
        with pytest.raises(InputError, match="llem aggregate"):
            call(folder)


def test_the_end_of_a_campaign_warns_of_edge_minima_and_does_not_stop(folder, monkeypatch):
    rows = observations(shift=20.0)
    write_observations(rows, folder.results / "observations.csv")
    monkeypatch.setattr(
        campaigns,
        "aggregate_campaign",
        lambda _, **__: SimpleNamespace(served=(), observations=rows, problems=()),
    )
    monkeypatch.setattr("llem.report.page.can_plot", lambda: False)
    with pytest.raises(InputError, match="no minimum inside"):
        fit_campaign(folder, bootstrap=0)
    done = finish(folder, bootstrap=0)
    assert done.fit is not None
    assert done.fit["refusals"]["allowed"] is True
    assert "no minimum inside the sizes trained" in done.report.read_text()


def test_where_no_law_can_be_fitted_the_report_says_why_and_the_old_law_goes(folder, monkeypatch):
    (folder.results / "fit.json").write_text("{}")
    rows = observations()[:3]
    write_observations(rows, folder.results / "observations.csv")
    monkeypatch.setattr(
        campaigns,
        "aggregate_campaign",
        lambda _, **__: SimpleNamespace(served=(), observations=rows, problems=()),
    )
    monkeypatch.setattr("llem.report.page.can_plot", lambda: False)
    done = finish(folder)
    assert done.fit is None
    assert "distinct points" in done.reason
    assert "No law could be fitted" in done.report.read_text()
    assert not (folder.results / "fit.json").exists()


def test_what_the_plan_knows_is_not_asked_for_by_the_checklist(tmp_path):
    """The data, the recipe and the metric of a campaign's runs are in its plan."""
    planned = campaigns.plan_campaign(
        campaign_from({"name": "x", "target": "1e13", "budget": "1e12", "site": "laptop",
                       "model": {"vocabulary": 256, "context": 128}, "seeds": 2}),
        out=tmp_path / "x",
    )  # fmt: skip
    found = declared_of(planned.folder.plan_values())
    items = checklist({}, declared=found)
    open_ones = set(open_items(items))
    assert not open_ones & {f"training.{name}" for name in (
        "params_counted", "dataset", "repeated", "architecture", "hyperparameters", "schedule",
        "seeds",
    )}  # fmt: skip
    assert {"law.assumptions", "training.released"} <= open_ones
    assert found["training.dataset"].startswith("python-sources.bin (fingerprint ")
    assert found["training.hyperparameters"].startswith("adamw, betas 0.9 and 0.95, ")
    assert found["training.seeds"].startswith("2 of each size")
    assert "held-out loss" in found["data.metric"]


def test_a_table_that_tells_how_energy_is_known_hands_it_on(folder):
    rows = [replace(row, energy_quality="model") for row in observations()]
    write_observations(tuple(rows), folder.results / "observations.csv")
    assert fit_campaign(folder, bootstrap=0)["energy_quality"] == {"model": 20}
