"""Many runs by cell: the same runs, names and sums as one by one."""

import math
from dataclasses import replace

import pytest

from llem.campaign import (
    CustomModel,
    Predicted,
    Replicates,
    Runs,
)

from .example import RUN

SMALL = replace(
    RUN,
    predicted=Predicted(duration_s=0.1, gpu_hours=0.1, energy_j=math.nan, memory_bytes=1),
)
OWN = replace(
    SMALL,
    seed=1000,
    model=CustomModel(class_path="m:M", size="width", value=3, params=100, vocabulary=256,
                      context=64, arguments={"seed": 5, "run_id": "x"}),
)  # fmt: skip
# Two waves: the seeds of the later one start elsewhere, in a cell that was there before as well.
RUNS = Runs(
    [
        Replicates(SMALL, range(3)),
        Replicates(OWN, (1000, 1001)),
        Replicates(replace(SMALL, seed=2000), range(2000, 2002)),
    ]
)
ONE_BY_ONE = [
    *(replace(SMALL, seed=seed) for seed in range(3)),
    *(replace(OWN, seed=seed) for seed in (1000, 1001)),
    *(replace(SMALL, seed=seed) for seed in (2000, 2001)),
]


def test_it_is_the_sequence_of_its_runs():
    assert list(RUNS) == ONE_BY_ONE
    assert len(RUNS) == len(ONE_BY_ONE)
    assert [RUNS[i] for i in range(-7, 7)] == ONE_BY_ONE + ONE_BY_ONE
    assert RUNS[2:5] == tuple(ONE_BY_ONE[2:5])
    assert Runs.of(ONE_BY_ONE) == RUNS
    with pytest.raises(IndexError):
        RUNS[7]


def test_names_are_those_of_the_runs_alone():
    assert list(RUNS.run_ids) == [run.run_id for run in ONE_BY_ONE]


def test_waves_are_added():
    both = RUNS[:5] + tuple(RUNS[5:])
    assert both == RUNS
    assert [len(some) for some in both.replicates] == [3, 2, 2]


def test_a_sum_is_that_of_every_run_to_the_last_digit():
    assert RUNS.total(lambda r: r.predicted.duration_s) == math.fsum([0.1] * 7)
    assert RUNS.how_many(lambda r: r.params == 100) == 2


def test_runs_read_back_from_what_they_are_written_as():
    finite = Runs(
        replace(some, run=replace(some.run, predicted=replace(SMALL.predicted, energy_j=2.0)))
        for some in RUNS.replicates
    )
    again = Runs.from_dicts([run.to_dict() for run in finite])
    assert again == finite
    assert [len(some) for some in again.replicates] == [3, 2, 2]


@pytest.mark.parametrize("change", [{"seed": 7}, {"run_id": "0" * 12}, {"tokens": 1024}])
@pytest.mark.parametrize("which", range(7))
def test_an_edited_run_is_refused_wherever_it_stands(change, which):
    items = [run.to_dict() for run in RUNS]
    items[which] = {**items[which], **change}
    with pytest.raises(ValueError, match="was edited"):
        Runs.from_dicts(items)
