"""The campaign in the process that calls: for models and data that have no name to import.

The folder, the records and how a run is tried again are those of every executor. The ranks are this
process, or those that were launched with it (`accelerate launch`, `torchrun`): all of them call.
"""

from __future__ import annotations

import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from llem.campaign import Run
from llem.cluster.disk.attempts import count_anew
from llem.cluster.disk.folder import CampaignFolder
from llem.cluster.element import read_element
from llem.cluster.job.environment import node_name, sampler_options, socket_path
from llem.cluster.job.rank import Rank
from llem.cluster.job.recorder import Recorder
from llem.cluster.local import LocalOutcome
from llem.planning import AnyPlan, ArrayJob

if TYPE_CHECKING:
    from llem.cluster.job.rank import TaskOf
    from llem.training import World

# What `start_world` and a job tell their processes by, and a notebook must not be left with.
VARIABLES = (
    "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "SUBMITIT_LOCAL_JOB_ID",
)  # fmt: skip
CAUGHT = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def world_here(*, precision: str) -> Iterator[World]:
    """This process as a rank: alone, or among those that its environment tells of.

    A process group that the caller has made already is used, and left as it is.
    """
    import torch
    import torch.distributed as dist

    from llem.training import World, start_world

    before = {name: os.environ.get(name) for name in VARIABLES}
    place = {name: int(os.environ.get(name) or default) for name, default in
             (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1))}  # fmt: skip
    known = dist.is_available() and dist.is_initialized()
    try:
        if known:
            cuda = torch.cuda.is_available()
            world = World(
                rank=dist.get_rank(), local_rank=place["LOCAL_RANK"],
                world_size=dist.get_world_size(), zero_stage=0, precision=precision,
                device=torch.device("cuda", torch.cuda.current_device()) if cuda
                else torch.device("cpu"), grouped=dist.get_world_size() > 1,
            )  # fmt: skip
        else:
            world = start_world(
                rank=place["RANK"], local_rank=place["LOCAL_RANK"],
                world_size=place["WORLD_SIZE"],
                master_addr=os.environ.get("MASTER_ADDR") or "127.0.0.1",
                master_port=int(os.environ.get("MASTER_PORT") or 29500), precision=precision,
            )  # fmt: skip
        yield world
        if not known:
            world.close()
    finally:
        _restore(before)


def run_here(
    folder: CampaignFolder,
    plan: AnyPlan,
    *,
    world: World,
    task_of: TaskOf,
    told: Callable[[Run, str], None] | None = None,
) -> LocalOutcome:
    """Train what is not settled; called by every rank of `world`. `told`: how each run ended.

    What a run prints goes to `jobs/logs`. Ctrl-C and SIGTERM let the run write a checkpoint; the
    next call goes on from there. Raises LlemError where another process holds the campaign.
    """
    from llem.energy import SamplerLink, start_sampler, step_counter

    job = world.first(lambda: f"{os.getpid()}-{secrets.token_hex(4)}")
    failed: list[tuple[str, Any]] = []
    interrupted = False
    with ExitStack() as stack:
        stack.enter_context(_environment(SUBMITIT_LOCAL_JOB_ID=job))
        if world.main:
            stack.enter_context(folder.locked("`find_optimal`"))
            folder.stop_file.unlink(missing_ok=True)
            count_anew(folder)
        # No rank looks at the folder before it is held, and counted anew.
        waiting = world.first(lambda: _waiting(folder, plan))
        if not waiting:
            return LocalOutcome((), interrupted=False)
        hosts = list(dict.fromkeys(str(name) for name in world.gather_text(node_name())))
        link = None
        if world.local_rank == 0:
            # All elements are of one campaign, and want their energy measured alike.
            first = read_element(folder.manifest(waiting[0][0].name), waiting[0][1])
            folder.logs.mkdir(parents=True, exist_ok=True)
            said = stack.enter_context(open(folder.logs / f"sampler-{node_name()}.log", "a"))
            sampler = start_sampler(
                socket_path(), interval_s=first["energy"]["interval_s"],
                options=sampler_options(first), stderr=said,
            )  # fmt: skip
            link = stack.enter_context(SamplerLink(stack.enter_context(sampler).socket_path))
        counter = step_counter(world.device_uuid, local_rank=world.local_rank)
        for array, index in waiting:
            element = world.first(partial(read_element, folder.manifest(array.name), index))
            rank = Rank(element, folder, task_of=task_of)
            rank.job_started_ns = time.time_ns()
            rank.rank, rank.world, rank.zero_stage = world.rank, world, 0
            rank.recorder = Recorder(folder, hosts=hosts, rank=world.rank, ranks=world.world_size)
            rank.link, rank.counter = link, counter
            rank.leaving.looks = world.main
            log = folder.logs / f"{array.name}-{index}-rank{world.rank}.log"
            log.parent.mkdir(parents=True, exist_ok=True)
            with (
                open(log, "a") as out, redirect_stdout(out), redirect_stderr(out), _signals(rank),
            ):  # fmt: skip
                statuses = rank.all_runs(told=told)
                while "failed" in statuses and world.first(rank.any_left):
                    statuses = rank.all_runs(told=told)
            if "failed" in statuses:
                failed.append((f"{array.name}[{index}]", log))
            if {"interrupted", "superseded", "unwritten"} & set(statuses):
                interrupted = "interrupted" in statuses
                break
    return LocalOutcome(tuple(failed), interrupted=interrupted)


def _waiting(folder: CampaignFolder, plan: AnyPlan) -> list[tuple[ArrayJob, int]]:
    return [
        (array, index)
        for array in plan.arrays
        for index, names in enumerate(array.elements)
        if any(folder.final_end(name) is None for name in names)
    ]


@contextmanager
def _signals(rank: Rank) -> Iterator[None]:
    """Ctrl-C and SIGTERM ask the run to leave; elsewhere than in the main thread nothing can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous: Mapping[Any, Any] = {number: signal.getsignal(number) for number in CAUGHT}
    rank.leaving.catch_signals(CAUGHT)
    try:
        yield
    finally:
        for number, handler in previous.items():
            with suppress(TypeError, ValueError):  # None: set by something that is not Python
                signal.signal(number, handler)


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        _restore(before)


def _restore(before: Mapping[str, str | None]) -> None:
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
