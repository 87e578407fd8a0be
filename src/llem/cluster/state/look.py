"""One look at the scheduler for a whole campaign, and what is remembered of earlier ones.

`jobs/states.json` keeps what the scheduler said last: final states of elements whose runs have no
final end record, so that they are asked for once and outlive the scheduler's own memory; and what
was queued or running, which still holds while the controller restarts.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from llem.cluster.disk.files import write_json
from llem.cluster.disk.folder import CampaignFolder
from llem.cluster.scheduler import slurm
from llem.cluster.scheduler.facts import ACTIVE, ElementState, Step, index_list, parse_indices
from llem.errors import ClusterError, UnavailableError

STATES_SCHEMA = "llem-states-1"
# Accounting hears of a job's end a little late; and a database that was down is asked again.
ACCOUNTING_AGAIN_S = 30.0
# What is remembered of open elements is written again at least so often, for its age.
REMEMBER_S = 60.0

Key = tuple[str, int | None]


@dataclass(frozen=True)
class Look:
    """What is known of the elements now. `problem` says why the scheduler did not answer; it is
    `absent` where this machine has none.

    `seen_s` is when (seconds of the epoch) it last did; None: never. `accounting` is whether
    sacct answers here, None where it was not needed yet.
    """

    elements: Mapping[Key, ElementState] = field(default_factory=dict)
    asked: bool = False
    problem: str = ""
    absent: bool = False
    seen_s: float | None = None
    accounting: bool | None = None
    accounting_problem: str = ""

    @property
    def answered(self) -> bool:
        return self.asked and not self.problem

    @property
    def active(self) -> bool:
        """Whether the scheduler holds anything that waits or runs, as far as is known."""
        return any(e.meaning in ACTIVE for e in self.elements.values())


@dataclass(frozen=True)
class Job:
    """A submitted job of the campaign: the indices it covers that have an unsettled run."""

    job_id: str
    open_indices: Collection[int | None]
    submitted_s: float


def look(folder: CampaignFolder, jobs: Sequence[Job], *, now_s: float | None = None) -> Look:
    """Ask squeue once for `jobs`, then sacct once for what it no longer holds; remember both.

    Never raises for a scheduler that does not answer: what is remembered stands, with its age.
    """
    now = time.time() if now_s is None else now_s
    memory = _Memory.read(folder)
    # The job that fits at the end: once it is known to have ended there is nothing to ask.
    if not any(set(j.open_indices) - {None} or (j.job_id, None) not in memory.final for j in jobs):
        return Look(elements=memory.final, seen_s=memory.seen_s, accounting=memory.accounting)
    problem, absent = "", False
    try:
        seen = {(e.job_id, e.index): e for e in slurm.query([job.job_id for job in jobs])}
    except (ClusterError, UnavailableError) as error:
        problem, seen = error.message, {}
        absent = isinstance(error, UnavailableError)
    if problem:
        known = {**memory.open, **memory.final}
    else:
        # What runs again (requeued by hand, say) is open, whatever it was before.
        for key, element in seen.items():
            if not element.final:
                memory.final.pop(key, None)
        memory.open = {key: e for key, e in seen.items() if not e.final}
        ended = {k: e for k, e in seen.items() if e.final and k not in memory.final}
        told = _accounting(memory, _to_ask(jobs, seen, memory.final), now)
        ended |= {k: e for k, e in told.items() if e.final and k not in memory.open}
        wanted = {(job.job_id, i) for job in jobs for i in job.open_indices}
        memory.final |= {k: e for k, e in ended.items() if k in wanted}
        known = {**memory.final, **ended, **memory.open}
        memory.write(folder, now)
    return Look(
        elements=known,
        asked=True,
        problem=problem,
        absent=absent,
        seen_s=memory.seen_s if problem else now,
        accounting=memory.accounting,
        accounting_problem=memory.accounting_problem,
    )


def _to_ask(
    jobs: Iterable[Job], seen: Mapping[Key, ElementState], final: Mapping[Key, ElementState]
) -> dict[str, float]:
    """Jobs to ask accounting about, with the time of their submission.

    Those with an unsettled element that squeue no longer holds, or holds as ended badly, since
    only accounting knows exit codes and steps; and whose end was not told by it before.
    """
    wanted = {}
    for job in jobs:
        for index in job.open_indices:
            key = (job.job_id, index)
            known = seen.get(key) or final.get(key)
            if known is None or (known.final and known.state != "COMPLETED"):
                if key in final and final[key].exit_code:
                    continue
                wanted[job.job_id] = job.submitted_s
                break
    return wanted


def _accounting(
    memory: _Memory, wanted: Mapping[str, float], now: float
) -> dict[Key, ElementState]:
    """Ask sacct about `wanted`, but for jobs that it was asked about a moment ago.

    A cluster that said to keep no accounting is not asked again.
    """
    jobs = {
        job: since_s
        for job, since_s in wanted.items()
        if now - memory.asked_s.get(job, -ACCOUNTING_AGAIN_S) >= ACCOUNTING_AGAIN_S
    }
    if not jobs or memory.accounting is False:
        return {}
    memory.asked_s |= dict.fromkeys(jobs, now)
    try:
        told = slurm.ask_accounting(list(jobs), since_s=min(jobs.values()))
    except (UnavailableError, ClusterError) as error:
        if isinstance(error, UnavailableError):
            memory.accounting = False
        memory.accounting_problem = error.message.partition("\n")[0]
        return {}
    memory.accounting, memory.accounting_problem = True, ""
    return {(e.job_id, e.index): e for e in told}


@dataclass
class _Memory:
    """The content of `jobs/states.json`."""

    final: dict[Key, ElementState] = field(default_factory=dict)
    open: dict[Key, ElementState] = field(default_factory=dict)
    seen_s: float | None = None
    accounting: bool | None = None
    accounting_problem: str = ""
    asked_s: dict[str, float] = field(default_factory=dict)
    on_disk: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: CampaignFolder) -> _Memory:
        """What is on disk; nothing where there is none, or none that can be read."""
        try:
            values = json.loads(folder.states_file.read_text())
            if values["schema"] != STATES_SCHEMA:
                return cls()
            memory = cls(
                seen_s=values["seen_s"],
                accounting=values["accounting"],
                accounting_problem=values["accounting_problem"],
                asked_s=values["asked_s"],
                on_disk=values,
            )
            for job, elements in values["final"].items():
                for index, row in elements.items():
                    number = None if index == "-" else int(index)
                    memory.final[job, number] = _element(job, number, row)
            for job, indices, row in values["open"]:
                numbers: list[int | None] = [*parse_indices(indices)]
                for number in numbers or [None]:
                    memory.open[job, number] = _element(job, number, row)
        except (OSError, ValueError, KeyError, TypeError):
            return cls()
        return memory

    def write(self, folder: CampaignFolder, now: float) -> None:
        """Put it on disk where it says anything new, or its time is old.

        A folder that is not ours to write stays as it is.
        """
        final: dict[str, dict[str, Any]] = defaultdict(dict)
        for (job, index), element in self.final.items():
            final[job]["-" if index is None else str(index)] = _row(element)
        rows: dict[tuple[str, str], tuple[list[Any], list[int]]] = {}
        for (job, index), element in self.open.items():
            row = _row(element)
            entry = rows.setdefault((job, json.dumps(row)), (row, []))
            if index is not None:
                entry[1].append(index)
        values = {
            "schema": STATES_SCHEMA,
            "seen_s": now,
            "accounting": self.accounting,
            "accounting_problem": self.accounting_problem,
            "asked_s": self.asked_s,
            "final": final,
            "open": [
                [job, index_list(sorted(n)) or "-", row] for (job, _), (row, n) in rows.items()
            ],
        }
        # As JSON would give them back: keys are text there.
        values = json.loads(json.dumps(values))
        same = values == {**self.on_disk, "seen_s": now}
        if same and now - (self.seen_s or 0.0) < REMEMBER_S:
            return
        with suppress(OSError):
            write_json(folder.states_file, values)


def _row(element: ElementState) -> list[Any]:
    """What is kept of an element, in the order of `_element`."""
    return [
        element.state,
        element.reason,
        element.nodes,
        element.exit_code,
        element.started_s,
        element.ended_s,
        element.restarts,
        [[s.name, s.state, s.exit_code, s.nodes] for s in element.steps],
    ]


def _element(job: str, index: int | None, row: Sequence[Any]) -> ElementState:
    state, reason, nodes, exit_code, started_s, ended_s, restarts, steps = row
    return ElementState(
        job_id=job,
        index=index,
        state=state,
        reason=reason,
        nodes=nodes,
        exit_code=exit_code,
        started_s=started_s,
        ended_s=ended_s,
        restarts=restarts,
        steps=tuple(Step(*s) for s in steps),
    )
