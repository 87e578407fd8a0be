"""The energy of records alone: windows, phases by marks and by steps, runs of a campaign."""

from __future__ import annotations

import math

import numpy as np
import pytest

from llem.records import node_writer, read_node, samples_table
from llem.results import device_energies, power_traces
from llem.results.ranks.marks import marked_spans


@pytest.fixture
def marked(tmp_path, host, own_clock):
    """A record of 10 s at 100 W, with events (code, text, seconds)."""

    def plant(*events, to_s=10.0, power_w=lambda s: 100.0, name="run.h5"):
        path, machine = tmp_path / name, host()
        device = {"domain": "gpu", "contains": [], "counter": True, "source": "nvml",
                  "quality": "counter", "name": "pretended"}  # fmt: skip
        with node_writer(path, meta={"boot_id": "b", "host": "n0"},
                         devices={"GPU-0": device}) as writer:  # fmt: skip
            own_clock(writer, machine)
            for code, text, seconds in events:
                writer.event(code, text, t_ns=machine.at(seconds))
            joules = 0.0
            for i in range(round(to_s * 10) + 1):
                joules += power_w(i / 10 - 0.05) * 0.1 if i else 0.0
                row = (machine.at(i / 10), 0, joules * 1e3, power_w(i / 10) * 1e3, 40, 90, 0, 0, 0)
                writer.append(samples_table("GPU-0"), row)
        return path

    return plant


def phases(path):
    return {p.phase: (pytest.approx(p.energy_j), pytest.approx(p.duration_s))
            for p in device_energies(path).phases}  # fmt: skip


def test_the_window_is_from_the_first_begin_to_the_last_end(marked):
    path = marked(("begin", "rank 0", 1), ("begin", "rank 1", 2), ("end", "rank 0", 5),
                  ("end", "rank 1", 8))  # fmt: skip
    found = device_energies(path)
    assert (found.energy_j, found.duration_s) == (pytest.approx(700), pytest.approx(7))


def test_a_process_that_was_lost_ends_the_window_and_one_that_never_ended_leaves_it_open(marked):
    lost = marked(("begin", "rank 0", 1), ("rank-lost", "rank 0", 4))
    assert device_energies(lost).duration_s == pytest.approx(3)
    still = marked(("begin", "rank 0", 1), ("begin", "rank 1", 1), ("end", "rank 0", 4),
                   name="b.h5")  # fmt: skip
    assert device_energies(still).duration_s == pytest.approx(10)


def test_marks_last_until_the_next_and_the_innermost_phase_counts(marked):
    path = marked(("begin", "process", 0), ("mark", "process: a", 1), ("phase", "process: b", 3),
                  ("phase", "process: c", 4), ("phase-end", "process: c", 5),
                  ("phase-end", "process: b", 7), ("mark", "process: d", 9),
                  ("end", "process", 10))  # fmt: skip
    assert phases(path) == {"rest": (100, 1), "a": (400, 4), "b": (300, 3), "c": (100, 1),
                            "d": (100, 1)}  # fmt: skip


def test_phases_that_threads_leave_in_any_order_do_not_lose_their_name(marked):
    path = marked(("phase", "process: a", 1), ("phase", "process: b", 2),
                  ("phase-end", "process: a", 3), ("phase-end", "process: b", 4))  # fmt: skip
    assert [s.name for s in marked_spans(read_node(path))] == ["rest", "a", "b", "rest"]


def test_of_several_ranks_the_lowest_that_marked_tells_the_phases(marked):
    path = marked(("mark", "rank 10: b", 2), ("mark", "rank 9: a", 5))
    assert phases(path) == {"rest": (500, 5), "a": (500, 5)}


def test_a_run_has_its_phases_from_its_steps_and_they_add_up(planted, host):
    planted.run()
    planted.node(power_w=lambda _uuid, s: 200.0 if 2 <= s < 8 else 50.0)
    planted.rank(steps=range(6), start_s=2.0, step_s=1.0)
    found = device_energies(planted.folder)
    by_name = {p.phase: p for p in found.phases}
    assert list(by_name) == ["startup", "train", "rest"]
    assert by_name["startup"].energy_j == pytest.approx(100)
    assert by_name["train"].energy_j == pytest.approx(1200)
    assert sum(p.energy_j for p in found.phases) == pytest.approx(found.energy_j)


def test_a_campaign_is_told_by_run_and_one_run_by_device(planted):
    for run_id in ("aaaa", "bbbb"):
        planted.complete(run_id)
    found = device_energies(planted.folder)
    assert [r.run_id for r in found.runs] == ["aaaa", "bbbb"]
    assert sum(r.energy_j for r in found.runs) == pytest.approx(found.energy_j)
    assert device_energies(planted.folder / "runs" / "aaaa").runs == ()


def test_gpus_that_nobody_measures_make_the_sum_unknown_and_not_small(marked):
    path = marked(("gpu-unmeasured", "the job holds 2 GPUs here, 1 are measured", 0))
    found = device_energies(path)
    assert math.isnan(found.energy_j) and found.devices[0].energy_j == pytest.approx(1000)
    assert "holds 2 GPUs" in found.problems[0]


def test_a_trace_has_the_energy_of_its_counter_below_it(marked):
    path = marked(("begin", "process", 2), ("mark", "process: a", 4), ("end", "process", 9),
                  power_w=lambda s: 300.0 if 3 < s < 6 else 100.0)  # fmt: skip
    traces = power_traces(path, bins=20)
    [trace] = traces.traces
    assert float(np.sum(trace.power_w * np.diff(trace.edges_s))) == pytest.approx(1600)
    assert len(trace.power_w) == 20 and max(trace.power_w) == pytest.approx(300)
    assert traces.windows == (pytest.approx((2.0, 9.0)),)
    assert traces.spans == (("rest", pytest.approx(2), pytest.approx(4)),
                            ("a", pytest.approx(4), pytest.approx(9)))  # fmt: skip


def test_two_nodes_lie_on_one_axis_by_their_wall_clocks(planted, host):
    planted.run(nodes=2)
    planted.node(host=host("n0", "a"), devices=["GPU-0"], to_s=10)
    planted.node(host=host("n1", "b", 77_000_000_000), devices=["GPU-1"], from_s=5, to_s=12)
    traces = power_traces(planted.folder)
    assert traces.duration_s == pytest.approx(12)
    first, second = traces.traces
    assert math.isnan(second.power_w[0]) and second.power_w[-1] == pytest.approx(100)
    assert math.isnan(first.power_w[-1]) and first.power_w[0] == pytest.approx(100)


def test_what_is_no_bin_wide_enough_is_not_told_finer_than_the_samples(marked):
    [trace] = power_traces(marked(), bins=1000).traces
    assert len(trace.power_w) == 50
