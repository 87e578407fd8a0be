"""Submitting, with a stand-in sbatch that answers job ids and notes how it was called."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llem.cluster import CampaignFolder, Ledger, render_files, submit
from llem.cluster.scheduler.facts import parse_indices
from llem.cluster.state.state import folder_is_held
from llem.cluster.submit import cancel, resubmit, submit_and_wait
from llem.errors import ClusterError, LlemError

MANY = {"budget": "1e13", "grid": {"levels": 3, "sizes": 5, "runs": 40}}
LONG = {"budget": "1e17", "layout": None, "grid": {"levels": 2, "sizes": 2}}


# Of a submission that was cut off before sbatch was called.
INTENT = """\
{"name": "a", "job_name": "x", "mark": "0", "submitted_ns": 1, "plan": "", "elements": "0",
 "segment": 0, "round": 0}
"""


def written(plan, root):
    folder = CampaignFolder(root)
    folder.write_plan(plan, {folder.jobs / n: t for n, t in render_files(plan).items()})
    return folder, plan


@pytest.fixture
def planned(make, tmp_path):
    return written(make(**LONG), tmp_path / "c")


def covered(folder, name):
    """Every index that a job of the array covers, as often as one does."""
    return sorted(i for job in Ledger.read(folder).of(name) for i in job.elements)


def test_a_long_run_is_a_chain_of_jobs_each_after_the_one_before(planned, sbatch):
    folder, plan = planned
    chained = [a for a in plan.arrays if a.segments > 1]
    assert chained
    submit(folder, plan, finish=False)
    calls = sbatch()
    assert len(calls) == sum(a.segments for a in plan.arrays)
    for array in plan.arrays:
        numbers = [i for i, c in enumerate(calls, 1) if c[-1] == f"jobs/{array.name}.sbatch"]
        waits = [[w for w in calls[i - 1] if "dependency" in w] for i in numbers]
        assert waits == [[], *([f"--dependency=afterany:{i}"] for i in numbers[:-1])]
    before = len(sbatch())
    submit(folder, plan, finish=False)
    assert len(sbatch()) == before


def test_a_chain_that_was_cut_off_while_it_was_submitted_goes_on_where_it_ended(planned, sbatch):
    import json

    folder, plan = planned
    submit(folder, plan, finish=False)
    name = next(a.name for a in plan.arrays if a.segments > 1)
    jobs = json.loads(folder.submitted_file.read_text())
    kept = jobs[name] = jobs[name][:1]
    folder.submitted_file.write_text(json.dumps(jobs))
    before = len(sbatch())
    submit(folder, plan, finish=False)
    assert f"--dependency=afterany:{kept[0]['job_id']}" in sbatch()[before]


def submit_and_die(folder):
    """`submit` in a process of its own, which the stand-in sbatch kills."""
    code = (
        "import sys; from llem.cluster import CampaignFolder, submit;"
        "f = CampaignFolder(__import__('pathlib').Path(sys.argv[1])); submit(f, f.load_plan())"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(folder.root)], check=False)
    assert killed.returncode == -signal.SIGKILL


def let_go(folder):
    """Wait for an sbatch that outlives its caller and holds the campaign until it ends."""
    deadline = time.monotonic() + 30
    while folder_is_held(folder):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_killed_while_sbatch_is_still_at_work_nobody_else_submits(planned, sbatch):
    """A busy controller answers after a minute; by then the job is there."""
    folder, plan = planned
    sbatch.set("orphan")
    submit_and_die(folder)
    with pytest.raises(LlemError, match="in use"):
        submit(folder, plan)
    sbatch.set("go")
    let_go(folder)
    done = submit(folder, plan)
    assert len(sbatch()) == sum(a.segments for a in plan.arrays) + 1
    assert "1" in [job.job_id for job in done.before]


@pytest.mark.parametrize("forgotten", [False, True])
def test_killed_between_sbatch_and_its_line_on_disk_it_submits_once(planned, sbatch, forgotten):
    folder, plan = planned
    sbatch.set("die")
    submit_and_die(folder)
    let_go(folder)
    assert len(sbatch()) == 1
    assert not Ledger.read(folder).jobs
    if forgotten:
        # The scheduler knows nothing of it any more, but it has run and left a log.
        sbatch.unset("comments")
        (folder.logs / f"llem-small-{plan.arrays[0].name}-1_0.log").touch()
    done = submit(folder, plan)
    assert [job.job_id for job in Ledger.read(folder).jobs if job.job_id == "1"]
    assert len(sbatch()) == sum(a.segments for a in plan.arrays) + 1
    assert not submit(folder, plan).new
    assert "1" in [job.job_id for job in done.before]


def test_killed_before_sbatch_it_submits_afterwards(planned, sbatch):
    folder, plan = planned
    submit(folder, plan, finish=False)
    count = len(sbatch())
    folder.submitted_file.unlink()
    sbatch.unset("calls")
    sbatch.unset("comments")
    (folder.jobs / "submitting.json").write_text(INTENT)
    submit(folder, plan, finish=False)
    assert len(sbatch()) == count


def test_nothing_is_submitted_while_nobody_can_tell_what_was(planned, sbatch):
    folder, plan = planned
    (folder.jobs / "submitting.json").write_text(INTENT)
    sbatch.set("down")
    with pytest.raises(ClusterError, match="Unable to contact"):
        submit(folder, plan)
    assert not sbatch()


@pytest.mark.parametrize("known", [True, False])
def test_what_finds_no_room_waits_and_the_same_call_submits_it_later(make, tmp_path, sbatch, known):
    """With the limit in the site, and with a scheduler that only refuses."""
    values = make().site.model_dump()
    limits = {"array_size": 8, "throttle": 2, **({"submit": 14} if known else {})}
    plan = make(**MANY, site={**values, "limits": {**values["limits"], **limits}})
    assert sum(len(a.elements) for a in plan.arrays) == 40
    folder, plan = written(plan, tmp_path / "c")
    sbatch.set("limit", 14)
    waiting = []
    for _ in range(8):
        done = submit(folder, plan)
        waiting.append(done.waiting)
        if not done.waiting:
            break
        assert done.reason
        assert "finish" not in [job.name for job in Ledger.read(folder).jobs]
        sbatch.set("held", 0)
    assert waiting == sorted(waiting, reverse=True) and waiting[0] >= 26
    for array in plan.arrays:
        assert covered(folder, array.name) == list(range(len(array.elements)))
    assert [job.name for job in Ledger.read(folder).jobs].count("finish") == 1
    asked = [w for c in sbatch() for w in c if w.startswith("--array=")]
    assert all(word.endswith("%2") for word in asked)
    assert all(len(parse_indices(w[8:])) <= 8 for w in asked)


def test_a_queue_that_other_jobs_fill_is_waited_for_from_the_first_element_on(planned, sbatch):
    folder, plan = planned
    sbatch.set("limit", 0)
    done = submit(folder, plan)
    assert done.new == () and done.waiting == sum(len(a.elements) * a.segments for a in plan.arrays)
    assert "accounting/QOS policy" in done.reason
    sbatch.set("limit", 1000)
    assert not submit(folder, plan).waiting


def test_a_refusal_for_any_other_reason_is_an_error(planned, sbatch):
    folder, plan = planned
    (sbatch.folder / "sbatch").write_text(
        "#!/bin/sh\necho 'Batch job submission failed: Invalid partition' >&2\nexit 1"
    )
    with pytest.raises(ClusterError, match="Invalid partition"):
        submit(folder, plan)
    assert not (folder.jobs / "submitting.json").exists()


def test_submitting_again_what_is_missing_begins_a_new_chain(planned, sbatch):
    folder, plan = planned
    submit(folder, plan, finish=False)
    before = len(sbatch())
    resubmit(folder, plan, finish=False)
    again = sbatch()[before:]
    assert len(again) == sum(a.segments for a in plan.arrays)
    first = {}
    for call in again:
        first.setdefault(call[-1], call)
    assert not any("dependency" in word for call in first.values() for word in call)


def test_what_a_job_needs_is_on_the_disk_before_it_is_submitted(planned, sbatch, monkeypatch):
    """`llem plan` does not wait for the disk: scripts and manifests are forced to it here."""
    folder, plan = planned
    forced = []
    fsync = os.fsync

    def noting(number):
        forced.append((Path(os.readlink(f"/proc/self/fd/{number}")).name, len(sbatch())))
        fsync(number)

    monkeypatch.setattr(os, "fsync", noting)
    submit(folder, plan)
    for position, call in enumerate(sbatch()):
        script = Path(call[-1])
        assert (script.name, position) in forced
        assert script.stem == "finish" or (f"{script.stem}.jsonl", position) in forced


def test_submitting_again_lets_the_next_failure_be_told(planned, sbatch):
    folder, plan = planned
    submit(folder, plan, finish=False)
    for event in ("failed", "budget"):
        folder.notified(event).touch()
    folder.stop_file.touch()
    resubmit(folder, plan, finish=False)
    assert not folder.notified("failed").exists() and not folder.stop_file.exists()
    # what is spent stays spent
    assert folder.notified("budget").exists()


def test_a_campaign_that_goes_on_asks_once_for_each_poll_and_submission(make, tmp_path, sbatch):
    """The last poll's answer is what the next submission goes by."""
    values = make().site.model_dump()
    plan = make(**MANY, site={**values, "limits": {**values["limits"], "submit": 14}})
    folder, plan = written(plan, tmp_path / "c")
    asked = []
    squeue = sbatch.folder / "squeue"
    squeue.write_text(f'#!/bin/sh\necho "$*" >> {tmp_path}/asked\n')
    submit_and_wait(folder, plan, watch=asked.append)
    assert sum(len(job.elements) for job in Ledger.read(folder).jobs) == 40
    assert len((tmp_path / "asked").read_text().splitlines()) == len(asked)


@pytest.mark.parametrize("act", [submit, resubmit, cancel])
def test_another_users_campaign_is_not_acted_on(planned, sbatch, monkeypatch, act):
    folder, plan = planned

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", denied)
    monkeypatch.setattr(Path, "touch", denied)
    with pytest.raises(LlemError, match="belongs to another user"):
        act(folder, plan)
