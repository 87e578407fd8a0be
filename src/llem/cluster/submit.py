"""Submitting a campaign to SLURM, once, and waiting for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from llem.campaign.guards import check_script_path
from llem.cluster import slurm
from llem.cluster.files import write_json
from llem.cluster.folder import CampaignFolder
from llem.cluster.render import FINISH
from llem.cluster.state import CampaignState, campaign_state, submitted_jobs
from llem.errors import Fault, InputError
from llem.planning import Plan


@dataclass(frozen=True)
class Submission:
    """What one call of submit did: job ids of arrays new and submitted before."""

    new: dict[str, str]
    before: dict[str, str]


def submit(folder: CampaignFolder, plan: Plan, *, finish: bool = True) -> Submission:
    """sbatch every array that was not submitted yet, then the job that aggregates after them.

    Each job id is on disk before the next sbatch. Raises ClusterError where sbatch refuses.
    """
    _check_place(folder, plan)
    with folder.locked("`llem submit`"):
        jobs = submitted_jobs(folder)
        before = {name: job["job_id"] for name, job in jobs.items()}
        new: dict[str, str] = {}
        names = [array.name for array in plan.arrays]
        for name in [*names, *([FINISH] if finish else [])]:
            if name in jobs:
                continue
            dependency = None
            if name == FINISH:
                dependency = ":".join(["afterany", *(jobs[n]["job_id"] for n in names)])
            job_id = slurm.submit_script(
                folder.script(name).relative_to(folder.root), cwd=folder.root, dependency=dependency
            )
            new[name] = job_id
            jobs[name] = {"job_id": job_id, "submitted_ns": time.time_ns(), "plan": plan.digest}
            write_json(folder.submitted_file, jobs)
    return Submission(new, before)


def _check_place(folder: CampaignFolder, plan: Plan) -> None:
    """Apptainer reads `:` and `,` in the path of a bind, and the folder is bound into the image."""
    place = str(folder.root.resolve())
    if plan.site.container is not None:
        try:
            check_script_path(place)
        except ValueError as error:
            raise InputError(place, [Fault("DIR", str(error), "move the campaign")]) from None


def cancel(folder: CampaignFolder, plan: Plan) -> list[str]:
    """Ask everything that works on this campaign to stop; returns the job ids told so."""
    jobs = [job["job_id"] for job in submitted_jobs(folder).values()]
    if plan.site.executor == "local":
        folder.jobs.mkdir(parents=True, exist_ok=True)
        folder.stop_file.touch()
        return []
    slurm.cancel(jobs)
    return jobs


def wait(
    folder: CampaignFolder,
    plan: Plan,
    *,
    watch: Callable[[CampaignState], None] | None = None,
    first_poll_s: float = 1.0,
    longest_poll_s: float = 30.0,
) -> CampaignState:
    """Poll until the scheduler holds nothing of the campaign any more; one query a poll."""
    pause = first_poll_s
    while True:
        state = campaign_state(folder, plan)
        if watch is not None:
            watch(state)
        if not state.active:
            return state
        time.sleep(pause)
        # A campaign of hours is not asked for every second: fewer questions, the longer it runs.
        pause = min(1.2 * pause, longest_poll_s)
