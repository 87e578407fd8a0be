"""The state of a campaign, computed from its files and at most one query of the scheduler."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from llem.campaign import Run
from llem.cluster import slurm
from llem.cluster.folder import FINAL, CampaignFolder, settling
from llem.planning import Plan


@dataclass(frozen=True)
class RunState:
    """One run: `waiting`, `queued`, `running`, `lost`, or the status of its last end record.

    `lost` is a run with an attempt that neither ended nor is known to the scheduler any more.
    """

    run_id: str
    array: str
    element: int
    status: str
    attempts: int
    progress: float
    loss: float | None
    reason: str


@dataclass(frozen=True)
class CampaignState:
    """All runs of a campaign, and whether anything still works on them."""

    runs: tuple[RunState, ...]
    submitted: bool
    active: bool

    @property
    def counts(self) -> dict[str, int]:
        return dict(sorted(Counter(r.status for r in self.runs).items()))

    @property
    def settled(self) -> bool:
        """Every run came to an end that needs no further attempt."""
        return all(r.status in FINAL for r in self.runs)

    def to_dict(self) -> dict[str, Any]:
        return {
            "submitted": self.submitted,
            "active": self.active,
            "settled": self.settled,
            "counts": self.counts,
            "runs": [asdict(r) for r in self.runs],
        }


def submitted_jobs(folder: CampaignFolder) -> dict[str, Any]:
    """`jobs/submitted.json`: array name -> its jobs, oldest first, {job_id, ...}."""
    try:
        values: dict[str, Any] = json.loads(folder.submitted_file.read_text())
    except FileNotFoundError:
        return {}
    return values


def campaign_state(
    folder: CampaignFolder, plan: Plan, *, ask_scheduler: bool = True
) -> CampaignState:
    """Read the state of every run; asks squeue once where the site has SLURM."""
    jobs = submitted_jobs(folder)
    known: Sequence[slurm.ElementState] = ()
    if ask_scheduler and jobs and plan.site.executor == "slurm":
        known = slurm.query([job["job_id"] for entries in jobs.values() for job in entries])
    by_element = {(s.job_id, s.index): s for s in known}
    # Only the local executor holds the folder while runs run; `llem submit` does so in passing.
    held_here = plan.site.executor == "local" and folder_is_held(folder)
    runs = plan.by_id
    states: list[RunState] = []
    for array in plan.arrays:
        job_ids = [job["job_id"] for job in jobs.get(array.name, [])]
        for index, names in enumerate(array.elements):
            # Submitted again, it may be known twice: what works on it now counts.
            held = [s for job_id in job_ids if (s := by_element.get((job_id, index)))]
            scheduler = max(held, key=lambda s: s.meaning in slurm.ACTIVE, default=None)
            states.extend(
                _run_state(folder, runs[name], array.name, index, scheduler, held_here)
                for name in names
            )
    active = any(s.meaning in slurm.ACTIVE for s in known)
    return CampaignState(tuple(states), submitted=bool(jobs), active=active)


def _run_state(
    folder: CampaignFolder,
    run: Run,
    array: str,
    index: int,
    scheduler: slurm.ElementState | None,
    held_here: bool,
) -> RunState:
    attempts = folder.attempts(run.run_id)
    ends = folder.ends(run.run_id)
    end = settling(ends) or (ends[-1] if ends else None)
    progress: dict[str, Any] = {}
    reason = (end or {}).get("reason") or ""
    if end and end["status"] in FINAL:
        status = end["status"]
    elif scheduler is not None and scheduler.meaning in slurm.ACTIVE:
        open_attempt = len(attempts) > len(ends) and scheduler.meaning == "running"
        status = "running" if open_attempt else "queued"
        reason = "" if open_attempt else scheduler.reason
    elif len(attempts) > len(ends):
        status = "running" if held_here else "lost"
        reason = "" if status == "running" else "the last attempt neither ended nor is known"
    else:
        status = end["status"] if end else "waiting"
    if attempts and status in ("running", "lost"):
        try:
            progress = json.loads((attempts[-1] / "progress.json").read_text())
        except (OSError, ValueError):
            progress = {}
    done = 1.0 if status == "completed" else progress.get("step", 0) / max(1, run.steps)
    loss = (end or {}).get("loss") if status == "completed" else progress.get("loss")
    return RunState(run.run_id, array, index, status, len(attempts), done, loss, reason)


def folder_is_held(folder: CampaignFolder) -> bool:
    """Whether a local executor is at work on this campaign now."""
    import fcntl

    try:
        with open(folder.jobs / ".lock") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False
