"""What a device can do: measured before the site's word, and that before the prior."""

import math

import pytest

from llem.campaign import Budget, site_of
from llem.planning import Measured, accelerator_of, make_plan, measured_from_runs

from .sites import DATA, campaign_at

SITE = site_of(campaign_at("one-node"))
RECORDS = Measured("records", 0.2, 0.1, 500.0, 0.05, "12 runs")
CALIBRATION = Measured("calibration", 0.45, 0.02, 650.0, 0.01)


def test_a_calibration_counts_before_records_and_both_before_the_prior():
    assert accelerator_of(SITE).utilisation == 0.35
    assert accelerator_of(SITE, [RECORDS]).utilisation == 0.2
    for order in ([RECORDS, CALIBRATION], [CALIBRATION, RECORDS]):
        device = accelerator_of(SITE, order)
        assert (device.utilisation, device.power_w) == (0.45, 650.0)
        assert "calibration" in device.source


def test_what_was_not_measured_keeps_its_prior():
    device = accelerator_of(SITE, [Measured("calibration", 0.4, 0.05)])
    assert device.power_w == 700
    assert "prior" in device.power_source


def test_a_measurement_makes_a_plan_surer_and_changes_what_hours_buy():
    def plan(*measured):
        return make_plan(
            campaign_at("one-node"), budget=Budget(100, "GPUh"), data=DATA, measured=measured
        )

    prior, known = plan().to_dict()["budget"], plan(CALIBRATION).to_dict()["budget"]
    assert known["uncertainty"]["gpu_hours"] < prior["uncertainty"]["gpu_hours"] / 5
    assert known["flops"] == pytest.approx(prior["flops"] * 0.45 / 0.35, rel=0.05)


def test_runs_that_were_made_tell_utilisation_and_power_weighted_by_time():
    found = measured_from_runs([(4e14, 1.0, 500.0), (6e14, 3.0, math.nan)], peak_flops=1e15)
    assert found.utilisation == pytest.approx((4e14 + 6e14) / 4.0 / 1e15)
    assert found.power_w == 500
    assert found.utilisation_error > 0.1
    assert measured_from_runs([], peak_flops=1e15) is None
