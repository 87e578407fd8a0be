"""What a server's engine told of its steps, as columns of runs and of deployments."""

import json
import math

import numpy as np
import pytest

from llem.cli import main
from llem.cluster import CampaignFolder
from llem.pipeline import aggregate_campaign, load_rows
from llem.records.schema import ENGINE
from llem.results.ranks.engine import Engine, engine_sums, engines_together

S = 1_000_000_000
# Steps here: the end in seconds, then the columns of /engine: running, waiting, of prompts computed
# and cached, tokens out, preempted, drafted, accepted, share of the cache.


def table(*steps):
    rows = [(i, round(step[0] * S), *step[1:]) for i, step in enumerate(steps)]
    return np.array(rows, ENGINE)


def sums(steps, requests):
    """Of steps, and requests by when they were sent and left, in seconds."""
    sent, left = (np.array([round(r[k] * S) for r in requests], np.int64) for k in (0, 1))
    return engine_sums(table(*steps), sent_ns=sent, left_ns=left)


def test_a_step_counts_by_the_time_that_it_took():
    """A mean over steps would be 2.5."""
    found = sums([(1.0, 4, 2, 0, 0, 4, 0, 0, 0, 0.8), (4.0, 1, 0, 0, 0, 1, 0, 0, 0, 0.2)],
                 [(0.0, 4.0)])  # fmt: skip
    assert found.work_ns == 4 * S
    assert found.running / found.work_ns == pytest.approx((4 * 1 + 1 * 3) / 4)
    assert found.waiting / found.work_ns == pytest.approx(2 / 4)
    assert found.cache / found.work_ns == pytest.approx((0.8 * 1 + 0.2 * 3) / 4)
    assert found.cache_most == 0.8


def test_while_no_request_was_there_the_engine_did_not_work():
    steps = [(1.0, 1, 0, 8, 0, 1, 0, 0, 0, 0.5), (2.0, 0, 0, 0, 0, 1, 0, 0, 0, 0.0),
             (11.0, 0, 0, 8, 0, 1, 0, 0, 0, 0.5)]  # fmt: skip
    found = sums(steps, [(0.5, 2.0), (10.0, 11.0)])
    assert found.work_ns == pytest.approx((0.5 + 1.0 + 1.0) * S)


def test_a_step_after_the_last_request_is_no_work():
    steps = [(1.0, 0, 0, 8, 0, 1, 0, 0, 0, 0.0), (1.5, 0, 0, 0, 0, 0, 0, 0, 0, 0.0)]
    found = sums(steps, [(0.0, 1.6)])
    assert (found.steps, found.work_ns) == (2, 1 * S)
    assert found.running / found.work_ns == 1


def test_a_request_ran_in_the_step_that_ended_it():
    """The engine tells who runs after a step: of a batch that ends at once that is nobody."""
    found = sums([(1.0, 0, 0, 32, 0, 4, 0, 0, 0, 0.0)], [(0.0, 1.0)])
    assert found.running / found.work_ns == 4
    guessed = sums([(1.0, 1, 0, 0, 0, 3, 0, 4, 2, 0.1)], [(0.0, 1.0)])
    assert guessed.running / guessed.work_ns == 1


def test_engines_of_replicas_are_added_up_and_the_fullest_cache_is_told():
    one = sums([(1.0, 4, 0, 9, 3, 4, 1, 6, 2, 0.8)], [(0.0, 1.0)])
    other = sums([(3.0, 1, 0, 5, 1, 1, 0, 0, 0, 0.2)], [(0.0, 3.0)])
    both = engines_together([one, other, Engine()])
    assert (both.steps, both.preempted, both.computed, both.cached) == (2, 1, 14, 4)
    assert (both.drafted, both.accepted, both.cache_most) == (6, 2, 0.8)
    assert both.running / both.work_ns == pytest.approx((4 * 1 + 1 * 3) / 4)


@pytest.fixture
def planted(planted):
    planted.site = {"device": {"peak_flops": 1e9, "name": "cpu"}}
    return planted


@pytest.fixture
def study(planted, course):
    """Two cycles of a deployment whose engine tells its steps, and one whose engine does not."""
    its = course(batches=1, batch=2)
    at = its.begin_s
    for cycle in range(2):
        # of one second, and of three
        steps = [(at + 1.0, 2, 1, 12 + 4 * cycle, 4, 2, 0, 0, 0, 0.4),
                 (at + 2.0 + 2 * cycle, 1, 0, 0, 0, 1, 1, 8, 2 + cycle, 0.6)]  # fmt: skip
        planted.served(f"told{cycle}", its, deployment="told", cycle=cycle, engine=steps)
    planted.served("silent", its, deployment="silent")
    folder = CampaignFolder(planted.folder)
    aggregate_campaign(folder)
    return folder


def test_a_run_has_columns_of_its_engine(study):
    rows = {row["run_id"]: row for row in load_rows(study).rows}
    row = rows["told0"]
    assert (row["engine.steps"], row["engine.preempted"]) == (2, 1)
    assert row["engine.work_s"] == pytest.approx(2.0)
    assert row["engine.running_mean"] == pytest.approx(1.5)
    assert row["engine.occupancy"] == pytest.approx(1.5 / 2)
    assert row["engine.waiting_mean"] == pytest.approx(0.5)
    assert row["engine.cache_mean"] == pytest.approx(0.5)
    assert row["engine.cache_max"] == pytest.approx(0.6)
    assert row["engine.prefix_hits"] == pytest.approx(4 / 16)
    assert row["engine.right_guesses"] == pytest.approx(2 / 8)
    assert rows["silent"]["engine.steps"] is None
    assert math.isnan(rows["silent"]["engine.running_mean"])


def test_a_deployment_has_ratios_of_sums_with_intervals_over_its_cycles(study):
    lines = {row["deployment_id"]: row for row in load_rows(study, "deployments").rows}
    line = lines["told"]
    assert line["engine.prefix_hits"] == pytest.approx(8 / (8 + 28))
    assert line["engine.right_guesses"] == pytest.approx(5 / 16)
    # two seconds with 1.5 requests, four with (2 + 3 * 1) / 4
    assert line["engine.running_mean"] == pytest.approx((2 * 1.5 + 4 * 1.25) / 6)
    assert line["engine.running_mean_low"] < line["engine.running_mean"]
    assert line["engine.running_mean_high"] > line["engine.running_mean"]
    assert (line["engine.steps"], line["engine.preempted"], line["engine.cache_max"]) == (
        4, 2, pytest.approx(0.6),
    )  # fmt: skip
    assert math.isnan(lines["silent"]["engine.prefix_hits"])


def test_the_user_sees_the_engine_beside_what_is_compared(study, capsys):
    assert main(["results", "compare", str(study.root), "--by", "deployment_id"]) == 0
    told = capsys.readouterr().out
    assert "prefix hits" in told and "22.2 %" in told
    where = ["--where", "engine.prefix_hits>0.22", "--json"]
    assert main(["results", "list", str(study.root), *where]) == 0
    assert {row["run_id"] for row in json.loads(capsys.readouterr().out)} == {"told0"}


def test_a_study_whose_backends_have_no_engine_has_no_such_columns(planted, course):
    planted.served(course=course())
    folder = CampaignFolder(planted.folder)
    aggregate_campaign(folder)
    for table_name in ("observations", "deployments"):
        assert not [name for name in load_rows(folder, table_name).kinds if "engine." in name]
