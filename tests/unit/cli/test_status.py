"""`llem status`, `wait` and `logs`, as processes and at several widths."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from llem.cli import main
from llem.cluster import CampaignFolder

CAMPAIGN = """\
name: small
target: 1e13 FLOP
budget: 1e12 FLOP
seeds: 2
training: {precision: fp32}
site: {executor: local, gpu: {name: cpu}}
"""


@pytest.fixture
def campaign(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    (tmp_path / "campaign.yaml").write_text(CAMPAIGN)
    assert main(["plan", "campaign.yaml", "--out", "c"]) == 0
    folder = CampaignFolder(tmp_path / "c")
    plan = folder.load_plan()
    ends = [
        {"status": "completed", "loss": 2.5, "energy_j": 10.0, "ranks": 1,
         "started_ns": 0, "ended_ns": 10**9},
        {"status": "diverged", "reason": "the loss is nan", "step": 3},
        {"status": "failed", "reason": "OSError: [Errno 28] No space left on device",
         "hosts": ["n2"]},
        {"status": "failed", "reason": "[rank0]: ValueError: [a] b"},
    ]  # fmt: skip
    for run, end in zip(plan.runs, ends, strict=False):
        (folder.new_attempt(run.run_id) / "end.json").write_text(json.dumps(end))
    return folder, plan


@pytest.mark.parametrize("width", [80, 120, 200])
def test_the_glance_fits_into_the_terminal(campaign, capsys, monkeypatch, width):
    _, plan = campaign
    monkeypatch.setenv("COLUMNS", str(width))
    capsys.readouterr()
    assert main(["status", "c"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    assert all(line == line.rstrip() for line in lines)
    text = "\n".join(lines)
    assert f"1 of {len(plan.runs)} runs done" in text
    assert "2 failed" in text and "1 diverged" in text
    # names are whole, and words of a log are not taken for markup
    assert plan.arrays[0].name in text
    assert "[rank0]: ValueError: [a] b" in text
    assert "disk-full" in text and "n2" in text and "free space" in text
    assert lines[-1] == "next: llem resubmit c"


def test_runs_are_a_line_each(campaign, capsys):
    _, plan = campaign
    capsys.readouterr()
    assert main(["status", "c", "--runs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    by_run = {line.split()[0]: line for line in lines if line}
    assert all(run.run_id in by_run for run in plan.runs)
    assert "completed" in by_run[plan.runs[0].run_id]
    assert max(map(len, lines)) <= 100


def test_json_is_json_alone(campaign, capsys):
    _, plan = campaign
    capsys.readouterr()
    assert main(["status", "c", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["counts"] == {"completed": 1, "diverged": 1, "failed": 2,
                                "waiting": len(plan.runs) - 4}  # fmt: skip
    assert values["energy"]["energy_j"] == 10.0


def test_watch_in_a_log_is_a_line_a_poll_and_ends_when_nothing_works(campaign, capsys):
    capsys.readouterr()
    assert main(["status", "c", "--watch", "2"]) == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 1 and "[" in out and "runs done" in out


def test_watch_on_a_terminal_is_live(campaign, monkeypatch):
    import io

    from rich.console import Console

    from llem.cli import _status
    from llem.cluster import campaign_state

    folder, plan = campaign
    screen = Console(file=io.StringIO(), force_terminal=True, width=100, height=40)
    monkeypatch.setattr(_status, "console", lambda: screen)
    states = [campaign_state(folder, plan)]
    _status.watch_live(folder, plan, lambda: states.pop(), seconds=2, sleep=pytest.fail)
    assert "runs done" in screen.file.getvalue()


def test_a_run_at_work_is_drawn_as_a_rehearsal_draws_it(campaign):
    import io
    from dataclasses import replace

    from rich.console import Console

    from llem.cli import _stage, _status
    from llem.cluster import campaign_state, summarise

    folder, plan = campaign
    state = campaign_state(folder, plan)
    first = replace(state.runs[-1], status="running", progress=0.5, loss=3.2, tokens_per_s=1e4)
    (now,) = _status.at_work_now(plan, [*state.runs[:-1], first])
    run = plan.by_id[first.run_id]
    assert now.step == round(run.steps / 2) and now.remaining_s == pytest.approx(
        (run.steps - now.step) * run.recipe.batch_tokens / 1e4
    )
    screen = Console(width=100, record=True, file=io.StringIO())
    screen.print(
        _status.glance(summarise(folder, plan, state), width=100, live=True, at_work=[now])
    )
    told = screen.export_text()
    for line in _stage.run_lines(now, width=100):
        assert line.plain.rstrip() in told
    assert "loss 3.2000" in told and "ppl 24.53" in told


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--watch", "0.1"], "flood"),
        (["--watch", "5", "--json"], "neither"),
        (["--watch", "x"], "invalid float"),
    ],
)
def test_a_wrong_watch_is_refused(campaign, capsys, words, says):
    assert main(["status", "c", *words]) == 2
    assert says in capsys.readouterr().err


def test_wait_ends_with_1_where_something_failed_and_0_where_all_is_settled(campaign, capsys):
    folder, plan = campaign
    assert main(["wait", "c"]) == 1
    assert "disk-full" in capsys.readouterr().out
    for run in plan.runs:
        (folder.new_attempt(run.run_id) / "end.json").write_text('{"status": "completed"}')
    assert main(["wait", "c"]) == 0


def llem(*words, **options):
    command = [sys.executable, "-m", "llem", *map(str, words)]
    return subprocess.Popen(command, text=True, stdout=-1, stderr=-1, **options)


def test_wait_waits_for_the_local_executor_until_its_timeout_and_ctrl_c(campaign):
    folder, _ = campaign
    with folder.locked("the local executor"):
        process = llem("wait", "c", "--timeout", "1")
        _, err = process.communicate(timeout=60)
        assert process.returncode == 1 and "not over after 1 s" in err
        process = llem("wait", "c")
        assert "2/30 runs" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        assert process.returncode == 130


def test_logs_show_the_attempt_of_the_run_alone(campaign, capsys):
    folder, plan = campaign
    run, other = plan.arrays[0].elements[0][0], "f" * 12
    log = folder.logs / f"{plan.arrays[0].name}-0-rank0.log"
    mark = "2026-01-01 00:00:00 run {}: attempt {}, x\n"
    log.write_text(
        mark.format(run, 0) + "first try\n" + mark.format(other, 0) + "another\n"
        + mark.format(run, 1) + "second try\nlast line\n"
    )  # fmt: skip
    (folder.logs / f"{plan.arrays[0].name}-0-rank1.log").write_text("of rank 1\n")

    def shown(*words):
        capsys.readouterr()
        assert main(["logs", "c", run[:8], *words]) == 0
        return capsys.readouterr().out.splitlines()

    assert shown()[1:] == ["second try", "last line"]
    assert shown("--attempt", "0")[1:] == ["first try"]
    assert shown("--lines", "1") == ["last line"]
    assert shown("--rank", "1") == ["of rank 1"]
    assert main(["logs", "c", run, "--attempt", "7"]) == 2
    assert "found: 0, 1" in capsys.readouterr().err
    assert main(["logs", "c", ""]) == 2


def test_logs_follow_until_the_run_has_ended(campaign):
    folder, plan = campaign
    array = plan.arrays[0]
    run = next(n for n in array.elements[-1])
    log = folder.logs / f"{array.name}-{len(array.elements) - 1}-rank0.log"
    log.write_text(f"2026-01-01 00:00:00 run {run}: attempt 0, x\n")
    for end in folder.run(run).glob("attempt-*/end.json"):
        end.unlink()
    process = llem("logs", "c", run, "--follow", env={**os.environ, "PYTHONUNBUFFERED": "1"})
    assert "attempt 0" in process.stdout.readline()
    with open(log, "a") as file:
        file.write("later\n")
    assert process.stdout.readline() == "later\n"
    (folder.new_attempt(run) / "end.json").write_text('{"status": "completed"}')
    assert process.wait(30) == 0


@pytest.mark.slow
@pytest.mark.parametrize("runs", [5000])
def test_five_thousand_finished_runs_are_told_within_a_second(tmp_path, monkeypatch, runs):
    """Processor time of the whole process, by the better of two calls with the cache."""
    import resource

    monkeypatch.chdir(tmp_path)
    text = "name: big\ntarget: 1e25 FLOP\nmodel: {vocabulary: 32000, context: 2048}\n"
    (tmp_path / "campaign.yaml").write_text(text + "site: juwels-booster\n")
    words = ["plan", "campaign.yaml", "--runs", str(runs), "--budget", "5e6 GPUh", "--out", "c"]
    assert main(words) == 0
    folder = CampaignFolder(tmp_path / "c")
    plan = folder.load_plan()
    assert len(plan.runs) >= 0.9 * runs
    for run in plan.runs:
        end = {
            "status": "completed",
            "loss": 2.5,
            "ranks": 1,
            "started_ns": 0,
            "ended_ns": 10**9,
            "energy_j": 1.0,
            "hosts": ["n1"],
            "step": run.steps,
        }
        place = folder.run(run.run_id) / "attempt-0"
        place.mkdir(parents=True)
        (place / "end.json").write_text(json.dumps(end))
    spent = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        begun = time.perf_counter()
        process = llem("status", "c")
        out, err = process.communicate(timeout=120)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert process.returncode == 0, err
        assert f"{len(plan.runs)} of {len(plan.runs)} runs done" in out
        spent.append(
            (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
             time.perf_counter() - begun)
        )  # fmt: skip
    print("processor and wall seconds:", spent)
    assert min(spent[1:])[0] < 1.0, spent


def test_the_job_at_the_end_and_wait_tell_those_who_asked_once(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    hook = tmp_path / "hook"
    hook.write_text(f"#!/bin/sh\ncat >> {tmp_path}/told; echo >> {tmp_path}/told\n")
    hook.chmod(0o755)
    (tmp_path / "campaign.yaml").write_text(CAMPAIGN + f"notify: {{command: [{hook}]}}\n")
    assert main(["plan", "campaign.yaml", "--out", "c"]) == 0
    folder = CampaignFolder(tmp_path / "c")
    for run in folder.load_plan().runs:
        end = {"run_id": run.run_id, "status": "diverged", "reason": "the loss is nan"}
        (folder.new_attempt(run.run_id) / "end.json").write_text(json.dumps(end))
    # no law can be fitted to this: whoever waits is told all the same
    assert main(["finish", "c"]) == 1
    assert main(["wait", "c"]) == 0
    told = [json.loads(line) for line in (tmp_path / "told").read_text().splitlines()]
    assert [body["event"] for body in told] == ["done"]
    assert "notification" not in capsys.readouterr().err


def test_a_log_of_an_element_that_never_began_is_shown_whole(campaign, capsys):
    folder, plan = campaign
    array = plan.arrays[0]
    log = folder.logs / f"{array.name}-0-rank0.log"
    log.write_text("python3: No such file or directory\n")
    capsys.readouterr()
    assert main(["logs", "c", array.elements[0][0]]) == 0
    assert capsys.readouterr().out == "python3: No such file or directory\n"


def test_devices_of_runs_at_work_are_drawn_as_a_rehearsal_draws_them(tmp_path):
    """Records that are written just now; a counter alone tells power, a torn record nothing."""
    import io

    import numpy as np
    from rich.console import Console

    from llem.cli import _stage, _status
    from llem.cluster import CampaignFolder, RunState
    from llem.records import SAMPLES, node_writer, samples_table

    folder = CampaignFolder(tmp_path)
    place = folder.run("abc") / "attempt-1"
    place.mkdir(parents=True)
    names = {"GPU-a": "nvml", "pkg": "rapl"}
    devices = {
        uuid: {"name": uuid, "domain": "gpu", "source": source, "quality": "counter"}
        for uuid, source in names.items()
    }
    meta = {"run_id": "abc", "host": "node7", "boot_id": "b", "pid": 1, "pid_space": "p"}
    writer = node_writer(place / "node-node7.h5", meta=meta, devices=devices)
    for second in range(30):
        for uuid in names:
            row = np.zeros((), dtype=SAMPLES)
            row["t_ns"], row["energy_mj"] = (1 + second) * 10**9, second * 40e3
            gpu = uuid == "GPU-a"
            row["power_mw"] = 3e5 if gpu else np.nan
            row["temperature_c"], row["utilization"] = (88, 97) if gpu else (np.nan, np.nan)
            writer.append(samples_table(uuid), row.item())
    writer.flush()
    (place / "node-torn.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    state = RunState("abc", "a", 0, "running", 2, 0.5, 3.0, "")
    try:
        boards = _status.boards_now(folder, [state])
    finally:
        writer.close()
    assert [(b.node, b.run_id, round(b.watts)) for b in boards] == [
        ("node7", "abc", 300), ("node7", "abc", 40),
    ]  # fmt: skip
    screen = Console(width=80, record=True, file=io.StringIO())
    for line in _stage.device_grid(boards, width=80):
        screen.print(line)
    told = screen.export_text()
    assert f"{_stage.ALARM}  97%  88C  300W" in told and "-%   -C   40W" in told
    assert _status.boards_now(folder, [RunState("none", "a", 0, "running", 1, 0, None, "")]) == []
