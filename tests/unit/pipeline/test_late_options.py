"""What is applied late to a campaign: from the site, from the call, and what SLURM says itself."""

from __future__ import annotations

import json
import math

import pytest

from llem.cluster import CampaignFolder
from llem.errors import InputError
from llem.pipeline.campaigns import aggregate_campaign
from llem.pipeline.slurm_energy import disagreements
from llem.results import DeviceRow


@pytest.fixture
def folder(tmp_path):
    def make(**site):
        plan = {"runs": [], "site": {"device": {"peak_flops": 1e12}, **site}}
        (tmp_path / "plan.json").write_text(json.dumps(plan))
        return CampaignFolder(tmp_path)

    return make


def test_a_series_that_the_site_names_and_that_is_not_there_costs_the_carbon_alone(folder):
    found = aggregate_campaign(folder(carbon_g_per_kwh="/nowhere/grid.csv"))
    assert found.problems == ("no carbon: /nowhere/grid.csv: No such file or directory",)
    campaign = folder()
    given = campaign.root / "grid.csv"
    given.write_text("time,g_per_kwh\nnoon,3\n2026-01-01T00:00Z,4\n")
    with pytest.raises(InputError, match="no time of ISO 8601"):
        aggregate_campaign(campaign, carbon=given)


def test_every_table_is_written(folder):
    campaign = folder()
    aggregate_campaign(campaign)
    heads = {p.name: p.read_text().split(",")[:2] for p in campaign.results.iterdir()}
    assert heads == {
        "observations.csv": ["run_id", "attempt"],
        "phases.csv": ["run_id", "attempt"],
        "devices.csv": ["run_id", "attempt"],
        "ranks.csv": ["run_id", "attempt"],
        "cells.csv": ["params", "tokens_planned"],
    }


def device(job, energy_j):
    return DeviceRow(
        run_id="a", attempt=0, job=job, host="n", uuid="GPU-0", name="", domain="gpu",
        source="nvml", quality="counter", energy_j=energy_j, wait_energy_j=0.0, idle_w=math.nan,
        idle_source="", duration_s=1.0, coverage=1.0, slowed_s=0.0, capped_s=0.0, reason="",
    )  # fmt: skip


def test_slurm_may_tell_of_more_than_the_gpus_used_and_not_of_less():
    devices = [device("7_0", 900.0), device("7_0", 100.0), device("7_1", 1000.0),
               device("7_2", 1000.0), device("7_3", math.nan), device("", 5.0)]  # fmt: skip
    told = {"7_0": 1800.0, "7_1": 500.0, "7_2": 9000.0, "7_3": 1.0, "9": 4.0}
    low, high = disagreements(told, devices)
    assert low.startswith("job 7_1: SLURM tells of 500 J, its records of 1000 J (0.5 times")
    assert high.startswith("job 7_2: SLURM tells of 9000 J")


def test_without_a_job_there_is_nothing_to_ask_slurm(folder):
    found = aggregate_campaign(folder(), slurm_energy=True)
    assert found.problems == ("SLURM's energy: no job of this campaign was submitted",)
