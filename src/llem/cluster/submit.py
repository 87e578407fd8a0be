"""Submitting a campaign to SLURM, once; submitting again what is missing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from llem.campaign.guards import check_script_path
from llem.cluster.disk.attempts import count_anew
from llem.cluster.disk.folder import FINAL, PATIENCE_S, CampaignFolder
from llem.cluster.disk.ledger import Ledger, Submitted
from llem.cluster.render import FINISH, job_name
from llem.cluster.scheduler import slurm
from llem.cluster.scheduler.facts import ACTIVE, index_list
from llem.cluster.state.state import CampaignState, campaign_state, folder_is_held
from llem.cluster.state.watch import LONGEST_POLL_S, wait
from llem.errors import ClusterError, Fault, InputError
from llem.planning import AnyPlan, ArrayJob

# Why elements wait where `llem cancel` came in between.
CANCELLED = "the campaign was cancelled"


@dataclass(frozen=True)
class Submission:
    """What one call did: the jobs that it submitted, those of before, and what has to wait.

    `waiting` elements found no room among the jobs that one user may have; `reason` says whose
    word that is. The same call again, when some have ended, submits them.
    """

    new: tuple[Submitted, ...]
    before: tuple[Submitted, ...]
    waiting: int = 0
    reason: str = ""


@dataclass(frozen=True)
class Cancellation:
    """What one call told to stop: jobs that waited or ran, or the executor of this machine.

    `ended` counts the campaign's jobs that had ended before.
    """

    jobs: tuple[str, ...] = ()
    ended: int = 0
    at_work_here: bool = False


def submit(folder: CampaignFolder, plan: AnyPlan, *, finish: bool = True) -> Submission:
    """sbatch what was not submitted yet, as far as there is room; then the job that aggregates.

    Each job id is on disk before the next sbatch. Raises ClusterError where sbatch refuses.
    """
    return _submit(folder, plan, finish=finish)


def _submit(
    folder: CampaignFolder,
    plan: AnyPlan,
    *,
    finish: bool,
    busy: int | None = None,
    patience_s: float = 0.0,
    goes_on: bool = False,
) -> Submission:
    """`submit`; `busy` elements are known to be held, so that the scheduler is not asked again.

    What `goes_on` from an earlier call submits nothing once the campaign was cancelled; a call of
    its own wants it to run (again).
    """
    _check_place(folder, plan)
    with folder.locked("`llem submit`", patience_s=patience_s) as lock:
        if not goes_on:
            folder.stop_file.unlink(missing_ok=True)
        batch = _Batch.begin(folder, plan, lock, busy=busy)
        for array in plan.arrays:
            count = len(array.elements)
            for segment in range(array.segments):
                # A chain that was cut off while it was submitted goes on where it ended.
                batch.add(array, batch.ledger.never_submitted(array.name, count, segment), segment)
        return batch.done(finish=finish)


def resubmit(folder: CampaignFolder, plan: AnyPlan, *, finish: bool = True) -> Submission:
    """Submit again the elements that are not settled and that the scheduler no longer holds.

    Runs that completed or diverged stay as they are; an element's ranks pass over them. Runs that
    were given up are tried again, their earlier attempts not counting any more. Raises InputError
    where nothing was submitted yet.
    """
    _check_place(folder, plan)
    with folder.locked("`llem resubmit`") as lock:
        folder.stop_file.unlink(missing_ok=True)
        batch = _Batch.begin(folder, plan, lock)
        if not batch.before:
            hint = f"`llem submit {folder.root}` first"
            raise InputError(str(folder.root), [Fault("", "nothing was submitted yet", hint)])
        state = campaign_state(folder, plan)
        if state.scheduler.problem:
            # What is queued or runs cannot be known: submitting could do it twice.
            raise ClusterError(state.scheduler.problem, remedy="nothing was submitted; try again")
        held = {*ACTIVE, "unknown"}
        busy = {(r.array, r.element) for r in state.runs if r.status in held}
        open_ = {(r.array, r.element) for r in state.runs if r.status not in FINAL} - busy
        count_anew(folder)
        for array in plan.arrays:
            # What was never submitted is `submit`'s to do.
            fresh = set(batch.ledger.never_submitted(array.name, len(array.elements), 0))
            missing = sorted(i for name, i in open_ if name == array.name and i not in fresh)
            round_ = 1 + max((job.round for job in batch.ledger.of(array.name)), default=0)
            for segment in range(array.segments):
                batch.add(array, missing, segment, round=round_)
        return batch.done(finish=finish and batch.fresh)


@dataclass
class _Batch:
    """One call's submissions, within the room that there is for this user's jobs."""

    folder: CampaignFolder
    plan: AnyPlan
    ledger: Ledger
    before: tuple[Submitted, ...]
    # Elements that may still be submitted; None where nobody says how many.
    room: int | None
    waiting: int = 0
    reason: str = ""

    @classmethod
    def begin(
        cls, folder: CampaignFolder, plan: AnyPlan, lock: int, *, busy: int | None = None
    ) -> _Batch:
        ledger = Ledger.read(folder, lock=lock)
        ledger.recover()
        room = plan.site.limits.submit
        if room is not None and ledger.jobs:
            if busy is None:
                held = slurm.query([job.job_id for job in ledger.jobs])
                busy = sum(s.meaning in ACTIVE for s in held)
            room = max(0, room - busy)
        # The job that fits at the end is one as well.
        room = None if room is None else max(0, room - 1)
        return cls(folder, plan, ledger, tuple(ledger.jobs), room)

    def add(
        self, array: ArrayJob, elements: Sequence[int], segment: int, *, round: int = 0
    ) -> None:
        """Submit these elements of an array, in as few jobs as the scheduler takes."""
        left = list(elements)
        most = len(left)
        while left and most and not self.reason:
            if self.folder.stop_file.exists():
                # Whoever cancels does not wait for a submission of minutes to end.
                self.reason = CANCELLED
                break
            take = left[: most if self.room is None else min(most, self.room)]
            if not take:
                limit = self.plan.site.limits.submit
                self.reason = f"the site lets a user have {limit} jobs at a time"
                break
            try:
                self._sbatch(array, take, segment, round)
            except slurm.Refused as refusal:
                if not refusal.full:
                    raise
                # Nobody says how much room there is: try half of it.
                most = len(take) // 2
                if not most:
                    self.reason = refusal.message.strip().splitlines()[-1]
                continue
            left = left[len(take) :]
            if self.room is not None:
                self.room -= len(take)
        self.waiting += len(left)

    @property
    def fresh(self) -> bool:
        """Whether anything was submitted."""
        return len(self.ledger.jobs) > len(self.before)

    def done(self, *, finish: bool) -> Submission:
        """Submit the job that aggregates where all else is; tell what was done."""
        names = {job.name for job in self.ledger.jobs}
        if finish and not self.waiting and (self.fresh or FINISH not in names):
            ids = [job.job_id for job in self.ledger.jobs if job.name != FINISH]
            self._call(FINISH, [_after(ids)])
        new = tuple(self.ledger.jobs[len(self.before) :])
        return Submission(new, self.before, self.waiting, self.reason)

    def _sbatch(self, array: ArrayJob, elements: Sequence[int], segment: int, round: int) -> None:
        options = []
        if segment:
            # Whatever became of it: ranks find out what is left to do.
            earlier = [
                job.job_id
                for job in self.ledger.of(array.name)
                if (job.segment, job.round) == (segment - 1, round)
                and job.elements is not None
                and not set(job.elements).isdisjoint(elements)
            ]
            options.append(_after(earlier))
        if len(elements) < len(array.elements):
            throttle = f"%{array.throttle}" if array.throttle else ""
            options.append(f"--array={index_list(elements)}{throttle}")
        self._call(array.name, options, elements=elements, segment=segment, round=round)

    def _call(
        self,
        name: str,
        options: Sequence[str],
        *,
        elements: Sequence[int] | None = None,
        segment: int = 0,
        round: int = 0,
    ) -> None:
        self.ledger.submit(
            name, job_name=job_name(self.plan, name), plan=self.plan.digest, options=options,
            elements=elements, segment=segment, round=round,
        )  # fmt: skip


def _after(job_ids: Iterable[str]) -> str:
    return f"--dependency={':'.join(['afterany', *job_ids])}"


def cancel(folder: CampaignFolder, plan: AnyPlan) -> Cancellation:
    """Ask everything that works on this campaign to stop. Raises ClusterError.

    Arrays that reduce its records are among them: of a campaign that was only rehearsed, they alone
    can be.
    """
    reducing: list[str] = []
    if plan.site.executor == "slurm" and folder.reductions_file.parent.is_dir():
        from llem.cluster.reducing import cancel_arrays

        reducing = cancel_arrays(folder.reductions_file)
        if reducing and folder.rehearsal_file.is_file():
            return Cancellation(tuple(reducing))
    # Also tells elements that are warned in order that nobody wants them requeued.
    folder.ask_to_stop()
    if plan.site.executor == "local":
        if folder_is_held(folder):
            return Cancellation(at_work_here=True)
        # Nothing was stopped, and whatever begins later was not meant.
        folder.stop_file.unlink(missing_ok=True)
        return Cancellation()
    with folder.locked("`llem cancel`", patience_s=PATIENCE_S):
        ledger = Ledger.read(folder)
        ledger.recover()
        every = list(dict.fromkeys(job.job_id for job in ledger.jobs))
        # scancel fails at a job that the scheduler has forgotten.
        held = {element.job_id for element in slurm.query(every) if not element.final}
        jobs = [job_id for job_id in every if job_id in held]
        slurm.cancel(jobs)
    return Cancellation((*jobs, *reducing), ended=len(every) - len(jobs))


def submit_and_wait(
    folder: CampaignFolder,
    plan: AnyPlan,
    *,
    watch: Callable[[CampaignState], None] | None = None,
) -> CampaignState:
    """Submit what there is room for, more whenever half of it has ended, and wait for the last."""
    # What the last poll saw is what the next submission goes by: one question serves both.
    state: CampaignState | None = None
    while True:
        busy = None if state is None or state.scheduler.problem else _busy(state)
        done = _submit(folder, plan, finish=False, busy=busy, patience_s=PATIENCE_S,
                       goes_on=state is not None)  # fmt: skip
        if not done.waiting or done.reason == CANCELLED:
            return wait(folder, plan, watch=watch)
        if busy is None:
            busy = _busy(campaign_state(folder, plan)) if done.before else 0
        if not busy and not done.new:
            # Jobs of another campaign's fill the user's share.
            time.sleep(LONGEST_POLL_S)
        most = busy + sum(len(job.elements or ()) for job in done.new)
        state = wait(folder, plan, watch=watch, until=partial(_half_done, of=most))


def _half_done(state: CampaignState, *, of: int) -> bool:
    return 2 * _busy(state) <= of


def _busy(state: CampaignState) -> int:
    """Elements that the scheduler holds: what ended but is not yet let go of takes room as well."""
    return sum(e.meaning in ACTIVE for e in state.scheduler.elements.values())


def _check_place(folder: CampaignFolder, plan: AnyPlan) -> None:
    """Not a rehearsal's; and Apptainer reads `:` and `,` in a bind's path, as the folder is one."""
    folder.refuse_rehearsed(plan)
    place = str(folder.root.resolve())
    if plan.site.container is not None:
        try:
            check_script_path(place)
        except ValueError as error:
            raise InputError(place, [Fault("DIR", str(error), "move the campaign")]) from None
