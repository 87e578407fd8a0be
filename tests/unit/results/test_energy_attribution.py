"""No joule twice: shared devices, domains inside domains, clocks of several hosts, odd counters."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from llem.results import aggregate, device_energies

MODEL = {"domain": "package", "source": "cpu-model", "quality": "model"}


def rows(planted: Any) -> Any:
    return aggregate(planted.folder).observations


def test_two_nodes_on_one_machine_count_its_processor_once(planted, host):
    planted.run(nodes=2)
    for rank, name in enumerate(["n0", "n1"]):
        planted.rank(rank=rank, world=2, tokens=500, host=host(name))
        planted.node(host=host(name), devices=["cpu-model-boot-a"], attrs=MODEL)
    planted.end(ranks=2, hosts=["n0", "n1"])
    [row] = rows(planted)
    assert row.energy_j == pytest.approx(1000.0)
    assert (row.devices, row.energy_quality, row.coverage) == (1, "model", 1.0)


def test_two_ranks_on_one_gpu_count_it_once(planted):
    planted.run(per_node=2)
    for rank in range(2):
        planted.rank(rank=rank, world=2, tokens=500)
        planted.node(name=f"n0-rank{rank}")
    planted.end(ranks=2)
    [row] = rows(planted)
    assert row.energy_j == pytest.approx(1000.0) and row.devices == 1


def test_one_uuid_on_two_machines_is_two_devices(planted, host):
    """cpu-model ids and badly configured stand-ins repeat from machine to machine."""
    planted.run(nodes=2)
    for rank, there in enumerate([host("n0"), host("n1", "boot-b", 5_000_000)]):
        planted.rank(rank=rank, world=2, tokens=500, host=there)
        planted.node(host=there)
    planted.end(ranks=2, hosts=["n0", "n1"])
    [row] = rows(planted)
    assert row.energy_j == pytest.approx(2000.0) and row.devices == 2


def test_runs_at_one_time_on_one_device_share_its_energy_without_rest(planted):
    """Windows 1 to 11 s and 6 to 16 s at 100 W: 7.5 s each, 1500 J together."""
    for run_id, start in (("aaaa", 1.0), ("bbbb", 6.0)):
        planted.run(run_id)
        planted.rank(run_id, start_s=start)
        planted.node(run_id, from_s=start - 1, to_s=start + 11)
        planted.end(run_id, window_s=(start, start + 10))
    first, second = rows(planted)
    assert first.energy_j == pytest.approx(750.0) and second.energy_j == pytest.approx(750.0)
    assert "shared with 1 other run(s) for 5.0 s" in first.energy_reason


def test_runs_one_after_the_other_share_nothing(planted):
    planted.complete("aaaa")
    planted.run("bbbb")
    planted.rank("bbbb", start_s=11.0)
    planted.node("bbbb", from_s=10.9, to_s=22.0)
    planted.end("bbbb", window_s=(11.0, 21.0))
    assert [(r.energy_j, r.energy_reason) for r in rows(planted)] == [
        (pytest.approx(1000.0), ""), (pytest.approx(1000.0), "")
    ]  # fmt: skip


@pytest.mark.parametrize(("outer", "contains"), [("module", ["gpu", "package", "dram"]),
                                                 ("node", [])])  # fmt: skip
def test_a_domain_inside_another_is_not_added_to_it(planted, outer, contains):
    planted.run()
    planted.rank()
    planted.node(devices=["outer"], attrs={"domain": outer, "contains": contains})
    planted.node(name="n0-inner", devices=["GPU-0"])
    planted.end()
    [row] = rows(planted)
    assert row.energy_j == pytest.approx(1000.0) and row.devices == 1


def test_another_hosts_window_is_found_by_its_clock(planted, host):
    """The second node's monotonic clock began elsewhere; its power rises within the window."""
    there = host("n1", "boot-b", 42 * 10**9)
    planted.run(nodes=2)
    planted.rank(rank=0, world=2, tokens=500)
    planted.rank(rank=1, world=2, tokens=500, host=there)
    planted.node()
    planted.node(host=there, power_w=lambda _u, s: 100.0 if s < 6 else 200.0)
    planted.end(ranks=2, hosts=["n0", "n1"])
    result = aggregate(planted.folder)
    assert result.observations[0].energy_j == pytest.approx(1000 + 500 + 1000)
    assert result.problems == ()


def test_a_wall_clock_five_seconds_off_is_noticed_and_aligned_by_the_steps(planted, host):
    there = host("n1", "boot-b", 42 * 10**9, wall_error_ns=5 * 10**9)
    planted.run(nodes=2)
    planted.rank(rank=0, world=2, tokens=500)
    planted.rank(rank=1, world=2, tokens=500, host=there)
    planted.node()
    planted.node(host=there, power_w=lambda _u, s: 100.0 if s < 6 else 200.0)
    planted.end(ranks=2, hosts=["n0", "n1"])
    result = aggregate(planted.folder)
    assert result.observations[0].energy_j == pytest.approx(2500.0)
    assert "wall clock is +5.00 s off rank 0's" in result.problems[0]


def test_gpus_that_nobody_measured_make_the_energy_unknown(planted):
    """The processors' estimate is there, and must not stand in for the GPUs."""
    planted.run()
    planted.rank()
    planted.node(attrs=MODEL, gpus_held=4, gpus_measured=0)
    planted.end()
    [row] = rows(planted)
    assert math.isnan(row.energy_j) and row.energy_quality == "none"
    assert "4 of the job's 4 GPUs here are not measured" in row.energy_reason
    assert row.coverage == pytest.approx(0.2)


def test_a_part_of_a_gpu_has_no_energy_of_its_own(planted):
    planted.run()
    planted.rank()
    planted.node(attrs={"share": 3 / 7})
    planted.end()
    [row] = rows(planted)
    assert math.isnan(row.energy_j) and "MIG: the job holds 43 % of it" in row.energy_reason
    assert row.energy_seen_j == pytest.approx(1000.0)


def test_without_a_counter_power_is_integrated_and_called_so(planted):
    planted.run()
    planted.rank()
    planted.node(attrs={"counter": False, "quality": "integral"},
                 power_w=lambda _u, s: 20.0 * s)  # fmt: skip
    planted.end()
    [row] = rows(planted)
    assert row.energy_j == pytest.approx(20 * (11**2 - 1) / 2, rel=1e-6)
    assert row.energy_quality == "integral"


def test_a_counter_reset_is_bridged_by_power_and_told(planted):
    planted.run()
    planted.rank()
    planted.node(energy_at=lambda s: 100.0 * s if s < 5.05 else 100.0 * (s - 5.05))
    planted.end()
    [row] = rows(planted)
    assert row.energy_j == pytest.approx(1000.0, rel=1e-6)
    assert "counter reset 1 times" in row.energy_reason


def test_a_counter_with_a_known_range_is_unwrapped(planted):
    planted.run()
    planted.rank()
    planted.node(attrs={"counter_range_mj": 400_000.0}, energy_at=lambda s: 100.0 * s % 400.0)
    planted.end()
    [row] = rows(planted)
    assert row.energy_j == pytest.approx(1000.0, rel=1e-9) and row.energy_reason == ""


def test_a_counter_that_began_anew_has_not_wrapped_though_its_range_is_known(planted):
    """A laptop that slept: RAPL's counter is at 0 again, 162 kJ before the end of its range."""
    planted.run()
    planted.rank()
    planted.node(
        attrs={"domain": "package", "counter_range_mj": 262_143_328.85},
        power_w=lambda _u, _s: math.nan,
        energy_at=lambda s: 100_000 + 100.0 * s if s < 5.05 else 100.0 * (s - 5.05),
    )
    planted.end()
    [row] = rows(planted)
    assert row.energy_j == pytest.approx(1000.0, rel=1e-6)
    assert "counter reset 1 times" in row.energy_reason


@pytest.mark.parametrize("known_j", [400.0, 4000.0])
def test_a_gap_in_which_a_counter_may_have_wrapped_twice_leaves_nothing_known(planted, known_j):
    """100 W for 5 s without a sample: more than a range of 400 J, and less than one of 4 kJ."""
    planted.run()
    planted.rank()
    planted.node(
        attrs={"domain": "package", "counter_range_mj": known_j * 1e3},
        energy_at=lambda s: math.nan if 3 < s < 8 else 100.0 * s % known_j,
    )
    planted.end()
    [row] = rows(planted)
    if known_j < 500:
        assert math.isnan(row.energy_j)
        assert "may have wrapped more than once" in row.energy_reason
    else:
        assert row.energy_j == pytest.approx(1000.0, rel=1e-6)


def test_a_gpu_that_no_rank_uses_is_counted_and_told(planted):
    planted.run()
    planted.rank(world=2, device_uuid="GPU-0")
    planted.rank(rank=1, world=2, device_uuid="GPU-0")
    planted.node(devices=["GPU-0", "GPU-1"])
    planted.end(ranks=2)
    [row] = rows(planted)
    assert row.energy_j == pytest.approx(2000.0) and row.energy_quality == "counter"
    assert row.energy_reason == "GPU-1: a GPU that no rank uses"


@pytest.mark.parametrize(("ranks", "uuid"), [(2, "GPU-0"), (1, ""), (1, "MIG-0")])
def test_of_ranks_that_did_not_all_say_where_they_were_nothing_is_concluded(planted, ranks, uuid):
    planted.run()
    planted.rank(device_uuid=uuid)
    planted.node(devices=["GPU-0", "GPU-1"])
    planted.end(ranks=ranks)
    [row] = rows(planted)
    assert "no rank uses" not in row.energy_reason


def frozen(s, from_s=4.0, to_s=99.0):
    """The joules of a counter under 100 W that stands from one moment to another."""
    return 100.0 * (s if s < from_s else from_s if s < to_s else from_s + s - to_s)


@pytest.mark.parametrize(
    ("energy_at", "still_s"),
    [(lambda _s: 7.0, 12.0), (frozen, 8.0), (lambda s: frozen(s, 4.0, 8.0), 4.0)],
    ids=["from the start", "half-way", "for a while"],
)
def test_where_a_counter_stands_still_power_takes_its_place(planted, energy_at, still_s):
    planted.run()
    planted.rank()
    planted.node(energy_at=energy_at)
    planted.end()
    [row] = rows(planted)
    assert row.energy_j == pytest.approx(1000.0, rel=0.0005)
    assert row.energy_quality == "integral"
    assert f"counter stood still for {still_s:.1f} s, power integrated" in row.energy_reason


def test_a_counter_that_catches_up_is_believed(planted):
    planted.run()
    planted.rank()
    planted.node(energy_at=lambda s: 100.0 * (4.0 if 4.0 < s < 8.0 else s))
    planted.end()
    [row] = rows(planted)
    assert row.energy_j == pytest.approx(1000.0, rel=1e-6)
    assert (row.energy_quality, row.energy_reason) == ("counter", "")


def test_a_counter_that_stands_still_with_no_power_beside_it_gives_no_joules(planted):
    planted.run()
    planted.rank()
    planted.node(energy_at=frozen, power_w=lambda _u, _s: math.nan)
    planted.end()
    [row] = rows(planted)
    assert math.isnan(row.energy_j) and row.energy_quality == "none"
    assert "stood still for 8.0 s, and no power was read" in row.energy_reason


def test_a_slow_counter_and_a_device_asleep_are_no_faults(planted):
    """A node's meter that moves every 2 s; a device of milliwatts."""
    planted.run()
    planted.rank()
    planted.node(energy_at=lambda s: 100.0 * (s // 2.0 * 2.0), from_s=-20, to_s=30)
    planted.end()
    [row] = rows(planted)
    assert (row.energy_quality, row.energy_reason) == ("counter", "")
    planted.run("bbbb")
    planted.rank("bbbb")
    planted.node("bbbb", devices=["GPU-1"], energy_at=lambda _s: 7.0, power_w=lambda _u, _s: 0.02)
    planted.end("bbbb")
    assert rows(planted)[1].energy_quality == "counter"


def test_the_energy_of_a_single_record_needs_no_campaign(planted):
    planted.run()
    path = planted.node(devices=["GPU-0", "GPU-1"])
    found = device_energies(path)
    assert found.energy_j == pytest.approx(2400.0) and found.duration_s == pytest.approx(12.0)
    assert [d.coverage for d in found.devices] == [1.0, 1.0]
    assert found.to_dict()["devices"][0]["source"] == "nvml"


def test_the_energy_of_a_folder_counts_overlapping_records_once(planted):
    planted.run()
    planted.node(name="a")
    planted.node(name="b", from_s=6.0, to_s=18.0)
    assert device_energies(planted.folder).energy_j == pytest.approx(1800.0)


@pytest.mark.parametrize(
    ("factor", "swing", "said"),
    [(1.0, 0.0, ""), (1.05, 0.0, ""), (1.2, 0.0, "by +20 %"), (0.8, 0.0, "by -20 %"),
     (1.2, 0.9, ""), (3.0, 0.9, "disagree by +"), (2.0, 0.3, "disagree by +")],
)  # fmt: skip
def test_a_counter_and_a_power_that_disagree_are_told_and_the_counter_counts(
    planted, factor, swing, said
):
    """More than a tenth apart, and more than the samples of a swinging power can be wrong."""
    draw = random.Random(1)
    noise = {i: draw.choice((-swing, swing)) for i in range(300)}
    planted.run()
    planted.rank()
    planted.node(
        power_w=lambda _uuid, s: 100.0 * (1 + noise[round(s / 0.1)]),
        energy_at=lambda s: 5000.0 + factor * 100.0 * s,
    )
    planted.end()
    [row] = rows(planted)
    assert row.energy_j == pytest.approx(factor * 1000.0)
    assert (said in row.energy_reason) if said else ("disagree" not in row.energy_reason)
