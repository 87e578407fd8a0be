"""Who a process is among those launched with it, from real launchers' environments."""

from pathlib import Path

import pytest

from llem.energy import find_launch
from llem.energy.meeting.launch import expand_tasks

STEP = {
    "SLURM_JOB_ID": "41", "SLURM_STEP_ID": "0", "SLURM_PROCID": "5", "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1", "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NUM_TASKS": "6",
    "SLURM_STEP_TASKS_PER_NODE": "4,2", "SLURMD_NODENAME": "n2", "SLURM_NNODES": "2",
}  # fmt: skip
TORCHRUN = {
    "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "1",
    "GROUP_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "7", "MASTER_ADDR": "a", "MASTER_PORT": "29500",
    "TORCHELASTIC_RESTART_COUNT": "0",
}  # fmt: skip
OPENMPI = {
    "OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "PMIX_NAMESPACE": "prterun-a-1@1",
}  # fmt: skip
HYDRA = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
BATCH = {"SLURM_JOB_ID": "41", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NNODES": "2",
         "SLURM_TASKS_PER_NODE": "4(x2)", "SLURM_NTASKS": "8"}  # fmt: skip


def told(environ):
    found = find_launch(environ, host="h.cluster")
    return (found.launcher, found.rank, found.world, found.local_rank, found.local_world,
            found.nodes, found.node)  # fmt: skip


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, ("", 0, 1, 0, 1, 1, "h")),
        (STEP, ("srun", 5, 6, 1, 2, 2, "n2")),
        (TORCHRUN, ("torchrun", 3, 4, 1, 2, 2, "h")),
        ({**STEP, **TORCHRUN}, ("torchrun", 3, 4, 1, 2, 2, "n2")),
        (OPENMPI, ("mpirun", 2, 4, 0, 2, None, "h")),
        ({**STEP, **OPENMPI}, ("mpirun", 2, 4, 0, 2, None, "n2")),
        (HYDRA, ("mpiexec", 1, 2, 1, 2, 1, "h")),
        # srun speaks PMI as well, without a local rank: it is srun's
        ({**STEP, "PMI_RANK": "5", "PMI_SIZE": "6"}, ("srun", 5, 6, 1, 2, 2, "n2")),
        # a wrapper under srun that sets torch's names says nothing new
        ({**STEP, "RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "6"},
         ("srun", 5, 6, 1, 2, 2, "n2")),
        ({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "8"}, ("env", 0, 8, 0, None, None, "h")),
        # the batch script runs once, whatever its tasks will be; so does a name left in a shell
        (BATCH, ("", 0, 1, 0, 1, 1, "h")),
        ({"WORLD_SIZE": "8", "RANK": "0"}, ("", 0, 1, 0, 1, 1, "h")),
        ({"RANK": "zero", "LOCAL_RANK": "0"}, ("", 0, 1, 0, 1, 1, "h")),
    ],
)  # fmt: skip
def test_the_innermost_launcher_says_who_a_process_is(environ, expected):
    assert told(environ) == expected


def test_the_record_has_the_path_asked_for_on_one_node_and_the_nodes_name_on_several():
    path = Path("/scratch/run.h5")
    one = {**STEP, "SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_TASKS_PER_NODE": "6",
           "SLURM_NODEID": "0"}  # fmt: skip
    again = {**TORCHRUN, "GROUP_WORLD_SIZE": "1", "TORCHELASTIC_RESTART_COUNT": "2"}
    names = [find_launch(e, host="h").record_path(path).name
             for e in ({}, one, STEP, again, {**STEP, "SLURM_RESTART_COUNT": "1"})]  # fmt: skip
    assert names == ["run.h5", "run.h5", "run.node-n2.h5", "run.restart-0-2.h5",
                     "run.restart-1.node-n2.h5"]  # fmt: skip


def test_two_jobs_differ_and_the_ranks_of_one_do_not():
    a, b = (find_launch({**STEP, "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)}) for i in (0, 1))
    other = find_launch({**STEP, "SLURM_JOB_ID": "42"})
    assert a.key == b.key != other.key


@pytest.mark.parametrize(
    ("text", "counts"), [("2(x3),1", [2, 2, 2, 1]), ("4", [4]), ("", []), ("x", []), ("2(y)", [])]
)
def test_tasks_of_nodes_as_slurm_lists_them(text, counts):
    assert expand_tasks(text) == counts
