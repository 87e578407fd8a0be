"""Why a run did not complete: the scheduler, end records and real logs, to a cause with advice.

`captured/logs` were written by jobs of the test cluster that were made to fail so.
"""

from pathlib import Path

import pytest

from llem.cluster.scheduler.causes import CAUSES, LOG_LINES, OF_STATE, cause, diagnose, recognise
from llem.cluster.scheduler.facts import STATES, ElementState, Step, parse_sacct

CAPTURED = Path(__file__).parent / "captured"
LOGS = CAPTURED / "logs"
SACCT = {(s.job_id, s.index): s for s in parse_sacct((CAPTURED / "sacct-22.05.txt").read_text())}


def ended(state="FAILED", **values):
    return ElementState("17", 3, state, exit_code="1:0", nodes="n2", **values)


# A job of the test cluster -> what it is found to have died of, where, and with what words.
REAL = [
    ("image-9_0", "container-missing", "n1", "could not open image /no/such/llem.sif"),
    ("badimage-10_0", "container-missing", "n2", "image format not recognized"),
    ("noapptainer-11_0", "container-missing", "n2", "singularity: No such file"),
    ("module-12_0", "module-failed", "n2", "module: command not found"),
    ("exception-13_0", "exception", "n3", "RuntimeError: shape mismatch: (3, 4) and (5,)"),
    ("diskfull-14_0", "disk-full", "n3", "No space left on device"),
    ("oom-15_0", "out-of-memory", "n3", "exceeded memory limit"),
    ("ulimit-16_0", "out-of-memory", "n3", "MemoryError"),
    ("rendez-17_0", "killed", "n4", "FAILED, exit code 9:0"),
    ("nopython-18_0", "program-missing", "n4", "python: No such file"),
    ("nollem-19_0", "program-missing", "n4", "No module named 'llem'"),
    ("limit-7_0", "time-limit", "n1", "TIMEOUT"),
    ("nodefail-27_0", "node-failure", "n4", "NODE_FAIL"),
    ("wait-21_5", "cancelled", "n3", "CANCELLED"),
]


@pytest.mark.parametrize(("log", "name", "node", "words"), REAL)
def test_a_real_job_that_failed(log, name, node, words):
    job, index = log.rpartition("-")[2].split("_")
    found = diagnose(end={}, element=SACCT[job, int(index)], log=(LOGS / f"{log}.log").read_text())
    assert (found.name, found.node) == (name, node)
    assert words in found.text


@pytest.mark.parametrize(
    ("log", "name"), [r[:2] for r in REAL if r[1] not in ("killed", "cancelled")]
)
def test_the_log_alone_tells_it_too_where_there_is_no_accounting(log, name):
    assert recognise((LOGS / f"{log}.log").read_text())[0] == name


def test_what_was_said_before_a_requeue_belongs_to_another_try():
    log = (LOGS / "wait-21_4.log").read_text()
    assert recognise("OSError: [Errno 28] No space left on device\n" + log) is None


# Lines of clusters that this machine cannot be: made after their documentation and bug reports.
LINES = [
    ("slurmstepd: error: Detected 1 oom-kill event(s) in StepId=17.0", "out-of-memory"),
    ("slurmstepd: error: Detected 1 oom_kill event in StepId=17.0. OOM Killed.", "out-of-memory"),
    ("srun: error: n7: task 3: Out Of Memory", "out-of-memory"),
    ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", "out-of-memory"),
    ("torch.OutOfMemoryError: HIP out of memory.", "out-of-memory"),
    ("RuntimeError: [enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory",
     "out-of-memory"),
    ("OSError: [Errno 122] Disk quota exceeded", "disk-full"),
    ("Lmod has detected the following error: The following module(s) are unknown: \"Apptainer\"",
     "module-failed"),
    ("ERROR: Unable to locate a modulefile for 'Apptainer/1.4'", "module-failed"),
    ("FATAL:   container creation failed: mount hook function failure", "container-missing"),
    ("fuse: device not found, try 'modprobe fuse' first", "container-missing"),
    ("script: line 20: apptainer: command not found", "container-missing"),
    ("torch.distributed.DistNetworkError: The client socket has timed out after 60000ms",
     "rendezvous"),
    ("torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:1691",
     "rendezvous"),
    ("ncclSystemError: System call (e.g. socket, malloc) or external library call failed",
     "rendezvous"),
    ("slurmstepd: error: *** JOB 17 ON n1 CANCELLED AT 2026-01-01T00:00:00 DUE TO PREEMPTION ***",
     "preempted"),
    ("srun: error: Node failure on n12", "node-failure"),
    ("ModuleNotFoundError: No module named 'torch'", "program-missing"),
    ("ModuleNotFoundError: No module named 'torchish'", "exception"),
    ("ValueError: a must be positive", "exception"),
    ("subprocess.CalledProcessError: Command 'x' returned 1", "exception"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "name"), LINES)
def test_lines_that_tell_a_cause(line, name):
    found = recognise(f"2026-01-01 00:00:00 run 0123456789ab: step 3\n{line}\nand so on\n")
    assert found is not None and found[0] == name
    assert found[2] == line


@pytest.mark.parametrize(
    "text",
    ["", "all is well\n", "2026-01-01 00:00:00 run 0123456789ab: completed, loss 2.0 +- 0.1\n",
     "srun: error: n1: task 0: Exited with exit code 1\n", "a disk with space left\n"],
)  # fmt: skip
def test_lines_that_tell_none(text):
    assert recognise(text) is None


def test_every_name_has_an_advice_of_one_line():
    names = {*OF_STATE.values(), *LOG_LINES}
    assert names <= set(CAUSES)
    for _, advice in CAUSES.values():
        assert advice and "\n" not in advice and len(advice) < 90
    assert set(OF_STATE) <= {state for state, meaning in STATES.items() if meaning == "ended"}


@pytest.mark.parametrize(
    ("end", "element", "log", "name"),
    [
        # the end record names it
        ({"status": "failed", "cause": "disk-full", "reason": "x"}, ended(), "", "disk-full"),
        ({"status": "interrupted", "cause": "time-limit"}, ended("CANCELLED"), "", "time-limit"),
        # it was asked to leave: the scheduler knows why
        ({"status": "interrupted", "cause": "signal", "reason": "signal SIGTERM"},
         ended("PREEMPTED"), "", "preempted"),
        ({"status": "interrupted", "reason": "signal SIGTERM"}, ended("TIMEOUT"), "", "time-limit"),
        ({"status": "interrupted", "reason": "signal SIGTERM"}, ended("CANCELLED"), "",
         "cancelled"),
        ({"status": "interrupted", "reason": "signal SIGTERM"}, None, "", "signal"),
        ({"status": "interrupted", "reason": "asked to stop (jobs/stop)"}, None, "",
         "asked-to-stop"),
        ({"status": "interrupted", "reason": "the job's time limit is near"}, None, "",
         "time-limit"),
        # old end records have no cause
        ({"status": "failed", "reason": "RuntimeError: x"}, None, "", "exception"),
        ({"status": "failed", "reason": "OutOfMemoryError: CUDA out of memory"}, None, "",
         "out-of-memory"),
        ({"status": "diverged", "reason": "the loss is nan"}, ended("FAILED"), "", "diverged"),
        # one rank of a node that died takes the others with it: they only say they lost it
        ({"status": "failed", "cause": "exception", "reason": "RuntimeError: Connection closed"},
         ended("NODE_FAIL"), "", "node-failure"),
        ({"status": "failed", "cause": "rendezvous", "reason": "lost"},
         ended(steps=(Step("0", "OUT_OF_MEMORY", "0:125"),)), "", "out-of-memory"),
        # no end record
        ({}, ended(steps=(Step("0", "OUT_OF_MEMORY", "0:125"),)), "", "out-of-memory"),
        ({}, ended("CANCELLED", steps=(Step("0", "OUT_OF_MEMORY", "0:125"),)), "", "out-of-memory"),
        ({}, ended("BOOT_FAIL"), "", "boot-failure"),
        ({}, ended("DEADLINE"), "", "time-limit"),
        ({}, ended("FAILED"), "", "killed"),
        ({}, None, "", "killed"),
        ({}, None, "slurmstepd: error: Detected 1 oom-kill event(s)", "out-of-memory"),
    ],
)  # fmt: skip
def test_who_is_believed(end, element, log, name):
    assert diagnose(end=end, element=element, log=log).name == name


def test_an_element_that_never_began_and_says_nothing_is_unknown():
    assert diagnose(end={}, element=ended(), log="", attempted=False).name == "unknown"


def test_a_name_of_another_version_keeps_itself():
    assert cause("brand-new").name == "brand-new"
    assert cause("brand-new").retry == "again"


def test_words_are_cut_to_one_line():
    assert cause("exception", text="a\n  b " + "c" * 1000).text.startswith("a b ccc")
    assert len(cause("exception", text="c" * 1000).text) <= 200
