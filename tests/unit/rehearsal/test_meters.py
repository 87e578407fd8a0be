"""Meters that fail in a rehearsal, and what the aggregator says of them."""

import itertools
import math
from dataclasses import replace

import pytest

from llem.pipeline import aggregate_campaign, rehearse
from llem.rehearsal import Failures, Measured, World, planted, play, tell
from llem.rehearsal.meters import meter_fault

LAW = planted("chinchilla")
# With which each kind of fault befalls some run alone, and some run nothing.
SEED = 1


@pytest.fixture(scope="module")
def played(gpu_plan, tmp_path_factory):
    failures = replace(Failures.none(), meter=0.3)
    world = World(plan=gpu_plan, planted=LAW, seed=SEED, failures=failures)
    return rehearse(world, out=tmp_path_factory.mktemp("meters") / "out", interval_s=0.5)


@pytest.fixture(scope="module")
def by_kind(played):
    """Rows of runs in which one kind of fault alone befell the meters; "" for none."""
    rows = {row.run_id: row for row in aggregate_campaign(played.folder).observations}
    found = {}
    for a in played.attempts:
        faults = Measured(played.world, a, interval_s=0.5).meter_faults
        kinds = {fault.kind for fault in faults if fault is not None}
        if len(kinds) < 2:
            found.setdefault(next(iter(kinds), ""), []).append(rows[a.run.run_id])
    assert set(found) == {"", "reset", "gap", "silent"}
    return found


def test_records_with_faults_are_read_without_a_problem(played):
    assert aggregate_campaign(played.folder, write=False).problems == ()


def test_whole_meters_need_no_words(by_kind):
    assert all(row.energy_reason == "" for row in by_kind[""])


def test_a_counter_that_begins_anew_is_bridged_and_named(by_kind, played):
    for row in by_kind["reset"]:
        assert "counter reset 1 times, bridged by power" in row.energy_reason
        assert row.energy_j == pytest.approx(played.truth[row.run_id]["energy_j"], rel=2e-3)


def test_a_counter_bridges_a_gap_of_its_sampler(by_kind, played):
    for row in by_kind["gap"]:
        assert row.energy_quality == "counter"
        assert row.energy_j == pytest.approx(played.truth[row.run_id]["energy_j"], rel=1e-3)


def test_energy_of_a_device_that_falls_silent_is_unknown_with_the_reason_and_what_was_seen(
    by_kind, played
):
    for row in by_kind["silent"]:
        true = played.truth[row.run_id]["energy_j"]
        assert math.isnan(row.energy_j) and row.energy_quality == "none"
        assert "GPU-" in row.energy_reason
        assert 0 < row.energy_seen_j < true


def test_losses_are_none_the_worse(by_kind, played):
    for row in itertools.chain(*by_kind.values()):
        assert row.loss == pytest.approx(played.truth[row.run_id]["loss"], rel=1e-12)


def test_the_same_seed_has_the_same_faults(played, gpu_plan):
    again = World(plan=gpu_plan, planted=LAW, seed=SEED, failures=played.world.failures)
    for one, two in zip(play(again), played.attempts, strict=True):
        assert meter_fault(again, one, 0) == meter_fault(played.world, two, 0)


def test_the_show_tells_them(played):
    a = next(
        a for a in played.attempts
        if any(Measured(played.world, a, interval_s=1.0).meter_faults)
    )  # fmt: skip
    told = list(tell(played.world, played.attempts, follow=a.run.run_id))
    assert any(e.kind == "meter" and e.level == "warning" for e in told)


def test_a_package_has_no_reset(laptop_plan):
    world = World(plan=laptop_plan, planted=LAW, failures=replace(Failures.none(), meter=1.0))
    kinds = {meter_fault(world, a, 0).kind for a in play(world)}
    assert kinds == {"gap", "silent"}


def test_a_device_that_falls_silent_in_a_job_that_is_killed_is_not_taken_for_measured(
    gpu_plan, tmp_path
):
    """Without an end record the samples alone tell the window: those that failed as well."""
    failures = replace(Failures.none(), meter=0.5, node_failure=0.5)
    for seed in range(50):
        world = World(plan=gpu_plan, planted=LAW, seed=seed, failures=failures)
        wanted = [
            a.run.run_id
            for a in play(world)
            if a.status == "killed"
            and [f for place in range(len(a.nodes)) if (f := meter_fault(world, a, place))]
            and all(
                f is None or f.kind == "silent"
                for f in (meter_fault(world, a, place) for place in range(len(a.nodes)))
            )
        ]
        if wanted:
            break
    played = rehearse(world, out=tmp_path / "out", interval_s=0.5)
    rows = {row.run_id: row for row in aggregate_campaign(played.folder).observations}
    for name in wanted:
        assert math.isnan(rows[name].energy_j) and "not sampled" in rows[name].energy_reason
