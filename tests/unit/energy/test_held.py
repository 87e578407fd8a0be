"""Which GPUs a job holds, from its environment and what NVML shows."""

from __future__ import annotations

import math

import pytest

from llem.energy.meters.held import Shown, expand_indices, expected_gpus, held_gpus

EIGHT = [Shown(uuid=f"GPU-{i:08x}-aa", instances={}) for i in range(8)]
TWO = EIGHT[2:4]  # what a device cgroup with GPUs 2 and 3 shows
SLICED = Shown(uuid="GPU-cc", instances={"MIG-one": 3 / 7, "MIG-two": 4 / 7}, mig=True)


def uuids(shown, environ):
    return [int(uuid[4:12], 16) for uuid in held_gpus(shown, environ).shares]


@pytest.mark.parametrize(
    ("shown", "environ", "held"),
    [
        (EIGHT, {}, [0, 1, 2, 3, 4, 5, 6, 7]),
        (EIGHT, {"SLURM_STEP_GPUS": "2,3"}, [2, 3]),
        (EIGHT, {"SLURM_JOB_GPUS": "0-2,5"}, [0, 1, 2, 5]),
        # the step's list is this node's; the job's may be the first node's
        (EIGHT, {"SLURM_STEP_GPUS": "2,3", "SLURM_JOB_GPUS": "0,1"}, [2, 3]),
        # one task's view of a job that holds four: the idle ones are paid for as well
        (EIGHT, {"SLURM_STEP_GPUS": "0,1,2,3", "CUDA_VISIBLE_DEVICES": "0"}, [0, 1, 2, 3]),
        # the cgroup counts from 0 again, SLURM does not
        (TWO, {"SLURM_STEP_GPUS": "2,3", "CUDA_VISIBLE_DEVICES": "0,1"}, [2, 3]),
        (TWO, {"SLURM_STEP_GPUS": "3"}, [2, 3]),
        (EIGHT, {"CUDA_VISIBLE_DEVICES": "1, 0"}, [1, 0]),
        (EIGHT, {"CUDA_VISIBLE_DEVICES": "GPU-00000005-aa,GPU-00000001"}, [5, 1]),
        # SLURM counts by device file, NVML by bus: names are right either way
        (
            EIGHT,
            {"SLURM_STEP_GPUS": "0,1", "CUDA_VISIBLE_DEVICES": "GPU-00000005-aa,GPU-00000001"},
            [5, 1],
        ),
        # one task's own
        (EIGHT, {"SLURM_STEP_GPUS": "0,1", "CUDA_VISIBLE_DEVICES": "GPU-00000001"}, [0, 1]),
        (EIGHT, {"CUDA_VISIBLE_DEVICES": "2,-1,3"}, [2]),
        (EIGHT, {"CUDA_VISIBLE_DEVICES": ""}, []),
        (EIGHT, {"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, []),
        (EIGHT, {"CUDA_VISIBLE_DEVICES": "11"}, []),
        ([], {"SLURM_STEP_GPUS": "0"}, []),
    ],
)
def test_the_jobs_gpus_are_found(shown, environ, held):
    assert uuids(shown, environ) == held


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"SLURM_STEP_GPUS": "0-3"}, 4),
        ({"SLURM_JOB_GPUS": "5"}, 1),
        ({"SLURM_GPUS_ON_NODE": "4"}, 4),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, 2),
        ({"CUDA_VISIBLE_DEVICES": ""}, 0),
        ({"CUDA_VISIBLE_DEVICES": "MIG-a,MIG-b", "SLURM_STEP_GPUS": "0,1"}, 1),
    ],
)
def test_how_many_gpus_the_environment_promises(environ, expected):
    assert expected_gpus(environ) == expected


def test_a_mig_instance_is_its_parent_with_a_share_and_a_reason():
    held = held_gpus([SLICED], {"CUDA_VISIBLE_DEVICES": "MIG-one", "SLURM_STEP_GPUS": "0"})
    assert held.shares == {"GPU-cc": 3 / 7}
    assert "holds 43 % of it" in held.reasons[0]


def test_all_instances_of_a_gpu_are_the_whole_of_it():
    held = held_gpus([SLICED], {"CUDA_VISIBLE_DEVICES": "MIG-one,MIG-two"})
    assert held.shares == {"GPU-cc": 1.0} and held.reasons == ()


def test_seven_sevenths_are_the_whole():
    sevenths = {f"MIG-{i}": 1 / 7 for i in range(7)}
    shown = [Shown(uuid="GPU-cc", instances=sevenths, mig=True)]
    held = held_gpus(shown, {"CUDA_VISIBLE_DEVICES": ",".join(sevenths)})
    assert held.shares == {"GPU-cc": 1.0} and held.reasons == ()


@pytest.mark.parametrize("entry", ["MIG-GPU-cc/3/0", "0"])
def test_a_part_whose_size_is_not_known_is_nan_and_not_the_whole(entry):
    held = held_gpus([SLICED], {"CUDA_VISIBLE_DEVICES": entry})
    assert math.isnan(held.shares["GPU-cc"]) and "unknown part" in held.reasons[0]


def test_a_name_that_nvml_does_not_show_is_told():
    held = held_gpus(EIGHT, {"CUDA_VISIBLE_DEVICES": "MIG-gone"})
    assert held.shares == {} and "MIG-gone" in held.reasons[0]


def test_fewer_gpus_than_the_job_holds_is_told():
    assert "NVML shows 2 GPUs" in held_gpus(TWO, {"SLURM_STEP_GPUS": "0-3"}).reasons[0]


def test_ranges_and_odd_entries_are_expanded():
    assert expand_indices("0,2-4, 7,x") == ["0", "2", "3", "4", "7", "x"]
