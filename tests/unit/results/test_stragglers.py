"""Which rank the others wait for, and whose clock is off: planted, and told by `ranks.csv`."""

from __future__ import annotations

import math

import pytest

from llem.results import aggregate

SECOND = 1_000_000_000


def test_the_slow_rank_is_last_and_the_others_wait_for_it(planted, host):
    """Rank 1 takes 1.2 s a step, the others 1 s: after k steps they are .2 k seconds ahead."""
    planted.run(per_node=3)
    for rank in range(3):
        planted.rank(rank=rank, world=3, device_uuid=f"GPU-{rank}", step_s=1.2 if rank == 1 else 1)
    planted.node(devices=["GPU-0", "GPU-1", "GPU-2"], to_s=16.0)
    planted.end(ranks=3)
    rows = aggregate(planted.folder).ranks
    assert [(row.rank, row.last_share) for row in rows] == [(0, 0.0), (1, 1.0), (2, 0.0)]
    waited = sum(0.2 * k for k in range(1, 11))
    assert [row.wait_s for row in rows] == pytest.approx([waited, 0.0, waited])
    assert {(row.clock, row.clock_off_s) for row in rows} == {("same", 0.0)}
    assert [(row.steps, row.tokens, row.device) for row in rows][1] == (10, 10_000, "GPU-1")


def test_a_host_whose_wall_clock_is_off_is_told_with_how_that_is_known(planted, host):
    """Its wall clock is 3 s ahead and was compared with nothing: the steps' ends say so."""
    hosts = [host(), host("n1", "boot-b", mono_ns=777 * SECOND, wall_error_ns=3 * SECOND)]
    planted.run(nodes=2)
    for rank, each in enumerate(hosts):
        planted.rank(rank=rank, world=2, host=each, device_uuid=f"GPU-{rank}")
        planted.node(host=each, devices=[f"GPU-{rank}"])
    planted.end(ranks=2, hosts=["n0", "n1"])
    first, second = aggregate(planted.folder).ranks
    assert (first.clock, second.clock) == ("same", "steps")
    assert abs(second.clock_off_s) == pytest.approx(3.0, rel=1e-6)
    assert second.wait_s == pytest.approx(0.0, abs=1e-3)


def test_a_lone_rank_waits_for_nobody_and_nothing_is_made_up(planted):
    planted.complete()
    [row] = aggregate(planted.folder).ranks
    assert math.isnan(row.wait_s) and math.isnan(row.last_share) and row.steps == 10
