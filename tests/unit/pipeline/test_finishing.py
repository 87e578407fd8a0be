"""A campaign's folder: its law in fit.json, its prices, the end of it all."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from llem.cluster import CampaignFolder
from llem.errors import InputError
from llem.pipeline import campaigns, finish, fit_campaign, report_campaign
from llem.pipeline.fitting import campaign_prices, campaign_table
from llem.results.observation import Observation, write_observations

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
        lambda _, **__: SimpleNamespace(observations=rows, problems=()),
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
        lambda _, **__: SimpleNamespace(observations=rows, problems=()),
    )
    monkeypatch.setattr("llem.report.page.can_plot", lambda: False)
    done = finish(folder)
    assert done.fit is None
    assert "distinct points" in done.reason
    assert "No law could be fitted" in done.report.read_text()
    assert not (folder.results / "fit.json").exists()
