"""What a row says of a run, for campaigns whose truth is planted."""

from __future__ import annotations

import json
import math
import os
from typing import Any

import pytest

from llem.errors import InputError
from llem.results import aggregate


def only(planted: Any, **options: Any) -> Any:
    [row] = aggregate(planted.folder, **options).observations
    return row


def test_a_complete_run_is_exact_in_every_column(planted):
    planted.site["device"] = {"peak_flops": 1e9}
    planted.complete()
    result = aggregate(planted.folder)
    [row] = result.observations
    assert result.problems == ()
    assert (row.run_id, row.attempt, row.status, row.reason) == ("aaaa", 0, "completed", "")
    assert row.energy_j == pytest.approx(1000.0, rel=1e-9)
    assert (row.energy_quality, row.energy_reason) == ("counter", "")
    assert (row.tokens, row.flops) == (10_000, 6.0 * 5000 * 10_000)
    assert (row.loss, row.loss_se) == (3.0, 0.01)
    assert row.joules_per_token == pytest.approx(0.1, rel=1e-9)
    assert row.duration_s == row.gpu_seconds == 10.0
    assert row.tokens_per_s == pytest.approx(1000.0)
    assert row.mfu == pytest.approx(3e8 / (10 * 1e9))
    assert row.coverage == 1.0
    assert math.isnan(row.energy_net_j) and math.isnan(row.cost) and math.isnan(row.carbon_g)


def test_the_peak_of_memory_is_the_largest_that_an_attempt_tells_of(planted):
    planted.complete()
    assert math.isnan(only(planted).peak_memory_bytes)
    planted.end(number=0, status="interrupted", peak_memory_bytes=3e9)
    planted.end(number=1, peak_memory_bytes=2e9)
    planted.end(number=2, peak_memory_bytes=None)
    assert only(planted).peak_memory_bytes == 3e9


def test_the_window_is_interpolated_between_samples(planted):
    """100 W then 300 W from 6 s on; the window begins and ends between two samples."""
    planted.run()
    planted.rank()
    planted.node(power_w=lambda _uuid, s: 100.0 if s < 6 else 300.0)
    planted.end(window_s=(1.03, 10.47))
    assert only(planted).energy_j == pytest.approx(4.97 * 100 + 4.47 * 300, rel=1e-9)


def test_late_options_change_what_follows_from_energy_and_nothing_else(planted):
    planted.complete()
    plain = only(planted)
    late = only(planted, pue=1.5, idle_power_w=20.0, price_per_kwh=0.36, price_per_gpu_hour=3.6,
                carbon_g_per_kwh=360.0)  # fmt: skip
    assert late.energy_j == plain.energy_j
    assert late.energy_net_j == pytest.approx(1000 - 20 * 10)
    assert late.energy_facility_j == pytest.approx(1500)
    assert late.cost == pytest.approx(10 / 3600 * 3.6 + 1500 / 3.6e6 * 0.36)
    assert late.carbon_g == pytest.approx(1500 / 3.6e6 * 360)


def test_the_recorded_baseline_is_used_where_no_idle_power_is_given(planted):
    planted.run()
    planted.rank()
    planted.node(idle_w=30.0)
    planted.end()
    assert only(planted).energy_net_j == pytest.approx(1000 - 300)
    assert only(planted, idle_power_w={"GPU-0": 10.0}).energy_net_j == pytest.approx(900)


def test_all_attempts_count_in_energy_and_redone_steps_once_in_tokens(planted):
    """Killed after step 6, resumed from step 4: steps 5 and 6 were paid twice, trained once."""
    planted.run()
    planted.rank(number=0, steps=range(1, 7), loss=None)
    planted.node(number=0, from_s=1.0, to_s=7.0)
    planted.rank(number=1, steps=range(5, 11), start_s=101.0)
    planted.node(number=1, from_s=100.0, to_s=108.0)
    planted.end(number=1, window_s=(101.0, 107.0))
    row = only(planted)
    assert (row.attempts, row.attempt, row.status) == (2, 1, "completed")
    assert row.energy_j == pytest.approx(1200.0)
    assert row.tokens == 10_000
    assert row.duration_s == pytest.approx(12.0)
    assert row.tokens_per_s == pytest.approx(10_000 / 12.0)
    assert row.steps_seen == 10


def test_joules_per_token_is_the_ratio_of_sums_over_attempts(planted):
    """4 steps of 900 J and a short one of 300 J: the mean of ratios would be 27 % too high."""
    planted.run(steps=5)
    planted.rank(number=0, steps=range(1, 5), tokens=65_536, loss=None)
    planted.node(number=0, from_s=1.0, to_s=5.0, power_w=lambda *_: 900.0)
    planted.rank(number=1, steps=[5], tokens=8_192, start_s=51.0)
    planted.node(number=1, from_s=50.0, to_s=53.0, power_w=lambda *_: 300.0)
    planted.end(number=1, window_s=(51.0, 52.0), step=5)
    row = only(planted)
    assert row.joules_per_token == pytest.approx((4 * 900 + 300) / (4 * 65_536 + 8_192), rel=1e-9)


def test_tokens_are_summed_over_ranks_and_energy_over_devices(planted):
    planted.run(per_node=4)
    for rank in range(4):
        planted.rank(rank=rank, world=4, tokens=250)
    uuids = [f"GPU-{i}" for i in range(4)]
    planted.node(devices=uuids, power_w=lambda uuid, _s: 100.0 * (1 + int(uuid[-1])))
    planted.end(ranks=4)
    row = only(planted)
    assert (row.tokens, row.ranks, row.devices) == (10_000, 4, 4)
    assert row.energy_j == pytest.approx(10_000.0)
    assert row.gpu_seconds == 40.0


def test_tokens_of_later_epochs_are_trained_on_too_and_counted_apart(planted):
    planted.run(per_node=2)
    for rank in range(2):
        planted.rank(rank=rank, world=2, tokens=500, unique=[500] * 4 + [0] * 6)
    planted.node(devices=["GPU-0", "GPU-1"])
    planted.end(ranks=2, tokens=10_000)
    row = only(planted)
    assert (row.tokens, row.unique_tokens, row.epochs) == (10_000, 4_000, 2.5)
    assert row.reason == "" and row.flops == row.flops_planned


def test_a_missing_rank_is_named_and_its_tokens_come_from_the_end_record(planted):
    planted.run(per_node=2)
    planted.rank(rank=0, world=2, tokens=500)
    planted.node(devices=["GPU-0", "GPU-1"])
    planted.end(ranks=2, tokens=10_000)
    row = only(planted)
    assert "1 of 2 rank records missing or unreadable (rank 1)" in row.reason
    assert "tokens from end.json" in row.reason
    assert (row.tokens, row.tokens_seen, row.coverage) == (10_000, 5_000, 0.5)
    assert math.isnan(row.unique_tokens) and math.isnan(row.epochs)
    assert row.energy_j == pytest.approx(2000.0)


def test_a_missing_rank_of_an_unfinished_run_leaves_its_tokens_unknown(planted):
    planted.run(per_node=2)
    planted.rank(rank=0, world=2, tokens=500)
    row = only(planted)
    assert row.status == "unfinished" and math.isnan(row.tokens) and row.tokens_seen == 5_000


def test_a_missing_node_record_makes_the_energy_unknown_never_zero(planted):
    planted.run()
    planted.rank()
    planted.end()
    row = only(planted)
    assert math.isnan(row.energy_j) and row.energy_quality == "none"
    assert "1 of 1 node records missing or unreadable (n0)" in row.energy_reason
    assert row.loss == 3.0 and row.coverage == 0.0


def test_one_of_two_nodes_missing_leaves_what_was_seen_beside_the_unknown(planted, host):
    planted.run(nodes=2)
    other = host("n1", "boot-b", 77)
    planted.rank(rank=0, world=2, tokens=500)
    planted.rank(rank=1, world=2, tokens=500, host=other)
    planted.node()
    planted.end(ranks=2, hosts=["n0", "n1"])
    row = only(planted)
    assert math.isnan(row.energy_j) and row.energy_seen_j == pytest.approx(1000.0)
    assert "(n1)" in row.energy_reason and row.coverage == 0.5


def test_a_window_that_was_not_sampled_to_its_end_has_unknown_energy(planted):
    planted.run()
    planted.rank()
    planted.node(to_s=7.0)
    planted.end()
    row = only(planted)
    assert math.isnan(row.energy_j) and "4.0 s of 10.0 s not sampled" in row.energy_reason
    assert row.energy_seen_j == pytest.approx(600.0)
    assert row.coverage == pytest.approx(0.6)


def test_a_little_at_the_windows_edges_is_extrapolated_and_told(planted):
    """Another node's sampler began 0.15 s after rank 0's clock had: its power there is known."""
    planted.run()
    planted.rank()
    planted.node(from_s=1.15, power_w=lambda _u, s: 100.0 if s < 6.15 else 200.0)
    planted.end()
    row = only(planted)
    assert row.energy_j == pytest.approx(515 + 970)
    assert row.energy_seen_j == pytest.approx(500 + 970)
    assert "0.15 s at the window's edges extrapolated" in row.energy_reason
    assert row.coverage == pytest.approx(0.985)
    # what is taken off for being idle is of the same time
    assert only(planted, idle_power_w=40.0).energy_net_j == pytest.approx(515 + 970 - 400)


def test_torn_and_foreign_files_are_named_and_harm_no_other_row(planted):
    planted.complete("aaaa")
    planted.complete("bbbb")
    torn = planted.folder / "runs/aaaa/attempt-0/rank-00000.h5"
    os.truncate(torn, 700)
    (planted.folder / "runs/bbbb/attempt-0/notes.h5").write_bytes(b"mine")
    (planted.folder / "runs/cccc").mkdir()
    result = aggregate(planted.folder)
    first, second = result.observations
    assert [p.split(":")[0].rsplit("/", 1)[-1] for p in result.problems] == [
        "rank-00000.h5", "notes.h5", "cccc"
    ]  # fmt: skip
    assert math.isnan(first.loss) and "no evaluation was recorded" in first.reason
    assert first.energy_j == pytest.approx(1000.0)
    assert second.loss == 3.0 and second.coverage == 1.0


def test_a_record_of_another_run_is_left_out(planted):
    planted.complete("aaaa")
    planted.complete("bbbb")
    stray = planted.folder / "runs/bbbb/attempt-0/node-n0.h5"
    stray.replace(planted.folder / "runs/aaaa/attempt-0/node-n9.h5")
    result = aggregate(planted.folder)
    assert [p for p in result.problems if "of another run, 'bbbb'" in p]
    assert [math.isnan(row.energy_j) for row in result.observations] == [False, True]


def test_a_run_without_any_record_has_a_row_that_says_so(planted):
    planted.run()
    row = only(planted)
    assert (row.status, row.attempt, row.attempts) == ("missing", None, 0)
    assert row.params == 5000 and row.reason and math.isnan(row.energy_j)


def test_an_attempt_that_never_began_is_named_and_does_not_hide_the_next_ones_energy(planted):
    planted.complete()
    (planted.folder / "runs/aaaa/attempt-0").rename(planted.folder / "runs/aaaa/attempt-1")
    planted.attempt(number=0)
    result = aggregate(planted.folder)
    assert result.observations[0].energy_j == pytest.approx(1000.0)
    assert "neither records nor an end record" in result.problems[0]


def test_an_attempt_whose_ranks_never_met_does_not_hide_the_next_ones_energy(planted):
    """Its end record has no window: measuring had not begun."""
    planted.complete()
    (planted.folder / "runs/aaaa/attempt-0").rename(planted.folder / "runs/aaaa/attempt-1")
    end = {"run_id": "aaaa", "status": "failed", "reason": "n2 did not meet the others"}
    place = planted.attempt(number=0)
    (place / "end.json").write_text(json.dumps({**end, "t0_ns": None, "t1_ns": None, "ranks": 1}))
    result = aggregate(planted.folder)
    (row,) = result.observations
    assert (row.status, row.attempts) == ("completed", 2)
    assert row.energy_j == pytest.approx(1000.0) and row.coverage == 1.0
    assert "before anything was measured (n2 did not meet the others)" in result.problems[0]
    # with a window, and no record of it, the energy is not known
    (place / "end.json").write_text(json.dumps({**end, "t0_ns": 1, "t1_ns": 2, "ranks": 1}))
    assert math.isnan(only(planted).energy_j)


@pytest.mark.parametrize("status", ["diverged", "interrupted", "failed"])
def test_only_a_completed_attempt_has_a_loss(planted, status):
    planted.run()
    planted.rank(loss=(9.0, 0.1))
    planted.node()
    planted.end(status=status, reason="because")
    row = only(planted)
    assert (row.status, row.reason) == (status, "because")
    assert math.isnan(row.loss) and row.energy_j == pytest.approx(1000.0)


def test_an_evaluation_before_the_last_step_is_no_result(planted):
    planted.run()
    planted.rank(eval_step=5)
    planted.node()
    planted.end()
    row = only(planted)
    assert math.isnan(row.loss) and "last evaluation at step 5, the run ended at 10" in row.reason


def test_a_broken_end_record_is_named_and_the_attempt_counts_as_unfinished(planted):
    planted.complete()
    (planted.folder / "runs/aaaa/attempt-0/end.json").write_text('{"status": "compl')
    result = aggregate(planted.folder)
    assert result.observations[0].status == "unfinished"
    assert "end.json: not readable" in result.problems[0]


def test_a_missing_plan_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match=r"plan\.json"):
        aggregate(tmp_path)


@pytest.mark.parametrize("text", ["[]", "{", '{"runs": [1]}', '{"runs": 3}'])
def test_a_plan_that_is_none_is_an_input_error(tmp_path, text):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(InputError):
        aggregate(tmp_path)


def test_a_plan_as_the_planner_writes_it_is_understood(tmp_path):
    run = {"run_id": "x", "params": 1, "tokens": 10, "flops": 1.0, "steps": 1, "layout": {}}
    (tmp_path / "plan.json").write_text(json.dumps({"runs": [run]}))
    [row] = aggregate(tmp_path).observations
    assert row.status == "missing" and row.expected_ranks == 1
