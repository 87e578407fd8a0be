"""The state of a campaign on SLURM and its summary, from files and the words of a scheduler."""

import json
import math
import time

import pytest

from llem.cluster import CampaignFolder, campaign_state, render_files, summarise, wait
from llem.cluster.scheduler.facts import ElementState, Step, index_list
from llem.cluster.state.look import Look
from llem.cluster.submit import resubmit
from llem.errors import ClusterError, UnavailableError

NOW = time.time()


@pytest.fixture
def planned(make, tmp_path):
    plan = make(seeds=2)
    folder = CampaignFolder(tmp_path / "c")
    folder.write_plan(plan, {folder.jobs / n: t for n, t in render_files(plan).items()})
    jobs = {
        a.name: [
            {
                "job_id": str(100 + i),
                "submitted_ns": 1,
                "plan": plan.digest,
                "elements": index_list(range(len(a.elements))),
            }
        ]
        for i, a in enumerate(plan.arrays)
    }
    folder.submitted_file.write_text(json.dumps(jobs))
    return folder, plan


@pytest.fixture
def says(monkeypatch):
    """Let the scheduler say this of elements: {(array number, index): ElementState fields}."""

    def says(elements=(), **look):
        found = {
            (str(100 + array), index): ElementState(str(100 + array), index, **values)
            for (array, index), values in dict(elements).items()
        }
        answer = Look(elements=found, **{"asked": True, "seen_s": NOW, **look})
        monkeypatch.setattr("llem.cluster.state.state.look", lambda *_: answer)

    return says


def attempt(folder, run, end=None, **files):
    place = folder.new_attempt(run)
    for name, values in {"end": end, **files}.items():
        if values is not None:
            (place / f"{name}.json").write_text(json.dumps(values))
    return place


def by_name(state):
    return {r.run_id: r for r in state.runs}


def completed(run, **values):
    span = int(run.predicted.duration_s * 1e9)
    return {"status": "completed", "loss": 2.0, "step": run.steps, "started_ns": 1, "ranks": 4,
            "ended_ns": 1 + span, **values}  # fmt: skip


def element(plan, array, index):
    return plan.run(plan.arrays[array].elements[index][0])


def test_states_from_the_scheduler_and_the_files(planned, says):
    folder, plan = planned
    runs = [element(plan, 0, i) for i in range(6)]
    attempt(folder, runs[0].run_id, progress={"step": runs[0].steps // 2, "loss": 3.0})
    attempt(folder, runs[2].run_id)
    attempt(folder, runs[4].run_id)
    attempt(folder, runs[5].run_id, end=completed(runs[5]))
    says(
        {
            (0, 0): {"state": "RUNNING", "nodes": "n[1-2]", "started_s": time.time() - 60},
            (0, 1): {"state": "PENDING", "reason": "Priority"},
            (0, 2): {"state": "NODE_FAIL", "exit_code": "0:0", "nodes": "n3"},
            (0, 3): {"state": "CANCELLED", "exit_code": "0:0"},
            (0, 4): {"state": "FAILED", "exit_code": "1:0",
                     "steps": (Step("0", "OUT_OF_MEMORY", "0:125"),)},
            (0, 5): {"state": "FAILED", "exit_code": "1:0"},
        }
    )  # fmt: skip
    state = campaign_state(folder, plan)
    found = [by_name(state)[run.run_id] for run in runs]
    assert [r.status for r in found] == [
        "running", "queued", "failed", "cancelled", "failed", "completed",
    ]  # fmt: skip
    assert found[0].progress == pytest.approx(0.5, abs=0.5 / runs[0].steps)
    assert found[0].device_s == pytest.approx(60 * 4, abs=20)
    assert found[0].node == "n[1-2]" and found[0].loss == 3.0
    assert found[1].reason == "Priority"
    assert [r.cause and r.cause.name for r in found[2:]] == [
        "node-failure", "cancelled", "out-of-memory", None,
    ]  # fmt: skip
    assert found[2].cause.node == "n3"
    assert state.active and not state.settled


def test_a_chained_or_resubmitted_element_is_what_works_on_it_now(planned, says):
    folder, plan = planned
    jobs = json.loads(folder.submitted_file.read_text())
    name = plan.arrays[0].name
    jobs[name].append({"job_id": "101", "submitted_ns": 2, "plan": plan.digest, "elements": "0"})
    folder.submitted_file.write_text(json.dumps(jobs))
    failed = {"state": "FAILED", "exit_code": "1:0"}
    says({(0, 0): failed, (0, 1): failed, (1, 0): {"state": "PENDING"}})
    found = by_name(campaign_state(folder, plan))
    assert found[element(plan, 0, 0).run_id].status == "queued"
    assert found[element(plan, 0, 1).run_id].status == "failed"


def test_a_state_that_nobody_knows_is_unknown_and_is_not_submitted_again(planned, says, sbatch):
    folder, plan = planned
    everything = {
        (a, i): {"state": "BRAND_NEW"}
        for a, x in enumerate(plan.arrays)
        for i in range(len(x.elements))
    }
    says(everything)
    assert campaign_state(folder, plan).counts == {"unknown": len(plan.runs)}
    assert resubmit(folder, plan).new == ()
    assert sbatch() == []


def test_nothing_is_submitted_again_while_the_scheduler_does_not_answer(planned, says, sbatch):
    folder, plan = planned
    says(problem="Unable to contact slurm controller")
    with pytest.raises(ClusterError, match="Unable to contact"):
        resubmit(folder, plan)
    assert sbatch() == []


def test_a_run_that_ended_between_two_looks_is_not_lost(planned, monkeypatch):
    folder, plan = planned
    run = element(plan, 0, 0)
    place = attempt(folder, run.run_id)

    def look(*_):
        (place / "end.json").write_text(json.dumps(completed(run)))
        return Look(asked=True, seen_s=NOW)

    monkeypatch.setattr("llem.cluster.state.state.look", look)
    assert by_name(campaign_state(folder, plan))[run.run_id].status == "completed"


def test_an_element_that_failed_before_it_began_tells_why_from_its_log(planned, says):
    folder, plan = planned
    says({(0, 0): {"state": "FAILED", "exit_code": "127:0", "nodes": "n2"}})
    name = plan.arrays[0].name
    log = folder.logs / f"llem-small-{name}-100_0.log"
    log.write_text("slurm_script: line 3: module: command not found\n")
    found = by_name(campaign_state(folder, plan))[element(plan, 0, 0).run_id]
    assert found.status == "failed" and found.attempts == 0
    assert (found.cause.name, found.cause.node) == ("module-failed", "n2")
    # what a log told is kept: it is not read again
    log.unlink()
    again = by_name(campaign_state(folder, plan))[element(plan, 0, 0).run_id]
    assert again.cause == found.cause


def test_causes_are_grouped_with_their_nodes_and_an_advice(planned, says):
    folder, plan = planned
    bad = {"state": "NODE_FAIL", "exit_code": "0:0"}
    says(
        {
            (0, 0): {**bad, "nodes": "n1"},
            (0, 1): {**bad, "nodes": "n2"},
            (0, 2): {**bad, "nodes": "n2"},
            (0, 3): {"state": "TIMEOUT", "exit_code": "0:0"},
        }
    )
    attempt(
        folder, element(plan, 0, 4).run_id, end={"status": "diverged", "reason": "nan", "step": 3}
    )
    summary = summarise(folder, plan, campaign_state(folder, plan))
    assert [(c.name, c.runs, c.nodes) for c in summary.causes] == [
        ("node-failure", 3, ("n2", "n1")),
        ("time-limit", 1, ()),
        ("diverged", 1, ()),
    ]
    assert all(c.advice for c in summary.causes)
    assert summary.tally.failed == 4 and summary.tally.diverged == 1
    assert summary.next == f"llem resubmit {folder.root}"


def test_what_was_stopped_is_not_counted_as_failed_and_goes_on(planned, says, sbatch):
    folder, plan = planned
    says(
        {
            (0, 0): {"state": "CANCELLED", "exit_code": "0:15"},
            (0, 1): {"state": "PREEMPTED", "exit_code": "0:15"},
            (0, 2): {"state": "TIMEOUT", "exit_code": "0:15"},
            (0, 3): {"state": "TIMEOUT", "exit_code": "0:15"},
            (0, 4): {"state": "COMPLETED", "exit_code": "0:0"},
            (0, 5): {"state": "FAILED", "exit_code": "1:0"},
        }
    )
    began = [element(plan, 0, i).run_id for i in (0, 1, 2)]
    for name in began:
        attempt(folder, name, progress={"step": 1})
    left = element(plan, 0, 4).run_id
    attempt(
        folder, left,
        end={"status": "interrupted", "step": 2, "cause": "preempted", "reason": "takes the nodes"},
    )  # fmt: skip
    state = campaign_state(folder, plan)
    found = by_name(state)
    assert [found[name].status for name in [*began, left]] == [
        "cancelled", "interrupted", "interrupted", "interrupted",
    ]  # fmt: skip
    # A limit that passed before anything began is not the cluster's way of sharing.
    assert found[element(plan, 0, 3).run_id].status == "failed"
    summary = summarise(folder, plan, state)
    assert (summary.tally.stopped, summary.tally.failed) == (4, 2)
    counts = ("done", "diverged", "running", "queued", "waiting", "stopped", "failed")
    assert sum(getattr(summary.tally, name) for name in counts) == len(plan.runs)
    stopped = {cause.name: (cause.runs, cause.stopped) for cause in summary.causes}
    assert stopped["cancelled"] == (1, 1) and stopped["preempted"] == (2, 2)
    assert stopped["time-limit"] == (2, 1)
    # What failed is told before what was only stopped.
    assert [c.name for c in summary.causes[-2:]] == ["preempted", "cancelled"]
    assert summary.next == f"llem resubmit {folder.root}"
    assert {0, 1, 2, 3, 4, 5} <= {
        i
        for job in resubmit(folder, plan).new
        for i in (job.elements or ())
        if job.name == plan.arrays[0].name
    }


def test_what_llem_cancel_stopped_is_said_to_be_and_is_no_failure_to_be_told(planned, says):
    from llem.cluster.state.notify import events

    folder, plan = planned
    says({(0, 0): {"state": "CANCELLED", "exit_code": "0:15"}})
    state = campaign_state(folder, plan)
    assert events(plan, state) == ["failed"] and not summarise(folder, plan, state).notes
    folder.stop_file.touch()
    state = campaign_state(folder, plan)
    assert events(plan, state) == []
    (note,) = summarise(folder, plan, state).notes
    assert note == f"stopped by `llem cancel`: `llem resubmit {folder.root}` goes on"


def test_a_cancel_of_nothing_is_said_to_be_and_leaves_nothing_behind(make, tmp_path, capsys):
    from llem.cli import main

    here = {"executor": "local", "gpu": {"name": "cpu"}}
    plan = make(site=here, layout={"nodes": 1, "gpus_per_node": 1})
    folder = CampaignFolder(tmp_path / "c")
    folder.write_plan(plan, {})
    assert main(["cancel", str(folder.root)]) == 0
    assert "nothing to cancel: nothing works on it here" in capsys.readouterr().err
    assert not folder.stop_file.exists()
    with folder.locked("llem"):
        assert main(["cancel", str(folder.root)]) == 0
    assert "write a checkpoint and stop" in capsys.readouterr().err
    assert folder.stop_file.exists()


def test_only_jobs_that_wait_or_run_are_cancelled(planned, monkeypatch, capsys):
    """scancel fails at a job that the scheduler has forgotten."""
    from llem.cli import main
    from llem.cluster.scheduler import slurm

    folder, _ = planned
    name = str(folder.root)
    held, told = [], []
    monkeypatch.setattr(slurm, "query", lambda ids: held)
    monkeypatch.setattr(slurm, "cancel", told.extend)
    assert main(["cancel", name]) == 0
    assert told == [] and "nothing to cancel" in capsys.readouterr().err
    held.append(ElementState("100", 0, "PENDING"))
    assert main(["cancel", name]) == 0
    assert told == ["100"] and "cancelled: 100" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ((), "no such folder"),
        (("x.txt",), "not a campaign folder"),
        (("jobs/logs/x",), "its plan.json is gone (put it back, or `llem plan`"),
        (("jobs/submitted.json",), "`scancel 17 18` ends what was submitted"),
        (("plan.json",), "cannot be read"),
    ],
)
@pytest.mark.parametrize("command", ["status", "cancel", "resubmit", "submit", "wait"])
def test_what_is_no_campaign_folder_is_said_to_be(tmp_path, capsys, command, made, words):
    from llem.cli import main

    folder = tmp_path / "c"
    for name in made:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        text = '{"a": [{"job_id": "17"}], "b": [{"job_id": "18"}]}'
        (folder / name).write_text(text if "submitted" in name else "{")
    assert main([command, str(folder)]) == 2
    assert words in capsys.readouterr().err


def test_a_campaign_at_work_here_is_not_to_be_submitted_again(make, tmp_path):
    """Its own executor tries again; another call would only be told that it is in use."""
    here = {"executor": "local", "gpu": {"name": "cpu"}}
    plan = make(site=here, layout={"nodes": 1, "gpus_per_node": 1})
    folder = CampaignFolder(tmp_path / "c")
    folder.write_plan(plan, {})
    attempt(folder, plan.runs[0].run_id, end={"status": "failed", "reason": "OSError: no"})
    with folder.locked("llem"):
        assert summarise(folder, plan, campaign_state(folder, plan)).next.endswith("--watch")
    assert summarise(folder, plan, campaign_state(folder, plan)).next.startswith("llem resubmit")


def test_progress_cost_and_time_to_go(planned, says):
    folder, plan = planned
    runs = [element(plan, 0, i) for i in range(3)]
    # twice as long as the plan expected
    span = int(2e9 * runs[0].predicted.duration_s)
    attempt(folder, runs[0].run_id, end=completed(runs[0], ended_ns=1 + span, energy_j=40.0))
    attempt(folder, runs[1].run_id, progress={"step": runs[1].steps / 2})
    says({(0, 1): {"state": "RUNNING", "started_s": time.time()}, (0, 2): {"state": "PENDING"}})
    state = campaign_state(folder, plan)
    summary = summarise(folder, plan, state)
    assert summary.tokens_done == pytest.approx(runs[0].tokens + runs[1].tokens / 2)
    assert summary.tokens == sum(r.tokens for r in plan.runs)
    assert (summary.energy_j, summary.energy_runs, summary.finished_runs) == (40.0, 1, 1)
    assert summary.gpu_hours == pytest.approx(4 * span / 1e9 / 3600, rel=0.2, abs=0.02)
    assert summary.gpu_hours_budget == pytest.approx(plan.totals["gpu_hours"])
    left = runs[1].predicted.duration_s / 2 + runs[2].predicted.duration_s
    assert summary.estimate.seconds == pytest.approx(2 * left, rel=1e-6)
    assert "1 finished run: 2.00 x the plan" in summary.estimate.basis
    # cells: both seeds of a size together
    assert len(summary.cells) == len(plan.runs) / 2
    cell = next(
        c for c in summary.cells if (c.params, c.tokens) == (runs[0].params, runs[0].tokens)
    )
    assert cell.runs == 2 and cell.done >= 1 and cell.loss == 2.0
    assert sum(a.runs for a in summary.arrays) == len(plan.runs)


def test_without_anything_at_work_no_time_to_go_is_made_up(planned, says):
    folder, plan = planned
    says({(0, 0): {"state": "PENDING"}})
    assert summarise(folder, plan, campaign_state(folder, plan)).estimate is None


def test_what_is_not_measured_is_not_zero(planned, says):
    folder, plan = planned
    says()
    assert math.isnan(summarise(folder, plan, campaign_state(folder, plan)).energy_j)


@pytest.mark.parametrize(
    ("look", "note"),
    [
        ({"problem": "Unable to contact slurm controller", "seen_s": NOW - 300}, "min ago"),
        ({"problem": "Unable to contact slurm controller", "seen_s": None}, "only files"),
        ({"accounting": False}, "no accounting"),
        ({"accounting_problem": "Connection refused"}, "Connection refused"),
    ],
)
def test_what_is_not_known_is_said(planned, says, look, note):
    folder, plan = planned
    says(**look)
    notes = summarise(folder, plan, campaign_state(folder, plan)).notes
    assert any(note in text for text in notes), notes


def test_elements_that_wait_for_ever_are_told(planned, says):
    folder, plan = planned
    says({(0, i): {"state": "PENDING", "reason": "JobHeldUser"} for i in range(3)})
    (note,) = summarise(folder, plan, campaign_state(folder, plan)).notes
    assert note.startswith("3 elements wait") and "release" in note


def test_next_is_the_command_to_type(planned, says):
    folder, plan = planned

    def following():
        return summarise(folder, plan, campaign_state(folder, plan)).next.split()[1]

    says({(0, 0): {"state": "PENDING"}})
    assert following() == "status"
    says()
    assert following() == "resubmit"
    for run in plan.runs:
        attempt(folder, run.run_id, end=completed(run))
    assert following() == "finish"
    folder.results.mkdir()
    (folder.results / "report.html").touch()
    assert following() == "report"
    folder.submitted_file.unlink()
    (folder.root / "runs").rename(folder.root / "elsewhere")
    assert following() == "submit"


def test_the_shape_of_the_json_is_stable(planned, says):
    folder, plan = planned
    says({(0, 0): {"state": "TIMEOUT", "exit_code": "0:0"}})
    state = campaign_state(folder, plan)
    values = summarise(folder, plan, state).to_dict(state)
    assert values["schema"] == "llem-status-1"
    assert list(values) == [
        "schema", "campaign", "workload", "submitted", "active", "settled", "counts", "progress",
        "tokens", "energy", "gpu_hours", "finish_estimate", "scheduler", "notes", "next", "arrays",
        "cells", "causes", "runs",
    ]  # fmt: skip
    assert set(values["runs"][0]["cause"]) == {"name", "node", "text", "advice", "retry"}
    assert sum(values["counts"].values()) == len(values["runs"]) == len(plan.runs)
    from llem.cluster import finite_or_none

    json.dumps(finite_or_none(values), allow_nan=False)


def test_wait_goes_on_while_the_controller_restarts(planned, monkeypatch):
    folder, plan = planned
    at_work = {("100", 0): ElementState("100", 0, "RUNNING")}
    answers = [
        Look(elements=at_work, asked=True, seen_s=NOW),
        Look(elements=at_work, asked=True, problem="Unable to contact", seen_s=NOW),
        Look(asked=True, problem="Unable to contact"),
        Look(asked=True, seen_s=NOW),
    ]
    pauses = []

    def look(*_):
        pauses.append(0.0)
        return answers.pop(0)

    def sleep(seconds):
        pauses[-1] += seconds

    monkeypatch.setattr("llem.cluster.state.state.look", look)
    state = wait(folder, plan, sleep=sleep)
    assert not answers and not state.active
    # it leaves one that does not answer in peace for longer
    assert pauses[1] > 2 * pauses[0]


def test_the_end_of_the_last_runs_is_seen_on_the_disk_and_told_without_a_longer_wait(
    planned, monkeypatch
):
    """A poll may be half a minute away when the last run ends."""
    folder, plan = planned
    *others, last = plan.runs
    for run in others:
        attempt(folder, run.run_id, end=completed(run))
    place = attempt(folder, last.run_id)
    [(number, index)] = [
        (number, index)
        for number, array in enumerate(plan.arrays)
        for index, names in enumerate(array.elements)
        if last.run_id in names
    ]
    job = str(100 + number)
    at_work = {(job, index): ElementState(job, index, "RUNNING")}
    fits = {("900", None): ElementState("900", None, "RUNNING")}
    answers = [Look(elements=e, asked=True, seen_s=NOW) for e in (at_work, fits, {})]
    monkeypatch.setattr("llem.cluster.state.state.look", lambda *_: answers.pop(0))
    pauses = []

    def sleep(seconds):
        pauses.append(seconds)
        if len(pauses) == 3:
            (place / "end.json").write_text(json.dumps(completed(last)))

    assert wait(folder, plan, first_poll_s=10.0, longest_poll_s=600.0, sleep=sleep).settled
    # three looks at the disk, and then the job that fits is asked for as at the beginning
    assert pauses == [1.0, 1.0, 1.0, 12.0]


def test_wait_ends_at_its_timeout(planned, says):
    folder, plan = planned
    says({(0, 0): {"state": "PENDING"}})
    state = wait(folder, plan, timeout_s=0.0, sleep=lambda _: pytest.fail("slept"))
    assert state.active and not state.settled


def test_wait_does_not_wait_for_a_scheduler_that_is_not_here(planned, says):
    folder, plan = planned
    says(problem="squeue is not on PATH", absent=True)
    with pytest.raises(UnavailableError, match="squeue"):
        wait(folder, plan)
