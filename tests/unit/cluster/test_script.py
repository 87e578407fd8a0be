"""An element's script, run by bash with stand-ins for srun and scontrol."""

import os
import signal
import subprocess
import time

import pytest

from llem.cluster.render import TRIES, render_array

from .conftest import CLUSTER

# srun plays the next line of `ranks`; $SAID is rank 0's file there, $ASKED the script's flag.
SRUN = """#!/bin/bash
case "$*" in *--sampler*) exec sleep 60 ;; esac
echo x >> starts
line=$(sed -n "$(wc -l < starts)p" ranks)
SAID=$LLEM_LEAVE_FILE.said ASKED=$LLEM_LEAVE_FILE
eval "$line"
"""
SCONTROL = """#!/bin/bash
echo "$*" >> calls
[ "$1" = show ] && cat job
exit 0
"""
SCANCEL = """#!/bin/bash
echo "cancel $*" >> calls
"""
# As with the last element of an array, whose own number is the array's.
JOB = "JobId=7 ArrayJobId=7 ArrayTaskId=2 JobState={state} Reason=None Restarts={restarts} x=\n"
SCRIPT = ["bash", "array.sbatch"]


@pytest.fixture
def script(make, tmp_path):
    """Start the script in a campaign folder; `ranks` says how the ranks end, try by try."""
    bare = {k: v for k, v in CLUSTER.items() if k not in ("container", "modules")}
    plan = make(site={**bare, "overlap": False})
    (tmp_path / "array.sbatch").write_text(render_array(plan, plan.arrays[0]))
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "scancel": SCANCEL}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)

    def start(*ranks, state="RUNNING", restarts=0, restarts_told=None, words=SCRIPT):
        told = restarts if restarts_told is None else restarts_told
        (tmp_path / "job").write_text(JOB.format(state=state, restarts=told))
        (tmp_path / "ranks").write_text("\n".join(ranks) + "\n")
        environ = {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "7", "HOME": str(tmp_path),
                   "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2",
                   "PATH": f"{programs}:/usr/bin:/bin",
                   **({"SLURM_RESTART_COUNT": str(restarts)} if restarts else {})}  # fmt: skip
        return subprocess.Popen(words, cwd=tmp_path, env=environ, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip

    def run(*ranks, **values):
        process = start(*ranks, **values)
        output, _ = process.communicate(timeout=60)
        starts = len((tmp_path / "starts").read_text().splitlines())
        calls = (tmp_path / "calls").read_text() if (tmp_path / "calls").exists() else ""
        assert not [p for p in (tmp_path / "jobs" / "leave").iterdir() if "other" not in p.name]
        return process.returncode, starts, "requeue 7_2\n" in calls, output

    run.start, run.folder = start, tmp_path
    return run


INTERRUPTED = 'echo interrupted > "$SAID"; exit 75'
KILLED = 'echo started > "$SAID"; exit 137'
AGAIN = 'echo again > "$SAID"; exit 1'
DONE = "exit 0"


def test_ranks_that_complete_end_the_job_and_nothing_is_asked_of_the_scheduler(script):
    status, starts, requeued, output = script(DONE)
    assert (status, starts, requeued) == (0, 1, False), output
    assert not (script.folder / "calls").exists()


def test_ranks_that_left_with_a_checkpoint_are_requeued(script):
    status, starts, requeued, output = script(INTERRUPTED)
    assert (status, starts, requeued) == (75, 1, True), output


def test_whoever_cancels_the_campaign_gets_no_requeued_job(script):
    (script.folder / "jobs").mkdir()
    (script.folder / "jobs" / "stop").touch()
    assert script(INTERRUPTED)[1:3] == (1, False)


@pytest.mark.parametrize("state", ["CANCELLED", "COMPLETING", "TIMEOUT", "PREEMPTED", "PENDING"])
def test_a_job_that_the_scheduler_is_done_with_is_neither_requeued_nor_started_again(script, state):
    assert script(INTERRUPTED, state=state)[1:3] == (1, False)


def test_a_script_whose_job_was_started_anew_elsewhere_leaves_that_one_alone(script):
    """Its node was given up for dead: the job's number is by now another execution's."""
    assert script(INTERRUPTED, restarts=1, restarts_told=2)[1:3] == (1, False)
    assert script(KILLED, DONE, restarts=1, restarts_told=2)[1:3] == (2, False)


def test_a_script_that_nothing_watches_any_more_lets_go_of_its_nodes(script):
    """slurmstepd was killed: nobody would hear that the script ended."""
    watched = "bash array.sbatch & until [ -e starts ]; do sleep .02; done; kill -9 $$"
    watcher = script.start("until [ -e go ]; do sleep .02; done", words=["bash", "-c", watched])
    assert watcher.wait(60) == -signal.SIGKILL
    (script.folder / "go").touch()
    watcher.communicate(timeout=60)
    calls = script.folder / "calls"
    deadline = time.monotonic() + 30
    while not calls.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert calls.read_text() == "cancel 7_2\n"


def test_what_a_killed_execution_of_the_job_left_is_tidied_up(script):
    leave = script.folder / "jobs" / "leave"
    leave.mkdir(parents=True)
    for name in ("7-0", "7-0.said", "7-0-0.failed", "70-0.other"):
        (leave / name).touch()
    assert script(DONE, restarts=1)[0] == 0
    assert [path.name for path in leave.iterdir()] == ["70-0.other"]


def test_an_element_that_was_requeued_too_often_is_left_to_a_person(script):
    assert script(INTERRUPTED, restarts=99)[2]
    (script.folder / "calls").unlink()
    (script.folder / "starts").unlink()
    assert script(INTERRUPTED, restarts=100)[:3] == (75, 1, False)


def test_ranks_that_were_killed_or_may_try_again_are_started_again_in_the_same_job(script):
    status, starts, requeued, output = script(KILLED, AGAIN, DONE)
    assert (status, starts, requeued) == (0, 3, False), output


def test_ranks_are_not_started_for_ever(script):
    assert script(*[KILLED] * (TRIES + 5))[:2] == (137, TRIES)


@pytest.mark.parametrize("ranks", ['echo failed > "$SAID"; exit 1', "exit 255"])
def test_ranks_that_gave_up_or_never_started_end_the_job_as_failed(script, ranks):
    status, starts, requeued, _ = script(ranks)
    assert status in (1, 255)
    assert (starts, requeued) == (1, False)


def test_ranks_that_died_of_the_signal_that_asked_them_to_leave_are_requeued(script):
    status, starts, requeued, output = script(
        'echo started > "$SAID"; echo TERM > "$ASKED"; exit 135'
    )
    assert (status, starts, requeued) == (75, 1, True), output


@pytest.mark.parametrize("name", ["USR1", "TERM"])
def test_a_signal_to_the_script_becomes_a_flag_for_the_ranks_who_then_leave(script, name):
    process = script.start(
        'echo started > "$SAID"; until [ -e "$ASKED" ]; do sleep .05; done; '
        'cp "$ASKED" seen; echo interrupted > "$SAID"; exit 75'
    )
    deadline = time.monotonic() + 30
    while not (script.folder / "jobs" / "leave" / "7-0.said").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, getattr(signal, f"SIG{name}"))
    output, _ = process.communicate(timeout=30)
    assert (script.folder / "seen").read_text() == f"{name}\n"
    assert process.returncode == 75, output
    assert "requeue 7" in (script.folder / "calls").read_text()
