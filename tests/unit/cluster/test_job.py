"""What a process knows of the job that it is a part of."""

import subprocess
import sys
import time

from llem.cluster.job.environment import job_started_ns

TOLD = """\
import time; begun = time.time_ns(); time.sleep(0.3)
from llem.cluster.job.environment import job_started_ns
print(begun, job_started_ns())"""


def test_a_job_began_when_slurm_says(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_START_TIME", "1750000000")
    assert job_started_ns() == 1_750_000_000 * 10**9


def test_without_slurm_a_job_began_with_its_process(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_START_TIME", raising=False)
    before = time.time_ns()
    done = subprocess.run([sys.executable, "-c", TOLD], capture_output=True, text=True, check=True)
    begun, told = map(int, done.stdout.split())
    # The kernel counts in ticks of 10 ms; the interpreter takes a moment before the first line.
    assert before - 2e7 <= told <= begun + 2e7
