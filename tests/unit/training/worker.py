"""One rank of the tests: executes the tasks of a job file and leaves the outcomes as JSON.

A task is {name, run, attempt, checkpoints, stop: {step, rank} | null, final}. `error` is in the
outcome's place where the run raised.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from llem.campaign import Run
from llem.errors import LlemError
from llem.training import start_world, train


def main(job_path: str, rank: int) -> None:
    job = json.loads(Path(job_path).read_text())
    world = start_world(rank=rank, local_rank=rank, **job["world"])
    outcomes = {}
    for task in job["tasks"]:
        try:
            outcome = train(
                Run.from_dict(task["run"]),
                attempt_dir=task["attempt"],
                checkpoints_dir=task["checkpoints"],
                world=world,
                meta={"attempt": 0},
                should_stop=stop_at(task.get("stop"), rank),
                final_checkpoint=task.get("final", False),
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


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
