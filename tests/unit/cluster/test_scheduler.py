"""One look at the scheduler, with stand-in squeue and sacct that count how often they are asked."""

import json

import pytest

from llem.cluster import CampaignFolder
from llem.cluster.state.look import ACCOUNTING_AGAIN_S, Job, look

NOW = 1_800_000_000.0
DOWN = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"


class Slurm:
    """Programs that print what a file holds; `calls` are the words each was called with."""

    def __init__(self, place, monkeypatch):
        self.place = place
        programs = place / "bin"
        programs.mkdir()
        for name in ("squeue", "sacct"):
            script = programs / name
            script.write_text(
                f'#!/bin/sh\necho "{name} $*" >> {place}/calls\n'
                f"[ -f {place}/{name}.error ] && {{ cat {place}/{name}.error >&2; exit 1; }}\n"
                f"cat {place}/{name}.out\n"
            )
            script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
        self.says("squeue", "")
        self.says("sacct", "")
        (place / "calls").write_text("")

    def says(self, program, text):
        (self.place / f"{program}.error").unlink(missing_ok=True)
        (self.place / f"{program}.out").write_text(text)

    def fails(self, program, text):
        (self.place / f"{program}.error").write_text(text)

    def calls(self, program):
        return [x for x in (self.place / "calls").read_text().splitlines() if x.startswith(program)]


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    return Slurm(tmp_path, monkeypatch)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "c" / "jobs").mkdir(parents=True)
    return CampaignFolder(tmp_path / "c")


def job(*indices, job_id="17"):
    return Job(job_id, set(indices), NOW - 100)


def queued(index, state="PENDING", *, job_id="17", reason="Priority", nodes=""):
    return f"{job_id}|{index}|{state}|0:00|1:00|N/A|0|{nodes}|{reason}|\n"


def ended(index, state="FAILED", *, job_id="17", code="1:0", step=""):
    name = f"{job_id}_{index}" if index is not None else job_id
    tail = "|n1|00:00:05|2026-11-27T00:00:21|2026-11-27T00:00:26|None\n"
    text = f"{name}|{state}|{code}{tail}"
    return text + (f"{name}.0|{step}|0:125{tail}" if step else "")


def test_one_query_for_all_jobs_and_none_of_accounting_while_all_are_held(slurm, folder):
    slurm.says("squeue", queued(0) + queued(1, "RUNNING", nodes="n1") + queued(0, job_id="18"))
    seen = look(folder, [job(0, 1), job(0, job_id="18")], now_s=NOW)
    assert {k: e.state for k, e in seen.elements.items()} == {
        ("17", 0): "PENDING",
        ("17", 1): "RUNNING",
        ("18", 0): "PENDING",
    }
    assert seen.answered and seen.active and seen.seen_s == NOW
    assert len(slurm.calls("squeue")) == 1 and "--jobs=17,18" in slurm.calls("squeue")[0]
    assert slurm.calls("sacct") == []


def test_what_squeue_forgot_is_asked_of_accounting_once_and_kept(slurm, folder):
    slurm.says("sacct", ended(0, step="OUT_OF_MEMORY") + ended(1, "COMPLETED", code="0:0"))
    seen = look(folder, [job(0, 1)], now_s=NOW)
    assert seen.elements["17", 0].steps[0].state == "OUT_OF_MEMORY"
    assert not seen.active and seen.accounting is True
    (call,) = slurm.calls("sacct")
    assert "--starttime=" in call and "--jobs=17 " in call
    # the database is asked no more, and may have forgotten too
    slurm.says("sacct", "")
    later = look(folder, [job(0, 1)], now_s=NOW + 10_000)
    assert later.elements["17", 0].steps == seen.elements["17", 0].steps
    assert len(slurm.calls("sacct")) == 1


def test_what_accounting_has_not_heard_yet_is_asked_again_but_not_at_every_poll(slurm, folder):
    slurm.says("sacct", "")
    for second in range(3):
        assert look(folder, [job(0)], now_s=NOW + second).elements == {}
    assert len(slurm.calls("sacct")) == 1
    slurm.says("sacct", ended(0, "TIMEOUT", code="0:0"))
    later = look(folder, [job(0)], now_s=NOW + ACCOUNTING_AGAIN_S)
    assert later.elements["17", 0].state == "TIMEOUT"


def test_works_without_accounting_and_asks_for_it_only_once(slurm, folder):
    slurm.fails("sacct", "Slurm accounting storage is disabled\n")
    slurm.says("squeue", queued(0, "FAILED", reason="NonZeroExitCode"))
    first = look(folder, [job(0, 1)], now_s=NOW)
    assert first.answered and first.accounting is False
    assert first.elements["17", 0].state == "FAILED"
    # squeue forgets it after some minutes; what it said is kept
    slurm.says("squeue", "")
    second = look(folder, [job(0, 1)], now_s=NOW + 10_000)
    assert second.elements["17", 0].state == "FAILED"
    assert ("17", 1) not in second.elements
    assert len(slurm.calls("sacct")) == 1


def test_a_database_that_is_down_is_asked_again_later(slurm, folder):
    slurm.fails("sacct", "sacct: error: Problem talking to the database: Connection refused\n")
    first = look(folder, [job(0)], now_s=NOW)
    assert first.answered and first.accounting is None
    assert "Connection refused" in first.accounting_problem
    slurm.says("sacct", ended(0, "NODE_FAIL", code="0:0"))
    second = look(folder, [job(0)], now_s=NOW + ACCOUNTING_AGAIN_S)
    assert second.elements["17", 0].state == "NODE_FAIL"
    assert second.accounting_problem == ""


def test_a_controller_that_restarts_leaves_the_last_word_with_its_age(slurm, folder):
    slurm.says("squeue", queued(0) + queued(1, "RUNNING", nodes="n[1-2]"))
    before = look(folder, [job(0, 1)], now_s=NOW)
    slurm.fails("squeue", DOWN)
    during = look(folder, [job(0, 1)], now_s=NOW + 30)
    assert during.asked and not during.answered and not during.absent
    assert "Unable to contact" in during.problem
    assert during.seen_s == NOW
    assert {k: (e.state, e.nodes) for k, e in during.elements.items()} == {
        k: (e.state, e.nodes) for k, e in before.elements.items()
    }
    assert during.active
    slurm.says("squeue", queued(1, "RUNNING", nodes="n[1-2]") + queued(0, "RUNNING"))
    assert look(folder, [job(0, 1)], now_s=NOW + 60).answered


def test_a_machine_without_slurm_is_told_apart_from_one_that_does_not_answer(
    folder, tmp_path, monkeypatch
):
    monkeypatch.setenv("PATH", str(tmp_path))
    seen = look(folder, [job(0)], now_s=NOW)
    assert seen.absent and "not on PATH" in seen.problem


def test_an_invalid_job_id_is_an_answer(slurm, folder):
    slurm.fails("squeue", "slurm_load_jobs error: Invalid job id specified\n")
    assert look(folder, [job(0)], now_s=NOW).answered


def test_what_was_requeued_by_hand_is_open_again(slurm, folder):
    slurm.says("sacct", ended(0))
    assert not look(folder, [job(0)], now_s=NOW).active
    slurm.says("squeue", queued(0, "RUNNING"))
    again = look(folder, [job(0)], now_s=NOW + 1)
    assert again.active and again.elements["17", 0].state == "RUNNING"
    assert "17" not in json.loads(folder.states_file.read_text())["final"]


def test_the_job_at_the_end_is_not_asked_about_for_ever(slurm, folder):
    last = Job("20", {None}, NOW - 100)
    slurm.says("sacct", ended(None, "COMPLETED", job_id="20", code="0:0"))
    assert not look(folder, [last], now_s=NOW).active
    before = len(slurm.calls("squeue"))
    assert not look(folder, [last], now_s=NOW + 1).active
    assert len(slurm.calls("squeue")) == before


def test_a_torn_memory_is_no_memory(slurm, folder):
    folder.states_file.write_text('{"schema": "llem-st')
    slurm.says("squeue", queued(0))
    assert look(folder, [job(0)], now_s=NOW).active
    json.loads(folder.states_file.read_text())


def test_nothing_new_is_not_written_again(slurm, folder):
    slurm.says("squeue", queued(0) + queued(1))
    look(folder, [job(0, 1)], now_s=NOW)
    before = folder.states_file.stat().st_mtime_ns
    look(folder, [job(0, 1)], now_s=NOW + 1)
    assert folder.states_file.stat().st_mtime_ns == before
    # five thousand that wait alike are one line
    slurm.says("squeue", "".join(queued(i) for i in range(5000)))
    look(folder, [job(*range(5000))], now_s=NOW + 2)
    assert folder.states_file.stat().st_size < 1000


def test_the_users_own_taste_in_squeue_does_not_matter(slurm, folder, monkeypatch):
    slurm.says("squeue", queued(0))
    script = slurm.place / "bin" / "squeue"
    script.write_text(
        script.read_text().replace("#!/bin/sh", '#!/bin/sh\n[ -z "$SQUEUE_USERS" ] || exit 0')
    )
    monkeypatch.setenv("SQUEUE_USERS", "nobody")
    assert look(folder, [job(0)], now_s=NOW).active
