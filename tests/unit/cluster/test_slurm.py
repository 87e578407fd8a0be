"""Texts of SLURM's commands, read by pure functions."""

import pytest

from llem.cluster.ledger import index_list, indices
from llem.cluster.slurm import STATES, ElementState, parse_job_id, parse_squeue
from llem.errors import ClusterError


@pytest.mark.parametrize(
    ("text", "job"),
    [("123\n", "123"), ("123;farm\n", "123"), ("Welcome to HPC!\n\n4711\n", "4711")],
)
def test_the_job_id_of_sbatch(text, job):
    assert parse_job_id(text) == job


@pytest.mark.parametrize("text", ["", "Submitted batch job", "job 12 or so"])
def test_an_answer_without_a_job_id_is_an_error(text):
    with pytest.raises(ClusterError, match="no job id"):
        parse_job_id(text)


def test_squeue_lines():
    text = "17|0|RUNNING|None\n17|1|PENDING|JobArrayTaskLimit\n18|N/A|PENDING|Dependency\n\nodd\n"
    assert parse_squeue(text) == [
        ElementState("17", 0, "RUNNING", "None"),
        ElementState("17", 1, "PENDING", "JobArrayTaskLimit"),
        ElementState("18", None, "PENDING", "Dependency"),
    ]


@pytest.mark.parametrize(
    ("values", "text"), [([3], "3"), ([0, 1, 2], "0-2"), ([3, 17, 18, 19, 21], "3,17-19,21")]
)
def test_indices_are_written_as_sbatch_reads_them(values, text):
    assert index_list(values) == text
    assert indices(text) == tuple(values)


def test_a_state_that_is_not_in_the_table_is_unknown_and_not_failed():
    assert ElementState("1", 0, "BRAND_NEW_STATE").meaning == "unknown"
    assert set(STATES.values()) == {"queued", "running", "ended"}
