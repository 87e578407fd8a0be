"""SLURM's own commands: submit, ask, cancel. Texts are read by pure functions."""

from __future__ import annotations

import getpass
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llem.cluster.gate import run_program
from llem.errors import ClusterError, UnavailableError
from llem.planning import ClusterLimits
from llem.planning.limits import parse_config, parse_partition, parse_table

# SLURM state -> meaning. What is not listed is unknown, never failed.
STATES = {
    "PENDING": "queued",
    "CONFIGURING": "queued",
    "REQUEUED": "queued",
    "REQUEUE_HOLD": "queued",
    "REQUEUE_FED": "queued",
    "SPECIAL_EXIT": "queued",
    "RESV_DEL_HOLD": "queued",
    "SUSPENDED": "queued",
    "RUNNING": "running",
    "COMPLETING": "running",
    "STAGE_OUT": "running",
    "SIGNALING": "running",
    "RESIZING": "running",
    "STOPPED": "running",
    "COMPLETED": "ended",
    "FAILED": "ended",
    "CANCELLED": "ended",
    "TIMEOUT": "ended",
    "OUT_OF_MEMORY": "ended",
    "NODE_FAIL": "ended",
    "BOOT_FAIL": "ended",
    "DEADLINE": "ended",
    "PREEMPTED": "ended",
    "REVOKED": "ended",
}
ACTIVE = frozenset({"queued", "running"})


@dataclass(frozen=True)
class ElementState:
    """What the scheduler says of one array element."""

    job_id: str
    index: int | None
    state: str
    reason: str = ""

    @property
    def meaning(self) -> str:
        return STATES.get(self.state, "unknown")


class Refused(ClusterError):
    """sbatch said no: there is no job."""

    @property
    def full(self) -> bool:
        """Whether this user has as many jobs as are allowed: later there will be room."""
        return bool(_FULL.search(self.message))


# AssocMaxSubmitJobLimit, QOSMaxSubmitJobPerUserLimit, AssocGrpSubmitJobsLimit; the long text stands
# for any policy, and MaxJobCount for everybody's jobs.
_FULL = re.compile(r"SubmitJob|job submit limit|temporarily unable to accept", re.IGNORECASE)


def submit_script(script: Path, *, cwd: Path, options: Sequence[str] = ()) -> str:
    """sbatch from the campaign folder; returns the job id.

    Raises Refused where sbatch says that there is no job, ClusterError where it did not answer.
    """
    try:
        text = run_program(["sbatch", "--parsable", *options, str(script)], cwd=cwd)
    except ClusterError as error:
        if "Batch job submission failed" in error.message and "timed out" not in error.message:
            raise Refused(error.message, remedy=error.remedy) from None
        raise
    return parse_job_id(text)


def find_marked(job_name: str, mark: str) -> str | None:
    """The job of that name whose comment carries `mark`, as far as the scheduler remembers."""
    text = run_program(
        ["squeue", f"--user={getpass.getuser()}", f"--name={job_name}", "--noheader",
         "--states=all", "--format=%F|%k"]
    )  # fmt: skip
    for line in text.splitlines():
        job_id, _, comment = line.strip().partition("|")
        if comment.endswith(f":{mark}"):
            return job_id
    return None


def query(job_ids: Sequence[str]) -> list[ElementState]:
    """The elements of these jobs that the scheduler still holds, in one call.

    A job that ended some minutes ago is not in its answer: absent is not failed.
    """
    if not job_ids:
        return []
    ids = ",".join(job_ids)
    try:
        text = run_program(
            [
                "squeue",
                f"--jobs={ids}",
                "--array",
                "--noheader",
                "--format=%F|%K|%T|%r",
                "--states=all",
            ]
        )
    except ClusterError as error:
        if "Invalid job id" in str(error):
            return []
        raise
    return parse_squeue(text)


def cancel(job_ids: Sequence[str]) -> None:
    """scancel; jobs that ended already are none of its business."""
    if job_ids:
        run_program(["scancel", *job_ids])


def ask_limits(partition: str | None) -> ClusterLimits:
    """What this cluster allows one user: arrays, time and nodes of a partition, submitted jobs.

    `partition` None is the default one. Accounting is asked where it answers. Raises ClusterError,
    UnavailableError where there is no scheduler.
    """
    name = partition or _default_partition()
    limits = parse_config(run_program(["scontrol", "show", "config"])).within(
        parse_partition(run_program(["scontrol", "show", "partition", name, "--oneliner"]))
    )
    user = f"user={getpass.getuser()}"
    fields = "format=MaxSubmit,GrpSubmit,MaxWall,MaxTRES"
    try:
        table = run_program(["sacctmgr", "--parsable2", "show", "assoc", user, fields])
    except (ClusterError, UnavailableError):
        return limits
    return limits.within(parse_table(table))


def _default_partition() -> str:
    names = run_program(["sinfo", "--noheader", "--format=%P"]).split()
    return next((n.rstrip("*") for n in names if n.endswith("*")), names[0] if names else "")


def has_accounting() -> bool:
    """Whether sacct answers here; many clusters have no accounting database."""
    try:
        run_program(["sacct", "--noheader", "--starttime=now-1minutes", "--format=JobID"])
    except (ClusterError, UnavailableError):
        return False
    return True


def parse_job_id(text: str) -> str:
    """`123` or `123;cluster` of `sbatch --parsable`; sites' banners before it are skipped."""
    for line in reversed(text.strip().splitlines()):
        if match := re.fullmatch(r"(\d+)(?:;\S+)?", line.strip()):
            return match[1]
    raise ClusterError(f"sbatch gave no job id: {text.strip()!r}")


def parse_squeue(text: str) -> list[ElementState]:
    """Lines `job|index|STATE|reason` of squeue; index is `N/A` for a job without an array."""
    states = []
    for line in text.splitlines():
        parts = line.strip().split("|", 3)
        if len(parts) < 3:
            continue
        index = int(parts[1]) if parts[1].isdigit() else None
        states.append(ElementState(parts[0], index, parts[2], parts[3] if len(parts) > 3 else ""))
    return states
