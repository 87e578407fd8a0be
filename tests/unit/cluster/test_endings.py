"""Causes of endings, from exceptions, from reasons, and from what a job's log says."""

import errno
import pickle

import pytest

from llem.cluster.disk.endings import cause_of_error, cause_of_log
from llem.cluster.job.rendezvous import RendezvousError
from llem.cluster.scheduler.causes import CAUSES, STOP_REASONS, cause_of_reason
from llem.cluster.scheduler.retry import TRIES
from llem.errors import InputError, UnavailableError
from llem.records import RecordWriteError


class OutOfMemoryError(RuntimeError):
    """As torch calls it."""


class DistNetworkError(RuntimeError):
    """As torch calls it."""


ERRORS = [
    (MemoryError(), "out-of-memory"),
    (OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "out-of-memory"),
    (RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't "
                  "allocate memory: you tried to allocate 9 bytes"), "out-of-memory"),
    (RuntimeError("CUDA error: out of memory"), "out-of-memory"),
    (OSError(errno.ENOSPC, "No space left on device"), "disk-full"),
    (OSError(errno.EDQUOT, "Disk quota exceeded"), "disk-full"),
    (RecordWriteError("/x/rank-00000.h5: writing failed: No space left on device"), "disk-full"),
    (RendezvousError("node n2 does not reach n1:20001 within 60 s"), "rendezvous"),
    (RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer "
                  "[127.0.0.1]:4242"), "killed"),
    (InputError("run", ["does not fit"]), "refused"),
    (ZeroDivisionError("division by zero"), "exception"),
    (OSError(errno.ENOENT, "No such file or directory"), "exception"),
]  # fmt: skip


@pytest.mark.parametrize(("error", "cause"), ERRORS, ids=[str(e)[:30] for e, _ in ERRORS])
def test_an_exception_has_a_cause(error, cause):
    assert cause_of_error(error) == cause
    assert cause in CAUSES


def test_the_error_behind_an_error_tells_the_cause():
    full = OSError(errno.ENOSPC, "No space left on device")
    error = ValueError("cannot go on")
    error.__cause__ = full
    assert cause_of_error(error) == "disk-full"


@pytest.mark.parametrize(
    "error", [DistNetworkError("timed out"), ConnectionRefusedError(111, "no")]
)
def test_a_lost_connection_is_a_failed_rendezvous_only_while_the_ranks_meet(error):
    assert cause_of_error(error, starting=True) == "rendezvous"
    assert cause_of_error(error) == "exception"
    met = UnavailableError("rank 1 of 2 did not meet the others")
    met.__cause__ = error
    assert cause_of_error(met, starting=True) == "rendezvous"


def test_every_reason_to_leave_has_its_cause_also_with_more_words_after_it():
    for cause, words in STOP_REASONS.items():
        assert cause_of_reason(words) == cause_of_reason(f"{words}; and more") == cause
    assert cause_of_reason("signal SIGTERM") == "signal"


# Lines that SLURM 22.05 and newer, the kernel's messenger and ranks wrote.
LOGS = [
    (("slurmstepd: error: Detected 1 oom_kill event in StepId=5.0. Some of the step tasks have "
     "been OOM Killed."), "out-of-memory"),
    ("slurmstepd: error: Detected 1 oom-kill event(s) in StepId=5.0", "out-of-memory"),
    ("slurmstepd-n1: error: Job 12 exceeded memory limit (99 > 10), being killed", "out-of-memory"),
    ("srun: error: n1: task 0: Out Of Memory", "out-of-memory"),
    ("slurmstepd: error: *** JOB 5 ON n1 CANCELLED AT 2026-01-01T00:00:00 DUE TO TIME LIMIT ***",
     "time-limit"),
    ("slurmstepd: error: *** JOB 5 ON n1 CANCELLED AT 2026-01-01T00:00:00 DUE TO PREEMPTION ***",
     "preempted"),
    ("srun: error: Node failure on n2\nMemoryError", "node-failure"),
    (("slurmstepd: error: *** JOB 5 ON n1 CANCELLED AT 2026-01-01T00:00:00 DUE TO NODE FAILURE, "
     "SEE SLURMCTLD LOG FOR DETAILS ***"), "node-failure"),
    ("OSError: [Errno 28] No space left on device", "disk-full"),
    ("llem: n2, rank 1: node n2 does not reach n1:23457 within 60 s: refused", "rendezvous"),
    ("run ab: step 20/90, loss 3.2, 4k tokens/s", None),
]  # fmt: skip


@pytest.mark.parametrize(("text", "cause"), LOGS)
def test_a_log_tells_the_cause_that_the_ranks_could_not(text, cause):
    assert cause_of_log(f"before\n{text}\nafter\n") == cause


def test_every_cause_that_is_tried_again_is_in_the_table():
    assert set(TRIES) <= set(CAUSES)
    assert "diverged" not in TRIES and "refused" not in TRIES


def test_an_error_of_llem_travels_from_rank_to_rank():
    assert str(pickle.loads(pickle.dumps(RendezvousError("n2")))) == "n2"
