"""A core for the sampler alone: one of the job's that its ranks do not use, where there is one.

Ranks that are bound to cores (srun's --cpu-bind, numactl) leave the others idle. Where nobody is
bound, any core may be a rank's, and the scheduler's own choice with a higher nice value is better.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

PROC = Path("/proc")
# Of this job only: others' ranks are not on this job's cores.
JOB_VARIABLE = "SLURM_JOB_ID"


def spare_core(own: Iterable[int], others: Iterable[Iterable[int]]) -> int | None:
    """The last of our own cores that no other process is bound to; None where that is not known.

    `others` are the cores that each process of the job may use; one that may use all of ours is
    not bound. A spare core is only known where some process is.
    """
    mine = frozenset(own)
    bound = [cores for cores in map(frozenset, others) if not mine <= cores]
    spare = mine.difference(*bound)
    return max(spare) if bound and spare else None


def cores_of_job(environ: Mapping[str, str], *, proc: Path = PROC) -> list[set[int]]:
    """The cores of each other process of this job, as far as this user may see them."""
    job = environ.get(JOB_VARIABLE)
    if not job:
        return []
    wanted = f"{JOB_VARIABLE}={job}".encode()
    found = []
    for folder in proc.iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                found.append(os.sched_getaffinity(int(folder.name)))
        except OSError:
            continue  # another user's, or gone meanwhile
    return found


def move_apart(environ: Mapping[str, str] = os.environ) -> str:
    """Bind this process to a spare core of its job; which, and else why not."""
    core = spare_core(os.sched_getaffinity(0), cores_of_job(environ))
    if core is None:
        return "any: no core of the job is known to be spare"
    try:
        os.sched_setaffinity(0, {core})
    except OSError as error:
        return f"any: {error.strerror}"
    return str(core)
