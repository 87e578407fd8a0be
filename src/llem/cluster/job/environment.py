"""What a process inside a job learns of it from its environment: node, job, start, names of files.

SLURM's variables, or those that the local executor sets for submitit; read when asked for.
"""

from __future__ import annotations

import os
import socket
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def node_name() -> str:
    """The node as the scheduler calls it."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def socket_path() -> Path:
    """Where the node's sampler and its ranks meet: one place per job and node, on local disk.

    Several test nodes may share a host, so that the node's own name is part of it.
    """
    job = os.environ.get("SLURM_JOB_ID") or os.environ["SUBMITIT_LOCAL_JOB_ID"]
    return Path(tempfile.gettempdir()) / f"llem-{os.getuid()}-{job}-{node_name()}" / "sampler"


def sampler_options(element: Mapping[str, Any]) -> tuple[str, ...]:
    """How the campaign wants energy to be measured, for the sampler's command line."""
    energy = element["energy"]
    return ("--meters", energy["meters"], *(["--exclusive"] if energy["exclusive"] else []))


def job_started_ns() -> int:
    """When this job began by the wall clock: SLURM's word (to the second), else this process's.

    What lies between that and a run's first step is the price of starting an element.
    """
    if told := os.environ.get("SLURM_JOB_START_TIME"):
        return int(told) * 1_000_000_000
    # proc_pid_stat(5): field 22, ticks after boot; the name in field 2 may hold spaces.
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.time_ns() - round(age_s * 1e9)


def job_meta() -> dict[str, Any]:
    """Which job this is, and the how-manieth time it was started."""
    return {
        "job_id": os.environ.get("SLURM_JOB_ID", ""),
        "array_job_id": os.environ.get("SLURM_ARRAY_JOB_ID", ""),
        "restart_count": int(os.environ.get("SLURM_RESTART_COUNT", 0)),
    }


def step_name() -> str:
    """One name for this start of the element's ranks, and for no other."""
    job = os.environ.get("SLURM_JOB_ID") or os.environ["SUBMITIT_LOCAL_JOB_ID"]
    restart = os.environ.get("SLURM_RESTART_COUNT", "0")
    return f"{job}-{restart}-{os.environ.get('SLURM_STEP_ID', '0')}"


def log_name() -> str:
    """The job's log as `array.sbatch.j2` names it, relative to the campaign; '' elsewhere."""
    names = [f"SLURM_{x}" for x in ("JOB_NAME", "ARRAY_JOB_ID", "ARRAY_TASK_ID")]
    name, job, index = (os.environ.get(x, "") for x in names)
    return f"jobs/logs/{name}-{job}_{index}.log" if name and job and index else ""
