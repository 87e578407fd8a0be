"""Sealing a campaign: what has ended becomes small, what may still be written stays."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import llem
from llem.cli import main
from llem.cluster import CampaignFolder
from llem.errors import InputError
from llem.pipeline import check_records, seal_campaign, seal_records
from llem.pipeline.sealing import attempt_is_over
from llem.records import node_writer, rank_writer, read_rank, read_seal, samples_table
from llem.results import device_energies


def attempt(root, run_id, number=0, *, status="completed", close=True):
    """An attempt with both kinds of records; the rank's writer, which may be left open."""
    folder = root / "runs" / run_id / f"attempt-{number}"
    folder.mkdir(parents=True)
    device = {"domain": "gpu", "counter": True, "quality": "counter", "source": "nvml"}
    with node_writer(folder / "node-a.h5", meta={}, devices={"GPU-1": device}) as writer:
        for i in range(1, 50):
            row = (i * 10**8, 5, i * 3e4, 3e5, 40, 90, 1400, 0, 0)
            writer.append(samples_table("GPU-1"), row)
    writer = rank_writer(folder / "rank-00000.h5", meta={"run_id": run_id})
    writer.append("steps", (1, 2, 3, 4, 4, 3.0, 1.0, 1e-3, 0.0, 0.0, 1))
    writer.flush()
    if close:
        writer.close()
    if status:
        (folder / "end.json").write_text(json.dumps({"run_id": run_id, "status": status}))
    return writer


def states(found):
    return {f"{one.path.parent.name}/{one.path.name}": one.state for one in found}


def test_records_below_a_folder_are_sealed_by_several_processes_and_say_the_same(tmp_path):
    attempt(tmp_path, "one")
    attempt(tmp_path, "two", status="")
    energy = device_energies(tmp_path)
    found = seal_records([tmp_path], jobs=2)
    assert [one.state for one in found] == ["sealed"] * 4
    assert all(read_seal(one.path).sha256 == one.sha256 for one in found)
    assert all(one.bytes_after < one.bytes_before for one in found)
    assert device_energies(tmp_path) == energy
    assert [one.state for one in seal_records([tmp_path], jobs=1)] == ["before"] * 4
    assert [one.state for one in check_records([tmp_path], jobs=1)] == ["right"] * 4


def test_only_runs_that_completed_are_sealed_when_a_campaign_is_finished(tmp_path):
    attempt(tmp_path, "done", 0, status="interrupted")
    attempt(tmp_path, "done", 1)
    attempt(tmp_path, "going", status="interrupted")
    attempt(tmp_path, "wild", status="diverged")
    found = seal_campaign(CampaignFolder(tmp_path))
    assert {one.path.parts[-3] for one in found} == {"done"}
    assert len(found) == 4 and {one.state for one in found} == {"sealed"}
    assert seal_campaign(CampaignFolder(tmp_path / "none")) == []


def test_what_may_still_be_written_is_left_and_said(tmp_path, capsys):
    writer = attempt(tmp_path, "one", close=False)
    assert main(["seal", str(tmp_path), "--json"]) == 0
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert told["counts"] == {"sealed": 1, "left": 1}
    assert f"process {os.getpid()} on this machine has it open" in captured.err
    writer.close()
    assert main(["seal", str(tmp_path)]) == 0
    assert "2 records: 1 sealed before, 1 sealed; " in capsys.readouterr().out


KILLED = """
import os, signal, sys
from llem.records import rank_writer
writer = rank_writer(sys.argv[1], meta={"boot_id": "another machine"})
writer.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_record_of_another_machine_is_sealed_sooner_when_its_attempt_is_over(tmp_path):
    source = str(Path(llem.__file__).parents[1])
    folder = tmp_path / "attempt-0"
    folder.mkdir()
    path = folder / "rank-00000.h5"
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)],
                          env={**os.environ, "PYTHONPATH": source}, check=False)  # fmt: skip
    assert done.returncode == -signal.SIGKILL
    hour_ago = path.stat().st_mtime - 3600
    os.utime(path, (hour_ago, hour_ago))
    [one] = seal_records([path])
    assert one.state == "left" and "24 h without an end record" in one.reason
    (tmp_path / "attempt-1").mkdir()
    assert [one.state for one in seal_records([path])] == ["sealed"]
    assert not read_rank(path).closed


def test_an_attempt_is_over_when_it_says_so_or_the_next_has_begun(tmp_path):
    folder = tmp_path / "attempt-9"
    folder.mkdir()
    assert not attempt_is_over(folder) and not attempt_is_over(tmp_path)
    (tmp_path / "attempt-10").mkdir()
    assert attempt_is_over(folder) and not attempt_is_over(tmp_path / "attempt-10")
    (tmp_path / "attempt-10" / "end.json").write_text("{}")
    assert attempt_is_over(tmp_path / "attempt-10")


def test_no_record_is_begun_after_its_time(tmp_path):
    attempt(tmp_path, "one")
    assert seal_records([tmp_path], jobs=1, seconds=-1) == []
    assert seal_records([tmp_path], jobs=2, seconds=-1) == []


def test_a_spoilt_record_is_named_and_the_others_are_sealed(tmp_path, capsys):
    attempt(tmp_path, "one")
    bad = tmp_path / "runs" / "one" / "attempt-0" / "rank-00000.h5"
    bad.write_bytes(bad.read_bytes()[:700])
    assert main(["seal", str(tmp_path), "--jobs", "1"]) == 1
    captured = capsys.readouterr()
    assert "1 failed, 1 sealed" in captured.out and f"failed: {bad}" in captured.err
    assert main(["seal", "--check", str(tmp_path), "--jobs", "1"]) == 1
    assert "1 failed, 1 as their seals say" in capsys.readouterr().out


def test_a_place_without_records_is_a_wrong_call(tmp_path):
    for place, says in ((tmp_path, "holds no record"), (tmp_path / "gone", "no such file")):
        with pytest.raises(InputError, match=says):
            seal_records([place])
    assert main(["seal", str(tmp_path), "--jobs", "0"]) == 2


def test_progress_is_told_file_by_file(tmp_path):
    attempt(tmp_path, "one")
    told = []
    seal_records([tmp_path], jobs=1, progress=lambda *counts: told.append(counts))
    assert told == [(1, 2), (2, 2)]


CAMPAIGN = """\
name: small
target: 1e13 FLOP
budget: 1e12 FLOP
training: {precision: fp32}
site: {executor: local, gpu: {name: cpu}}
"""


def test_llem_finish_seals_last_unless_told_not_to(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "campaign.yaml").write_text(CAMPAIGN)
    assert main(["plan", "campaign.yaml", "--out", "c"]) == 0
    root = tmp_path / "c"
    run = CampaignFolder(root).load_plan().runs[0]
    attempt(root, run.run_id)
    path = root / "runs" / run.run_id / "attempt-0" / "node-a.h5"
    # one run gives no law: the status is that of the fit, and sealing is done all the same
    assert main(["finish", "c", "--no-seal"]) == 1
    assert read_seal(path) is None
    before = (root / "results" / "observations.csv").read_bytes()
    assert main(["finish", "c"]) == 1
    assert read_seal(path) is not None
    assert main(["aggregate", "c"]) == 0
    assert (root / "results" / "observations.csv").read_bytes() == before


def test_a_command_that_was_killed_leaves_no_worker_behind():
    """Its output is read to the end by whoever started it: a worker would hold that open."""
    code = (
        "import time\n"
        "from concurrent.futures import ProcessPoolExecutor\n"
        "from multiprocessing import get_context\n"
        "from llem._processes import end_with_parent\n"
        "pool = ProcessPoolExecutor(2, get_context('spawn'), initializer=end_with_parent)\n"
        "pool.submit(abs, 1).result()\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.kill()
    process.communicate(timeout=20)
