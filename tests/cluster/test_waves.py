"""Waves on the real scheduler: `llem run` to its law, killed in either wave, and as a job itself.

The elements train nothing (`standin.py`), with losses of a published law that depend on the run
alone, so that equal plans give equal laws to the bit.
"""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from standin import Standin

RUNS = 24
WAVES = "waves: 2\n"
# Signal by signal, and whether the first wave is at work or the second.
CUTS = [(name, wave) for name in ("SIGINT", "SIGKILL") for wave in (1, 2)]


def words(campaign):
    return ("run", campaign.file, "--runs", RUNS, "--out", campaign.name, "--yes")


def waves_of(campaign):
    """How many runs each wave of the plan has."""
    return [wave["runs"] for wave in campaign.planned["waves"]]


def law_of(campaign):
    return json.loads((campaign.folder / "results" / "fit.json").read_text())


def until(ready, process, *, timeout_s=600):
    deadline = time.monotonic() + timeout_s
    while not ready():
        assert time.monotonic() < deadline
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.1)


@pytest.fixture(scope="module")
def undisturbed(login):
    campaign = Standin(login, "waves", limits="array_size: 8", extra=WAVES)
    login.llem(*words(campaign))
    return campaign


def test_one_command_goes_through_both_waves(undisturbed):
    campaign = undisturbed
    assert len(waves_of(campaign)) == 2
    campaign.assert_each_ran_once()
    law = law_of(campaign)
    assert law["n_runs"] == len(campaign.run_ids) == sum(waves_of(campaign))
    assert (campaign.folder / "results" / "report.html").is_file()


@pytest.mark.parametrize(("name", "wave"), CUTS)
def test_the_same_call_goes_on_where_it_was_cut_off(login, undisturbed, name, wave):
    campaign = Standin(
        login, f"cut-{name.lower()}-{wave}", limits="array_size: 8", extra=WAVES, pause_s=0.4
    )
    process = campaign.start(*words(campaign))
    plan = campaign.folder / "plan.json"
    until(lambda: plan.exists() and len(waves_of(campaign)) == wave, process)
    before = 0 if wave == 1 else waves_of(campaign)[0]
    campaign.hold(before + 4)
    until(lambda: len(campaign.ran) > before, process)
    process.send_signal(getattr(signal, name))
    process.communicate(timeout=300)
    campaign.let_go()
    assert process.returncode == (130 if name == "SIGINT" else -signal.SIGKILL)
    done = login.llem(*words(campaign))
    assert "Traceback" not in done.stderr
    campaign.assert_each_ran_once()
    assert campaign.planned["runs"][: waves_of(campaign)[0]]
    assert law_of(campaign)["n_runs"] == len(campaign.run_ids)
    # The first waves are one plan; the second rests on how long elements took, too.
    first = [c.run_ids[: waves_of(c)[0]] for c in (campaign, undisturbed)]
    assert first[0] == first[1]


def test_a_wave_planned_by_hand_is_submitted_beside_what_was(login):
    campaign = Standin(login, "byhand", limits="array_size: 8")
    campaign.plan("--runs", "16")
    login.llem("submit", "byhand")
    login.llem("wait", "byhand", "--timeout", "600s")
    first = campaign.job_ids
    began = [run for run, *_ in campaign.ran]
    login.llem("plan", "--refine", "byhand", "--budget", "3e15FLOP", "--runs", "12")
    login.llem("submit", "byhand")
    jobs = campaign.jobs
    assert [j for j in campaign.job_ids if j in first] == first
    # The job that fits comes after every job of every wave.
    finish = jobs["finish"][-1]["job_id"]
    asked = ["sacct", "-n", "-X", "-j", finish, "-o", "SubmitLine%-2000"]
    line = ""
    for _ in range(30):
        line = login.run(*asked).stdout
        if "afterany" in line:
            break
        time.sleep(1)
    arrays = [e["job_id"] for name, entries in jobs.items() if name != "finish" for e in entries]
    told = line.split("afterany:")[1].split()[0].strip("'\"").split(":")
    assert set(told) == set(arrays)
    login.llem("wait", "byhand", "--timeout", "600s")
    campaign.assert_each_ran_once()
    assert [run for run, *_ in campaign.ran][: len(began)] == began
    assert len(campaign.run_ids) > 16


def test_llem_run_is_itself_a_job_that_may_be_requeued(login):
    """As on a cluster that lets nothing live on its login nodes."""
    campaign = Standin(login, "asjob", limits="array_size: 8", extra=WAVES, pause_s=0.4)
    command = " ".join(map(str, (login.program, *words(campaign))))
    job = login.run(
        "sbatch", "--parsable", "--partition=many", "--requeue", "--mem-per-cpu=100M",
        "--cpus-per-task=2", "--ntasks=1", "--output=asjob-%j.log", "--open-mode=append",
        f"--wrap={command}",
    ).stdout.strip()  # fmt: skip
    until((campaign.folder / "plan.json").exists, None)
    campaign.hold(4)
    until(lambda: len(campaign.ran) >= 2, None)
    login.run("scontrol", "requeue", job)
    campaign.let_go()

    def over():
        asked = ["squeue", "--noheader", "--jobs", job, "--format", "%T"]
        told = subprocess.run(asked, capture_output=True, text=True, check=False)
        return "Invalid job id" in told.stderr or not told.stdout.strip()

    until(over, None)
    log = (login.home / f"asjob-{job}.log").read_text()
    assert "Traceback" not in log, log
    campaign.assert_each_ran_once()
    assert len(waves_of(campaign)) == 2, log
    assert law_of(campaign)["n_runs"] == len(campaign.run_ids)
