"""The steady part of a run: records whose truth is known, written by the real writers."""

import json
import math

import numpy as np
import pytest

from llem.records import rank_writer
from llem.results import steady_runs
from llem.results.steady import block_mean

from .conftest import SECOND, Host, _own_clock


def plant(planted, run_id="aaaa", *, ends_s, job_started_s=None, **run):
    """A run whose steps end at `ends_s`, with the arrays that put it first in its element."""
    host = Host()
    planted.run(run_id, steps=len(ends_s), **run)
    path = planted.attempt(run_id) / "rank-00000.h5"
    meta = {"run_id": run_id, "attempt": 0, "rank": 0, "world": 1, "host": host.name,
            "boot_id": host.boot_id}  # fmt: skip
    if job_started_s is not None:
        meta["job_started_ns"] = 1_750_000_000 * SECOND + round(job_started_s * SECOND)
    with rank_writer(path, meta=meta) as writer:
        _own_clock(writer, host)
        begin = ends_s[0] - 0.01
        for step, end in enumerate(ends_s):
            writer.append("steps", (step, host.at(begin), host.at(end), 1000, 1000, 3.0, 1.0, 1e-3,
                                    math.nan, math.nan, 1))  # fmt: skip
            begin = end
    plan = json.loads((planted.folder / "plan.json").read_text())
    plan["arrays"] = [{"elements": [[r["run_id"]] for r in plan["runs"]]}]
    (planted.folder / "plan.json").write_text(json.dumps(plan))
    planted.end(run_id, window_s=(0.0, ends_s[-1] + 3), step=len(ends_s))


def ends(step_s, count, *, warm=0, warm_s=0.0, begin_s=2.0):
    """When steps end: `warm` of `warm_s` seconds first, then `count` of `step_s`."""
    return [begin_s + t for t in np.cumsum([warm_s] * warm + [step_s] * count)]


def test_the_warm_up_is_no_part_of_it(planted):
    plant(planted, ends_s=ends(0.1, 40, warm=10, warm_s=0.9))
    (found,) = steady_runs(planted.folder)
    assert found.step_s == pytest.approx(0.1)
    assert found.step_error == pytest.approx(0, abs=1e-6)
    assert (found.steps, found.dropped) == (40, 10)


def test_a_warm_up_longer_than_a_fifth_is_found_where_the_steps_converge(planted):
    periods = 0.1 * (1 + 5 * np.exp(-np.arange(150) / 12))
    plant(planted, ends_s=list(2 + np.cumsum(periods)))
    (found,) = steady_runs(planted.folder)
    assert found.dropped > 0.3 * 150
    assert found.steps == 150 - found.dropped
    assert found.step_s == pytest.approx(0.1, rel=0.01)
    # the last steps that are left out would still move a window of 20 by 2 %
    early = periods[found.dropped - 1 : found.dropped + 19]
    assert abs(np.polyfit(np.arange(20), early, 1)[0] * 20) / early.mean() >= 0.02


def test_pauses_that_return_count_and_one_pause_for_once_does_not(planted):
    often = np.cumsum([0.1, 0.1, 0.1, 0.3] * 25) + 2
    plant(planted, "aaaa", ends_s=list(often))
    once = np.cumsum([0.1] * 60 + [5.0] + [0.1] * 39) + 2
    plant(planted, "bbbb", ends_s=list(once))
    first, second = steady_runs(planted.folder)
    assert first.step_s == pytest.approx(0.15, rel=0.02)
    assert first.step_median_s == pytest.approx(0.1)
    assert second.step_s == pytest.approx(0.1)


def test_the_stated_error_is_that_of_repeated_measurements():
    rng = np.random.default_rng(2)
    found = np.array([block_mean(rng.exponential(0.1, 200)) for _ in range(1500)])
    spread = found[:, 0].std() / found[:, 0].mean()
    assert np.sqrt(np.mean(found[:, 1] ** 2)) == pytest.approx(spread, rel=0.15)


def test_power_is_that_of_the_steps_and_not_of_the_start(planted):
    plant(planted, ends_s=ends(0.1, 100))
    # steps 20 to 100 are the steady part: seconds 4 to 12
    power = lambda _uuid, s: 400.0 if s >= 4 else 60.0  # noqa: E731
    planted.node(power_w=power, to_s=15.0)
    (found,) = steady_runs(planted.folder)
    assert found.power_w == pytest.approx(400, rel=0.01)
    assert found.energy_quality == "counter"


def test_a_device_that_two_runs_share_is_divided_also_where_the_other_has_no_steps(planted):
    for run_id in ("aaaa", "bbbb"):
        plant(planted, run_id, ends_s=ends(0.1, 100))
        planted.node(run_id, to_s=16.0)
    for found in steady_runs(planted.folder):
        assert found.power_w == pytest.approx(50, rel=0.01)


def test_an_estimate_stays_one_and_what_was_not_measured_has_a_reason(planted):
    plant(planted, "aaaa", ends_s=ends(0.1, 100))
    model = {"quality": "model", "domain": "package", "source": "cpu-model"}
    planted.node("aaaa", devices=["cpu"], attrs=model, to_s=16.0)
    plant(planted, "bbbb", ends_s=ends(0.1, 100))
    plant(planted, "cccc", ends_s=ends(0.001, 100))
    model, none, short = steady_runs(planted.folder)
    assert model.energy_quality == "model"
    assert math.isnan(none.power_w) and none.energy_quality == "none"
    assert "node records missing" in none.energy_reason
    assert math.isnan(short.power_w) and "too short" in short.energy_reason


def test_the_start_is_from_the_job_to_the_first_step(planted):
    plant(planted, "aaaa", ends_s=ends(0.1, 50, begin_s=20.0), job_started_s=2.0)
    plant(planted, "bbbb", ends_s=ends(0.1, 50))
    first, second = steady_runs(planted.folder)
    assert first.startup_s == pytest.approx(18.09, abs=0.01)
    assert math.isnan(second.startup_s)


def test_memory_is_read_where_the_end_record_has_it(planted):
    plant(planted, ends_s=ends(0.1, 50))
    planted.end(window_s=(0, 9), step=50, peak_memory_bytes=3e9)
    assert steady_runs(planted.folder)[0].peak_memory_bytes == 3e9


def test_too_few_steps_and_no_record_are_named(planted):
    plant(planted, "aaaa", ends_s=ends(0.1, 7))
    planted.run("bbbb")
    few, none = steady_runs(planted.folder)
    assert math.isnan(few.step_s) and "7 steps" in few.reason
    assert none.status == "missing" and "no record" in none.reason
