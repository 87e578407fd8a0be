"""Texts of SLURM's commands, read by pure functions."""

import pytest

from llem.cluster.scheduler.slurm import parse_job_id, refusal_advice
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


@pytest.mark.parametrize(
    ("said", "key"),
    [
        ("Invalid account or account/partition combination specified", "`account`"),
        ("Invalid partition name specified", "`partition`"),
        ("Invalid qos specification", "`qos`"),
        ("Requested time limit is invalid (missing or exceeds some limit)", "`limits.time`"),
        ("Requested node configuration is not available", "`gpus_per_node`"),
        ("Invalid generic resource (gres) specification", "`gpu_request`"),
    ],
)
def test_what_sbatch_refuses_is_told_with_the_key_of_the_site(said, key):
    advice = refusal_advice(f"sbatch: error: Batch job submission failed: {said}")
    assert key in advice and "--replace" in advice


def test_a_refusal_that_no_key_asked_for_stands_with_sbatchs_words():
    assert refusal_advice("Batch job submission failed: Job violates accounting policy") is None
