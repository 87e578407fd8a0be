"""A campaign at a glance: progress, cost, time to go, what failed and what to type next."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llem._numerals import format_duration
from llem.campaign import AnyRun, Budget
from llem.cluster.disk.files import finite_or_none
from llem.cluster.disk.folder import CampaignFolder
from llem.cluster.disk.ledger import Ledger
from llem.cluster.scheduler.causes import Cause
from llem.cluster.state.state import CampaignState, RunState
from llem.errors import typed
from llem.planning import AnyPlan, StudyPlan

STATUS_SCHEMA = "llem-status-1"
# Status -> the column that it is counted in.
COLUMNS = {
    "completed": "done",
    "diverged": "diverged",
    "running": "running",
    "queued": "queued",
    "unknown": "queued",
    "waiting": "waiting",
    "interrupted": "stopped",
    "cancelled": "stopped",
}
FAILED = "failed"
# Columns of what ended and needs another try.
UNDONE = frozenset({"stopped", FAILED})


@dataclass(frozen=True, kw_only=True)
class Tally:
    """Runs by what became of them: `stopped` ended by no fault of theirs and go on from their last
    checkpoint; `failed` is all else that ended and needs another try.

    `progress` is the share of the tokens that are trained, or served.
    """

    runs: int
    done: int
    diverged: int
    running: int
    queued: int
    waiting: int
    stopped: int
    failed: int
    progress: float


@dataclass(frozen=True, kw_only=True)
class ArrayRow(Tally):
    """One array and its newest job."""

    name: str
    job_id: str
    elements: int
    gpus: int
    time_limit_s: int


@dataclass(frozen=True, kw_only=True)
class CellRow(Tally):
    """All seeds of one (N, D), or all cycles of a deployment, whose `label` sets it apart.

    `loss` is the mean of those that completed, NaN where none has; `loss_now` the mean training
    loss of those that run.
    """

    params: int
    tokens: int
    level: int
    loss: float
    loss_now: float
    label: str = ""


@dataclass(frozen=True, kw_only=True)
class CauseRow:
    """What ended for one reason: on which nodes, a run and its words as an example.

    `stopped` of its `runs` go on from their last checkpoint.
    """

    name: str
    runs: int
    stopped: int
    nodes: tuple[str, ...]
    run_id: str
    text: str
    advice: str
    retry: str


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Seconds until nothing is left to do, waiting in the queue not counted, and its basis."""

    seconds: float
    basis: str


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A campaign at a glance. Joules and losses are of what has finished.

    `energy_j` sums `energy_runs` of `finished_runs`. `gpu_hours_budget` is the campaign's budget
    where that is one of hours, else what the plan expects. `next` is the command to type now.
    """

    name: str
    tally: Tally
    arrays: tuple[ArrayRow, ...]
    cells: tuple[CellRow, ...]
    causes: tuple[CauseRow, ...]
    tokens_done: float
    tokens: int
    energy_j: float
    energy_runs: int
    finished_runs: int
    gpu_hours: float
    gpu_hours_budget: float
    budget: str
    estimate: Estimate | None
    notes: tuple[str, ...]
    next: str
    workload: str = "training"

    def to_dict(self, state: CampaignState) -> dict[str, Any]:
        """As `llem status --json` prints it; see docs/status.md."""
        look = state.scheduler
        whole = state.to_dict()
        return {
            "schema": STATUS_SCHEMA,
            "campaign": self.name,
            "workload": self.workload,
            **{key: whole[key] for key in ("submitted", "active", "settled", "counts")},
            "progress": self.tally.progress,
            "tokens": {"done": self.tokens_done, "planned": self.tokens},
            "energy": {
                "energy_j": self.energy_j,
                "runs": self.energy_runs,
                "finished_runs": self.finished_runs,
            },
            "gpu_hours": {"used": self.gpu_hours, "budget": self.gpu_hours_budget},
            "finish_estimate": vars(self.estimate) if self.estimate else None,
            "scheduler": {
                "asked": look.asked,
                "answered": look.answered,
                "problem": look.problem,
                "age_s": None if look.seen_s is None else max(0.0, state.now_s - look.seen_s),
                "accounting": look.accounting,
            },
            "notes": list(self.notes),
            "next": self.next,
            "arrays": [vars(row) for row in self.arrays],
            "cells": [finite_or_none(vars(row)) for row in self.cells],
            "causes": [vars(row) for row in self.causes],
            "runs": whole["runs"],
        }


def summarise(folder: CampaignFolder, plan: AnyPlan, state: CampaignState) -> Summary:
    """Count and add up; nothing is read but `jobs/submitted.json`."""
    runs = plan.by_id
    tally = _tally(state.runs, runs)
    finished = [r for r in state.runs if r.status in ("completed", "diverged")]
    measured = [
        r.energy_j for r in finished if r.energy_j is not None and math.isfinite(r.energy_j)
    ]
    causes = tuple(_causes(state.runs))
    following = _next(folder, plan, state)
    return Summary(
        name=plan.campaign.name,
        tally=tally,
        arrays=tuple(_arrays(folder, plan, state)),
        cells=tuple(_cells(plan, state)),
        causes=causes,
        tokens_done=math.fsum(r.progress * runs[r.run_id].tokens for r in state.runs),
        tokens=sum(runs[r.run_id].tokens for r in state.runs),
        energy_j=math.fsum(measured) if measured else math.nan,
        energy_runs=len(measured),
        finished_runs=len(finished),
        gpu_hours=gpu_hours_used(state),
        gpu_hours_budget=gpu_hours_budget(plan),
        budget=str(plan.budget) if has_budget(plan) else "none",
        estimate=_estimate(plan, state),
        notes=(*_rehearsed(plan), *_notes(state), *_told_to_stop(state, following)),
        next=following,
        workload=plan.campaign.workload,
    )


def gpu_hours_used(state: CampaignState) -> float:
    """Device-hours of all attempts so far, the running ones' till now."""
    return math.fsum(r.device_s for r in state.runs) / 3600


def has_budget(plan: AnyPlan) -> bool:
    """Whether somebody said what may be spent: of a study nobody needs to."""
    return not isinstance(plan, StudyPlan) or plan.campaign.budget is not None


def gpu_hours_budget(plan: AnyPlan) -> float:
    """The budget in device-hours where it is one of hours, else what the plan expects."""
    budget: Budget = plan.budget
    if budget.unit == "GPUh":
        return budget.value
    if budget.unit == "node-h":
        return budget.value * plan.site.gpus_per_node
    return float(plan.totals["gpu_hours"])


def _tally_values(states: Sequence[RunState], runs: Mapping[str, AnyRun]) -> dict[str, Any]:
    counts = Counter(COLUMNS.get(r.status, FAILED) for r in states)
    tokens = sum(runs[r.run_id].tokens for r in states)
    done = math.fsum(r.progress * runs[r.run_id].tokens for r in states)
    names = ("done", "diverged", "running", "queued", "waiting", "stopped", "failed")
    return {
        "runs": len(states),
        **{name: counts[name] for name in names},
        "progress": done / tokens if tokens else 0.0,
    }


def _tally(states: Sequence[RunState], runs: Mapping[str, AnyRun]) -> Tally:
    return Tally(**_tally_values(states, runs))


def _arrays(folder: CampaignFolder, plan: AnyPlan, state: CampaignState) -> Iterable[ArrayRow]:
    jobs = Ledger.read(folder).by_name
    by_array: dict[str, list[RunState]] = defaultdict(list)
    for run in state.runs:
        by_array[run.array].append(run)
    for array in plan.arrays:
        entries = jobs.get(array.name)
        yield ArrayRow(
            **_tally_values(by_array[array.name], plan.by_id),
            name=array.name,
            job_id=entries[-1].job_id if entries else "",
            elements=len(array.elements),
            gpus=array.nodes * array.gpus_per_node,
            time_limit_s=array.time_limit_s,
        )


def _cells(plan: AnyPlan, state: CampaignState) -> Iterable[CellRow]:
    if isinstance(plan, StudyPlan):
        yield from _deployments(plan, state)
        return
    by_cell: dict[tuple[int, int, int], list[RunState]] = defaultdict(list)
    for item in state.runs:
        run = plan.by_id[item.run_id]
        by_cell[run.level, run.params, run.tokens].append(item)
    for (level, params, tokens), items in sorted(by_cell.items()):
        yield CellRow(
            **_tally_values(items, plan.by_id),
            params=params,
            tokens=tokens,
            level=level,
            loss=_mean(r.loss for r in items if r.status == "completed"),
            loss_now=_mean(r.loss for r in items if r.status == "running"),
        )


def _deployments(plan: StudyPlan, state: CampaignState) -> Iterable[CellRow]:
    by_name = {item.run_id: item for item in state.runs}
    for some in plan.runs.replicates:
        told = plan.told(some.run)
        items = [by_name[name] for name in some.run_ids if name in by_name]
        yield CellRow(
            **_tally_values(items, plan.by_id),
            params=some.run.params,
            tokens=some.run.tokens,
            level=0,
            loss=math.nan,
            loss_now=math.nan,
            label=" ".join(f"{key}={value}" for key, value in told.items()),
        )


def _mean(values: Iterable[float | None]) -> float:
    known = [v for v in values if v is not None]
    return math.fsum(known) / len(known) if known else math.nan


def _causes(states: Iterable[RunState]) -> Iterable[CauseRow]:
    """Ends by cause, the most frequent first; what was only stopped comes after what failed, and
    what counts as a result last."""
    by_name: dict[str, list[tuple[RunState, Cause]]] = defaultdict(list)
    for run in states:
        if run.cause is not None:
            by_name[run.cause.name].append((run, run.cause))

    def stopped(found: Sequence[tuple[RunState, Cause]]) -> int:
        return sum(COLUMNS.get(run.status, FAILED) == "stopped" for run, _ in found)

    def rank(item: tuple[str, list[tuple[RunState, Cause]]]) -> tuple[bool, bool, int, str]:
        name, found = item
        return found[0][1].retry == "never", stopped(found) == len(found), -len(found), name

    for name, found in sorted(by_name.items(), key=rank):
        nodes = Counter(one.node for _, one in found if one.node)
        run, first = next(((r, c) for r, c in found if c.text), found[0])
        yield CauseRow(
            name=name,
            runs=len(found),
            stopped=stopped(found),
            nodes=tuple(node for node, _ in nodes.most_common()),
            run_id=run.run_id,
            text=first.text,
            advice=first.advice,
            retry=first.retry,
        )


def _estimate(plan: AnyPlan, state: CampaignState) -> Estimate | None:
    """Time to go of what is queued or runs, by how long finished runs took against the plan."""
    runs = plan.by_id
    open_runs = [r for r in state.runs if r.status in ("running", "queued", "unknown")]
    at_work = [r for r in open_runs if r.status == "running"]
    if not at_work:
        return None
    done = [r for r in state.runs if r.status == "completed" and r.device_s > 0]
    planned_s = math.fsum(
        runs[r.run_id].predicted.duration_s * runs[r.run_id].layout.ranks for r in done
    )
    factor, basis = 1.0, "the plan's prediction"
    if planned_s > 0 and math.isfinite(planned_s):
        factor = math.fsum(r.device_s for r in done) / planned_s
        basis = f"{len(done)} finished run{'s' * (len(done) > 1)}: {factor:.2f} x the plan"
    else:
        rates = [
            runs[r.run_id].tokens / r.tokens_per_s / runs[r.run_id].predicted.duration_s
            for r in at_work
            if r.tokens_per_s and runs[r.run_id].predicted.duration_s > 0
        ]
        if rates:
            factor = math.fsum(rates) / len(rates)
            several = "s" * (len(rates) > 1)
            basis = f"the speed of {len(rates)} running run{several}: {factor:.2f} x the plan"
    left_s = {
        r.run_id: (1 - r.progress) * runs[r.run_id].predicted.duration_s * factor for r in open_runs
    }
    if not all(map(math.isfinite, left_s.values())):
        return None
    devices = sum(runs[r.run_id].layout.ranks for r in at_work)
    work = math.fsum(left_s[r.run_id] * runs[r.run_id].layout.ranks for r in open_runs)
    seconds = max(work / devices, max(left_s.values()))
    return Estimate(
        seconds=seconds,
        basis=f"{basis}; {devices} device{'s' * (devices > 1)} at work as now, no waiting in the "
        "queue",
    )


def _notes(state: CampaignState) -> Iterable[str]:
    look = state.scheduler
    if look.problem:
        words = look.problem.partition("\n")[0]
        if look.seen_s is None:
            yield f"the scheduler does not answer ({words}); only files are shown"
        else:
            age = format_duration(state.now_s - look.seen_s)
            yield f"the scheduler does not answer ({words}); its last word, {age} ago, is shown"
    elif look.accounting is False:
        yield "this cluster keeps no accounting: causes come from end records and logs alone"
    elif look.accounting_problem:
        yield f"accounting does not answer: {look.accounting_problem}"
    for todo, count in sorted(state.stuck.items(), key=lambda item: -item[1]):
        yield f"{count} element{'s wait' if count > 1 else ' waits'} and may not start: {todo}"


def _rehearsed(plan: AnyPlan) -> Iterable[str]:
    if plan.rehearsal:
        yield (
            f"REHEARSED, seed {plan.rehearsal['seed']}: nothing was trained or measured; the "
            f"planted law is {plan.rehearsal['law']}"
        )


def _told_to_stop(state: CampaignState, following: str) -> Iterable[str]:
    if not state.told_to_stop or state.settled:
        return
    if state.active:
        yield "told to stop by `llem cancel`: what runs leaves with a checkpoint"
    else:
        yield f"stopped by `llem cancel`: `{following}` goes on"


def _next(folder: CampaignFolder, plan: AnyPlan, state: CampaignState) -> str:
    place = folder.root
    if state.settled or plan.rehearsal:
        if (folder.results / "report.html").is_file():
            return typed("llem", "report", place)
        return typed("llem", "finish", place)
    # Safe while others run: it submits what is missing and nothing else.
    undone = any(COLUMNS.get(r.status, FAILED) in UNDONE for r in state.runs)
    # The local executor holds the campaign, and tries again itself what may pass.
    held = plan.site.executor == "local" and state.active
    if undone and not held and not state.scheduler.problem:
        return typed("llem", "resubmit", place)
    if state.active:
        return typed("llem", "status", place, "--watch")
    if not state.submitted and not any(r.attempts for r in state.runs):
        return typed("llem", "submit", place)
    return typed("llem", "resubmit", place)
