"""Runs longer than a job may take."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llem.campaign import Budget, site_of
from llem.planning import make_plan
from llem.planning.segments import checkpoint_steps_of, lead_s, segment_s, segments_of

from .sites import DATA, campaign_at

SITE = site_of(campaign_at("large-cluster"))
LIMIT = SITE.limits.time


@given(st.floats(1, 1e9))
def test_segments_hold_a_run_that_takes_a_quarter_longer_than_expected(duration):
    count = segments_of(duration, SITE)
    if count > 1:
        assert 1.25 * duration <= count * segment_s(SITE) * (1 + 1e-9)
        assert 1.25 * duration > (count - 1) * segment_s(SITE)
    else:
        assert duration <= 0.9 * LIMIT


@given(st.floats(1e5, 1e9), st.integers(100, 10**7))
def test_a_killed_segment_loses_an_eighth_of_its_time_or_one_step(duration, steps):
    every = checkpoint_steps_of(duration, steps, None, SITE)
    assert every >= 1
    assert every == 1 or every * duration / steps <= segment_s(SITE) / 8 * (1 + 1e-9)


def test_short_runs_write_no_checkpoint_unless_asked_and_the_users_word_stands():
    assert checkpoint_steps_of(60, 1000, None, SITE) == 0
    assert checkpoint_steps_of(60, 1000, 50, SITE) == 50
    assert checkpoint_steps_of(1e9, 1000, 50, SITE) == 50


@pytest.mark.parametrize(("limit", "lead"), [(60, 6), (600, 60), (86400, 300), (5, 1)])
def test_ranks_leave_shortly_before_the_limit(limit, lead):
    assert lead_s(limit) == lead


def test_a_plan_of_long_runs_chains_them_on_as_many_nodes_as_help():
    plan = make_plan(campaign_at("large-cluster"), budget=Budget(1e24, "FLOP"), data=DATA)
    chained = [a for a in plan.arrays if a.segments > 1]
    assert chained
    assert all(a.time_limit_s == LIMIT for a in chained)
    assert any("jobs one after the other" in w for w in plan.warnings)
    long = max(plan.runs, key=lambda r: r.predicted.duration_s)
    assert long.checkpoint_steps > 0


@pytest.mark.parametrize("budget", ["1e21", "1e23", "1e24"])
def test_every_array_has_a_name_of_its_own(budget):
    """Chained runs of one shape may need different time limits, and so different scripts."""
    plan = make_plan(campaign_at("large-cluster"), budget=Budget(float(budget), "FLOP"), data=DATA)
    names = [array.name for array in plan.arrays]
    assert len(set(names)) == len(names)
