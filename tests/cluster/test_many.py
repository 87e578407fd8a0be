"""More elements than a user may have in the queue, through arrays that the scheduler cuts short.

240 of them with a limit of 100 take half a minute; `LLEM_MANY=5000` takes MaxArraySize 1001 as it
is and a limit of 2000, for two minutes.
"""

import os
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from standin import Counted, Standin, limit_submitted, timed

# What the user may have in the queue is limited.
pytestmark = pytest.mark.alone

MANY = int(os.environ.get("LLEM_MANY") or 240)
ARRAY_SIZE, SUBMIT = (1001, 2000) if MANY >= 5000 else (MANY // 4, MANY * 5 // 12)
# A poll follows another by this much at least.
POLL_S = 1.0


@pytest.fixture(scope="module")
def limited(login):
    """The scheduler itself refuses what goes beyond."""
    limit_submitted(SUBMIT)
    yield SUBMIT
    limit_submitted(None)


@pytest.fixture(scope="module")
def ran(login, limited):
    """The campaign at its end, with the calls that one `llem run` made of the scheduler."""
    campaign = Standin(login, "many", limits=f"array_size: {ARRAY_SIZE}, submit: {SUBMIT}")
    campaign.plan("--runs", str(MANY))
    counted = Counted(login, "many")
    process = campaign.start("run", campaign.file, "--runs", MANY, "--out", campaign.name, "--yes",
                             path=counted.path)  # fmt: skip
    statuses = []
    for share in (0.05, 0.3, 0.6, 0.9):
        campaign.until(int(share * MANY), process, timeout_s=2 * MANY + 60)
        statuses.append(timed(login, "status", campaign.name))
    out, err = process.communicate(timeout=600)
    statuses += [timed(login, "status", campaign.name) for _ in range(2)]
    return {"campaign": campaign, "calls": counted.calls, "statuses": statuses, "out": out,
            "err": err, "status": process.returncode}  # fmt: skip


def test_the_scheduler_refuses_more_elements_than_the_limit(login, limited):
    """What the others rest on: the limit is the scheduler's, not only our word for it."""
    script = "#!/bin/sh\n"
    words = ["sbatch", "--hold", "--partition=many", f"--array=0-{min(limited, 1000)}"]
    path = login.write("nothing.sh", script)
    made = []
    try:
        for _ in range(1 + limited // 1001):
            done = login.run(*words, "--parsable", path, check=False)
            made.append(done.stdout.strip())
            if done.returncode:
                break
        assert "AssocMaxSubmitJobLimit" in done.stderr
    finally:
        subprocess.run(["scancel", *filter(None, made)], check=False)


def test_every_element_runs_exactly_once(ran):
    campaign = ran["campaign"]
    assert ran["status"] == 0, ran["err"]
    assert len(campaign.run_ids) == MANY
    campaign.assert_each_ran_once()
    assert campaign.status()["counts"] == {"completed": MANY}


def test_more_was_submitted_whenever_there_was_room(ran):
    elements = Counter()
    for name, entries in ran["campaign"].jobs.items():
        elements[name] = sum(_count(entry["elements"]) for entry in entries)
    planned = {a["name"]: len(a["elements"]) for a in ran["campaign"].planned["arrays"]}
    assert elements == planned and len(planned) >= 4
    assert all(size <= ARRAY_SIZE for size in planned.values())
    # as few rounds as halves of the limit take, and no sbatch that was refused
    sbatch = [call for call in ran["calls"] if call[1] == "sbatch"]
    assert len(sbatch) == sum(map(len, ran["campaign"].jobs.values()))
    assert len(sbatch) <= len(planned) + 2 * MANY // SUBMIT + 2


def test_a_poll_asks_the_scheduler_once(ran):
    """No question within a second of another, but for what follows a submission."""
    calls = [c for c in ran["calls"] if c[1] != "sbatch"]
    assert {program for _, program, _ in calls} <= {"squeue", "sacct"}
    submitted = [seconds for seconds, program, _ in ran["calls"] if program == "sbatch"]
    asked = [seconds for seconds, program, _ in calls if program == "squeue"]
    close = [
        (before, after)
        for before, after in pairwise(asked)
        if after - before < POLL_S and not any(before < s < after for s in submitted)
    ]
    assert not close
    # what ended with a record of its own is no business of accounting
    assert len(calls) - len(asked) <= 1


def test_status_is_told_within_a_second(ran, capsys):
    """Processor seconds of the process; wall seconds and load are for whoever reads."""
    figures = [(round(wall, 2), round(cpu, 2)) for wall, cpu, _ in ran["statuses"]]
    with capsys.disabled():
        print(f"\n{MANY} elements: llem status, (wall, processor) seconds {figures}, "
              f"load {os.getloadavg()[0]:.1f}")  # fmt: skip
    assert max(cpu for _, cpu in figures) < 1.0, figures


def test_a_limit_that_nobody_told_of_is_found_by_trying(login, limited):
    count = SUBMIT + SUBMIT // 5 if MANY < 5000 else 0
    if not count:
        pytest.skip("the small campaign shows it")
    campaign = Standin(login, "untold", pause_s=0, limits=f"array_size: {ARRAY_SIZE}")
    campaign.plan("--runs", str(count))
    login.llem("run", campaign.file, "--runs", count, "--out", campaign.name, "--yes")
    campaign.assert_each_ran_once()


def _count(indices):
    spans = [part.split("-") for part in indices.split(",")]
    return sum(int(span[-1]) - int(span[0]) + 1 for span in spans)
