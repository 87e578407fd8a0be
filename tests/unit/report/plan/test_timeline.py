"""The timeline is a list schedule: nothing overlaps that may not, and nothing waits for nothing."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llem.report.plan import timeline

from .plans import page_of, plan_of, small

CASES = {
    "two elements on two nodes run at once": (
        [{"elements": [100, 100]}], {}, 100, [(0, 2), (100, 0)]),
    "a third waits for a node": (
        [{"elements": [100, 60, 30]}], {}, 100, [(0, 2), (90, 1), (100, 0)]),
    "a throttle holds elements back": (
        [{"elements": [50, 50], "throttle": 1}], {}, 100, [(0, 1), (100, 0)]),
    "four elements of one device share a node": (
        [{"elements": [10] * 4, "gpus_per_node": 1}], {"nodes": 1}, 10, [(0, 1), (10, 0)]),
    "three of three devices do not share nodes of four": (
        [{"elements": [10] * 3, "gpus_per_node": 3}], {}, 20, [(0, 2), (10, 1), (20, 0)]),
    "one device and a whole node do not fit one node": (
        [{"elements": [10], "gpus_per_node": 1}, {"elements": [10]}], {"nodes": 1}, 20, None),
    "a later array starts where an earlier one leaves room": (
        [{"elements": [10, 10], "nodes": 2}, {"elements": [5]}], {"nodes": 3}, 20, None),
    "starting costs what it costs": (
        [{"elements": [10, 10]}], {"nodes": 1, "startup_s": 5}, 30, None),
    "a laptop runs as many at a time as it is told": (
        [{"elements": [10] * 4}], {"executor": "local", "concurrency": 2}, 20, [(0, 2), (20, 0)]),
    "a chain goes on when all of the last job has ended": (
        [{"elements": [150, 90], "segments": 3, "time_limit_s": 100}], {}, 150,
        [(0, 2), (90, 1), (150, 0)]),
    "each job of a chain is started": (
        [{"elements": [150], "segments": 2, "time_limit_s": 110}], {"startup_s": 10}, 170, None),
    "the last job of a chain takes what is left": (
        [{"elements": [350], "segments": 2, "time_limit_s": 100}], {}, 350, None),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_case_by_hand(case):
    arrays, site, end_s, used = CASES[case]
    found = timeline(small(arrays, **site))
    assert found.end_s == end_s
    if used is not None:
        steps = [s for i, s in enumerate(found.used) if not i or s[1] != found.used[i - 1][1]]
        assert steps == used


def test_jobs_of_a_chain_begin_one_after_the_other():
    array = {"elements": [250, 120], "segments": 3, "time_limit_s": 100}
    found = timeline(small([array]))
    assert found.begins(0) == [0, 100, 200]
    assert {(s.start_s, s.end_s) for s in found.spans if s.segment == 1} == {(100, 120), (100, 200)}


def test_of_a_chain_that_nobody_waits_for_the_end_is_one_job():
    # Placed one by one, ten thousand million jobs took all memory there was.
    found = timeline(small([{"elements": [1e12], "segments": 10**10, "time_limit_s": 100}]))
    assert found.end_s == 1e12
    assert len(found.spans) == 1000


def test_what_asks_for_more_than_there_is_runs_alone():
    found = timeline(small([{"elements": [10, 10], "nodes": 5}]))
    assert (found.nodes, found.end_s) == (5, 20)


arrays = st.lists(
    st.fixed_dictionaries(
        {
            "elements": st.lists(st.integers(1, 500), min_size=1, max_size=12),
            "gpus_per_node": st.sampled_from([1, 2, 3, 4]),
            "nodes": st.sampled_from([1, 1, 2, 3]),
            "throttle": st.sampled_from([None, 1, 3]),
            "segments": st.sampled_from([1, 1, 2, 4]),
            "time_limit_s": st.sampled_from([60, 200, 600]),
        }
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=150, deadline=None)
@given(arrays, st.integers(3, 6), st.sampled_from([0.0, 7.0]))
def test_a_schedule_keeps_every_limit_and_wastes_nothing(made, nodes, startup_s):
    plan = small(made, nodes=nodes, startup_s=startup_s)
    found = timeline(plan)
    for moment in {s.start_s for s in found.spans}:
        at_work = [s for s in found.spans if s.start_s <= moment < s.end_s]
        running = dict.fromkeys(range(len(made)), 0)
        for span in at_work:
            running[span.array] += span.elements
        devices = 0
        for index, array in enumerate(made):
            devices += running[index] * array["nodes"] * array["gpus_per_node"]
            assert running[index] <= (array["throttle"] or math.inf)
            assert len({s.segment for s in at_work if s.array == index}) <= 1
        assert devices <= 4 * nodes
    assert max(n for _, n in found.used) <= nodes
    assert found.used[-1][1] == 0
    assert 0 < found.busy <= 1
    longest = max(max(a["elements"]) for a in made)
    assert found.end_s >= longest
    # All of the work is there, and no list schedule takes longer than one after the other.
    spent = sum(s.elements * (s.end_s - s.start_s) for s in found.spans)
    starts = sum(s.elements for s in found.spans) * startup_s
    assert spent - starts == pytest.approx(sum(sum(a["elements"]) for a in made))
    assert found.end_s <= spent * (1 + 1e-9)
    assert found.end_s * found.nodes * found.busy >= sum(
        (s.end_s - s.start_s) * s.elements * made[s.array]["nodes"]
        * made[s.array]["gpus_per_node"] / 4 for s in found.spans) * (1 - 1e-9)  # fmt: skip


@pytest.mark.parametrize("name", ["laptop", "chained", "own", "large"])
def test_a_real_plan_takes_at_least_its_longest_run_and_its_hours_on_all_devices(name):
    plan = plan_of(name)
    found = timeline(page_of(name))
    site = plan.site
    assert found.end_s >= max(r.predicted.duration_s for r in plan.runs)
    devices = found.nodes * (1 if site.executor == "local" else site.gpus_per_node)
    work = sum(r.predicted.duration_s * r.layout.ranks for r in plan.runs)
    assert found.end_s >= work / devices
    assert max(n for _, n in found.used) <= found.nodes
    assert sum(s.elements for s in found.spans) >= sum(len(a.elements) for a in plan.arrays)
