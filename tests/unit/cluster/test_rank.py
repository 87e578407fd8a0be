"""A job that has to leave between two runs of its element begins no attempt of the second."""

import os
import signal

import pytest

from llem.cluster import CampaignFolder
from llem.cluster.disk.attempts import begin_attempt
from llem.cluster.job.rank import Rank
from llem.cluster.job.recorder import Recorder


class World:
    """Who is alone."""

    rank, world_size = 0, 1

    def barrier(self):
        pass

    def first(self, function):
        return function()


@pytest.fixture
def rank(make, tmp_path, monkeypatch):
    """A rank with the first two trainings of a plan; what it is to do in them is `at_work`."""
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    plan = make()
    element = {"runs": [], "campaign": "a", "plan": "b", "array": "c", "element": 0,
               "image_digest": ""}  # fmt: skip
    made = Rank(element, CampaignFolder(tmp_path))
    made.runs = list(plan.runs[:2])
    made.rank, made.world, made.link, made.counter = 0, World(), None, None
    made.recorder = Recorder(made.folder, hosts=["here"], rank=0, ranks=1)
    made.leaving.looks = True
    done = []

    def train(run, *_):
        done.append(run.run_id)
        made.at_work()
        raise ValueError("the end of the test's training")

    made.at_work = lambda: None
    made.done = done
    monkeypatch.setattr(made, "_train", train)
    return made


def attempts(rank):
    return [len(rank.folder.attempts(run.run_id)) for run in rank.runs]


def test_a_job_that_is_left_in_peace_tries_run_after_run(rank):
    assert rank.all_runs() == ["failed", "failed"] and attempts(rank) == [1, 1]


def test_after_a_signal_the_next_run_is_not_begun(rank, capsys):
    before = signal.getsignal(signal.SIGUSR1)
    rank.leaving.catch_signals((signal.SIGUSR1,))
    rank.at_work = lambda: os.kill(os.getpid(), signal.SIGUSR1)
    try:
        assert rank.all_runs() == ["failed", "interrupted"]
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert attempts(rank) == [1, 0] and rank.done == [rank.runs[0].run_id]
    assert f"run {rank.runs[1].run_id}: not begun: signal SIGUSR1" in capsys.readouterr().out


def test_a_job_whose_run_another_one_has_taken_begins_no_other(rank):
    def taken():
        begin_attempt(rank.folder, rank.runs[0], layout=rank.runs[0].layout, log="", meta={})
        rank.leaving._next_look_s = 0.0  # it looks again

    rank.at_work = taken
    assert rank.all_runs() == ["failed", "superseded"] and attempts(rank) == [2, 0]


@pytest.mark.parametrize(("ran_before", "tried"), [(True, 0), (False, 1)])
def test_a_limit_that_is_over_before_the_first_run_is_told_by_an_attempt(rank, ran_before, tried):
    rank.runs = rank.runs[:1]
    rank.begun = ran_before
    rank.leaving.reason = "the job's time limit is near"
    rank.all_runs()
    assert attempts(rank) == [tried]
