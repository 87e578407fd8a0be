"""Executes job files on processes that are the ranks of a world, one job after the other.

    python worker.py job.json ...

What takes longest, importing torch, is done once: each rank is a fork of what has it imported. A
single world of one rank needs no fork. A task is {name, run, attempt, checkpoints, final, stop:
{step, rank} | null, kill: {step, rank} | null, forks: {steps: folder}}; each rank leaves the
outcomes as JSON, with `error` in the outcome's place where the run raised. Of a job with `dies` the
ranks end badly, as they must.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from llem._processes import free_port
from llem.campaign import Run
from llem.errors import LlemError
from llem.training import start_world, train


def main(paths: list[str]) -> int:
    jobs = [json.loads(Path(path).read_text()) for path in paths]
    if len(jobs) == 1 and jobs[0]["world"]["world_size"] == 1:
        be_rank(jobs[0], 0, port=free_port())
    # What a training's first step would import.
    import accelerate  # noqa: F401
    import h5py  # noqa: F401
    import torch._dynamo  # noqa: F401

    if any(job["world"]["zero_stage"] for job in jobs):
        os.environ["DS_ACCELERATOR"] = "cpu"
        from llem.training.engines.deepspeed import import_deepspeed

        import_deepspeed()
    gc.freeze()
    for job in jobs:
        # Only now: what was free some jobs ago may have been taken since.
        port = free_port()
        ranks = [fork(job, rank, port=port) for rank in range(job["world"]["world_size"])]
        statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in ranks]
        if any(statuses) != job.get("dies", False):
            print(f"{job['folder']}: the ranks ended with {statuses}", file=sys.stderr)
            return 1
    return 0


def fork(job: dict[str, Any], rank: int, *, port: int) -> int:
    """Start a rank; its process id."""
    pid = os.fork()
    if pid:
        return pid
    # The child must not come back to what its parent was about to do.
    try:
        be_rank(job, rank, port=port)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(1)


def be_rank(job: dict[str, Any], rank: int, *, port: int) -> None:
    # Files and not pipes: a rank that waits for its full pipe to be read stops all others.
    log = os.open(Path(job["folder"], f"rank-{rank}.log"), os.O_WRONLY | os.O_CREAT, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    world = start_world(rank=rank, local_rank=rank, master_port=port, **job["world"])
    outcomes = {}
    for task in job["tasks"]:
        try:
            outcome = train(
                Run.from_dict(task["run"]),
                attempt_dir=task["attempt"],
                checkpoints_dir=task["checkpoints"],
                world=world,
                meta={"attempt": 0},
                should_stop=kill_at(task.get("kill"), rank) or stop_at(task.get("stop"), rank),
                final_checkpoint=task.get("final", False),
                forks={int(n): Path(path) for n, path in task.get("forks", {}).items()},
            )
            outcomes[task["name"]] = outcome.to_dict()
        except LlemError as error:
            outcomes[task["name"]] = {"error": str(error)}
    Path(job["folder"], f"out-{rank}.json").write_text(json.dumps(outcomes))
    world.barrier()
    world.close()
    # gloo's threads now and then abort an interpreter on its way out.
    sys.stdout.flush()
    os._exit(0)


def stop_at(stop: dict[str, int] | None, rank: int) -> Any:
    """Asks, on one rank only, to stop when it is polled for the `step`-th time."""
    if stop is None or stop["rank"] != rank:
        return None
    polls = iter(range(1, 10**9))
    return lambda: f"rank {rank} was told to" if next(polls) >= stop["step"] else None


def kill_at(kill: dict[str, int] | None, rank: int) -> Any:
    """Ends this process on the spot, on one rank only, when it is polled for the `step`-th time."""
    if kill is None or kill["rank"] != rank:
        return None
    polls = iter(range(1, 10**9))
    return lambda: os.kill(os.getpid(), signal.SIGKILL) if next(polls) >= kill["step"] else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
