"""The local executor: the same elements as on a cluster, as processes of this machine.

Ranks are started in a session of their own and told who they are in submitit's terms. submitit's
own local executor is not used: it shares the terminal's Ctrl-C with the ranks and kills them a
second later, which would lose the checkpoint that an interrupted run is owed.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from llem._processes import free_port
from llem.cluster.disk.attempts import count_anew
from llem.cluster.disk.folder import INTERRUPTED, CampaignFolder
from llem.cluster.job.leaving import FLAG
from llem.cluster.render import TRIES
from llem.cluster.state.state import CampaignState, campaign_state
from llem.planning import AnyPlan, ArrayJob

POLL_S = 0.25
# How long ranks may take to write a checkpoint after they were asked to stop.
GRACE_S = 30.0


@dataclass
class _Running:
    """An element at work: its ranks' processes and their log files."""

    array: ArrayJob
    index: int
    flag: Path
    tries: int = 1
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    logs: list[Path] = field(default_factory=list)
    asked_at: float | None = None

    def poll(self) -> int | None:
        """None while ranks work; else 0, INTERRUPTED, or the first failure's status."""
        codes = [p.poll() for p in self.processes]
        bad = [c for c in codes if c not in (None, 0, INTERRUPTED)]
        if bad and None in codes:
            self.stop()
        if None in codes:
            return None
        return bad[0] if bad else max(c or 0 for c in codes)

    def said(self) -> str:
        """How rank 0 left, in its word, which is taken away; '' where it said nothing."""
        path = self.flag.with_name(f"{self.flag.name}.said")
        try:
            return path.read_text().strip()
        except OSError:
            return ""
        finally:
            path.unlink(missing_ok=True)

    def stop(self) -> None:
        """Ask all ranks to leave; kill those that have not left after the grace."""
        now = time.monotonic()
        if self.asked_at is None:
            self.asked_at = now
            self._signal(signal.SIGTERM)
        elif now - self.asked_at > GRACE_S:
            self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)


@dataclass(frozen=True)
class LocalOutcome:
    """How the elements ended: names of those that failed, with the log to read."""

    failed: tuple[tuple[str, Path], ...]
    interrupted: bool


def run_locally(
    folder: CampaignFolder,
    plan: AnyPlan,
    *,
    watch: Callable[[CampaignState], None] | None = None,
) -> LocalOutcome:
    """Run every element that is not settled; `watch` is called a few times a second.

    Ctrl-C (and SIGTERM) lets ranks write a checkpoint and end their records, then returns with
    `interrupted`; the next call goes on from there. Raises LlemError where another process holds
    the campaign.
    """
    folder.refuse_rehearsed(plan)
    waiting = [
        (array, index, 1)
        for array in plan.arrays
        for index, names in enumerate(array.elements)
        if any(folder.final_end(name) is None for name in names)
    ]
    running: list[_Running] = []
    failed: list[tuple[str, Path]] = []
    stopping = False
    next_watch = 0.0

    def ask(_number: int, _frame: object) -> None:
        nonlocal stopping
        stopping = True

    with folder.locked("`llem`"):
        folder.stop_file.unlink(missing_ok=True)
        if waiting:
            # Whoever calls this asks for another try at what failed before.
            count_anew(folder)
        previous = {n: signal.signal(n, ask) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            while running or (waiting and not stopping):
                while waiting and not stopping and len(running) < plan.site.concurrency:
                    running.append(_start(folder, plan, *waiting.pop(0)))
                for element in list(running):
                    code = element.poll()
                    if code is None:
                        if stopping:
                            element.stop()
                        continue
                    running.remove(element)
                    # As a job's script does: what may pass is tried again, here and now.
                    again = element.said() in ("again", "started") and element.tries < TRIES
                    if code == INTERRUPTED:
                        stopping = True
                    elif code != 0 and again and not stopping:
                        waiting.insert(0, (element.array, element.index, element.tries + 1))
                    elif code != 0:
                        failed.append((f"{element.array.name}[{element.index}]", element.logs[0]))
                if watch is not None and time.monotonic() >= next_watch:
                    begun = time.monotonic()
                    watch(campaign_state(folder, plan, ask_scheduler=False))
                    # Thousands of runs take a while to look at: watch a tenth of the time at most.
                    next_watch = time.monotonic() + max(2 * POLL_S, 10 * (time.monotonic() - begun))
                time.sleep(POLL_S)
        finally:
            for element in running:
                element._signal(signal.SIGKILL)
            for number, handler in previous.items():
                signal.signal(number, handler)
    if watch is not None:
        watch(campaign_state(folder, plan, ask_scheduler=False))
    return LocalOutcome(tuple(failed), interrupted=stopping)


def _start(
    folder: CampaignFolder, plan: AnyPlan, array: ArrayJob, index: int, tries: int
) -> _Running:
    ranks = array.nodes * array.gpus_per_node
    job = f"{os.getpid()}-{secrets.token_hex(4)}"
    folder.leave.mkdir(parents=True, exist_ok=True)
    port = free_port()
    folder.logs.mkdir(parents=True, exist_ok=True)
    flag = folder.leave / f"{job}-0"
    running = _Running(array, index, flag, tries)
    for rank in range(ranks):
        log = folder.logs / f"{array.name}-{index}-rank{rank}.log"
        environment = {
            **os.environ,
            "SUBMITIT_EXECUTOR": "local",
            "SUBMITIT_LOCAL_JOB_ID": job,
            "SUBMITIT_LOCAL_NTASKS": str(ranks),
            "SUBMITIT_LOCAL_JOB_NUM_NODES": "1",
            "SUBMITIT_LOCAL_NODEID": "0",
            "SUBMITIT_LOCAL_GLOBALID": str(rank),
            "SUBMITIT_LOCAL_LOCALID": str(rank),
            "MASTER_PORT": str(port),
            FLAG: str(flag.relative_to(folder.root)),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(plan.site.cpus_per_rank)),
            "PYTHONUNBUFFERED": "1",
        }
        # submitit's job environment must not take a rank for one of a job llem itself runs in.
        for name in [n for n in environment if n.startswith("SLURM_")]:
            del environment[name]
        args = [sys.executable, "-m", "llem.cluster.element",
                "--manifest", f"jobs/{array.name}.jsonl", "--element", str(index)]  # fmt: skip
        with open(log, "ab") as file:
            running.processes.append(
                subprocess.Popen(
                    args,
                    cwd=folder.root,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                    start_new_session=True,
                )
            )
        running.logs.append(log)
    return running
