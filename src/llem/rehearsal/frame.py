"""A rehearsal at one moment: how far the campaign is, one run closely, and every board.

Plain numbers, taken from the same arrays that the records are made of; whoever draws them needs to
know nothing of how they came about.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from llem._numerals import format_count, format_duration, format_si
from llem.records import Phase
from llem.rehearsal.course import CHECKPOINT_BYTES, Attempt
from llem.rehearsal.export import export_s, parts_of
from llem.rehearsal.measure import Measured
from llem.rehearsal.recording import peak_memory
from llem.rehearsal.story import title
from llem.rehearsal.world import World

# Attempts whose arrays are kept: those that run at one time on the boards that are shown.
KEPT = 64
# What stands on a device whatever runs there, bytes.
STANDING = 1.5e9
DOING = {None: "training", Phase.EVALUATION: "evaluating", Phase.CHECKPOINT: "saving"}
# Of a start: distributed environment, data, model and its weights.
LOADING = ((0.15, "meeting the other ranks"), (0.3, "opening the data"), (1.0, "loading weights"))
NEXT = {Phase.EVALUATION: "an evaluation", Phase.CHECKPOINT: "a checkpoint", None: "the end"}


@dataclass(frozen=True, kw_only=True)
class BoardNow:
    """One device: degrees, watts, utilisation in percent, bytes; NaN for what nobody measures.

    `run_id` is '' where it is idle; `estimated` where its watts are no meter's.
    """

    node: str
    index: int
    name: str
    run_id: str
    utilisation: float
    celsius: float
    watts: float
    memory_bytes: float
    memory_total: float
    held_back: bool
    estimated: bool = False


@dataclass(frozen=True)
class StageNow:
    """What a run does just now, as a bar: its name, how much of it is done, and more words."""

    name: str
    share: float
    words: str


@dataclass(frozen=True, kw_only=True)
class RunNow:
    """The run that is followed; NaN for what is not known yet. `doing` is a word or two; `stage`
    is None where nothing tells how far that is."""

    run_id: str
    title: str
    doing: str
    attempt: int
    step: int
    steps: int
    loss: float
    learning_rate: float
    grad_norm: float
    tokens_per_s: float
    mfu: float
    elapsed_s: float
    remaining_s: float
    stage: StageNow | None = None


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The campaign at `t_s` of `end_s`; counts of runs, and tokens trained of those planned by
    then, in `wave` of `waves`."""

    t_s: float
    end_s: float
    wave: int
    waves: int
    runs: int
    done: int
    running: int
    waiting: int
    diverged: int
    failed_attempts: int
    tokens_done: float
    tokens: float
    energy_j: float
    run: RunNow | None
    boards: tuple[BoardNow, ...]


class Film:
    """The frames of a rehearsal; `follow` is shown closely while it runs, else whoever runs."""

    def __init__(self, world: World, attempts: Sequence[Attempt], *, follow: str = "") -> None:
        self.world = world
        self.attempts = sorted(attempts, key=lambda a: a.t0_s)
        self.follow = follow
        self.end_s = max(a.t1_s for a in attempts)
        own = [a for a in attempts if a.run.run_id == follow and a.status == "completed"]
        # The followed run's weights are written when it has ended, and the show goes on till then.
        self.exported_s = own[0].t1_s + export_s(own[0].run) if own else 0.0
        self.until_s = max(self.end_s, self.exported_s)
        self._on_board: dict[str, list[Attempt]] = defaultdict(list)
        for attempt in self.attempts:
            for boards in attempt.boards:
                for board in boards:
                    self._on_board[board.uuid].append(attempt)
        self._place = {a.name: i for i, a in enumerate(self.attempts)}
        self._starts = {k: [a.t0_s for a in found] for k, found in self._on_board.items()}
        # Tokens of the plan's first so many runs.
        self._planned = np.concatenate(
            [[0.0], np.cumsum([float(r.tokens) for r in world.plan.runs])]
        )
        self.measured = lru_cache(maxsize=KEPT)(self._measured)

    def _measured(self, place: int) -> Measured:
        return Measured(self.world, self.attempts[place], interval_s=1.0)

    def at(self, t_s: float, *, boards: int = 1000) -> Frame:
        """The frame of that moment, with so many boards at most: the followed run's first."""
        begun = [a for a in self.attempts if a.t0_s <= t_s]
        over = [a for a in begun if a.t1_s <= t_s]
        at_work = [i for i, a in enumerate(self.attempts) if a.t0_s <= t_s < a.t1_s]
        counts: dict[str, int] = defaultdict(int)
        for a in over:
            counts[a.status] += 1
        chosen = self._chosen(at_work, t_s)
        wave, runs = self.world.wave_at(t_s)
        settled = counts["completed"] + counts["diverged"]
        return Frame(
            t_s=min(t_s, self.end_s),
            end_s=self.end_s,
            wave=wave,
            waves=len(self.world.plan.waves),
            runs=runs,
            done=counts["completed"],
            running=len(at_work),
            waiting=max(0, runs - settled - len(at_work)),
            diverged=counts["diverged"],
            failed_attempts=counts["killed"] + counts["failed"] + counts["interrupted"],
            tokens_done=self._tokens(begun, t_s),
            tokens=float(self._planned[runs]),
            energy_j=math.fsum(self._joules(a, t_s) for a in begun),
            run=None if chosen is None else self._run(chosen, t_s),
            boards=self._boards(chosen, at_work, t_s, boards),
        )

    def _chosen(self, at_work: Sequence[int], t_s: float) -> int | None:
        """The attempt to follow: the wanted run's, else the one that has been at work longest."""
        for place in at_work:
            if self.attempts[place].run.run_id == self.follow:
                return place
        for place, a in enumerate(self.attempts):
            ended = a.run.run_id == self.follow and a.status == "completed"
            if ended and a.t1_s <= t_s < self.exported_s:
                return place
        return at_work[0] if at_work else None

    def _tokens(self, begun: Sequence[Attempt], t_s: float) -> float:
        best: dict[str, float] = {}
        for a in begun:
            best[a.run.run_id] = _step_at(a, t_s) * a.run.recipe.batch_tokens
        return math.fsum(best.values())

    def _joules(self, a: Attempt, t_s: float) -> float:
        """About what an attempt has used, from its boards' power; its records tell exactly."""
        seconds = min(t_s, a.t1_s) - a.t0_s
        return seconds * sum(b.busy_w for own in a.boards for b in own)

    def _run(self, place: int, t_s: float) -> RunNow:
        a, found = self.attempts[place], self.measured(place)
        number, _, end = found.step_times
        run, rate = a.run, a.tokens_per_s
        at = int(np.searchsorted(end, t_s, side="right")) - 1
        block = next((b for b in a.blocks if b.t0_s <= t_s < b.t1_s), None)
        step = int(number[at]) if at >= 0 else -1
        loss, lr, norm = (
            (float(c[step]) for c in (found.curve.loss, found.curve.learning_rate,
                                      found.curve.grad_norm))
            if step >= 0
            else (math.nan,) * 3
        )  # fmt: skip
        doing = DOING[block.phase] if block else ("starting" if at < 0 else "ending")
        if t_s >= a.t1_s:
            doing = "exporting"
        left = (run.steps - step - 1) * run.recipe.batch_tokens / rate if rate == rate else math.nan
        device = self.world.device
        peak = math.nan if device.cpu else device.peak_flops * run.layout.ranks
        return RunNow(
            run_id=run.run_id, title=title(run), doing=doing, attempt=a.number,
            step=step + 1 if step >= 0 else a.start_step, steps=run.steps, loss=loss,
            learning_rate=lr, grad_norm=norm, tokens_per_s=rate if at >= 0 else math.nan,
            mfu=rate * float(run.model.flops_per_token) / peak if at >= 0 else math.nan,
            elapsed_s=min(t_s, a.t1_s) - a.t0_s, remaining_s=left, stage=_stage_of(a, t_s),
        )  # fmt: skip

    def _boards(
        self, chosen: int | None, at_work: Sequence[int], t_s: float, most: int
    ) -> tuple[BoardNow, ...]:
        first = {n.name for n in self.attempts[chosen].nodes} if chosen is not None else set()
        busy = {n.name for place in at_work for n in self.attempts[place].nodes}
        nodes = sorted(
            self.world.nodes, key=lambda n: (n.name not in first, n.name not in busy, n.name)
        )
        found: list[BoardNow] = []
        for node in nodes:
            if found and len(found) + len(node.boards) > most:
                break
            found += [self._board(node.name, i, board.uuid, t_s)
                      for i, board in enumerate(node.boards)]  # fmt: skip
        return tuple(sorted(found, key=lambda b: (b.node, b.index)))

    def _board(self, node: str, index: int, uuid: str, t_s: float) -> BoardNow:
        known = self._on_board.get(uuid, [])
        place = bisect_right(self._starts.get(uuid, []), t_s) - 1
        attempt = known[place] if place >= 0 else None
        board = next(b for n in self.world.nodes if n.name == node for b in n.boards
                     if b.uuid == uuid)  # fmt: skip
        if attempt is None or attempt.t1_s <= t_s:
            idle_c = board.inlet_c + board.c_per_w * board.idle_w
            return BoardNow(
                node=node, index=index, name=board.name, run_id="", utilisation=0.0,
                celsius=idle_c, watts=board.idle_w, memory_bytes=0.0,
                memory_total=board.memory_bytes, held_back=False,
            )  # fmt: skip
        found = self.measured(self._place[attempt.name])
        where = next(i for i, n in enumerate(attempt.nodes) if n.name == node)
        power = found.power(where, board)
        piece = int(np.clip(np.searchsorted(power.edges, t_s) - 1, 0, len(power.watts) - 1))
        watts = float(power.watts[piece])
        works = watts > (board.held_w + board.busy_w) / 2
        return BoardNow(
            node=node, index=index, name=board.name, run_id=attempt.run.run_id,
            utilisation=min(100.0, 97.0 + 40.0 * (watts / board.busy_w - 1.0)) if works else 0.0,
            celsius=float(power.celsius[piece]), watts=watts,
            memory_bytes=peak_memory(found) + (0.0 if board.package else STANDING),
            memory_total=board.memory_bytes, held_back=bool(power.held_back[piece]),
        )  # fmt: skip


def _stage_of(a: Attempt, t_s: float) -> StageNow | None:
    """What the attempt does at this moment, and how far it is with it."""
    if t_s >= a.t1_s:
        return _export_stage(a, t_s)
    first_s = a.blocks[0].t0_s if a.blocks else a.t1_s
    if t_s < first_s:
        share = (t_s - a.t0_s) / (first_s - a.t0_s)
        words = next(words for until, words in LOADING if share <= until)
        return StageNow("load", share, f"{words}  {_took(t_s - a.t0_s, first_s - t_s)}")
    number = next((i for i, b in enumerate(a.blocks) if b.t0_s <= t_s < b.t1_s), None)
    if number is None:
        return None
    block = a.blocks[number]
    share = (t_s - block.t0_s) / (block.t1_s - block.t0_s)
    times = _took(t_s - block.t0_s, block.t1_s - t_s)
    if block.phase == Phase.EVALUATION:
        tokens = float(getattr(a.run.data, "evaluation_tokens", 0) or 0)
        words = f"{format_count(share * tokens)} of {format_count(tokens)} held-out tokens"
        return StageNow("evaluate", share, f"{words}  {times}")
    if block.phase == Phase.CHECKPOINT:
        size = float(CHECKPOINT_BYTES * a.run.params)
        words = f"{format_si(share * size, 'B')} of {format_si(size, 'B')}"
        return StageNow("save", share, f"step-{block.last:09d}: {words}  {times}")
    after = a.blocks[number + 1].phase if number + 1 < len(a.blocks) else None
    return StageNow("steps", share, f"{NEXT[after]} after step {block.last}  {times}")


def _export_stage(a: Attempt, t_s: float) -> StageNow | None:
    at_s = a.t1_s
    for part in parts_of(a.run):
        if t_s < at_s + part.seconds:
            share = (t_s - at_s) / part.seconds
            words = f"{part.words}: {format_si(share * part.size_bytes, 'B')}"
            return StageNow("export", share, words if part.size_bytes else part.words)
        at_s += part.seconds
    return None


def _took(done_s: float, left_s: float) -> str:
    return f"{format_duration(done_s)}<{format_duration(left_s)}"


def _step_at(a: Attempt, t_s: float) -> int:
    """Steps that are done by then, to within the scatter of a step."""
    step = a.start_step
    for block in a.blocks:
        if block.t0_s > t_s:
            break
        part = min(1.0, (t_s - block.t0_s) / (block.t1_s - block.t0_s))
        step = max(step, block.first + int(part * (block.last - block.first)))
    return step
