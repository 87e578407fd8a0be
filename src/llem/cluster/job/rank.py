"""A rank of an array element: it meets the others, then trains or serves the element's runs with
them.

All runs one after the other in one process, since importing torch takes longer than many a run.
submitit tells which rank this is (of how many, and who is the master), under SLURM and under the
local executor alike.
"""

from __future__ import annotations

import math
import os
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llem._numerals import format_count, format_duration
from llem.campaign import AnyRun, Layout, Run, Serving, run_from_dict
from llem.cluster.disk.attempts import counts_since_ns, number_of, read_endings
from llem.cluster.disk.endings import cause_of_error
from llem.cluster.disk.folder import FINAL, INTERRUPTED, CampaignFolder
from llem.cluster.job.environment import (
    job_meta,
    job_started_ns,
    node_name,
    sampler_options,
    socket_path,
    step_name,
)
from llem.cluster.job.leaving import Leaving
from llem.cluster.job.recorder import Failure, Recorder, Window, log, told
from llem.cluster.job.rendezvous import meet
from llem.cluster.scheduler.causes import cause_of_reason
from llem.cluster.scheduler.retry import GiveUp, Go, next_try
from llem.errors import LlemError

if TYPE_CHECKING:
    from llem.energy import SamplerLink
    from llem.serving import Served
    from llem.training import Outcome, World
    from llem.training.task import Task
    from llem.training.trackers import Feed

    TaskOf = Callable[[Run, World], Task]


@dataclass(frozen=True)
class Start:
    """What rank 0 decided of a run: settled before (`status`), or the attempt that begins."""

    status: str = ""
    attempt: Path | None = None
    layout: Layout | None = None


class Rank:
    """One rank of an element: its place in the world, its meter, and the runs it takes part in."""

    def __init__(
        self, element: dict[str, Any], folder: CampaignFolder, *, task_of: TaskOf | None = None
    ) -> None:
        self.element = element
        # What is trained, where that is no object with a name to import.
        self.task_of = task_of
        self.folder = folder
        self.runs = [run_from_dict(values) for values in element["runs"]]
        self.leaving = Leaving(folder)
        self.job_started_ns = job_started_ns()
        self.trackers: tuple[Feed, ...] = ()
        # Whether a run was begun in this job.
        self.begun = False

    def main(self) -> int:
        self.leaving.catch_signals()
        os.environ.setdefault(
            "SUBMITIT_EXECUTOR", "slurm" if "SLURM_JOB_ID" in os.environ else "local"
        )
        from submitit import JobEnvironment
        from submitit.helpers import TorchDistributedEnvironment

        place = TorchDistributedEnvironment()
        self.rank = place.rank
        if place.world_size != self.element["ranks"]:
            print(
                f"llem: the plan has {self.element['ranks']} ranks, the job step has "
                f"{place.world_size}: were the scripts edited?",
                file=sys.stderr,
            )
            return 1
        job = JobEnvironment()
        self.recorder = Recorder(
            self.folder, hosts=job.hostnames, rank=place.rank, ranks=place.world_size
        )
        if self.rank == 0:
            self.leaving.say("started")
        try:
            if place.local_rank == 0:
                meet(
                    node=node_name(),
                    nodes=job.num_nodes,
                    node_index=job.node,
                    host=place.master_addr,
                    port=place.master_port,
                    word=f"llem-{job.job_id}",
                )
            from llem.energy import step_counter
            from llem.training import start_world

            self.zero_stage = _zero_stage(self.element["zero_stage"])
            self.world: World = start_world(
                rank=place.rank,
                local_rank=place.local_rank,
                world_size=place.world_size,
                master_addr=place.master_addr,
                master_port=place.master_port,
                zero_stage=self.zero_stage,
                precision=self.element["precision"],
            )
        except Exception as error:
            return self._not_started(error)
        # One rank looks at files for all: at each step they tell each other what they know.
        self.leaving.looks = self.rank == 0
        try:
            with ExitStack() as stack:
                self.link = self._link(stack, place.local_rank)
                self._start_trackers()
                self._settle()
                self.counter = step_counter(self.world.device_uuid, local_rank=place.local_rank)
                status = self._leave(self.all_runs())
        except Exception as error:
            # Between runs: nothing that another try would find otherwise, unless a rank was lost.
            traceback.print_exc()
            if cause_of_error(error) != "killed":
                self.leaving.say("failed")
            status = 1
        else:
            self.world.close()
        # The log's other end may be gone (slurmstepd was killed): the status says it all.
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        # gloo's threads abort about one interpreter in five on its way out, after all is written:
        # leave without it.
        os._exit(status)

    def all_runs(self, *, told: Callable[[Any, str], None] | None = None) -> list[str]:
        """Run after run, as far as this job is left to it; how each ended, as `told` is too."""
        statuses: list[str] = []
        for run in self.runs:
            statuses.append(self._run(run))
            if told is not None:
                told(run, statuses[-1])
            if statuses[-1] in ("interrupted", "superseded", "unwritten"):
                break
        return statuses

    def _leave(self, statuses: list[str]) -> int:
        """The exit status, told to the job's script in a word before any rank leaves with it."""
        status = 0
        if "interrupted" in statuses:
            status = INTERRUPTED
            if self.rank == 0:
                self.leaving.say("interrupted")
        elif {"failed", "superseded", "unwritten"} & set(statuses):
            status = 1
            if self.rank == 0:
                # Another job has the run, or a record that cannot be written leaves nothing to
                # decide by, which is for a person to see.
                hopeless = statuses[-1] in ("superseded", "unwritten") or not self.any_left()
                self.leaving.say("failed" if hopeless else "again")
        if self.trackers:
            from llem.training.trackers import close_all

            for said in close_all(self.trackers, haste=status == INTERRUPTED):
                log(said)
        # The step ends with the first rank that leaves so: who is not out by then is killed.
        self.world.barrier()
        return status

    def any_left(self) -> bool:
        """Whether a run of this element may be tried (again)."""
        return any(
            self.folder.final_end(run.run_id) is None and not isinstance(self._next(run), GiveUp)
            for run in self.runs
        )

    def _next(self, run: AnyRun) -> Go | GiveUp:
        since_ns = counts_since_ns(self.folder)
        return next_try(run, read_endings(self.folder, run), since_ns=since_ns)

    def _not_started(self, error: Exception) -> int:
        """The ranks did not come together. One of them says so, for all, in the first open run."""
        failure = Failure(cause_of_error(error, starting=True), error)
        lines = error.lines() if isinstance(error, LlemError) else [failure.reason]
        print(f"llem: {node_name()}, rank {self.rank}: " + "\n".join(lines), file=sys.stderr)
        if not isinstance(error, LlemError):
            traceback.print_exc()
        try:
            if self.leaving.first_to_say_failed(step_name()):
                open_runs = [r for r in self.runs if self.folder.final_end(r.run_id) is None]
                if open_runs:
                    run, now_ns = open_runs[0], time.time_ns()
                    attempt = self.recorder.begin(run, run.layout)
                    self.recorder.end(attempt, run, how=failure, window=Window(now_ns, now_ns))
                self.leaving.say("again" if self.any_left() else "failed")
        except (OSError, LlemError) as unwritten:
            print(f"llem: the failure could not be recorded: {unwritten}", file=sys.stderr)
        return 1

    def _link(self, stack: ExitStack, local_rank: int) -> SamplerLink | None:
        """The node's sampler; one rank of each node speaks to it, and starts it where need be."""
        if local_rank != 0:
            return None
        from llem.energy import SamplerLink, start_sampler

        path = socket_path()
        if self.element["sampler"] == "child":
            sampler = start_sampler(
                path,
                interval_s=self.element["energy"]["interval_s"],
                options=sampler_options(self.element),
            )
            path = stack.enter_context(sampler).socket_path
        return stack.enter_context(SamplerLink(path))

    def _start_trackers(self) -> None:
        """What the campaign wants to be shown in, from rank 0 alone."""
        specs = self.element.get("trackers", ())
        if self.rank == 0 and specs:
            from llem.training.trackers import start_trackers

            self.trackers = start_trackers(specs, folder=self.folder.tracking)

    def _settle(self) -> None:
        """Keep still while the sampler watches idle devices, where the campaign asks for it.

        Before the first run: what follows it in this job finds devices warm, and their baseline
        measured.
        """
        asked = self.element["energy"]["idle"]
        if asked is None:
            return
        from llem.energy import SamplerLink

        with SamplerLink(socket_path()) as link:
            answer = link.idle(**asked)
        if self.rank == 0:
            log("idle: " + ("; ".join(answer.reasons) if answer.ok else answer.reason))
        # A node may take longer than another; none begins before all have done.
        self.world.barrier()

    def _decide(self, run: Run | Serving) -> Start:
        """Whether to try a run, and with which layout; its attempt's folder if so. Rank 0 alone."""
        settled = self.folder.final_end(run.run_id)
        if settled is not None:
            log(f"run {run.run_id}: {settled['status']} before; not run again")
            return Start(status=str(settled["status"]))
        chosen = self._next(run)
        if isinstance(chosen, GiveUp):
            self.recorder.give_up(run, chosen)
            return Start(status="failed")
        if (status := self._must_not_begin(run)) is not None:
            return Start(status=status)
        attempt = self.recorder.begin(run, chosen.layout)
        why = f", with {chosen.why}" if chosen.why else ""
        log(
            f"run {run.run_id}: attempt {number_of(attempt)}, {_what(run)}, "
            f"on {self.world.world_size} rank(s) of {', '.join(self.recorder.hosts)}{why}"
        )
        return Start(attempt=attempt, layout=chosen.layout)

    def _must_not_begin(self, run: AnyRun) -> str | None:
        """How a job is left that has to leave before a run, if it has to: without an attempt, which
        would only tell of itself, and whose sampler the signal has ended as well.

        But where the time is over before the first run, an attempt alone tells so in the end.
        """
        reason = self.leaving.why()
        cause = cause_of_reason(reason) if reason is not None else ""
        if not cause or (cause == "time-limit" and not self.begun):
            return None
        log(f"run {run.run_id}: not begun: {reason}")
        return "superseded" if cause == "superseded" else "interrupted"

    def _run(self, run: Run | Serving) -> str:
        """Train or serve one run, unless it is settled already; returns its status."""
        world = self.world
        if isinstance(run, Serving):
            self._make_ready(run)
        start = world.first(lambda: self._decide(run))
        if start.attempt is None or start.layout is None:
            return start.status
        self.begun = True
        attempt, run = start.attempt, run.with_layout(start.layout)
        later = attempt.with_name(f"attempt-{number_of(attempt) + 1}")
        self.leaving.later = later.exists
        meta = {
            "run_id": run.run_id,
            "attempt": number_of(attempt),
            "node": node_name(),
            "campaign": self.element["campaign"],
            "plan": self.element["plan"],
            "array": self.element["array"],
            "element": self.element["element"],
            **job_meta(),
            "job_started_ns": self.job_started_ns,
            "image_digest": self.element["image_digest"],
        }
        # Rank 0's reason may differ from another node's: each says its own in its own record.
        unmeasured = ""
        if self.link is not None:
            answer = self.link.begin(attempt.resolve() / f"node-{node_name()}.h5", meta)
            unmeasured = "" if answer.ok else str(answer.reason)
        # No rank's window begins before every node is measured, or ends after one is not.
        world.barrier()
        started_ns, t0_ns = time.time_ns(), time.monotonic_ns()
        try:
            how: Outcome | Served | Failure = (
                self._serve(run, attempt, meta, unmeasured)
                if isinstance(run, Serving)
                else self._train(run, attempt, meta, unmeasured)
            )
        except Exception as error:
            how = Failure(cause_of_error(error), error)
            traceback.print_exc()
        t1_ns = time.monotonic_ns()
        window = Window(started_ns, time.time_ns(), t0_ns, t1_ns)
        failed = isinstance(how, Failure)
        if not failed:
            world.barrier()
        if self.link is not None:
            ended = self.link.end()
            if not (ended.ok or unmeasured):
                log(f"run {run.run_id}: node {node_name()}: {ended.reason}")
        written = True
        if failed or world.rank == 0:
            written = self.recorder.end(attempt, run, how=how, window=window)
        if failed and world.world_size > 1:
            # The other ranks wait in a collective for this one: end the step, do not hang it.
            self.leaving.say("again" if written and self.any_left() else "failed")
            sys.stderr.flush()
            os._exit(1)
        if world.rank == 0:
            log(f"run {run.run_id}: {told(how)}")
        if not world.first(lambda: written):
            return "unwritten"
        if isinstance(how, Failure):
            return "failed"
        if how.status in FINAL:
            self._forget_checkpoints(run)
        superseded = how.status == "interrupted" and cause_of_reason(how.reason) == "superseded"
        return "superseded" if superseded else how.status

    def _forget_checkpoints(self, run: AnyRun) -> None:
        """The run's end is on disk: nothing will resume from them."""
        from llem.training import delete_checkpoints

        if self.rank == 0:
            delete_checkpoints(self.folder.checkpoints(run.run_id))

    def _make_ready(self, run: Serving) -> None:
        """What is done before a run is served, and is no part of it."""
        if self.world.first(lambda: self.folder.final_end(run.run_id) is not None):
            return
        from llem.serving import backend_class

        with suppress(Exception):
            backend_class(run.deployment.backend).prepare(run)
        self._cool_down(run)

    def _cool_down(self, run: Serving) -> None:
        """Leave the devices idle before a run, where the campaign asks for it, or until this job
        has to leave."""
        if not run.cooldown_s or self._must_leave():
            return
        from llem.energy import SamplerLink

        # No rank speaks with another meanwhile: each has to look itself.
        self.leaving.looks = True
        began_s = time.monotonic()
        with SamplerLink(socket_path(), timeout_s=min(5.0, run.cooldown_s)) as link:
            answer = link.idle(baseline_s=run.cooldown_s, leave=self._must_leave)
        # Where no sampler is to be had the pause is kept all the same.
        while (rest_s := began_s + run.cooldown_s - time.monotonic()) > 0:
            if self._must_leave():
                break
            time.sleep(min(rest_s, 0.2))
        if self.rank == 0:
            took_s = time.monotonic() - began_s
            of = f" of {run.cooldown_s:g} s" if self._must_leave() else ""
            why = "" if answer.ok else f" ({answer.reason})"
            log(f"run {run.run_id}: cooled down for {format_duration(took_s)}{of}{why}")
        self.world.barrier()

    def _must_leave(self) -> bool:
        return self.leaving.why() is not None

    def _serve(self, run: Serving, attempt: Path, meta: dict[str, Any], unmeasured: str) -> Served:
        from llem.serving import serve_run

        # Replicas serve without a word to each other: each has to look whether it must leave.
        self.leaving.looks = True
        return serve_run(
            run,
            attempt_dir=attempt,
            world=self.world,
            meta={**meta, "energy_reason": unmeasured},
            told=self.recorder.progress(run, attempt).on_step if self.rank == 0 else None,
            should_stop=self.leaving.why,
            counter=self.counter,
        )

    def _train(self, run: Run, attempt: Path, meta: dict[str, Any], unmeasured: str) -> Outcome:
        from llem.training import train

        if run.layout.zero_stage != self.zero_stage:
            run = run.with_layout(replace(run.layout, zero_stage=self.zero_stage))
        return train(
            run,
            attempt_dir=attempt,
            checkpoints_dir=self.folder.checkpoints(run.run_id),
            world=self.world,
            meta={**meta, "energy_reason": unmeasured},
            callbacks=[
                self.recorder.progress(run, attempt),
                *self.trackers,
            ],
            should_stop=self.leaving.why,
            counter=self.counter,
            forks=self.world.first(lambda: self._forks(run)),
            peak_flops=float(self.element.get("peak_flops") or math.nan),
            task=self.task_of(run, self.world) if self.task_of is not None else None,
        )

    def _forks(self, run: Run) -> dict[int, Path]:
        """Where the branches of a run that are still to be trained look for checkpoints."""
        branches = {steps: run.branch(steps).run_id for steps in run.branch_at}
        return {
            steps: self.folder.checkpoints(run_id)
            for steps, run_id in branches.items()
            if self.folder.final_end(run_id) is None
        }


def _what(run: Run | Serving) -> str:
    """A run in a few words, for the log."""
    if isinstance(run, Serving):
        deployment = run.deployment
        options = " ".join(f"{k}={v}" for k, v in deployment.options.items() if v is not None)
        return (
            f"{deployment.model.name} ({format_count(run.params)} parameters) by "
            f"{deployment.backend} {options or 'as it is'}, {deployment.prompts.count} requests, "
            f"cycle {run.cycle}"
        )
    return (
        f"{format_count(run.params)} parameters, {format_count(run.tokens)} tokens in "
        f"{run.steps} steps, "
        f"seed {run.seed}"
    )


def _zero_stage(asked: int) -> int:
    """The plan's ZeRO stage, or 0 (plain data parallelism) where DeepSpeed is not installed.

    Both compute the same; a laptop without DeepSpeed can then repeat a cluster's run.
    """
    from importlib.util import find_spec

    if asked and find_spec("deepspeed") is None:
        print("llem: DeepSpeed is not installed; plain data parallelism instead", file=sys.stderr)
        return 0
    return asked
