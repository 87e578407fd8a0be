"""Power, temperature and counters of the simulated boards."""

from dataclasses import replace

import numpy as np
import pytest

from llem.rehearsal import Failures, Measured, World, planted, play
from llem.rehearsal.fleet import LIMIT_C, PACKAGE_RANGE_MJ

LAW = planted("chinchilla")


@pytest.fixture(scope="module")
def measured(gpu_plan):
    world = World(plan=gpu_plan, planted=LAW, failures=Failures.none())
    attempt = max(play(world), key=lambda a: a.window_s)
    return Measured(world, attempt, interval_s=0.5)


def test_counters_only_grow_and_come_to_the_truth(measured):
    total = 0.0
    attempt = measured.attempt
    for place, boards in enumerate(attempt.boards):
        for board in boards:
            rows = measured.samples(place, board)
            assert (np.diff(rows["energy_mj"]) >= 0).all() and (np.diff(rows["t_ns"]) > 0).all()
            node = attempt.nodes[place]
            ends = [node.mono_ns(attempt.t0_s), node.mono_ns(attempt.t1_s)]
            at = np.interp(ends, rows["t_ns"], rows["energy_mj"]) / 1e3
            total += float(at[1] - at[0])
    assert total == pytest.approx(measured.truth_j(), rel=1e-4)


def test_power_is_the_counters_slope(measured):
    board = measured.attempt.boards[0][0]
    rows = measured.samples(0, board)
    slope = (rows["energy_mj"][6:] - rows["energy_mj"][4:-2]) / (
        (rows["t_ns"][6:] - rows["t_ns"][4:-2]) / 1e9
    )
    assert np.median(np.abs(slope / rows["power_mw"][6:] - 1)) < 0.03


def test_a_board_warms_up_slowly_towards_what_its_power_gives(measured):
    board = measured.attempt.boards[0][0]
    power = measured.power(0, board)
    begin = measured.attempt.blocks[0].t0_s
    first = int(np.searchsorted(power.edges, begin))
    at_start, after_30s = power.celsius[first], power.celsius[first + 30]
    settled = np.median(power.celsius[-60:-20])
    assert at_start < after_30s < settled - 2
    assert settled == pytest.approx(board.inlet_c + board.c_per_w * board.busy_w, abs=4)


def test_a_board_that_gets_too_hot_slows_itself_and_says_so(measured):
    attempt = measured.attempt
    cool = attempt.boards[0][0]
    hot = replace(cool, c_per_w=1.1 * (LIMIT_C - cool.inlet_c) / cool.busy_w)
    boards = ((hot, *attempt.boards[0][1:]), *attempt.boards[1:])
    found = Measured(measured.world, replace(attempt, boards=boards), interval_s=0.5)
    rows = found.samples(0, hot)
    assert hot.throttles and hot.slowed < 1
    assert (rows["throttle"] > 0).sum() > 50
    assert rows["temperature_c"].max() <= LIMIT_C + 1
    late = rows[-100:-20]
    assert late["power_mw"].mean() < 0.97e3 * hot.busy_w
    busy = late[late["utilization"] > 0]
    assert np.median(busy["clock_mhz"]) < hot.clock_mhz


def test_a_packages_counter_starts_again_at_its_range(laptop_plan):
    world = World(plan=laptop_plan, planted=LAW, failures=Failures.none())
    attempt = play(world)[0]
    big = tuple(
        tuple(replace(b, busy_w=4e6, held_w=1e6, c_per_w=1e-9) for b in own)
        for own in attempt.boards
    )
    found = Measured(world, replace(attempt, boards=big), interval_s=0.1)
    rows = found.samples(0, big[0][0])
    assert rows["energy_mj"].max() < PACKAGE_RANGE_MJ
    assert (np.diff(rows["energy_mj"]) < 0).any()
    assert np.isnan(rows["power_mw"]).all()  # RAPL tells no power


def test_steps_fill_their_blocks_and_stamps_are_the_counters(measured):
    steps = measured.steps(0)
    assert (steps["t0_ns"][1:] >= steps["t1_ns"][:-1]).all()
    assert (steps["t1_ns"] > steps["t0_ns"]).all()
    assert (np.diff(steps["e1_mj"]) >= 0).all()
    assert len(steps) == measured.attempt.run.steps


def test_ranks_share_a_batch_and_their_losses_average_to_the_curve(measured):
    run = measured.attempt.run
    tables = [measured.steps(rank) for rank in range(run.layout.ranks)]
    assert sum(int(t["tokens_rank"].sum()) for t in tables) == run.tokens
    mean = np.mean([t["loss"] for t in tables], axis=0)
    alone = np.std(tables[0]["loss"] - measured.curve.loss)
    assert np.std(mean - measured.curve.loss) < alone
