"""The pause before a run: as long as the campaign asks for, and no longer than the job is left."""

import os
import signal
import threading
import time

import pytest
from deployments import serving

from llem.cluster.disk.folder import CampaignFolder
from llem.cluster.job.environment import socket_path
from llem.cluster.job.rank import Rank
from llem.cluster.job.recorder import Recorder
from llem.energy import start_sampler


class World:
    """Who is alone."""

    def barrier(self):
        pass

    def first(self, function):
        return function()


@pytest.fixture
def signalled(rank, monkeypatch):
    """A signal to this process half a second after a pause has begun, as the rank takes it."""
    before = signal.getsignal(signal.SIGUSR1)
    rank.leaving.catch_signals((signal.SIGUSR1,))
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGUSR1))
    pause = rank._cool_down

    def pause_and_signal(run):
        timer.start()
        pause(run)

    monkeypatch.setattr(rank, "_cool_down", pause_and_signal)
    yield
    timer.join()
    signal.signal(signal.SIGUSR1, before)


@pytest.fixture
def rank(tmp_path, monkeypatch):
    """A rank as it is between two runs, in a job of its own."""
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    made = Rank({"runs": []}, CampaignFolder(tmp_path))
    made.rank, made.world = 0, World()
    made.recorder = Recorder(made.folder, hosts=["here"], rank=0, ranks=1)
    return made


@pytest.fixture
def sampler(rank):
    with start_sampler(socket_path(), environ={**os.environ, "LLEM_SYSFS": "/nonexistent"}) as it:
        with it.link() as link:  # it is there
            assert link.idle(baseline_s=0.0).ok
        yield it


def cool_down(rank, seconds):
    began = time.monotonic()
    rank._cool_down(serving(cooldown_s=seconds))
    return time.monotonic() - began


def test_devices_are_left_idle_before_a_run_and_the_log_says_so(rank, sampler, capsys):
    took_s = cool_down(rank, 1.0)
    assert 1.0 <= took_s < 30
    said = capsys.readouterr().out
    assert "cooled down for 1" in said and " of " not in said and "(" not in said


def test_the_pause_is_kept_without_a_sampler_too(rank, capsys):
    assert 0.8 <= cool_down(rank, 0.8) < 30
    assert "(sampler at " in capsys.readouterr().out


def test_without_a_pause_there_is_none(rank, capsys):
    assert cool_down(rank, 0.0) < 5 and not capsys.readouterr().out


def test_a_signal_ends_the_pause(rank, sampler, signalled, capsys):
    assert cool_down(rank, 600.0) < 300
    assert " of 600 s (sampler at " in capsys.readouterr().out


def test_a_signal_ends_the_wait_for_a_sampler_that_is_not_there(rank, signalled, capsys):
    # It was noticed when the wait was over, after five seconds, and then told as waited for.
    assert 0.5 <= cool_down(rank, 600.0) < 300
    told = capsys.readouterr().out
    assert " of 600 s (sampler at " in told and "left before it appeared" in told


def test_libraries_are_imported_before_the_pause_and_what_fails_there_is_not_told(
    rank, monkeypatch
):
    order = []

    class Backend:
        @staticmethod
        def prepare(run):
            order.append("prepared")
            raise ImportError("no such library")

    monkeypatch.setattr("llem.serving.backend.backend_class", lambda name: Backend)
    monkeypatch.setattr(rank, "_cool_down", lambda run: order.append("cooled down"))
    rank._make_ready(serving(cooldown_s=1.0))
    assert order == ["prepared", "cooled down"]


def test_a_run_is_not_begun_by_a_job_that_has_to_leave(rank, tmp_path, capsys):
    rank.leaving.reason = "signal SIGTERM"
    run = serving(cooldown_s=600.0)
    began = time.monotonic()
    rank.runs = [run]
    assert rank.all_runs() == ["interrupted"] and time.monotonic() - began < 300
    assert f"run {run.run_id}: not begun: signal SIGTERM" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()
