"""Several at once: two campaigns of one user, two commands on one campaign, two users.

The elements train nothing (`standin.py`); the commands, the scripts and the scheduler are real.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from standin import Standin, limit_submitted

# What the user may have in the queue is limited.
pytestmark = pytest.mark.alone

# Somebody else on the cluster, who may read what everybody may read.
OTHER = "nobody"
BUSY = "is in use by"


def ended(process, *, timeout=600):
    """Status, standard output and standard error of a command that was started."""
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def submitted(campaign):
    """How many jobs cover each element."""
    plan = {a["name"]: len(a["elements"]) for a in campaign.planned["arrays"]}
    times = Counter({(name, i): 0 for name, count in plan.items() for i in range(count)})
    for name, entries in campaign.jobs.items():
        for entry in entries:
            for part in (entry["elements"] or "").split(","):
                first, _, last = part.partition("-")
                times.update(
                    (name, i) for i in range(int(first or 0), int(last or first or -1) + 1)
                )
    return times


def test_two_campaigns_share_what_one_user_may_have_in_the_queue(login):
    """Neither knows of the other, nor of the limit: each is refused now and then and goes on."""
    pair = [Standin(login, name, limits="array_size: 20") for name in ("left", "right")]
    for campaign in pair:
        campaign.plan("--runs", "60")
    limit_submitted(50)
    try:
        running = [c.start("run", c.file, "--runs", 60, "--out", c.name, "--yes") for c in pair]
        told = [ended(process) for process in running]
    finally:
        limit_submitted(None)
    for campaign, (status, _, err) in zip(pair, told, strict=True):
        assert status == 0, err
        campaign.assert_each_ran_once()
        assert campaign.status()["counts"] == {"completed": len(campaign.run_ids)}
        assert (campaign.folder / "results" / "fit.json").is_file()
    jobs = [set(campaign.job_ids) for campaign in pair]
    assert not jobs[0] & jobs[1]


def test_submitting_at_the_same_moment_submits_once(login):
    campaign = Standin(login, "same", limits="array_size: 10")
    campaign.plan("--runs", "40")
    told = [ended(p) for p in [campaign.start("submit", "same", "--no-finish") for _ in range(6)]]
    assert set(submitted(campaign).values()) == {1}
    assert sum(status == 0 for status, _, _ in told) >= 1
    for status, _, err in told:
        assert status == 0 or (status == 1 and BUSY in err), err
    login.llem("wait", "same", "--timeout", "600s")
    campaign.assert_each_ran_once()


def test_two_of_the_same_run_command_share_the_work(login):
    campaign = Standin(login, "double", limits="array_size: 10, submit: 25")
    words = ("run", campaign.file, "--runs", 60, "--out", "double", "--yes")
    told = [ended(p) for p in [campaign.start(*words) for _ in range(2)]]
    assert all(status == 0 for status, _, _ in told), told
    campaign.assert_each_ran_once()
    assert campaign.status()["counts"] == {"completed": len(campaign.run_ids)}


def test_cancelling_ends_a_wait_and_resubmitting_loses_nothing(login):
    campaign = Standin(login, "stopped", limits="array_size: 20, throttle: 4", pause_s=0.5)
    campaign.plan("--runs", "40")
    campaign.hold(12)
    login.llem("submit", "stopped", "--no-finish")
    waiting = campaign.start("wait", "stopped", "--timeout", "600s")
    # More than may be at work at a time: some have ended.
    campaign.until(16, waiting)
    login.llem("cancel", "stopped")
    status, _, err = ended(waiting)
    assert status == 1 and "not over" not in err, err
    finished = {path.parent.parent.name for path in campaign.folder.glob("runs/*/*/end.json")}
    assert 0 < len(finished) < len(campaign.run_ids)
    campaign.let_go()
    # What was never started is submitted again beside somebody who looks on.
    watching = campaign.start("status", "stopped", "--watch", 2)
    login.llem("resubmit", "stopped", "--no-finish")
    login.llem("wait", "stopped", "--timeout", "600s")
    status, out, err = ended(watching)
    assert status == 0, (out, err)
    times = Counter(run for run, *_ in campaign.ran)
    assert set(times) == set(campaign.run_ids)
    assert all(times[run] == 1 for run in finished)
    assert campaign.status()["counts"] == {"completed": len(campaign.run_ids)}


def test_cancelling_ends_a_run_that_had_more_to_submit(login):
    campaign = Standin(login, "halted", limits="array_size: 10, submit: 15", pause_s=0.5)
    words = ("run", campaign.file, "--runs", 40, "--out", "halted", "--yes")
    campaign.plan("--runs", "40")
    campaign.hold(10)
    running = campaign.start(*words)
    campaign.until(12, running)
    login.llem("cancel", "halted")
    status, _, err = ended(running)
    assert status == 1 and "Traceback" not in err, err
    began = len(campaign.ran)
    assert began < len(campaign.run_ids)
    finished = {path.parent.parent.name for path in campaign.folder.glob("runs/*/*/end.json")}
    campaign.let_go()
    # Called anew it takes up what is left, except that what was cancelled is for `llem resubmit`.
    login.llem("resubmit", "halted", "--no-finish")
    login.llem(*words)
    times = Counter(run for run, *_ in campaign.ran)
    assert set(times) == set(campaign.run_ids)
    assert all(times[run] == 1 for run in finished)


@pytest.fixture(scope="module")
def seen(login):
    """A campaign at work while somebody else calls every command on it; what each answered."""
    campaign = Standin(login, "seen", limits="array_size: 20, throttle: 4", pause_s=0.5)
    campaign.plan("--runs", "40")
    campaign.hold(8)
    login.llem("submit", "seen", "--no-finish")
    campaign.until(4)

    def other(*words):
        command = ["runuser", "-u", OTHER, "--", login.program, *map(str, words)]
        return subprocess.run(command, cwd="/", env={"PATH": os.environ["PATH"], "HOME": "/"},
                              stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              timeout=120, check=False)  # fmt: skip

    during = {
        words[0]: other(*words)
        for words in [
            ("status", campaign.folder, "--json"), ("cancel", campaign.folder),
            ("submit", campaign.folder), ("resubmit", campaign.folder),
            ("run", campaign.file, "--out", campaign.folder, "--runs", 40, "--yes"),
            ("aggregate", campaign.folder), ("logs", campaign.folder, campaign.run_ids[0]),
            ("plan", "--refine", campaign.folder),
        ]
    }  # fmt: skip
    campaign.let_go()
    login.llem("wait", "seen", "--timeout", "600s")
    login.llem("finish", "seen")
    after = {
        words[0]: other(*words)
        for words in [
            ("status", campaign.folder, "--json"), ("fit", campaign.folder),
            ("report", campaign.folder), ("finish", campaign.folder),
        ]
    }  # fmt: skip
    return campaign, during, after


def test_another_user_sees_the_state_and_the_logs(seen):
    campaign, during, after = seen
    for told in (during["status"], after["status"]):
        assert told.returncode == 0, told.stderr
        found = json.loads(told.stdout)
        assert sum(found["counts"].values()) == len(campaign.run_ids)
    assert found["counts"] == {"completed": len(campaign.run_ids)}
    assert during["logs"].returncode in (0, 1) and "Traceback" not in during["logs"].stderr


@pytest.mark.parametrize("command", ["cancel", "submit", "resubmit", "run", "aggregate", "plan"])
def test_another_user_is_refused_in_a_word(seen, command):
    _, during, _ = seen
    told = during[command]
    assert told.returncode in (1, 2), told.stdout
    assert "Traceback" not in told.stderr
    assert "another user" in told.stderr or "ermission" in told.stderr, told.stderr


@pytest.mark.parametrize("command", ["fit", "report", "finish"])
def test_another_user_writes_no_results(seen, command):
    _, _, after = seen
    told = after[command]
    assert told.returncode in (1, 2) and "Traceback" not in told.stderr, told.stderr
    assert "another user" in told.stderr or "ermission" in told.stderr, told.stderr


def test_another_user_disturbs_nothing(seen, login):
    campaign, _, _ = seen
    campaign.assert_each_ran_once()
    assert set(submitted(campaign).values()) == {1}
    owner = campaign.folder.stat().st_uid
    assert {path.stat().st_uid for path in campaign.folder.rglob("*")} == {owner}
    assert not (campaign.folder / "jobs" / "stop").exists()


def test_a_command_that_finds_the_campaign_held_says_by_whom(login):
    campaign = Standin(login, "grasped", limits="array_size: 1")
    campaign.plan("--runs", "40")
    first = campaign.start("submit", "grasped", "--no-finish")
    while not campaign.jobs:
        assert first.poll() is None
        time.sleep(0.05)
    # It stands still meanwhile, or it might be over before the second one has begun.
    first.send_signal(signal.SIGSTOP)
    told = login.llem("submit", "grasped", "--no-finish", check=False)
    first.send_signal(signal.SIGCONT)
    assert told.returncode == 1 and BUSY in told.stderr
    assert f"process {first.pid}" in told.stderr
    assert ended(first)[0] == 0
    login.llem("wait", "grasped", "--timeout", "600s")
    campaign.assert_each_ran_once()
