"""The course of a campaign: which attempt runs where and when, and how it ends.

Scalars only: what happens within an attempt follows from it (`measure`). Elements are started in
the plan's order as boards come free, after a wait in the queue; an element whose job ends before
its runs do is queued again and goes on from the last checkpoint.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

import numpy as np

from llem.campaign import Run
from llem.planning import ArrayJob
from llem.records import Phase
from llem.rehearsal.curve import Curve
from llem.rehearsal.fleet import Board, Node
from llem.rehearsal.world import World

# Time in the queue, seconds: exponential, for the first start and for every requeue.
QUEUE_S, REQUEUE_S = 900.0, 240.0
# Of an element's start this much passes before its first run begins; between runs so much.
BEFORE_RUN, BETWEEN_S, LEAVING_S = 0.7, 0.4, 0.08
# A rank is told so long before its job's time limit, and leaves with a checkpoint.
NOTICE_S = 60.0
# Checkpoints: fp32 weights and Adam's moments, at so many bytes a second, after a fixed time.
CHECKPOINT_BYTES, WRITE_BYTES_S, WRITE_S = 12, 1.5e9, 0.02
# More tries than these are a fault of the simulator.
TRIES = 50


@dataclass(frozen=True)
class Block:
    """A part of an attempt: steps [first, last), or a span (then both are the steps done).

    `fork` is the run that a checkpoint is left for, which begins from it; '' for its own.
    """

    phase: Phase | None
    first: int
    last: int
    t0_s: float
    t1_s: float
    fork: str = ""

    @property
    def saves(self) -> bool:
        """Whether the run itself can go on from here."""
        return self.phase == Phase.CHECKPOINT and not self.fork


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One attempt at a run. Times in seconds of the campaign: `began_s` its job's start, `t0_s` to
    `t1_s` its window; `boards` are those of each of `nodes`, a rank each (a package serves all).

    `status` is an end record's, or "killed" (no end record). `loss` is NaN unless completed.
    `trunk_steps` of the run's steps were trained by the run that it branches off.
    """

    run: Run
    number: int
    array: str
    element: int
    job_id: str
    restart: int
    nodes: tuple[Node, ...]
    boards: tuple[tuple[Board, ...], ...]
    submitted_s: float
    began_s: float
    t0_s: float
    t1_s: float
    start_step: int
    step: int
    blocks: tuple[Block, ...]
    status: str
    cause: str = ""
    reason: str = ""
    loss: float = math.nan
    evaluations: tuple[tuple[int, float], ...] = ()
    saved_step: int = 0
    trunk_steps: int = 0
    curve: Curve | None = field(default=None, repr=False)

    @property
    def name(self) -> tuple[str, int]:
        return self.run.run_id, self.number

    @property
    def window_s(self) -> float:
        return self.t1_s - self.t0_s

    @property
    def tokens_per_s(self) -> float:
        """Of this attempt's steps, from the first's start to the last's end."""
        own = [b for b in self.blocks if b.phase is None]
        if not own or self.step == self.start_step:
            return math.nan
        steps = self.step - self.start_step
        return steps * self.run.recipe.batch_tokens / (own[-1].t1_s - own[0].t0_s)


def play(world: World) -> list[Attempt]:
    """Every attempt of the world's newest wave, in the order in which they begin.

    Of a campaign that begins these are all.
    """
    course = _Course(world)
    found = [
        attempt
        for array in world.plan.arrays[world.begins[-1].arrays :]
        for index in range(len(array.elements))
        for attempt in course.element(array, index)
    ]
    return sorted(found, key=lambda a: (a.t0_s, a.run.run_id))


class _Course:
    def __init__(self, world: World) -> None:
        self.world = world
        self.begin_s = world.begins[-1].at_s
        self.free = [[self.begin_s] * len(node.boards) for node in world.nodes]
        self.at_work: dict[str, list[float]] = defaultdict(list)
        self.jobs = {array.name: 1_000_000 + 10 * i for i, array in enumerate(world.plan.arrays)}
        self.slurm = world.plan.site.executor == "slurm"

    def element(self, array: ArrayJob, index: int) -> Iterator[Attempt]:
        """The attempts of one element, until all of its runs are settled."""
        world = self.world
        rng = np.random.default_rng([world.seed, 5, self.jobs[array.name], index])
        open_runs = [world.plan.run(name) for name in array.elements[index]]
        step = {run.run_id: 0 for run in open_runs}
        begun_at = {run.run_id: 0 for run in open_runs}
        number = {run.run_id: 0 for run in open_runs}
        earliest = submitted = self.begin_s
        for restart in range(TRIES):
            wait_s = 0.0
            if self.slurm:
                wait_s = float(rng.exponential(REQUEUE_S if restart else QUEUE_S))
            place, began = self._place(array, earliest + wait_s)
            startup_s = max(0.0, world.plan.site.startup_s) * math.exp(0.15 * rng.normal())
            at = began + BEFORE_RUN * startup_s
            limit = began + array.time_limit_s - NOTICE_S if self.slurm else math.inf
            lost = False
            while open_runs and not lost:
                run = open_runs[0]
                attempt = _attempt(
                    world, run, number=number[run.run_id], start_step=step[run.run_id],
                    trunk_steps=begun_at[run.run_id],
                    t0_s=at, build_s=(1 - BEFORE_RUN) * startup_s, limit_s=limit,
                    where=(array.name, index, str(self.jobs[array.name]), restart), place=place,
                    submitted_s=submitted, began_s=began, slurm=self.slurm,
                )  # fmt: skip
                number[run.run_id] += 1
                step[run.run_id] = attempt.saved_step
                for block in attempt.blocks:
                    if block.fork and not number.get(block.fork):
                        step[block.fork] = begun_at[block.fork] = block.last
                yield attempt
                at = attempt.t1_s + BETWEEN_S
                if attempt.status in ("completed", "diverged"):
                    open_runs.pop(0)
                elif attempt.status == "failed":
                    # The element starts its ranks anew, in the same job.
                    at += startup_s
                else:
                    lost = True
            self._release(array, place, at)
            if not open_runs:
                return
            submitted = earliest = at
        raise AssertionError(f"{array.name}[{index}] does not end in {TRIES} jobs")

    def _place(self, array: ArrayJob, earliest: float) -> tuple[list[tuple[int, list[int]]], float]:
        """Nodes and boards for an element, and when it starts."""
        running = self.at_work[array.name]
        if array.throttle and len(running) >= array.throttle:
            earliest = max(earliest, heappop(running))
        count = len(self.world.nodes[0].boards)
        per_node = min(array.gpus_per_node, count)
        ready = [sorted(range(count), key=free.__getitem__)[:per_node] for free in self.free]
        when = [max(self.free[n][b] for b in boards) for n, boards in enumerate(ready)]
        # Of nodes that are free by then the first with the least room left, which packs them.
        order = sorted(
            range(len(when)),
            key=lambda n: (max(when[n], earliest), -sum(f > earliest for f in self.free[n]), n),
        )[: array.nodes]
        start = max([earliest, *(when[n] for n in order)])
        return [(n, sorted(ready[n])) for n in sorted(order)], start

    def _release(
        self, array: ArrayJob, place: Sequence[tuple[int, list[int]]], at_s: float
    ) -> None:
        for node, boards in place:
            for board in boards:
                self.free[node][board] = at_s
        heappush(self.at_work[array.name], at_s)


def _attempt(
    world: World,
    run: Run,
    *,
    number: int,
    start_step: int,
    trunk_steps: int,
    t0_s: float,
    build_s: float,
    limit_s: float,
    where: tuple[str, int, str, int],
    place: Sequence[tuple[int, list[int]]],
    submitted_s: float,
    began_s: float,
    slurm: bool,
) -> Attempt:
    rng = world.rng(run, 1, number)
    lots = rng.random(4).tolist()
    nodes = tuple(world.nodes[n] for n, _ in place)
    boards = tuple(tuple(world.nodes[n].boards[b] for b in chosen) for n, chosen in place)
    slower = 1.0 / min(b.speed * b.slowed for own in boards for b in own)
    step_s = world.step_s(run) * slower
    fate = world.fate(run)
    curve: Curve | None = None
    last = run.steps
    diverged = ""
    if fate.diverges:
        curve = world.curve(run)
        last, diverged = curve.diverged or (last, "")
    blocks = _blocks(run, start=start_step, last=last, t_s=t0_s + build_s, step_s=step_s,
                     evaluation_s=world.evaluation_s(run) * slower, ends=not diverged)  # fmt: skip
    end_s = blocks[-1].t1_s if blocks else t0_s + build_s
    status, cause, reason = "completed", "", ""
    if diverged:
        status, cause, reason = "diverged", "diverged", diverged
    failures = world.failures
    cut_s, killed = math.inf, False
    moment = t0_s + build_s + lots[3] * (end_s - t0_s - build_s)
    if slurm and lots[0] < failures.node_failure:
        cut_s, killed = moment, True
        status, cause, reason = "killed", "node-failure", f"node {nodes[-1].name} failed"
    elif slurm and lots[1] < failures.preemption:
        cut_s = moment
        status, cause = "interrupted", "preempted"
        reason = "a job of higher priority takes the nodes"
    elif lots[2] < failures.exception:
        cut_s, killed = moment, True
        status, cause = "failed", "exception"
        reason = "RuntimeError: CUDA error: an illegal memory access was encountered"
        if world.device.cpu:
            reason = "RuntimeError: DataLoader worker exited unexpectedly"
    if limit_s < min(cut_s, end_s):
        cut_s, killed = limit_s, False
        status, cause = "interrupted", "time-limit"
        reason = "the job's time limit is near"
    if math.isfinite(cut_s):
        blocks = _cut(run, blocks, cut_s, step_s, killed=killed)
        end_s = max(cut_s, blocks[-1].t1_s) if blocks else max(cut_s, t0_s + build_s)
    step = max((b.last for b in blocks), default=start_step)
    saved = [b.last for b in blocks if b.saves]
    asked = {s for s in run.evaluate_at if start_step < s <= step}
    return Attempt(
        run=run, number=number, array=where[0], element=where[1], job_id=where[2],
        restart=where[3], nodes=nodes, boards=boards, submitted_s=submitted_s, began_s=began_s,
        t0_s=t0_s, t1_s=end_s + (0.0 if killed else LEAVING_S), start_step=start_step, step=step,
        blocks=tuple(blocks), status=status, cause=cause, reason=reason,
        loss=fate.loss if status == "completed" else math.nan,
        evaluations=tuple((s, math.nan) for s in sorted(asked)),
        saved_step=max(saved, default=start_step), trunk_steps=trunk_steps, curve=curve,
    )  # fmt: skip


def about_j(attempt: Attempt) -> float:
    """About what an attempt used, from the mean power of its boards; its records tell exactly."""
    busy_w = math.fsum(b.busy_w for own in attempt.boards for b in own)
    held_w = math.fsum(b.held_w for own in attempt.boards for b in own)
    worked_s = math.fsum(b.t1_s - b.t0_s for b in attempt.blocks if b.phase != Phase.CHECKPOINT)
    return busy_w * worked_s + held_w * (attempt.window_s - worked_s)


def checkpoint_s(run: Run) -> float:
    return WRITE_S + CHECKPOINT_BYTES * run.params / WRITE_BYTES_S


def _blocks(
    run: Run,
    *,
    start: int,
    last: int,
    t_s: float,
    step_s: float,
    evaluation_s: float,
    ends: bool,
) -> list[Block]:
    """Steps, and the evaluations and checkpoints among them; `ends` with the held-out loss."""
    stops: dict[int, list[tuple[Phase, str]]] = defaultdict(list)
    if run.checkpoint_steps:
        for step in range(run.checkpoint_steps, last, run.checkpoint_steps):
            if step > start:
                stops[step].append((Phase.CHECKPOINT, ""))
    for step in run.evaluate_at:
        if start < step < last:
            stops[step].append((Phase.EVALUATION, ""))
    for steps in run.branch_at:
        branch = run.branch(steps)
        if start < branch.trunk_steps < last:
            stops[branch.trunk_steps].append((Phase.CHECKPOINT, branch.run_id))
    if ends:
        stops[last].append((Phase.EVALUATION, ""))
    seconds = {Phase.EVALUATION: evaluation_s, Phase.CHECKPOINT: checkpoint_s(run)}
    found: list[Block] = []
    at, step = t_s, start
    for stop in sorted({*stops, last}):
        if stop > step:
            end = at + (stop - step) * step_s
            found.append(Block(None, step, stop, at, end))
            at, step = end, stop
        for kind, fork in stops.get(stop, ()):
            found.append(Block(kind, stop, stop, at, at + seconds[kind], fork))
            at += seconds[kind]
    return found


def _cut(
    run: Run, blocks: Sequence[Block], cut_s: float, step_s: float, *, killed: bool
) -> list[Block]:
    """What had happened by then; who was asked to leave finishes the step and saves."""
    found: list[Block] = []
    for block in blocks:
        if block.t1_s <= cut_s:
            found.append(block)
            continue
        if block.phase is None and block.t0_s < cut_s:
            steps = (cut_s - block.t0_s) / step_s
            count = int(steps) if killed else math.ceil(steps)
            count = min(count, block.last - block.first)
            if count:
                end_s = block.t0_s + count * step_s
                found.append(Block(None, block.first, block.first + count, block.t0_s, end_s))
        break
    if not killed and found:
        done, at = found[-1].last, max(cut_s, found[-1].t1_s)
        found.append(Block(Phase.CHECKPOINT, done, done, at, at + checkpoint_s(run)))
    return found
