"""Whether a job has its node alone: from SLURM's variables, its cgroup and the machine."""

from __future__ import annotations

import math

import pytest

from llem.energy.meters.node_held import cpus_here, node_held

JOB = {"SLURM_JOB_ID": "17"}


@pytest.fixture
def machine(tmp_path):
    """A pretended /proc and /sys: threads online, threads a core, the job's cgroup."""

    def make(*, threads=8, per_core=2, cgroup="", cpuset=None):
        cpu = tmp_path / "sys/devices/system/cpu"
        for i in range(threads):
            (cpu / f"cpu{i}/topology").mkdir(parents=True)
            (cpu / f"cpu{i}/topology/core_id").write_text(f"{i % (threads // per_core)}\n")
            (cpu / f"cpu{i}/topology/physical_package_id").write_text("0\n")
        (cpu / "online").write_text(f"0-{threads - 1}\n")
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(f"{cgroup}\n")
        if cpuset is not None:
            path = cgroup.partition("::")[2].partition("/step_")[0]
            folder = tmp_path / "sys/fs/cgroup" / path.lstrip("/")
            folder.mkdir(parents=True)
            (folder / "cpuset.cpus").write_text(f"{cpuset}\n")
        return {"proc": tmp_path / "proc", "sys": tmp_path / "sys"}

    return make


def test_a_machine_without_a_job_is_its_users_own(machine):
    found = node_held({}, **machine())
    assert (found.exclusive, found.share) == ("yes", 1.0)


def test_a_job_that_asked_for_whole_nodes_has_them(machine):
    assert node_held(JOB | {"SLURM_JOB_CPUS_PER_NODE": "2"}, exclusive=True,
                     **machine()).exclusive == "yes"  # fmt: skip


@pytest.mark.parametrize(("told", "exclusive", "share"), [
    ("8", "yes", 1.0), ("2", "no", 0.25), ("16", "yes", 1.0),
    # 4 cores of 2 threads: all of them where SLURM counts cores, half where it counts threads
    ("4", "unknown", 0.5),
])  # fmt: skip
def test_cpus_are_compared_with_the_machine(machine, told, exclusive, share):
    found = node_held(JOB | {"SLURM_JOB_CPUS_PER_NODE": told}, **machine())
    assert (found.exclusive, found.share) == (exclusive, share)
    assert found.reason.startswith(f"{told} of 8 CPUs, by SLURM_JOB_CPUS_PER_NODE")


def test_without_threads_beside_each_other_half_the_cpus_are_half(machine):
    found = node_held(JOB | {"SLURM_JOB_CPUS_PER_NODE": "4"}, **machine(per_core=1))
    assert (found.exclusive, found.share) == ("no", 0.5)


@pytest.mark.parametrize(("cpuset", "exclusive"), [("0-7", "yes"), ("0-3", "no")])
def test_the_jobs_cgroup_knows_better_than_the_variables(machine, cpuset, exclusive):
    where = machine(
        cgroup="0::/system.slice/slurmstepd.scope/job_17/step_0/user/task_0", cpuset=cpuset
    )
    found = node_held(JOB | {"SLURM_JOB_CPUS_PER_NODE": "4"}, **where)
    assert found.exclusive == exclusive and "cgroup" in found.reason


def test_a_cgroup_without_a_set_of_cpus_says_nothing(machine):
    where = machine(cgroup="0::/system.slice/slurmstepd.scope/job_17/step_0", cpuset="")
    assert node_held(JOB | {"SLURM_JOB_CPUS_PER_NODE": "2"}, **where).exclusive == "no"


def test_a_job_that_does_not_say_its_cpus_is_unknown(machine):
    found = node_held(JOB, **machine())
    assert found.exclusive == "unknown" and math.isnan(found.share)
    assert set(found.meta()) == {"node_exclusive", "node_share", "node_exclusive_reason"}


@pytest.mark.parametrize(("text", "node", "cpus"), [
    ("48", "0", 48), ("48(x3)", "2", 48), ("40(x2),20", "2", 20), ("40,20(x2)", "0", 40),
    ("40,20", "7", None), ("", "0", None), ("many", "0", None),
])  # fmt: skip
def test_the_cpus_of_this_node_are_found_in_the_list(text, node, cpus):
    assert cpus_here({"SLURM_JOB_CPUS_PER_NODE": text, "SLURM_NODEID": node}) == cpus
