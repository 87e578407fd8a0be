"""Who runs where and when, and what comes between."""

from collections import defaultdict
from itertools import pairwise

import pytest

from llem.records import Phase
from llem.rehearsal import Failures, World, planted, play

LAW = planted("chinchilla")
TROUBLE = Failures(preemption=0.25, node_failure=0.25, exception=0.2, divergence=0.15)


@pytest.fixture(scope="module")
def quiet(gpu_plan):
    return play(World(plan=gpu_plan, planted=LAW, failures=Failures.none()))


@pytest.fixture(scope="module")
def troubled(gpu_plan):
    return [a for s in range(4) for a in play(World(plan=gpu_plan, planted=LAW, seed=s,
                                                    failures=TROUBLE))]  # fmt: skip


def by_run(attempts):
    found = defaultdict(list)
    for attempt in attempts:
        found[attempt.run.run_id].append(attempt)
    return found


def test_without_failures_each_run_is_one_attempt_that_completes(gpu_plan, quiet):
    assert sorted(a.run.run_id for a in quiet) == sorted(gpu_plan.runs.run_ids)
    assert {a.status for a in quiet} == {"completed"}


def test_no_board_serves_two_at_once(gpu_plan, quiet):
    for attempts in (quiet, play(World(plan=gpu_plan, planted=LAW, failures=TROUBLE, seed=9))):
        _assert_no_board_is_shared(attempts)


def _assert_no_board_is_shared(attempts):
    held = defaultdict(list)
    for a in attempts:
        for boards in a.boards:
            for board in boards:
                held[board.uuid].append((a.t0_s, a.t1_s))
    for spans in held.values():
        spans.sort()
        assert all(end <= begin for (_, end), (begin, _) in pairwise(spans))


def test_times_are_the_planners_but_for_the_boards_and_the_site(gpu_plan, quiet):
    world = World(plan=gpu_plan, planted=LAW, failures=Failures.none())
    for a in quiet:
        own = [b for b in a.blocks if b.phase in (None, Phase.EVALUATION)]
        trained = sum(b.t1_s - b.t0_s for b in own)
        slowest = min(b.speed * b.slowed for boards in a.boards for b in boards)
        expected = a.run.predicted.duration_s * world.site_factor / slowest
        assert trained == pytest.approx(expected, rel=1e-6)


def test_a_slow_board_holds_up_all_of_its_run(gpu_plan):
    found = {}
    for seed in range(12):
        for a in play(World(plan=gpu_plan, planted=LAW, seed=seed)):
            if any(b.straggles for boards in a.boards for b in boards):
                found[a.run.run_id] = a
    assert found
    for a in found.values():
        slow = min(b.speed for boards in a.boards for b in boards)
        assert slow < 0.95


def test_every_run_is_settled_whatever_comes_between(gpu_plan, troubled):
    ends = defaultdict(int)
    for a in troubled:
        ends[a.status] += 1
    assert {"completed", "diverged", "interrupted", "killed", "failed"} <= set(ends)
    assert ends["completed"] + ends["diverged"] == 4 * len(gpu_plan.runs)


def test_attempts_go_on_from_what_was_saved(gpu_plan):
    attempts = by_run(play(World(plan=gpu_plan, planted=LAW, seed=2, failures=TROUBLE)))
    assert any(len(a) > 1 for a in attempts.values())
    for tries in attempts.values():
        assert [a.number for a in tries] == list(range(len(tries)))
        for before, after in pairwise(tries):
            assert after.start_step == before.saved_step
            assert after.t0_s > before.t1_s


def test_who_is_asked_to_leave_saves_and_who_is_killed_loses_steps(troubled):
    interrupted = [a for a in troubled if a.status == "interrupted" and a.blocks]
    killed = [a for a in troubled if a.status == "killed"]
    assert all(a.blocks[-1].phase == Phase.CHECKPOINT for a in interrupted)
    assert all(a.saved_step == a.step for a in interrupted)
    assert any(a.saved_step < a.step for a in killed)
    assert all(a.step - a.saved_step <= a.run.checkpoint_steps for a in killed)


def test_what_an_attempt_did_fills_its_window_in_order(troubled):
    for a in troubled:
        at = a.t0_s
        for block in a.blocks:
            assert at <= block.t0_s < block.t1_s <= a.t1_s + 1e-9
            at = block.t1_s - 1e-9


def test_the_same_seed_gives_the_same_course(gpu_plan):
    one, two = (play(World(plan=gpu_plan, planted=LAW, seed=5)) for _ in range(2))
    assert [(a.name, a.t0_s, a.t1_s, a.status) for a in one] == [
        (a.name, a.t0_s, a.t1_s, a.status) for a in two
    ]


def test_a_run_that_meets_its_time_limit_goes_on_in_another_job(gpu_plan):
    from dataclasses import replace

    arrays = tuple(replace(a, time_limit_s=400) for a in gpu_plan.arrays)
    world = World(plan=replace(gpu_plan, arrays=arrays), planted=LAW, failures=Failures.none())
    attempts = play(world)
    cut = [a for a in attempts if a.status == "interrupted"]
    assert cut and {a.cause for a in cut} == {"time-limit"}
    assert all(a.t1_s <= a.began_s + 400 for a in cut)
    assert sum(a.status == "completed" for a in attempts) == len(gpu_plan.runs)


def test_a_run_on_a_laptop_is_never_preempted(laptop_plan):
    failures = Failures(preemption=1.0, node_failure=1.0, exception=0.0, divergence=0.0)
    attempts = play(World(plan=laptop_plan, planted=LAW, failures=failures))
    assert {a.status for a in attempts} == {"completed"}
