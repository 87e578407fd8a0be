"""The state of a campaign, computed from its files and at most one query of the scheduler."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llem.campaign import AnyRun
from llem.cluster.disk.ends import Ends, RunFiles, read_ends, write_ends
from llem.cluster.disk.folder import FINAL, CampaignFolder
from llem.cluster.disk.ledger import Ledger, Submitted
from llem.cluster.render import FINISH
from llem.cluster.scheduler.causes import Cause, cause, diagnose
from llem.cluster.scheduler.facts import ElementState
from llem.cluster.state.logs import element_logs, own_tail
from llem.cluster.state.look import Job, Look, look
from llem.planning import AnyPlan, ArrayJob

# Logs that one call reads to learn causes; what was learnt is cached, and the next call goes on.
LOGS_READ = 200
# What the scheduler did to an element -> what its run is for that: nothing is wrong with it, and it
# goes on from its last checkpoint. A time limit that passed before a run began hides a fault.
TAKEN_OFF = {"CANCELLED": "cancelled", "PREEMPTED": "interrupted"}
OUT_OF_TIME = {"TIMEOUT": "interrupted", "DEADLINE": "interrupted"}


@dataclass(frozen=True)
class RunState:
    """One run: `waiting`, `queued`, `running`, `lost`, `cancelled`, or how its last attempt ended.

    `waiting` is what no job holds; `lost` a run with an attempt that neither ended nor is known to
    the scheduler any more; `interrupted` also what was preempted or ran out of time without a word,
    `failed` what else the scheduler ended. `device_s` are device-seconds of all attempts, the
    running one's till now. `energy_j` is None where it was not read yet and
    NaN where it cannot be known. `cause` is set where it ended and did not complete.
    """

    run_id: str
    array: str
    element: int
    status: str
    attempts: int
    progress: float
    loss: float | None
    reason: str
    node: str = ""
    job_id: str = ""
    device_s: float = 0.0
    energy_j: float | None = None
    tokens_per_s: float | None = None
    cause: Cause | None = None

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "cause": vars(self.cause) if self.cause else None}


@dataclass(frozen=True)
class CampaignState:
    """All runs of a campaign, and whether anything still works on them.

    `active` stays true while the scheduler does not answer and runs are unsettled: what was there
    when it last did may be there still. `stuck` are elements that wait and will not start by
    themselves: what to do -> how many. `told_to_stop`: by `llem cancel`, and nothing was submitted
    since.
    """

    runs: tuple[RunState, ...]
    submitted: bool
    active: bool
    scheduler: Look = field(default_factory=Look)
    stuck: Mapping[str, int] = field(default_factory=dict)
    finish: ElementState | None = None
    told_to_stop: bool = False
    now_s: float = 0.0

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
            "runs": [r.to_dict() for r in self.runs],
        }


def campaign_state(
    folder: CampaignFolder, plan: AnyPlan, *, ask_scheduler: bool = True, energy_s: float = 0.0
) -> CampaignState:
    """Read the state of every run; asks squeue once where the site has SLURM.

    Records of finished runs are read for their energy for `energy_s` seconds at most; the next
    call goes on where this one ended.
    """
    now_s = time.time()
    jobs = Ledger.read(folder).by_name
    ends = read_ends(folder, energy_s=energy_s)
    seen = Look()
    if ask_scheduler and jobs and plan.site.executor == "slurm":
        seen = look(folder, _open_jobs(folder, plan, jobs, ends))
    # Only the local executor holds the folder while runs run; `llem submit` does so in passing.
    held_here = plan.site.executor == "local" and folder_is_held(folder)
    reader = _Reader(folder, plan, jobs, ends, held_here, now_s, seen.answered)
    for array in plan.arrays:
        job_ids = [job.job_id for job in jobs.get(array.name, ())]
        for index, names in enumerate(array.elements):
            held = [e for job in job_ids if (e := seen.elements.get((job, index)))]
            reader.element(array, index, names, _deciding(held))
    write_ends(folder, ends)
    stuck = Counter(e.stuck for e in seen.elements.values() if e.stuck)
    unsettled = any(r.status not in FINAL for r in reader.states)
    waits_for_answer = seen.asked and not seen.answered and unsettled
    finish = [seen.elements.get((j.job_id, None)) for j in jobs.get(FINISH, ())]
    return CampaignState(
        tuple(reader.states),
        submitted=bool(jobs),
        active=held_here or seen.active or waits_for_answer,
        scheduler=seen,
        stuck=dict(stuck),
        finish=finish[-1] if finish else None,
        told_to_stop=folder.stop_file.exists(),
        now_s=now_s,
    )


def _deciding(held: Sequence[ElementState]) -> ElementState | None:
    """Of an element's jobs, the one that tells its state: one at work, one that waits, the last."""
    ranks = {"running": 3, "queued": 2, "held": 2, "unknown": 1}
    best: ElementState | None = None
    for element in held:
        if best is None or ranks.get(element.meaning, 0) >= ranks.get(best.meaning, 0):
            best = element
    return best


def _open_jobs(
    folder: CampaignFolder, plan: AnyPlan, jobs: Mapping[str, Sequence[Submitted]], ends: Ends
) -> list[Job]:
    """The jobs that still matter: those that cover a run without a final end, and the last one."""
    found = []
    for array in plan.arrays:
        entries = jobs.get(array.name)
        if not entries:
            continue
        open_here = {
            i
            for i, names in enumerate(array.elements)
            if not all(ends.of(name).final for name in names)
        }
        for entry in entries:
            covered = open_here.intersection(entry.elements or ())
            if covered:
                found.append(Job(entry.job_id, covered, entry.submitted_ns / 1e9))
    for entry in jobs.get(FINISH, ())[-1:]:
        report = folder.results / "report.html"
        try:
            done = report.stat().st_mtime_ns > entry.submitted_ns
        except OSError:
            done = False
        if found or not done:
            found.append(Job(entry.job_id, {None}, entry.submitted_ns / 1e9))
    return found


class _Reader:
    """Turns files and the scheduler's words into states, an element after the other."""

    def __init__(
        self,
        folder: CampaignFolder,
        plan: AnyPlan,
        jobs: Mapping[str, Sequence[Submitted]],
        ends: Ends,
        held_here: bool,
        now_s: float,
        asked: bool,
    ) -> None:
        self.asked = asked
        self.folder = folder
        self.plan = plan
        self.jobs = jobs
        self.ends = ends
        self.held_here = held_here
        self.now_s = now_s
        self.logs_left = LOGS_READ
        self.states: list[RunState] = []

    def element(
        self, array: ArrayJob, index: int, names: Sequence[str], known: ElementState | None
    ) -> None:
        # Runs of an element follow each other: one begins when the one before has ended.
        free_since_s = known.started_s if known is not None else None
        gone = self.asked and array.name in self.jobs and (known is None or known.final)
        began = any(self.ends.of(name).attempts for name in names)
        for name in names:
            files = self.ends.of(name)
            if gone and not files.final:
                # The files were read before the scheduler was asked: it may have ended between.
                files = self.ends.again(self.folder, name)
            if files.final:
                self.states.append(_final(self.plan.by_id[name], array.name, index, files))
            else:
                self.states.append(
                    self._open(
                        self.plan.by_id[name], array, index, files, known, began, free_since_s
                    )
                )
            ended_ns = files.end.get("ended_ns")
            if free_since_s is not None and ended_ns and not files.open_attempt:
                free_since_s = max(free_since_s, ended_ns / 1e9)

    def _open(
        self,
        run: AnyRun,
        array: ArrayJob,
        index: int,
        files: RunFiles,
        known: ElementState | None,
        began: bool,
        free_since_s: float | None,
    ) -> RunState:
        """The state of a run without a final end."""
        attempted = files.open_attempt is not None
        reason = str(files.end.get("reason") or "")
        status = str(files.end.get("status") or "waiting")
        if known is not None and not known.final:
            status, reason = "queued", known.reason
            if known.meaning == "running":
                status, reason = ("running", "") if attempted else ("queued", "its job runs")
            elif known.meaning == "unknown":
                status, reason = "unknown", f"SLURM says {known.state}"
            elif known.state not in ("PENDING", "CONFIGURING"):
                reason = f"{known.state.lower()}: {known.reason}".rstrip(": ")
        elif attempted:
            status = "running" if self.held_here else "lost"
            if known is not None and known.state != "COMPLETED":
                status = {**TAKEN_OFF, **OUT_OF_TIME}.get(known.state, "failed")
        elif known is not None and not files.attempts and known.state != "COMPLETED":
            if began:
                reason = f"its element ended before it ({known.state})"
            else:
                status = TAKEN_OFF.get(known.state, "failed")
        elif self.jobs.get(array.name) and not files.attempts and known is None:
            reason = "no job holds it any more" if self.plan.site.executor == "slurm" else ""
        found: Cause | None = None
        if status not in ("waiting", "queued", "running", "unknown"):
            found = self._cause(run.run_id, array, index, files, known)
            reason = reason or found.text
        progress = files.progress if attempted else {}
        since_s = files.begun_s or free_since_s
        open_s = 0.0
        if attempted and status == "running" and since_s is not None:
            open_s = max(0.0, self.now_s - since_s)
        elif attempted and since_s is not None:
            # Killed: it is known to have lived until its last sign of life.
            last_s = float(progress.get("time_ns") or 0) / 1e9
            open_s = max(0.0, (known.ended_s if known and known.ended_s else last_s) - since_s)
        return RunState(
            run_id=run.run_id,
            array=array.name,
            element=index,
            status=status,
            attempts=files.attempts,
            progress=min(
                1.0, float(progress.get("step") or files.end.get("step") or 0) / run.steps
            ),
            loss=progress.get("loss"),
            reason=reason,
            node=found.node if found else (known.nodes if known and status == "running" else ""),
            job_id=f"{known.job_id}_{known.index}" if known else "",
            device_s=files.device_s + open_s * run.layout.ranks,
            energy_j=files.energy_j,
            tokens_per_s=progress.get("tokens_per_s") if status == "running" else None,
            cause=found,
        )

    def _cause(
        self,
        run_id: str,
        array: ArrayJob,
        index: int,
        files: RunFiles,
        known: ElementState | None,
    ) -> Cause:
        """Why it ended; a log is read once for each end, and not too many in one call."""
        word = "" if known is None else f"{known.job_id}/{known.state}/{known.exit_code}"
        ended = f"{files.attempts}/{bool(files.open_attempt)}/{word}"
        cached = self.ends.causes.get(run_id)
        if cached is not None and cached[0] == ended:
            return cause(cached[1], node=cached[2], text=cached[3])
        log = ""
        enough = self.logs_left <= 0
        if not enough:
            self.logs_left -= 1
            for path in element_logs(self.folder, self.plan, self.jobs, array.name, index)[-1:]:
                log = own_tail(path, run_id)
        found = diagnose(
            end={} if files.open_attempt else files.end,
            element=known,
            log=log,
            attempted=files.attempts > 0,
        )
        if not enough:
            self.ends.causes[run_id] = [ended, found.name, found.node, found.text]
            self.ends.new += 1
        return found


def _final(run: AnyRun, array: str, index: int, files: RunFiles) -> RunState:
    """The state of a run whose end record settles it."""
    status = str(files.end["status"])
    completed = status == "completed"
    reason = str(files.end.get("reason") or "")
    return RunState(
        run_id=run.run_id,
        array=array,
        element=index,
        status=status,
        attempts=files.attempts,
        progress=1.0 if completed else min(1.0, float(files.end.get("step") or 0) / run.steps),
        loss=files.end.get("loss") if completed else None,
        reason=reason,
        device_s=files.device_s,
        energy_j=files.energy_j,
        cause=None if completed else diagnose(end=files.end, element=None, log=""),
    )


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
