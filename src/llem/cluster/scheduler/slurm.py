"""SLURM's own commands: submit, ask, cancel. Their words are read in `facts`."""

from __future__ import annotations

import getpass
import os
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from llem.cluster.scheduler.facts import (
    ENERGY_FIELDS,
    SACCT_FIELDS,
    SQUEUE_FIELDS,
    ElementState,
    parse_energy,
    parse_sacct,
    parse_squeue,
)
from llem.cluster.scheduler.gate import run_program
from llem.errors import ClusterError, UnavailableError
from llem.planning import ClusterLimits
from llem.planning.limits import parse_config, parse_partition, parse_table

# A controller that restarts is asked again later; nobody waits two minutes for its answer.
ASK_TIMEOUT_S = 30.0
# What sacct says where a cluster keeps no accounting at all, in any release so far.
NO_ACCOUNTING = "accounting storage is disabled"


class Refused(ClusterError):
    """sbatch said no: there is no job."""

    @property
    def full(self) -> bool:
        """Whether this user has as many jobs as are allowed: later there will be room."""
        return bool(_FULL.search(self.message))


# AssocMaxSubmitJobLimit, QOSMaxSubmitJobPerUserLimit, AssocGrpSubmitJobsLimit; the long text stands
# for any policy, and MaxJobCount for everybody's jobs.
_FULL = re.compile(r"SubmitJob|job submit limit|temporarily unable to accept", re.IGNORECASE)


# What sbatch says -> the key of the site that asked for it.
_REFUSALS: tuple[tuple[str, str], ...] = (
    (r"invalid account", "`account`, or what it may use: `llem doctor --site SITE` names yours"),
    (r"invalid partition", "`partition`: `llem doctor --site SITE` names those there are"),
    (r"invalid qos", "`qos`: `sacctmgr show associations user=$USER format=account,qos` has yours"),
    (r"time limit is invalid", "`limits.time`: `sinfo -o '%P %l'` tells what a partition allows"),
    (r"node configuration is not available|generic resource|node count",
     "`nodes`, `gpus_per_node` or `gpu_request`: `llem doctor --site SITE` says what nodes have"),
)  # fmt: skip


def refusal_advice(message: str) -> str | None:
    """What to change where sbatch said no; None where its own words must do."""
    for pattern, key in _REFUSALS:
        if re.search(pattern, message, re.IGNORECASE):
            return f"change the site's {key}; then `llem plan` with --replace, and submit"
    return None


def submit_script(
    script: Path, *, cwd: Path, options: Sequence[str] = (), keep_open: Sequence[int] = ()
) -> str:
    """sbatch from the campaign folder; returns the job id.

    Raises Refused where sbatch says that there is no job, ClusterError where it did not answer.
    """
    try:
        text = run_program(
            ["sbatch", "--parsable", *options, str(script)], cwd=cwd, keep_open=keep_open
        )
    except ClusterError as error:
        if "Batch job submission failed" in error.message and "timed out" not in error.message:
            raise Refused(error.message, remedy=refusal_advice(error.message)) from None
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

    A job that ended some minutes ago is not in its answer: absent is not failed. Raises
    ClusterError where the controller does not answer.
    """
    if not job_ids:
        return []
    fields = ",".join(f"{name}:|" for name in SQUEUE_FIELDS)
    args = ["squeue", f"--jobs={','.join(job_ids)}", "--array", "--noheader", "--states=all",
            f"--Format={fields}"]  # fmt: skip
    try:
        return parse_squeue(run_program(args, env=_environment(), timeout_s=ASK_TIMEOUT_S))
    except ClusterError as error:
        if "Invalid job id" in str(error):
            return []
        raise


def ask_accounting(job_ids: Sequence[str], *, since_s: float) -> list[ElementState]:
    """The elements of these jobs with their steps, from accounting, in one call.

    `since_s` (of the epoch) is when the first was submitted: without it sacct starts at midnight.
    Whole jobs are asked for, since elements that never started answer only so. Raises
    ClusterError where accounting does not answer, UnavailableError where there is none.
    """
    if not job_ids:
        return []
    return parse_sacct(_sacct(job_ids, since_s, SACCT_FIELDS))


def ask_energy(job_ids: Sequence[str], *, since_s: float) -> dict[str, float]:
    """What SLURM measured of these jobs, joules by job or array element, in one call.

    Empty where the cluster has no plugin for it. Raises as `ask_accounting` does.
    """
    return parse_energy(_sacct(job_ids, since_s, ENERGY_FIELDS)) if job_ids else {}


def _sacct(job_ids: Sequence[str], since_s: float, fields: Sequence[str]) -> str:
    # A minute early, should the clocks of this node and of the database differ.
    start = datetime.fromtimestamp(since_s - 60).isoformat(timespec="seconds")
    args = ["sacct", f"--starttime={start}", f"--jobs={','.join(job_ids)}", "--parsable2",
            "--noheader", f"--format={','.join(fields)}"]  # fmt: skip
    try:
        return run_program(args, env=_environment(), timeout_s=ASK_TIMEOUT_S)
    except ClusterError as error:
        if NO_ACCOUNTING in str(error):
            raise UnavailableError("this cluster keeps no accounting") from None
        raise


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


def _environment() -> dict[str, str]:
    """This environment without the user's own taste in squeue and sacct: filters and formats."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SQUEUE_", "SACCT_"))}
    return {**kept, "SLURM_TIME_FORMAT": "standard", "SLURM_BITSTR_LEN": "0"}


def parse_job_id(text: str) -> str:
    """`123` or `123;cluster` of `sbatch --parsable`; sites' banners before it are skipped."""
    for line in reversed(text.strip().splitlines()):
        if match := re.fullmatch(r"(\d+)(?:;\S+)?", line.strip()):
            return match[1]
    raise ClusterError(f"sbatch gave no job id: {text.strip()!r}")
