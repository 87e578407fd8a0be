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
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llem.campaign import Run, format_si
from llem.cluster.files import finite_or_none, write_json
from llem.cluster.folder import END_SCHEMA, INTERRUPTED, CampaignFolder

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


def _sample() -> int:
    from llem.energy.sampler import main as sampler_main

    # Outlives the ranks' own checkpoints when the job is asked to leave.
    return sampler_main(["--socket", str(socket_path()), "--term-grace", "30"])


class Rank:
    """One rank of an element: its place in the world, its meter, and the runs it takes part in."""

    def __init__(self, element: dict[str, Any], folder: CampaignFolder) -> None:
        self.element = element
        self.folder = folder
        self.stop_reason: str | None = None
        self.parent = os.getppid()
        self.job_started_ns = job_started_ns()
        # By the wall clock, in seconds; none where the job has no limit.
        self.leave_at = float(os.environ.get("LLEM_LEAVE_AT") or "inf")

    def main(self) -> int:
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._ask_to_stop)
        os.environ.setdefault(
            "SUBMITIT_EXECUTOR", "slurm" if "SLURM_JOB_ID" in os.environ else "local"
        )
        from submitit import JobEnvironment
        from submitit.helpers import TorchDistributedEnvironment

        place = TorchDistributedEnvironment()
        if place.world_size != self.element["ranks"]:
            print(
                f"llem: the plan has {self.element['ranks']} ranks, the job step has "
                f"{place.world_size}: were the scripts edited?",
                file=sys.stderr,
            )
            return 1
        from llem.training import start_world

        self.zero_stage = _zero_stage(self.element["zero_stage"])
        world = start_world(
            rank=place.rank,
            local_rank=place.local_rank,
            world_size=place.world_size,
            master_addr=place.master_addr,
            master_port=place.master_port,
            zero_stage=self.zero_stage,
            precision=self.element["precision"],
        )
        self.world: World = world
        self.hosts = JobEnvironment().hostnames
        statuses = []
        with ExitStack() as stack:
            self.link = self._link(stack, place.local_rank)
            for values in self.element["runs"]:
                statuses.append(self._run(Run.from_dict(values)))
                if statuses[-1] == "interrupted":
                    break
        world.close()
        status = 1 if "failed" in statuses else 0
        if "interrupted" in statuses:
            status = INTERRUPTED
        sys.stdout.flush()
        sys.stderr.flush()
        # gloo's threads abort about one interpreter in five on its way out, after all is written:
        # leave without it.
        os._exit(status)

    def _link(self, stack: ExitStack, local_rank: int) -> SamplerLink | None:
        """The node's sampler; one rank of each node speaks to it, and starts it where need be."""
        if local_rank != 0:
            return None
        from llem.energy import SamplerLink, start_sampler

        path = socket_path()
        if self.element["sampler"] == "child":
            path = stack.enter_context(start_sampler(path)).socket_path
        return stack.enter_context(SamplerLink(path))

    def _run(self, run: Run) -> str:
        """Train one run, unless it is settled already; returns its status."""
        world = self.world
        settled = world.first(lambda: self.folder.final_end(run.run_id))
        if settled is not None:
            if world.rank == 0:
                log(f"run {run.run_id}: {settled['status']} before; not run again")
            return str(settled["status"])
        attempt = world.first(lambda: self.folder.new_attempt(run.run_id))
        meta = {
            "run_id": run.run_id,
            "attempt": int(attempt.name.removeprefix("attempt-")),
            "node": node_name(),
            "campaign": self.element["campaign"],
            "plan": self.element["plan"],
            "array": self.element["array"],
            "element": self.element["element"],
            "job_id": os.environ.get("SLURM_JOB_ID", ""),
            "job_started_ns": self.job_started_ns,
            "array_job_id": os.environ.get("SLURM_ARRAY_JOB_ID", ""),
            "restart_count": int(os.environ.get("SLURM_RESTART_COUNT", 0)),
            "image_digest": self.element["image_digest"],
        }
        if world.rank == 0:
            log(
                f"run {run.run_id}: attempt {meta['attempt']}, {format_si(run.params)} parameters, "
                f"{format_si(run.tokens)} tokens in {run.steps} steps, seed {run.seed}, "
                f"on {world.world_size} rank(s) of {', '.join(self.hosts)}"
            )
        # Rank 0's reason may differ from another node's: each says its own in its own record.
        unmeasured = ""
        if self.link is not None:
            answer = self.link.begin(attempt.resolve() / f"node-{node_name()}.h5", meta)
            unmeasured = "" if answer.ok else str(answer.reason)
        # No rank's window begins before every node is measured, or ends after one is not.
        world.barrier()
        started_ns, t0_ns = time.time_ns(), time.monotonic_ns()
        outcome: Outcome | None = None
        failure = ""
        try:
            outcome = self._train(run, attempt, meta, unmeasured)
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"
            traceback.print_exc()
        t1_ns, ended_ns = time.monotonic_ns(), time.time_ns()
        if not failure:
            world.barrier()
        if self.link is not None:
            self.link.end()
        if failure and world.world_size > 1:
            # The other ranks wait in a collective for this one: end the step, do not hang it.
            self._end(attempt, run, started_ns, ended_ns, t0_ns, t1_ns, None, failure)
            sys.stderr.flush()
            os._exit(1)
        if world.rank == 0:
            self._end(attempt, run, started_ns, ended_ns, t0_ns, t1_ns, outcome, failure)
            log(f"run {run.run_id}: {told(outcome, failure)}")
        return outcome.status if outcome else "failed"

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
            should_stop=self._should_stop,
        )

    def _progress(self, run: Run, attempt: Path) -> Callable[[Progress], None]:
        """A callback that leaves a small file for whoever watches, and lines in the log."""
        last = 0.0
        last_line = time.monotonic()

        def tell(now_at: Progress) -> None:
            nonlocal last, last_line
            now = time.monotonic()
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
            partial.write_text(json.dumps(finite_or_none(values)))
            os.replace(partial, attempt / "progress.json")

        return tell

    def _end(
        self,
        attempt: Path,
        run: Run,
        started_ns: int,
        ended_ns: int,
        t0_ns: int,
        t1_ns: int,
        outcome: Outcome | None,
        failure: str,
    ) -> None:
        """The end record: written whole, last, and only once for an attempt."""
        from llem.records import host_meta

        how = outcome.to_dict() if outcome else {"status": "failed", "reason": failure}
        path = attempt / "end.json"
        if path.exists():
            return
        write_json(
            path,
            finite_or_none(
                {
                    "schema": END_SCHEMA,
                    "run_id": run.run_id,
                    "attempt": int(attempt.name.removeprefix("attempt-")),
                    **how,
                    "started_ns": started_ns,
                    "ended_ns": ended_ns,
                    "t0_ns": t0_ns,
                    "t1_ns": t1_ns,
                    "hosts": self.hosts,
                    "ranks": self.world.world_size,
                    "host": host_meta()["host"],
                    "boot_id": host_meta()["boot_id"],
                }
            ),
        )

    def _ask_to_stop(self, number: int, _frame: object) -> None:
        self.stop_reason = f"signal {signal.Signals(number).name}"

    def _should_stop(self) -> str | None:
        if self.stop_reason is None:
            if self.folder.stop_file.exists():
                self.stop_reason = "asked to stop (jobs/stop)"
            elif time.time() >= self.leave_at:
                self.stop_reason = "the job's time limit is near"
            elif os.environ["SUBMITIT_EXECUTOR"] == "local" and os.getppid() != self.parent:
                self.stop_reason = "the process that started this run is gone"
        return self.stop_reason


def log(text: str) -> None:
    """A line in the element's log, with the wall time; ranks other than 0 keep silent."""
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
