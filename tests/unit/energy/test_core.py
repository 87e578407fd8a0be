"""A core for the sampler alone, where the ranks leave one."""

from __future__ import annotations

import os
import subprocess

import pytest

from llem.energy.core import cores_of_job, move_apart, spare_core
from llem.records import read_node


@pytest.mark.parametrize(
    ("own", "others", "core"),
    [
        (range(8), [{0, 1, 2}, {3, 4, 5}], 7),  # two ranks bound, two cores left
        (range(8), [range(4), range(4, 8)], None),  # all cores are ranks'
        (range(8), [range(8), range(8)], None),  # nobody is bound: any core may be a rank's
        (range(8), [range(8), {0, 1}], 7),  # the batch script is not bound, the rank is
        (range(8), [], None),
        ({2, 3}, [{2, 3}], None),  # a child of a rank shares its cores
        ({0, 1}, [{5}], 1),
    ],
)
def test_the_last_core_that_nobody_is_bound_to_is_the_samplers(own, others, core):
    assert spare_core(own, others) == core


def test_cores_of_other_jobs_do_not_count():
    # Jobs of these tests alone: other processes on this machine may pretend to be in one.
    one, other = (f"{os.getpid()}00{number}" for number in (1, 2))

    def sleeper(job):
        return subprocess.Popen(
            ["sleep", "600"], env={"SLURM_JOB_ID": job, "PATH": os.environ["PATH"]}
        )

    ours, theirs = sleeper(one), sleeper(other)
    try:
        os.sched_setaffinity(ours.pid, {0})
        assert cores_of_job({"SLURM_JOB_ID": one}) == [{0}]
        assert cores_of_job({}) == []
    finally:
        for process in (ours, theirs):
            process.kill()
            process.wait()


def test_without_a_job_it_stays_where_the_scheduler_puts_it():
    before = os.sched_getaffinity(0)
    assert move_apart({}).startswith("any: ") and os.sched_getaffinity(0) == before


def test_a_sampler_beside_a_bound_rank_takes_the_other_core_and_says_so(sampler, tmp_path):
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("one core here")
    job = {"SLURM_JOB_ID": f"{os.getpid()}003"}
    rank = subprocess.Popen(["sleep", "600"], env={**job, "PATH": os.environ["PATH"]})
    try:
        os.sched_setaffinity(rank.pid, set(cores[1:]))
        process = sampler(job)
        with process.link() as link:
            assert link.begin(tmp_path / "node-a.h5", {}).ok
            assert os.sched_getaffinity(process.process.pid) == {cores[0]}
            assert link.end().ok
    finally:
        rank.kill()
        rank.wait()
    assert read_node(tmp_path / "node-a.h5").meta["core"] == str(cores[0])
