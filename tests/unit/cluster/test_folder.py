"""The campaign folder: written once, read back, never mixed up, state from its files."""

import json

import pytest

from llem.cluster import CampaignFolder, campaign_state, finite_or_none, render_files, write_text
from llem.errors import InputError, LlemError


@pytest.fixture
def planned(make, tmp_path):
    plan = make(site={"name": "here", "executor": "local", "gpu": {"name": "cpu"}}, layout=None)
    folder = CampaignFolder(tmp_path / "c")
    files = {folder.jobs / name: text for name, text in render_files(plan).items()}
    assert folder.write_plan(plan, files)
    return folder, plan, files


def end(folder, run_id, **values):
    attempt = folder.new_attempt(run_id)
    (attempt / "end.json").write_text(json.dumps({"run_id": run_id, **values}))


def test_an_identical_second_write_changes_nothing(planned):
    folder, plan, files = planned
    before = {p: p.stat().st_mtime_ns for p in folder.root.rglob("*") if p.is_file()}
    assert not folder.write_plan(plan, files)
    assert {p: p.stat().st_mtime_ns for p in folder.root.rglob("*") if p.is_file()} == before
    assert folder.load_plan().to_dict() == plan.to_dict()


def test_where_writing_is_cut_off_there_is_no_plan(make, tmp_path):
    folder = CampaignFolder(tmp_path / "c")
    folder.root.mkdir()
    (folder.root / "full").touch()
    with pytest.raises(OSError, match="full"):
        folder.write_plan(make(), {folder.root / "full" / "a.jsonl": "{}"})
    assert not folder.plan_file.exists()


def test_another_plan_is_not_put_in_its_place(planned, make):
    folder, _, _ = planned
    other = make(seeds=2)
    with pytest.raises(InputError, match="holds another plan"):
        folder.write_plan(other, {})
    assert folder.write_plan(other, {}, replace=True)


def test_an_edited_plan_is_refused(planned):
    folder, _, _ = planned
    values = json.loads(folder.plan_file.read_text())
    values["runs"][0]["seed"] = 99
    folder.plan_file.write_text(json.dumps(values))
    with pytest.raises(InputError, match="was edited"):
        folder.load_plan()


def test_a_folder_that_is_no_campaign_says_how_to_make_one(tmp_path):
    with pytest.raises(InputError, match="llem plan"):
        CampaignFolder(tmp_path).load_plan()


def test_states_follow_from_the_files(planned):
    folder, plan, _ = planned
    names = [r.run_id for r in plan.runs]
    end(folder, names[0], status="completed", loss=2.5)
    end(folder, names[1], status="diverged", reason="loss became NaN")
    end(folder, names[2], status="interrupted", reason="signal SIGTERM")
    folder.new_attempt(names[3])
    end(folder, names[4], status="failed", reason="RuntimeError: x")
    end(folder, names[4], status="completed", loss=2.4)
    state = campaign_state(folder, plan)
    by_name = {r.run_id: r for r in state.runs}
    assert [by_name[n].status for n in names[:6]] == [
        "completed",
        "diverged",
        "interrupted",
        "lost",
        "completed",
        "waiting",
    ]
    assert by_name[names[4]].attempts == 2
    assert by_name[names[0]].loss == 2.5
    assert not state.settled


def test_an_open_attempt_is_running_only_while_the_local_executor_holds_the_folder(planned, make):
    folder, plan, _ = planned
    folder.new_attempt(plan.runs[0].run_id)
    with folder.locked("the local executor"):
        assert "running" in campaign_state(folder, plan).counts
    assert "lost" in campaign_state(folder, plan).counts
    on_slurm = make()
    folder.new_attempt(on_slurm.runs[0].run_id)
    # `llem resubmit` itself holds the folder when it asks which runs are lost
    with folder.locked("llem resubmit"):
        assert campaign_state(folder, on_slurm).counts["lost"] >= 1


def test_a_torn_end_record_settles_nothing(planned):
    folder, plan, _ = planned
    attempt = folder.new_attempt(plan.runs[0].run_id)
    (attempt / "end.json").write_text('{"status": "comp')
    assert folder.final_end(plan.runs[0].run_id) is None


def test_two_processes_do_not_hold_one_campaign(planned):
    folder, _, _ = planned
    refused = pytest.raises(LlemError, match="in use by first")
    with folder.locked("first"), refused, folder.locked("second"):
        pass
    with folder.locked("third"):
        pass


def test_numbers_that_json_cannot_hold_become_null():
    assert finite_or_none({"a": [float("nan"), 1.5, float("inf")]}) == {"a": [None, 1.5, None]}


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "file"
    assert write_text(path, "x")
    assert not write_text(path, "x")
    assert [p.name for p in path.parent.iterdir()] == ["file"]
