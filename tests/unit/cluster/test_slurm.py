"""Texts of SLURM's commands, read by pure functions."""

import pytest

from llem.cluster.scheduler.slurm import parse_job_id
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
