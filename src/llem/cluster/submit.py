"""Submitting a campaign to SLURM, once; submitting again what is missing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llem.campaign.guards import check_script_path
from llem.cluster import slurm
from llem.cluster.facts import ACTIVE, index_list
from llem.cluster.files import write_json
from llem.cluster.folder import FINAL, CampaignFolder
from llem.cluster.render import FINISH
from llem.cluster.state import campaign_state, submitted_jobs
from llem.errors import ClusterError, Fault, InputError
from llem.planning import Plan


@dataclass(frozen=True)
class Submission:
    """What one call did: job ids of what was submitted now, and before."""

    new: dict[str, str]
    before: dict[str, str]


def submit(folder: CampaignFolder, plan: Plan, *, finish: bool = True) -> Submission:
    """sbatch every array that was not submitted yet, then the job that aggregates after them.

    Each job id is on disk before the next sbatch. Raises ClusterError where sbatch refuses.
    """
    _check_place(folder, plan)
    with folder.locked("`llem submit`"):
        jobs = submitted_jobs(folder)
        before = {name: entries[-1]["job_id"] for name, entries in jobs.items()}
        new: dict[str, str] = {}
        for array in plan.arrays:
            # A chain that was cut off in the middle of being submitted goes on where it ended.
            for _ in range(len(jobs.get(array.name, ())), array.segments):
                new[array.name] = _sbatch(folder, plan, jobs, array.name)
        if finish and (new or FINISH not in jobs):
            new[FINISH] = _sbatch(folder, plan, jobs, FINISH)
    return Submission(new, before)


def resubmit(folder: CampaignFolder, plan: Plan, *, finish: bool = True) -> Submission:
    """Submit again the elements that are not settled and that the scheduler no longer holds.

    Runs that completed or diverged stay as they are; an element's ranks pass over them. Raises
    InputError where nothing was submitted yet.
    """
    _check_place(folder, plan)
    with folder.locked("`llem resubmit`"):
        jobs = submitted_jobs(folder)
        if not jobs:
            raise InputError(str(folder.root), [Fault("", "nothing was submitted yet", "submit")])
        before = {name: entries[-1]["job_id"] for name, entries in jobs.items()}
        state = campaign_state(folder, plan)
        if state.scheduler.problem:
            # What is queued or runs cannot be known: submitting could do it twice.
            raise ClusterError(state.scheduler.problem, remedy="nothing was submitted; try again")
        held = {*ACTIVE, "unknown"}
        busy = {(r.array, r.element) for r in state.runs if r.status in held}
        open_runs = {(r.array, r.element) for r in state.runs if r.status not in FINAL}
        new: dict[str, str] = {}
        for array in plan.arrays:
            missing = sorted(i for name, i in open_runs - busy if name == array.name)
            if missing:
                for number in range(array.segments):
                    new[array.name] = _sbatch(
                        folder, plan, jobs, array.name, elements=missing, first=number == 0
                    )
        if finish and new:
            new[FINISH] = _sbatch(folder, plan, jobs, FINISH)
    return Submission(new, before)


def cancel(folder: CampaignFolder, plan: Plan) -> list[str]:
    """Ask everything that works on this campaign to stop; returns the job ids told so."""
    if plan.site.executor == "local":
        folder.jobs.mkdir(parents=True, exist_ok=True)
        folder.stop_file.touch()
        return []
    jobs = [entry["job_id"] for entries in submitted_jobs(folder).values() for entry in entries]
    slurm.cancel(jobs)
    return jobs


def _sbatch(
    folder: CampaignFolder,
    plan: Plan,
    jobs: dict[str, Any],
    name: str,
    *,
    elements: Sequence[int] | None = None,
    first: bool = False,
) -> str:
    """Submit one script and put its job id on disk.

    A script that was submitted before begins when that job has ended, whatever became of it,
    unless this is the `first` job of another try.
    """
    options = []
    if name != FINISH and jobs.get(name) and not first:
        options.append(f"--dependency=afterany:{jobs[name][-1]['job_id']}")
    if name == FINISH:
        ids = [entry["job_id"] for n, entries in jobs.items() if n != FINISH for entry in entries]
        options.append(f"--dependency={':'.join(['afterany', *ids])}")
    if elements is not None:
        throttle = f"%{plan.site.limits.throttle}" if plan.site.limits.throttle else ""
        options.append(f"--array={index_list(elements)}{throttle}")
    script = folder.script(name).relative_to(folder.root)
    job_id = slurm.submit_script(script, cwd=folder.root, options=options)
    entry = {"job_id": job_id, "submitted_ns": time.time_ns(), "plan": plan.digest}
    if elements is not None:
        entry["elements"] = index_list(elements)
    jobs.setdefault(name, []).append(entry)
    write_json(folder.submitted_file, jobs)
    return job_id


def _check_place(folder: CampaignFolder, plan: Plan) -> None:
    """Apptainer reads `:` and `,` in the path of a bind, and the folder is bound into the image."""
    place = str(folder.root.resolve())
    if plan.site.container is not None:
        try:
            check_script_path(place)
        except ValueError as error:
            raise InputError(place, [Fault("DIR", str(error), "move the campaign")]) from None
