"""What runs inside a job: one process per rank, or one sampler per node, of one array element.

    python -m llem.cluster.element --manifest jobs/A.jsonl --element 3 [--sampler]

The working directory is the campaign folder. A rank trains all runs of its element one after the
other, since importing torch takes longer than many a run. submitit tells who this process is
(rank, world, master), under SLURM and under the local executor alike.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llem.campaign import Layout, Run, format_si
from llem.cluster.attempts import (
    begin_attempt,
    counts_since_ns,
    newest_step,
    number_of,
    read_endings,
    write_end,
)
from llem.cluster.causes import cause_of_reason
from llem.cluster.endings import cause_of_error
from llem.cluster.files import finite_or_none
from llem.cluster.folder import FINAL, INTERRUPTED, CampaignFolder
from llem.cluster.leaving import Leaving
from llem.cluster.rendezvous import meet
from llem.cluster.retry import Ending, GiveUp, Go, next_try
from llem.errors import LlemError

if TYPE_CHECKING:
    from llem.energy import SamplerLink
    from llem.training import Outcome, Progress, World

PROGRESS_S = 1.0
LOG_LINE_S = 30.0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="llem.cluster.element")
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--element", type=int, required=True)
    parser.add_argument("--sampler", action="store_true", help="be the node's sampler, not a rank")
    args = parser.parse_args(argv)
    element = read_element(args.manifest, args.element)
    # Before anything that reads them is imported; as data, they never met a shell.
    os.environ.update(element["environment"])
    if args.sampler:
        return _sample()
    return Rank(element, CampaignFolder(Path.cwd())).main()


def read_element(manifest: Path, index: int) -> dict[str, Any]:
    """Line `index` of a manifest."""
    with open(manifest, encoding="utf-8") as file:
        for number, line in enumerate(file):
            if number == index:
                values: dict[str, Any] = json.loads(line)
                return values
    raise SystemExit(f"{manifest} has no element {index}")


def socket_path() -> Path:
    """Where the node's sampler and its ranks meet: one place per job and node, on local disk.

    Several test nodes may share a host, so that the node's own name is part of it.
    """
    job = os.environ.get("SLURM_JOB_ID") or os.environ["SUBMITIT_LOCAL_JOB_ID"]
    return Path(tempfile.gettempdir()) / f"llem-{os.getuid()}-{job}-{node_name()}" / "sampler"


def node_name() -> str:
    """The node as the scheduler calls it."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def job_started_ns() -> int:
    """When this job began by the wall clock: SLURM's word (to the second), else this process's.

    What lies between that and a run's first step is the price of starting an element.
    """
    if told := os.environ.get("SLURM_JOB_START_TIME"):
        return int(told) * 1_000_000_000
    # proc_pid_stat(5): field 22, ticks after boot; the name in field 2 may hold spaces.
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.time_ns() - round(age_s * 1e9)


def job_meta() -> dict[str, Any]:
    """Which job this is, and the how-manieth time it was started."""
    return {
        "job_id": os.environ.get("SLURM_JOB_ID", ""),
        "array_job_id": os.environ.get("SLURM_ARRAY_JOB_ID", ""),
        "restart_count": int(os.environ.get("SLURM_RESTART_COUNT", 0)),
    }


def _step_name() -> str:
    """One name for this start of the element's ranks, and for no other."""
    job = os.environ.get("SLURM_JOB_ID") or os.environ["SUBMITIT_LOCAL_JOB_ID"]
    restart = os.environ.get("SLURM_RESTART_COUNT", "0")
    return f"{job}-{restart}-{os.environ.get('SLURM_STEP_ID', '0')}"


def _log_name() -> str:
    """The job's log as `array.sbatch.j2` names it, relative to the campaign; '' elsewhere."""
    names = [f"SLURM_{x}" for x in ("JOB_NAME", "ARRAY_JOB_ID", "ARRAY_TASK_ID")]
    name, job, index = (os.environ.get(x, "") for x in names)
    return f"jobs/logs/{name}-{job}_{index}.log" if name and job and index else ""


def _sample() -> int:
    from llem.energy.sampler import main as sampler_main

    # Outlives the ranks' own checkpoints when the job is asked to leave.
    return sampler_main(["--socket", str(socket_path()), "--term-grace", "30"])


@dataclass(frozen=True)
class Failure:
    """An exception that ended an attempt: its cause, and what the end record says of it."""

    cause: str
    error: BaseException

    @property
    def reason(self) -> str:
        return f"{type(self.error).__name__}: {self.error}"

    def to_dict(self) -> dict[str, Any]:
        kind = type(self.error)
        name = (
            kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
        )
        return {
            "status": "failed",
            "cause": self.cause,
            "reason": self.reason,
            "error": {"type": name, "message": str(self.error)},
        }


@dataclass(frozen=True)
class Start:
    """What rank 0 decided of a run: settled before (`status`), or the attempt that begins."""

    status: str = ""
    attempt: Path | None = None
    layout: Layout | None = None


class Rank:
    """One rank of an element: its place in the world, its meter, and the runs it takes part in."""

    def __init__(self, element: dict[str, Any], folder: CampaignFolder) -> None:
        self.element = element
        self.folder = folder
        self.runs = [Run.from_dict(values) for values in element["runs"]]
        self.leaving = Leaving(folder)
        # The last step that rank 0 told of, and where its attempt began.
        self.last: Progress | None = None
        self.job_started_ns = job_started_ns()

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
        self.hosts = job.hostnames
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
                status = self._leave(self._all_runs())
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

    def _all_runs(self) -> list[str]:
        """Run after run, as far as this job is left to it; how each ended."""
        statuses: list[str] = []
        for run in self.runs:
            statuses.append(self._run(run))
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
                hopeless = statuses[-1] in ("superseded", "unwritten") or not self._any_left()
                self.leaving.say("failed" if hopeless else "again")
        # The step ends with the first rank that leaves so: who is not out by then is killed.
        self.world.barrier()
        return status

    def _any_left(self) -> bool:
        """Whether a run of this element may be tried (again)."""
        return any(
            self.folder.final_end(run.run_id) is None and not isinstance(self._next(run), GiveUp)
            for run in self.runs
        )

    def _next(self, run: Run) -> Go | GiveUp:
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
            if self._first_to_say(f"{_step_name()}.failed"):
                open_runs = [r for r in self.runs if self.folder.final_end(r.run_id) is None]
                if open_runs:
                    run, now_ns = open_runs[0], time.time_ns()
                    attempt = self._begin(run, run.layout)
                    self._end(attempt, run, now_ns, now_ns, None, None, failure)
                self.leaving.say("again" if self._any_left() else "failed")
        except (OSError, LlemError) as unwritten:
            print(f"llem: the failure could not be recorded: {unwritten}", file=sys.stderr)
        return 1

    def _first_to_say(self, name: str) -> bool:
        """Whether this is the first rank of the step that makes a file of this name."""
        self.folder.leave.mkdir(parents=True, exist_ok=True)
        try:
            os.close(os.open(self.folder.leave / name, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True

    def _link(self, stack: ExitStack, local_rank: int) -> SamplerLink | None:
        """The node's sampler; one rank of each node speaks to it, and starts it where need be."""
        if local_rank != 0:
            return None
        from llem.energy import SamplerLink, start_sampler

        path = socket_path()
        if self.element["sampler"] == "child":
            path = stack.enter_context(start_sampler(path)).socket_path
        return stack.enter_context(SamplerLink(path))

    def _decide(self, run: Run) -> Start:
        """Whether to try a run, and with which layout; its attempt's folder if so. Rank 0 alone."""
        settled = self.folder.final_end(run.run_id)
        if settled is not None:
            log(f"run {run.run_id}: {settled['status']} before; not run again")
            return Start(status=str(settled["status"]))
        chosen = self._next(run)
        if isinstance(chosen, GiveUp):
            self._give_up(run, chosen)
            return Start(status="failed")
        attempt = self._begin(run, chosen.layout)
        why = f", with {chosen.why}" if chosen.why else ""
        log(
            f"run {run.run_id}: attempt {number_of(attempt)}, {format_si(run.params)} parameters, "
            f"{format_si(run.tokens)} tokens in {run.steps} steps, seed {run.seed}, "
            f"on {self.world.world_size} rank(s) of {', '.join(self.hosts)}{why}"
        )
        return Start(attempt=attempt, layout=chosen.layout)

    def _begin(self, run: Run, layout: Layout) -> Path:
        meta = {**job_meta(), "node": node_name(), "hosts": self.hosts}
        try:
            return begin_attempt(self.folder, run, layout=layout, log=_log_name(), meta=meta)
        except OSError as error:
            place = self.folder.run(run.run_id)
            raise LlemError(
                f"{place}: no attempt can be begun: {error.strerror or error}"
            ) from error

    def _give_up(self, run: Run, chosen: GiveUp) -> None:
        """Say so in the log, and in the last attempt's record where its ranks could not."""
        log(f"run {run.run_id}: given up ({chosen.cause}): {chosen.reason}")
        last = self.folder.attempts(run.run_id)[-1]
        values = {"status": "failed", "cause": chosen.cause, "node": node_name()}
        write_end(last, run, {**values, "reason": chosen.reason, "given_up": chosen.reason})

    def _run(self, run: Run) -> str:
        """Train one run, unless it is settled already; returns its status."""
        world = self.world
        start = world.first(lambda: self._decide(run))
        if start.attempt is None or start.layout is None:
            return start.status
        attempt, run = start.attempt, run.with_layout(start.layout)
        later = attempt.with_name(f"attempt-{number_of(attempt) + 1}")
        self.leaving.later = later.exists
        self.last = None
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
        outcome: Outcome | None = None
        failure: Failure | None = None
        try:
            outcome = self._train(run, attempt, meta, unmeasured)
        except Exception as error:
            failure = Failure(cause_of_error(error), error)
            traceback.print_exc()
        window_ns = (t0_ns, time.monotonic_ns())
        ended_ns = time.time_ns()
        if failure is None:
            world.barrier()
        if self.link is not None:
            self.link.end()
        written = True
        if failure is not None or world.rank == 0:
            written = self._end(attempt, run, started_ns, ended_ns, window_ns, outcome, failure)
        if failure is not None and world.world_size > 1:
            # The other ranks wait in a collective for this one: end the step, do not hang it.
            self.leaving.say("again" if written and self._any_left() else "failed")
            sys.stderr.flush()
            os._exit(1)
        if world.rank == 0:
            log(f"run {run.run_id}: {told(outcome, failure.reason if failure else '')}")
        if not world.first(lambda: written):
            return "unwritten"
        if outcome is None:
            return "failed"
        if outcome.status in FINAL:
            self._forget_checkpoints(run)
        superseded = outcome.status == "interrupted" and (
            cause_of_reason(outcome.reason) == "superseded"
        )
        return "superseded" if superseded else outcome.status

    def _forget_checkpoints(self, run: Run) -> None:
        """The run's end is on disk: nothing will resume from them."""
        from llem.training import delete_checkpoints

        if self.rank == 0:
            delete_checkpoints(self.folder.checkpoints(run.run_id))

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
            progress=self._progress(run, attempt) if self.world.rank == 0 else None,
            should_stop=self.leaving.why,
        )

    def _progress(self, run: Run, attempt: Path) -> Callable[[Progress], None]:
        """A callback that leaves a small file for whoever watches, and lines in the log."""
        last = 0.0
        last_line = time.monotonic()

        def tell(now_at: Progress) -> None:
            nonlocal last, last_line
            now = time.monotonic()
            self.last = now_at
            if now - last < PROGRESS_S:
                return
            last = now
            if now - last_line >= LOG_LINE_S:
                last_line = now
                log(
                    f"run {run.run_id}: step {now_at.step}/{run.steps}, loss {now_at.loss:.4f}, "
                    f"{format_si(now_at.tokens_per_s)} tokens/s"
                )
            partial = attempt / ".progress.partial"
            values = {**asdict(now_at), "time_ns": time.time_ns()}
            # For whoever watches: a full disk must not end the training over it.
            with suppress(OSError):
                partial.write_text(json.dumps(finite_or_none(values)))
                os.replace(partial, attempt / "progress.json")

        return tell

    def _end(
        self,
        attempt: Path,
        run: Run,
        started_ns: int,
        ended_ns: int,
        window_ns: tuple[int, int] | None,
        outcome: Outcome | None,
        failure: Failure | None,
    ) -> bool:
        """Write the attempt's end record; False, with a line in the log, where that fails."""
        from llem.records import host_meta

        how: dict[str, Any] = {}
        if failure is not None:
            how = {**failure.to_dict(), "start_step": self.last.start_step if self.last else None}
        elif outcome is not None:
            cause = {"completed": "", "diverged": "diverged"}.get(outcome.status)
            cause = cause_of_reason(outcome.reason) if cause is None else cause
            how = {**outcome.to_dict(), "cause": cause}
        if how["status"] not in FINAL:
            how["given_up"] = self._given_up(attempt, run, how)
        host = host_meta()
        try:
            write_end(
                attempt,
                run,
                {
                    **how,
                    "started_ns": started_ns,
                    "ended_ns": ended_ns,
                    "t0_ns": window_ns[0] if window_ns else None,
                    "t1_ns": window_ns[1] if window_ns else None,
                    "hosts": self.hosts,
                    "node": node_name(),
                    "rank": self.rank,
                    "ranks": self.element["ranks"],
                    "host": host["host"],
                    "boot_id": host["boot_id"],
                },
            )
        except OSError as error:
            log(
                f"run {run.run_id}: its end ({how['status']}) could not be written to {attempt}: "
                f"{error.strerror or error}"
            )
            return False
        return True

    def _given_up(self, attempt: Path, run: Run, how: dict[str, Any]) -> str:
        """Why this attempt is the run's last by itself; '' where another one may follow."""
        before = [e for e in read_endings(self.folder, run) if e.number != number_of(attempt)]
        this = Ending(
            number=number_of(attempt),
            cause=how["cause"],
            reason=how["reason"],
            layout=run.layout,
            start_step=how.get("start_step") or 0,
            saved_step=newest_step(self.folder.checkpoints(run.run_id)),
            started_ns=time.time_ns(),
        )
        chosen = next_try(run, [*before, this], since_ns=counts_since_ns(self.folder))
        return chosen.reason if isinstance(chosen, GiveUp) else ""


def log(text: str) -> None:
    """A line in the element's log, with the wall time; ranks other than 0 keep silent."""
    # The log may lie on the disk that is full.
    with suppress(OSError):
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}", flush=True)


def told(outcome: Outcome | None, failure: str) -> str:
    """How a run ended, in a line."""
    if outcome is None:
        return f"failed: {failure}"
    if outcome.status != "completed":
        return f"{outcome.status} at step {outcome.step}: {outcome.reason}"
    return (
        f"completed, loss {outcome.loss:.4f} +- {outcome.loss_se:.4f}, "
        f"{format_si(outcome.tokens_per_s)} tokens/s"
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


if __name__ == "__main__":
    sys.exit(main())
