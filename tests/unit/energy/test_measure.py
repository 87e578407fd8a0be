"""Ranks that measure together: one samples, nothing is counted twice, all is covered."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import llem
from llem.errors import InputError, UnavailableError
from llem.records import read_node
from llem.results import device_energies

WORKER = Path(__file__).with_name("measured.py")


def until(ready):
    deadline = time.monotonic() + 300
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def launched(tmp_path, plain_environ, nvml_library, fake_gpus):
    """Runs ranks at once on the stand-in GPUs; what each of them told, and the GPUs' truth."""
    gpus = fake_gpus(gpus=2, base_w=100, amp_w=300, period_s=0.4, step_w=50)
    # A counter that moves every 20 ms is off by so much at a window's ends (docs/measure.md): here
    # windows of two seconds are to be told apart from what ranks do wrong together.
    rooms = {"TMPDIR": str(tmp_path / "t"), "FAKE_NVML_ENERGY_UPDATE_MS": "1"}
    (tmp_path / "t").mkdir()

    def launch(ranks, *, seconds=1.5, stagger=0.0, name="run.h5", check=True, **more):
        base = {**plain_environ, **gpus.environ(nvml_library), **rooms, **more}
        processes = [
            subprocess.Popen(
                [sys.executable, str(WORKER), str(tmp_path / name), str(seconds), str(stagger)],
                env={**base, **rank}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for rank in ranks
        ]  # fmt: skip
        answers = [process.communicate() for process in processes]
        if check:
            assert [p.returncode for p in processes] == [0] * len(ranks), answers
        return [json.loads(out) for out, _ in answers if out]

    launch.truth = lambda t0, t1: sum(gpus.energy_j(g, t0, t1) for g in range(gpus.gpus))
    return launch


def torchrun(count, *, node=0, nodes=1, **more):
    return [
        {"RANK": str(node * count + i), "WORLD_SIZE": str(nodes * count), "LOCAL_RANK": str(i),
         "LOCAL_WORLD_SIZE": str(count), "GROUP_RANK": str(node), "GROUP_WORLD_SIZE": str(nodes),
         "TORCHELASTIC_RUN_ID": "job", "MASTER_ADDR": "a", "MASTER_PORT": "1", **more}
        for i in range(count)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("count", "seconds", "counter_ms"),
    [(2, 1.5, "1"), pytest.param(4, 8.0, "20", marks=pytest.mark.slow)],
)
def test_ranks_of_a_node_share_one_record_from_first_begin_to_last_end(
    launched, tmp_path, count, seconds, counter_ms
):
    told = launched(
        torchrun(count), seconds=seconds, stagger=0.3, FAKE_NVML_ENERGY_UPDATE_MS=counter_ms
    )
    assert [t["last"] for t in told].count(True) == 1 and not any(t["lost"] for t in told)
    assert list(tmp_path.glob("*.h5")) == [tmp_path / "run.h5"]
    record = read_node(tmp_path / "run.h5")
    assert record.closed and len(record.devices) == 2
    found = device_energies(tmp_path / "run.h5")
    within(found.duration_s, told)
    # against the truth of the window that the record tells, which no clock of the test blurs
    assert found.energy_j == pytest.approx(truth_of(record, launched), rel=0.005)
    [last] = [t for t in told if t["last"]]
    assert last["energy_j"] == pytest.approx(found.energy_j)
    assert list((tmp_path / "t").glob("llem-*/*")) == []


def within(duration_s, told):
    """It begins while the first begins to measure, and ends while the last one ends."""
    least, most = (max(t[end] for t in told) - min(t[begin] for t in told)
                   for begin, end in (("began", "ended"), ("entered", "left")))  # fmt: skip
    assert least - 1e-3 <= duration_s <= most + 1e-3


def truth_of(record, launched):
    events = record.events
    t0 = events["t_ns"][events["code"] == b"begin"].min()
    t1 = events["t_ns"][events["code"] == b"end"].max()
    stamp = record.clock[0]
    wall = [(int(t) - int(stamp["t_mono_ns"]) + int(stamp["t_wall_ns"])) / 1e9 for t in (t0, t1)]
    return launched.truth(*wall)


@pytest.mark.slow
def test_two_nodes_have_a_record_each_and_are_added_up(launched, tmp_path):
    steps = [
        {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": str(rank), "SLURM_NNODES": "2",
         "SLURM_LOCALID": str(rank % 2), "SLURM_NODEID": str(rank // 2),
         "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NUM_TASKS": "4",
         "SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURMD_NODENAME": f"n{rank // 2}"}
        for rank in range(4)
    ]  # fmt: skip
    told = launched(steps)
    names = ["run.node-n0.h5", "run.node-n1.h5"]
    assert sorted(p.name for p in tmp_path.glob("*.h5")) == names
    assert [t["last"] for t in told].count(True) == 2
    found = device_energies(tmp_path / "run.h5")
    parts = [device_energies(tmp_path / name) for name in names]
    assert found.energy_j == pytest.approx(sum(p.energy_j for p in parts)) and not found.problems
    for name, part in zip(names, parts, strict=True):
        assert part.energy_j == pytest.approx(
            truth_of(read_node(tmp_path / name), launched), rel=0.005
        )
    assert len(found.devices) == 4
    # a folder is all of it, once
    assert device_energies(tmp_path).energy_j == pytest.approx(found.energy_j)


@pytest.mark.slow
def test_two_jobs_on_a_node_record_their_own_gpus(launched, tmp_path):
    results = {}

    def job(number):
        ranks = [{**rank, "CUDA_VISIBLE_DEVICES": str(number)}
                 for rank in torchrun(2, MASTER_PORT=str(number))]  # fmt: skip
        results[number] = launched(ranks, name=f"job{number}.h5")

    threads = [threading.Thread(target=job, args=(i,)) for i in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    uuids = [[d.uuid for d in read_node(tmp_path / f"job{i}.h5").devices] for i in (0, 1)]
    assert [len(u) for u in uuids] == [1, 1] and uuids[0] != uuids[1]


@pytest.mark.slow
def test_ranks_that_were_given_a_gpu_each_measure_all_of_them(launched, tmp_path):
    ranks = [{**rank, "CUDA_VISIBLE_DEVICES": str(i)} for i, rank in enumerate(torchrun(2))]
    launched(ranks)
    assert len(read_node(tmp_path / "run.h5").devices) == 2


@pytest.mark.slow
def test_rank_0_alone_may_measure_and_does_not_wait_for_the_others(launched, tmp_path):
    [told] = launched(torchrun(4)[:1], seconds=0.6)
    assert not told["last"] and not told["lost"] and told["energy_j"] > 0
    until(lambda: read_node(tmp_path / "run.h5").closed)
    found = device_energies(tmp_path / "run.h5")
    # what was sampled while the others were awaited does not count
    within(found.duration_s, [told])
    assert b"3 of 4 processes here never began" in read_node(tmp_path / "run.h5").events["text"][-1]


def test_who_comes_when_the_record_has_ended_goes_on_and_says_so(launched, tmp_path):
    [told] = launched(torchrun(1), seconds=0.2)
    record = read_node(tmp_path / "run.h5")
    assert told["last"] and record.closed
    # the same launch, as its last rank sees it that was late
    late = {**torchrun(2)[1], "LOCAL_WORLD_SIZE": "2"}
    [told] = launched([late], seconds=0.2)
    assert told["lost"] and "had ended before" in told["reasons"][-1]


def test_a_record_of_before_is_refused_by_every_rank(launched, tmp_path):
    (tmp_path / "run.h5").write_bytes(b"something else")
    assert launched(torchrun(2), check=False) == []
    assert (tmp_path / "run.h5").read_bytes() == b"something else"


@pytest.mark.slow
def test_a_killed_rank_does_not_end_the_measuring_of_the_others(
    tmp_path, plain_environ, nvml_library, fake_gpus
):
    environ = {**plain_environ, **fake_gpus(gpus=1).environ(nvml_library), "TMPDIR": str(tmp_path)}
    command = [sys.executable, str(WORKER), str(tmp_path / "run.h5")]
    ranks = torchrun(2)
    # rank 0 is first, starts the sampler, and is killed
    first = subprocess.Popen([*command, "300"], env={**environ, **ranks[0]})
    until((tmp_path / "run.h5").exists)
    second = subprocess.Popen([*command, "2"], env={**environ, **ranks[1]}, stdout=subprocess.PIPE)
    until(lambda: b"rank 1" in read_node(tmp_path / "run.h5").events["text"].tolist())
    first.send_signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    out, _ = second.communicate()
    assert json.loads(out)["last"]
    events = [(e["code"], e["text"]) for e in read_node(tmp_path / "run.h5").events]
    assert events.count((b"rank-lost", b"rank 0")) == 1 and events[-1] == (b"end", b"rank 1")


@pytest.mark.slow
def test_real_torchrun_and_its_ranks_share_one_record(
    tmp_path, plain_environ, nvml_library, fake_gpus
):
    pytest.importorskip("torch")
    gpus = fake_gpus(gpus=2, base_w=200, step_w=50)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
               "2", str(WORKER), str(tmp_path / "run.h5"), "5"]  # fmt: skip
    environ = {**plain_environ, **gpus.environ(nvml_library), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert sorted(t["rank"] for t in told) == [0, 1] and [t["last"] for t in told].count(True) == 1
    record = read_node(tmp_path / "run.h5")
    assert record.meta["launcher"] == "torchrun" and record.closed
    assert list(tmp_path.glob("*.h5")) == [tmp_path / "run.h5"]
    found = device_energies(tmp_path / "run.h5")
    assert found.energy_j == pytest.approx(450 * found.duration_s, rel=0.005)
    assert [p.phase for p in found.phases] == ["first half", "rest"]


@pytest.fixture
def here(monkeypatch, tmp_path, plain_environ, nvml_library, fake_gpus):
    """This very process, alone, with one stand-in GPU of 200 W."""
    for name in set(os.environ) - set(plain_environ):
        monkeypatch.delenv(name)
    added = fake_gpus(gpus=1, base_w=200).environ(nvml_library)
    for name, value in {**plain_environ, **added}.items():
        monkeypatch.setenv(name, value)
    return tmp_path / "run.h5"


def test_energy_by_phase_is_told_late_and_adds_up(here):
    with llem.measure(here, interval_s=0.02) as m:
        m.mark("setup")
        time.sleep(0.3)
        with m.phase("training"):
            time.sleep(0.3)
            with m.phase("evaluation"):
                time.sleep(0.3)
            time.sleep(0.3)
        m.mark("teardown")
    phases = {p.phase: p for p in m.phases}
    # before the first mark a busy machine may take a moment, which is of no phase
    assert [*phases][-4:] == ["setup", "training", "evaluation", "teardown"]
    assert {*phases} <= {"rest", "setup", "training", "evaluation", "teardown"}
    # A busy machine sleeps longer than it was told to, never less.
    for name, slept_s in {"setup": 0.3, "training": 0.6, "evaluation": 0.3}.items():
        phase = phases[name]
        assert phase.duration_s >= slept_s - 1e-3
        assert phase.energy_j == pytest.approx(200 * phase.duration_s, rel=0.1)
    assert sum(p.energy_j for p in m.phases) == pytest.approx(m.energy_j)
    assert sum(p.duration_s for p in m.phases) == pytest.approx(m.duration_s)
    assert m.mean_power_w == pytest.approx(200, rel=0.02) and m.last and not m.lost
    assert m.devices[0].quality == "counter" and m.result.quality == "counter"


def test_a_name_that_is_none_is_refused(here):
    with llem.measure(here) as m:
        for name in ("", "a\nb", "x" * 201):
            with pytest.raises(InputError):
                m.mark(name)


def test_measurements_may_be_nested_and_in_threads(here):
    def inner():
        with llem.measure(here.with_name("inner.h5")) as found:
            time.sleep(0.3)
        inside.append(found)

    inside = []
    with llem.measure(here) as outer:
        thread = threading.Thread(target=inner)
        thread.start()
        thread.join()
    [found] = inside
    assert outer.duration_s > found.duration_s >= 0.3
    for one in (outer, found):
        assert one.energy_j == pytest.approx(200 * one.duration_s, rel=0.1)


def test_a_sampler_that_dies_never_costs_the_block_and_its_energy_is_not_a_part(here):
    with llem.measure(here) as m:
        time.sleep(0.2)
        os.kill(read_node(here).meta["pid"], signal.SIGKILL)
        time.sleep(1.0)
        m.mark("still here")
        done = True
    assert done and m.lost and m.energy_j != m.energy_j
    assert "sampler at" in m.notes[0] and "not sampled" in m.devices[0].reason
    assert any("was not closed" in problem for problem in m.result.problems)


def test_a_signal_to_all_processes_of_a_job_does_not_end_the_measuring_before_the_program(here):
    with llem.measure(here) as m:
        os.kill(read_node(here).meta["pid"], signal.SIGTERM)
        time.sleep(0.5)
    assert m.last and m.energy_j == pytest.approx(200 * m.duration_s, rel=0.05)
    assert m.duration_s > 0.5


def test_a_forked_child_does_not_end_its_parents_measuring(here):
    with llem.measure(here) as m:
        pid = os.fork()
        if pid == 0:
            try:
                m.mark("in the child")
                m._measurement._end()
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        time.sleep(0.2)
    assert m.last and m.energy_j > 0
    codes = [e["code"] for e in read_node(here).events]
    assert [codes.count(c) for c in (b"begin", b"end", b"rank-lost", b"mark")] == [1, 1, 0, 0]


def test_where_no_record_can_be_made_it_says_so_before_the_block(here):
    with pytest.raises(UnavailableError, match="No such file"), llem.measure(here / "x" / "y.h5"):
        pytest.fail("the block ran")
