"""The sampler process and its link, as a rank sees them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import llem.energy
from llem.energy import SamplerLink
from llem.errors import InputError
from llem.records import read_node

META = {"run_id": "aaaa", "attempt": 0}
# For what comes by itself, on a machine that may be busy with much else.
PATIENCE_S = 300.0


def wait_for(condition):
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def samples_of(path):
    [device] = read_node(path).devices
    return device.samples


def codes(path):
    return [event["code"].decode() for event in read_node(path).events]


def test_a_record_begins_and_ends_with_a_sample_and_says_what_it_is(sampler, tmp_path):
    path = tmp_path / "node-a.h5"
    with sampler().link() as link:
        before = time.monotonic_ns()
        answer = link.begin(path, META)
        begun = time.monotonic_ns()
        time.sleep(0.55)
        ending = time.monotonic_ns()
        assert link.end().ok
    assert answer.ok and answer.devices[0]["quality"] == "model"
    assert answer.reasons[0] == "nvml: NVML Shared Library Not Found"
    refused = {reason.partition(":")[0] for reason in answer.reasons}
    assert refused == {"nvml", "zeus", "rapl", "pm_counters", "hwmon", "ipmi"}
    record = read_node(path)
    t = record.devices[0].samples["t_ns"]
    assert before < t[0] < begun and t[-1] >= ending
    assert record.closed and len(record.clock) == 2
    assert record.meta["run_id"] == "aaaa" and record.meta["meters"] == ["cpu-model"]
    assert record.meta["interval_s"] == 0.1 and record.meta["boot_id"]
    assert codes(path) == ["meter-reason"] * len(refused) + ["estimate"]


def test_samples_stay_on_the_grid_and_do_not_drift(sampler, tmp_path):
    """On a busy machine any one sample may be late; the grid itself must not move."""
    path, interval_s = tmp_path / "node-a.h5", 0.05
    with sampler(interval_s=interval_s).link() as link:
        link.begin(path, META)
        time.sleep(1.5)
        link.end()
    t = samples_of(path)["t_ns"][1:-1] / 1e9
    early, late = np.array_split(t, 2)
    # the least late samples of both halves are as late: as angles, for there the grid closes
    offs = [np.exp(2j * np.pi * half / interval_s) for half in (early, late)]
    nearest = min(abs(np.angle(a / b)) for a in offs[0] for b in offs[1]) / (2 * np.pi)
    assert len(t) >= 10 and nearest * interval_s < 0.005
    on_time = np.abs(np.diff(t) / interval_s - 1) < 0.5
    assert np.count_nonzero(on_time) >= len(t) / 3


def test_one_sampler_serves_run_after_run_over_one_connection(sampler, tmp_path):
    with sampler().link() as link:
        for i in range(3):
            assert link.begin(tmp_path / f"node-{i}.h5", META).ok
            assert link.end().ok
    assert [read_node(tmp_path / f"node-{i}.h5").closed for i in range(3)] == [True] * 3


def test_what_cannot_be_done_is_refused_with_a_reason_and_nothing_breaks(sampler, tmp_path):
    process = sampler()
    path = tmp_path / "node-a.h5"
    with process.link() as link:
        assert link.end().reason == "sampler: not connected"
        assert "No such file" in link.begin(tmp_path / "gone" / "node-a.h5", META).reason
        assert link.end().reason == "no record is open"
        assert link.begin(path, META).ok
        assert "end it first" in link.begin(tmp_path / "node-b.h5", META).reason
        with process.link() as other:
            assert "end it first" in other.begin(tmp_path / "node-c.h5", META).reason
            assert "another connection" in other.end().reason
        assert link.end().ok
        assert "exists" in link.begin(path, META).reason
        assert not link.begin(tmp_path / "node-d.h5", {"a": object()}).ok


@pytest.mark.parametrize(
    "line", [b"hello\n", b"[]\n", b'{"op": "dance"}\n', b'{"op": "begin"}\n', b"\xff\xfe\n",
             b'{"op": "begin", "path": "relative.h5"}\n']
)  # fmt: skip
def test_a_line_that_is_no_request_is_answered_with_a_reason(shared, line):
    with socket.socket(socket.AF_UNIX) as raw:
        raw.connect(str(shared))
        raw.sendall(line)
        answer = json.loads(raw.makefile("rb").readline())
    assert answer["ok"] is False and answer["reason"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory, plain_environ):
    """One sampler for tests that open no record."""
    folder = tmp_path_factory.mktemp("shared") / "s"
    process = llem.energy.start_sampler(folder / "x.sock", environ=plain_environ, linger_s=60)
    wait_for(process.socket_path.exists)
    yield process.socket_path
    process.stop()


def test_the_socket_is_for_its_user_alone(shared):
    assert stat.S_IMODE(shared.stat().st_mode) == 0o600
    assert stat.S_IMODE(shared.parent.stat().st_mode) == 0o700


def test_nothing_of_it_stays_on_the_node_but_a_folder_that_it_found_there(sampler, tmp_path):
    def ends(name):
        process = sampler()
        with process.link() as link:
            assert link.begin(tmp_path / name, META).ok and link.end().ok
        assert process.stop() == 0
        return process.socket_path

    folder = ends("node-a.h5").parent
    assert not folder.exists()
    folder.mkdir(mode=0o700)
    assert list(ends("node-b.h5").parent.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_closes_the_record_in_order(sampler, tmp_path, number):
    process = sampler()
    path = tmp_path / "node-a.h5"
    with process.link() as link:
        assert link.begin(path, META).ok
        asked = time.monotonic_ns()
        process.process.send_signal(number)
        assert process.process.wait(PATIENCE_S) == 0
    assert read_node(path).closed and samples_of(path)["t_ns"][-1] >= asked
    assert not process.socket_path.exists()


def test_with_term_grace_it_goes_on_until_rank_0_has_ended(sampler, tmp_path):
    process = sampler(options=("--term-grace", "30"))
    path = tmp_path / "node-a.h5"
    with process.link() as link:
        assert link.begin(path, META).ok
        process.process.terminate()
        time.sleep(0.5)
        written = time.monotonic_ns()
        assert link.end().ok
        assert process.process.wait(PATIENCE_S) == 0
    assert samples_of(path)["t_ns"][-1] >= written


def test_slurms_warning_signals_do_not_end_it(sampler, tmp_path):
    process = sampler()
    with process.link() as link:
        assert link.begin(tmp_path / "node-a.h5", META).ok
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
            process.process.send_signal(number)
        time.sleep(0.2)
        assert link.end().ok


@pytest.mark.slow
def test_a_lost_rank_ends_its_record_after_the_grace(sampler, tmp_path):
    path = tmp_path / "node-a.h5"
    process = sampler()
    link = process.link()
    link.begin(path, META)
    link.close()
    gone = time.monotonic_ns()
    wait_for(lambda: read_node(path).closed)
    assert codes(path)[-1] == "rank-lost"
    t = samples_of(path)["t_ns"]
    # Where the sampler was held up, its own samples tell by how much: once when it heard of the
    # loss, once when the grace was over.
    held_up_ns = 2 * int(np.diff(t).max())
    assert 4.5e9 < t[-1] - gone < 5.5e9 + held_up_ns


def test_a_rank_that_comes_back_may_end_or_begin_anew(sampler, tmp_path):
    process = sampler()
    for name in ("a", "b"):
        link = process.link()
        assert link.begin(tmp_path / f"node-{name}.h5", META).ok
        link.close()
    with process.link() as link:
        assert link.begin(tmp_path / "node-c.h5", META).ok
        assert link.end().ok
    assert [codes(tmp_path / f"node-{n}.h5")[-1] for n in "abc"] == [
        "rank-lost", "rank-lost", "estimate"
    ]  # fmt: skip


def test_nobody_there_is_a_reason_and_no_error(tmp_path):
    with SamplerLink(tmp_path / "none.sock", timeout_s=0.2) as link:
        answer = link.begin(tmp_path / "node-a.h5", META)
    assert not answer.ok and "No such file" in answer.reason and "waited 0.2 s" in answer.reason


def test_a_path_too_long_for_a_socket_is_a_reason(sampler, tmp_path):
    link = SamplerLink(tmp_path / ("x" * 120), timeout_s=30)
    assert "longer than 107 bytes" in link.begin(tmp_path / "node-a.h5", META).reason


def test_a_sampler_that_died_at_its_start_is_noticed_at_once(
    sampler, tmp_path, plain_environ, monkeypatch
):
    open_to_all = tmp_path / "s"
    open_to_all.mkdir()
    open_to_all.chmod(0o755)
    # Whoever waited for it to appear would say so.
    answer = sampler().link(timeout_s=600).begin(tmp_path / "node-a.h5", META)
    assert "ended with status 1" in answer.reason
    assert "open to others (mode 755" in (tmp_path / "sampler.err").read_text()


def test_a_killed_sampler_is_a_reason_at_the_end(sampler, tmp_path):
    process = sampler()
    with process.link() as link:
        assert link.begin(tmp_path / "node-a.h5", META).ok
        process.process.kill()
        process.process.wait()
        assert "sampler at" in link.end().reason


def test_a_second_sampler_leaves_the_first_its_socket(sampler, shared, plain_environ):
    done = subprocess.run(
        [sys.executable, "-m", "llem.energy.sampler", "--socket", str(shared)],
        env=plain_environ, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and "listens there already" in done.stderr
    assert shared.exists()


def test_a_socket_left_by_a_killed_sampler_is_taken_over(sampler, tmp_path):
    first = sampler()
    wait_for(first.socket_path.exists)
    first.process.kill()
    first.process.wait()
    first.socket_path.rename(first.socket_path.with_name("1.sock"))
    with sampler().link() as link:
        assert link.begin(tmp_path / "node-a.h5", META).ok


def test_a_child_sampler_goes_when_its_rank_has_gone(sampler):
    process = sampler(linger_s=0.3)
    assert process.process.wait(PATIENCE_S) == 0
    assert not process.socket_path.exists()


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 1 MB, and the prefix of a command that sees it, in a mount space of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f'mount -t tmpfs -o size=1m none {disk} && exec "$@"'
    prefix = ["unshare", "-rm", "sh", "-c", mount, "sh"]
    try:
        subprocess.run([*prefix, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no user namespaces here")
    return disk, prefix


@pytest.mark.slow
def test_a_full_disk_ends_measuring_with_one_line_and_nothing_else(
    small_disk, tmp_path, plain_environ
):
    disk, prefix = small_disk
    place = tmp_path / "s" / "x.sock"
    with (tmp_path / "sampler.err").open("wb") as stderr:
        process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "llem.energy.sampler", "--socket", str(place),
             "--interval", "0.002"], env=plain_environ, stderr=stderr,
        )  # fmt: skip
    try:
        _fill(disk, process.pid, place, tmp_path / "sampler.err")
        process.terminate()
        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()
    assert (tmp_path / "sampler.err").read_text().count("measuring ended") == 1
    assert "Traceback" not in (tmp_path / "sampler.err").read_text()


def _fill(disk, pid, place, errors):
    """Fill the disk under an open record, ask for another, make room again."""
    inside = Path(f"/proc/{pid}/root{disk}")  # the disk as that process sees it
    with SamplerLink(place, timeout_s=PATIENCE_S) as link, contextlib.ExitStack() as stack:
        # only once it answers is the disk sure to be mounted
        assert link.begin(disk / "node-full.h5", META).ok
        junk = stack.enter_context((inside / "junk").open("wb", buffering=0))
        with contextlib.suppress(OSError):
            while True:
                junk.write(bytes(4096))
        wait_for(lambda: "measuring ended" in errors.read_text())
        answer = link.end()
        assert not answer.ok and "No space left" in answer.reason
        assert "No space left" in link.begin(disk / "node-none.h5", META).reason
        junk.truncate(0)
        assert link.begin(disk / "node-after.h5", META).ok
        assert link.end().ok
    assert read_node(inside / "node-after.h5").closed
    assert not read_node(inside / "node-full.h5").closed


@pytest.mark.slow
def test_it_costs_less_than_a_hundredth_of_a_core_and_imports_nothing_heavy(sampler, tmp_path):
    process = sampler()
    with process.link() as link:
        link.begin(tmp_path / "node-a.h5", META)
        proc = Path(f"/proc/{process.process.pid}")
        assert os.getpriority(os.PRIO_PROCESS, process.process.pid) >= 5
        before_s, began = cpu_s(proc), time.monotonic()
        time.sleep(4.0)
        share = (cpu_s(proc) - before_s) / (time.monotonic() - began)
        maps = (proc / "maps").read_text()
        link.end()
    print(f"{share:.2%} of a core")
    # the measured share is 0.5 %; a busy machine's caches may double it
    assert share < 0.015
    assert "/torch/" not in maps and "/scipy/" not in maps


def cpu_s(proc):
    fields = (proc / "stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_measure_records_a_block_and_does_not_swallow_its_error(tmp_path, plain_environ,
                                                                monkeypatch):  # fmt: skip
    monkeypatch.setenv("PYTHONPATH", plain_environ["PYTHONPATH"])
    path = tmp_path / "run.h5"
    with pytest.raises(ZeroDivisionError), llem.energy.measure(path):  # noqa: PT012
        time.sleep(0.01)
        raise ZeroDivisionError
    assert read_node(path).closed and len(samples_of(path)) >= 2
    with pytest.raises(InputError, match="exists"), llem.energy.measure(path):
        pass
