"""What attempts leave for the ones after them, and when a rank has to leave."""

import json

import pytest

from llem.cluster import CampaignFolder
from llem.cluster.disk.attempts import (
    begin_attempt,
    count_anew,
    counts_since_ns,
    read_endings,
    write_end,
)
from llem.cluster.job.leaving import FLAG, Leaving
from llem.cluster.scheduler.retry import GiveUp, Go, next_try


@pytest.fixture
def planned(make, tmp_path):
    plan = make()
    folder = CampaignFolder(tmp_path)
    return folder, plan.runs[0]


def begin(folder, run, **meta):
    return begin_attempt(folder, run, layout=run.layout, log="jobs/logs/a.log", meta=meta)


def test_an_ended_attempt_tells_cause_layout_and_steps(planned):
    folder, run = planned
    attempt = begin(folder, run)
    values = {"status": "interrupted", "cause": "time-limit", "reason": "near", "start_step": 3,
              "checkpoint": "/x/step-000000009"}  # fmt: skip
    assert write_end(attempt, run, values)
    assert not write_end(attempt, run, {"status": "completed"})
    (ending,) = read_endings(folder, run)
    assert (ending.cause, ending.layout) == ("time-limit", run.layout)
    assert (ending.start_step, ending.saved_step, ending.given_up) == (3, 9, "")


def test_a_killed_attempt_is_explained_by_its_own_part_of_the_log(planned):
    folder, run = planned
    log = folder.root / "jobs" / "logs" / "a.log"
    log.parent.mkdir(parents=True)
    log.write_text("an earlier job: oom_kill\n")
    for line in ("nothing of note\n", "slurmstepd: error: Detected 1 oom_kill event\n", "rest\n"):
        begin(folder, run)
        with open(log, "a") as file:
            file.write(line)
    assert [e.cause for e in read_endings(folder, run)] == ["killed", "out-of-memory", "killed"]


def test_survivors_of_a_killed_rank_do_not_hide_why_it_was_killed(planned):
    folder, run = planned
    log = folder.root / "jobs" / "logs" / "a.log"
    log.parent.mkdir(parents=True)
    attempt = begin(folder, run)
    log.write_text("slurmstepd: error: Job 12 exceeded memory limit (9 > 1), being killed\n")
    write_end(attempt, run, {"status": "failed", "cause": "killed", "reason": "closed by peer"})
    (ending,) = read_endings(folder, run)
    assert ending.cause == "out-of-memory"
    assert next_try(run, [ending]).layout != run.layout


def test_how_far_a_killed_attempt_came_is_seen_in_its_checkpoints(planned):
    folder, run = planned
    begin(folder, run)
    for step in (4, 8):
        path = folder.checkpoints(run.run_id) / f"step-{step:09d}"
        path.mkdir(parents=True)
    (path.with_name("step-000000004") / "complete.json").touch()
    (ending,) = read_endings(folder, run)
    assert ending.saved_step == 4


def test_a_run_that_was_given_up_is_tried_again_when_a_user_asks_for_it(planned):
    folder, run = planned
    for _ in range(2):
        write_end(begin(folder, run), run, {"status": "failed", "cause": "exception"})

    def chosen():
        return next_try(run, read_endings(folder, run), since_ns=counts_since_ns(folder))

    assert isinstance(chosen(), GiveUp)
    count_anew(folder)
    assert isinstance(chosen(), Go)


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def leaving(tmp_path):
    folder = CampaignFolder(tmp_path)
    folder.leave.mkdir(parents=True)
    flag = folder.leave / "7-0"
    clock = Clock()
    environ = {"SLURM_JOB_ID": "7", "LLEM_LEAVE_AT": "2000", FLAG: str(flag)}
    leaving = Leaving(folder, environ=environ, now_s=clock)
    leaving.looks = True
    return leaving, folder, flag, clock


def test_nothing_asks_a_rank_to_leave_until_its_time_is_near(leaving):
    leaving, _, _, clock = leaving
    assert leaving.why() is None
    clock.now = 2000.0
    assert leaving.why() == "the job's time limit is near"


@pytest.mark.parametrize(
    ("word", "reason"), [("USR1", "the job's time limit is near"), ("TERM", "signal TERM")]
)
def test_the_scripts_flag_is_seen_half_a_second_later_at_most(leaving, word, reason):
    leaving, _, flag, clock = leaving
    assert leaving.why() is None
    flag.write_text(f"{word}\n")
    clock.now += 0.4
    assert leaving.why() is None
    clock.now += 0.2
    assert leaving.why() == reason


def test_cancelling_the_campaign_asks_its_ranks_to_leave(leaving):
    leaving, folder, _, _ = leaving
    folder.stop_file.touch()
    assert leaving.why() == "asked to stop (jobs/stop)"


def test_a_rank_leaves_when_a_later_attempt_has_begun(leaving):
    leaving, *_ = leaving
    leaving.later = lambda: True
    assert leaving.why() == "a later attempt at this run has begun"


def test_the_script_is_told_how_the_ranks_left(leaving):
    leaving, folder, *_ = leaving
    leaving.say("started")
    leaving.say("interrupted")
    assert (folder.leave / "7-0.said").read_text() == "interrupted\n"


def test_an_end_record_is_whole_json(planned):
    folder, run = planned
    attempt = begin(folder, run)
    write_end(attempt, run, {"status": "failed", "loss": float("nan")})
    values = json.loads((attempt / "end.json").read_text())
    assert values["loss"] is None and values["schema"] == "llem-end-1"
