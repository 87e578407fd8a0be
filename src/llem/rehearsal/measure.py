"""What ranks and meters of an attempt would have seen: steps, samples, and the truth behind them.

Power is constant on short pieces of time, so that its integral, which the counters read, is exact.
A counter is behind by up to `COUNTER_S`, as real ones are, and counts whole millijoules.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llem.records import SAMPLES, STEPS, Phase, SampleFlag
from llem.records.schema import SPANS
from llem.rehearsal.course import Attempt
from llem.rehearsal.curve import ALIKE, TOKEN_SD, Curve
from llem.rehearsal.fleet import IDLE_MHZ, INERTIA_S, LIMIT_C, PACKAGE_RANGE_MJ, Board, Node
from llem.rehearsal.meters import MeterFault, meter_fault
from llem.rehearsal.world import World

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

# A step's time scatters by this; now and then one takes much longer (a page fault, the network).
STEP_SD, HICCUPS, HICCUP = 0.015, 0.002, (1.3, 3.0)
# Of a training step's power: an evaluation's, and a board's that waits for a slower one.
EVALUATION_POWER, WAITING_POWER = 0.88, 0.55
POWER_SD, PIECE_S, MOST_PIECES = 0.02, 1.0, 5_000
COUNTER_S, AVERAGE_S = 0.02, 1.0
# The sampler's record begins and ends so much before and after the window.
OPENED_S, CLOSED_S = 0.03, 0.02
READ_NS, READ_MASK_NS = 40_000, ~0x3FF
# A killed writer loses what it had not flushed: rows of up to this long.
FLUSH_S = 2.0
# Whose file it is.
RANK, NODE = 0, 1
# NVML: software thermal slowdown.
THERMAL = 0x20
APART_S = 1e-4


@dataclass(frozen=True)
class Power:
    """One board's power: `edges` (k + 1,) in seconds of the campaign, `watts` and `celsius` (k,)
    and whether it held itself back."""

    edges: Floats
    watts: Floats
    celsius: Floats
    held_back: NDArray[np.bool_]

    @cached_property
    def joules(self) -> Floats:
        """Energy since the first edge, at each edge."""
        return np.concatenate([[0.0], np.cumsum(self.watts * np.diff(self.edges))])

    def until(self, t_s: Floats | float) -> Floats:
        """Energy since the first edge, at any moment."""
        return np.asarray(np.interp(t_s, self.edges, self.joules))


class Measured:
    """An attempt in full. Arrays are made when asked for, and the same for the same seed."""

    def __init__(self, world: World, attempt: Attempt, *, interval_s: float) -> None:
        self.world = world
        self.attempt = attempt
        self.interval_s = interval_s

    def rng(self, *more: int) -> np.random.Generator:
        return self.world.rng(self.attempt.run, 2, self.attempt.number, *more)

    @cached_property
    def curve(self) -> Curve:
        if self.attempt.curve is not None:
            return self.attempt.curve
        return self.world.curve(self.attempt.run)

    @cached_property
    def meter_faults(self) -> tuple[MeterFault | None, ...]:
        """What befalls the meters of each of the attempt's nodes."""
        places = range(len(self.attempt.nodes))
        return tuple(meter_fault(self.world, self.attempt, place) for place in places)

    def _fault_of(self, place: int, board: Board) -> MeterFault | None:
        """The same for one device: a pause of the sampler is all devices'."""
        fault = self.meter_faults[place]
        if fault is None or fault.kind == "gap":
            return fault
        return fault if self.attempt.boards[place][fault.index] is board else None

    @cached_property
    def step_times(self) -> tuple[Integers, Floats, Floats]:
        """Step numbers, and when each began and ended; within a block they fill it exactly."""
        rng = self.rng(0)
        numbers, begins, ends = [], [], []
        for block in self.attempt.blocks:
            if block.phase is not None:
                continue
            count = block.last - block.first
            shares = np.exp(STEP_SD * rng.standard_normal(count))
            slow = rng.random(count) < HICCUPS
            shares[slow] *= rng.uniform(*HICCUP, size=int(slow.sum()))
            marks = np.concatenate([[0.0], np.cumsum(shares)])
            times = block.t0_s + (block.t1_s - block.t0_s) * marks / marks[-1]
            numbers.append(np.arange(block.first, block.last))
            begins.append(times[:-1])
            ends.append(times[1:])
        if not numbers:
            nothing = np.zeros(0)
            return np.zeros(0, dtype=np.int64), nothing, nothing
        return np.concatenate(numbers), np.concatenate(begins), np.concatenate(ends)

    @property
    def ranks_of_node(self) -> int:
        layout = self.attempt.run.layout
        return layout.ranks // layout.nodes

    def board_of(self, rank: int) -> tuple[int, Node, Board]:
        """The node's place, the node and the board of a rank."""
        place, local = divmod(rank, self.ranks_of_node)
        boards = self.attempt.boards[place]
        return place, self.attempt.nodes[place], boards[min(local, len(boards) - 1)]

    def power(self, node: int, board: Board) -> Power:
        """The board's power from the record's beginning to its end."""
        known = self._powers.get((node, board.uuid))
        if known is None:
            known = self._powers[node, board.uuid] = self._power(node, board)
        return known

    @cached_property
    def _powers(self) -> dict[tuple[int, str], Power]:
        return {}

    def _power(self, node: int, board: Board) -> Power:
        attempt = self.attempt
        first = attempt.t0_s - OPENED_S - AVERAGE_S
        last = attempt.t1_s + CLOSED_S + COUNTER_S
        piece = max(PIECE_S, (last - first) / MOST_PIECES)
        marks = [t for b in attempt.blocks for t in (b.t0_s, b.t1_s)]
        grid = np.arange(first, last, piece)
        edges = np.unique(np.concatenate([grid, marks, [first, attempt.t0_s, attempt.t1_s, last]]))
        edges = edges[np.concatenate([[True], np.diff(edges) > 1e-9])]
        middle = (edges[1:] + edges[:-1]) / 2
        watts = np.full(len(middle), board.held_w)
        watts[middle < attempt.t0_s] = board.idle_w
        slowest = min(b.speed * b.slowed for own in attempt.boards for b in own)
        waits = 1.0 - slowest / (board.speed * board.slowed)
        step_w = board.busy_w * (1.0 - waits * (1.0 - WAITING_POWER))
        noise = np.exp(POWER_SD * self.rng(1, node, len(middle)).standard_normal(len(middle)))
        for block in attempt.blocks:
            inside = slice(*np.searchsorted(middle, [block.t0_s, block.t1_s]))
            if block.phase is None:
                watts[inside] = step_w
            elif block.phase == Phase.EVALUATION:
                watts[inside] = EVALUATION_POWER * board.busy_w
        watts = watts * noise
        return _warm(board, edges, watts)

    def truth_j(self) -> float:
        """What the attempt's devices really used in its window, joules."""
        total = 0.0
        for place, boards in enumerate(self.attempt.boards):
            for board in boards:
                at = self.power(place, board).until(
                    np.array([self.attempt.t0_s, self.attempt.t1_s])
                )
                total += float(at[1] - at[0])
        return total

    def _until_s(self, *key: int) -> float:
        """Up to when a file of this attempt holds rows."""
        if self.attempt.status != "killed":
            return math.inf
        lost_s = self.attempt.t1_s - FLUSH_S * float(self.rng(3, *key).random())
        # A rank tells of its checkpoint in an event, which flushes all that came before.
        saved = [b.t1_s for b in self.attempt.blocks if b.phase == Phase.CHECKPOINT]
        return max([lost_s, *saved]) if key[0] == RANK else lost_s

    def steps(self, rank: int) -> NDArray[Any]:
        """The rank's table of steps."""
        place, node, board = self.board_of(rank)
        number, begin, end = self.step_times
        rng = self.rng(4, rank)
        apart = np.minimum(APART_S, 0.02 * np.diff(np.concatenate([begin[:1], end])))
        late = apart * rng.random(len(end))
        kept = end <= self._until_s(RANK, rank)
        number, late = number[kept], late[kept]
        begin, end = begin[kept], end[kept] + late
        begin = begin + np.concatenate([[0.0], late[:-1]])[: len(begin)]
        run, curve = self.attempt.run, self.curve
        ranks = run.layout.ranks
        table = np.zeros(len(number), dtype=STEPS)
        table["step"] = number
        table["t0_ns"], table["t1_ns"] = _mono(node, begin), _mono(node, end)
        table["tokens_rank"] = run.recipe.batch_tokens // ranks
        table["tokens_unique"] = self._unique[kept] // ranks
        # A rank's own batch is a part of the whole, and its loss scatters the more.
        own_sd = TOKEN_SD * math.sqrt(ALIKE * (ranks - 1) / run.recipe.batch_tokens)
        table["loss"] = curve.loss[number] + own_sd * rng.standard_normal(len(number))
        table["grad_norm"] = curve.grad_norm[number]
        table["lr"] = curve.learning_rate[number]
        table["phase"] = curve.phase[number]
        table["e0_mj"], table["e1_mj"] = self._stamps(place, board, rank, begin, end)
        return table

    def _stamps(
        self, place: int, board: Board, rank: int, begin: Floats, end: Floats
    ) -> tuple[Floats | float, Floats | float]:
        if board.package:
            return math.nan, math.nan  # a rank stamps its own GPU's counter, and no package's
        return self._counter(place, board, begin), self._counter(place, board, end)

    @cached_property
    def _unique(self) -> Integers:
        """Tokens of each step that no step before had read."""
        run, number = self.attempt.run, self.step_times[0]
        batch = run.recipe.batch_tokens
        if run.data.different_tokens(run.tokens) >= run.tokens:
            return np.full(len(number), batch, dtype=np.int64)
        marks = [*number.tolist(), *([int(number[-1]) + 1] if len(number) else [])]
        seen = [run.data.different_tokens(step * batch) for step in marks]
        seen_at: Integers = np.array(seen, dtype=np.int64)
        return seen_at[1:] - seen_at[:-1]

    def spans(self, rank: int) -> NDArray[Any]:
        """The rank's evaluations and checkpoints."""
        place, node, board = self.board_of(rank)
        until = self._until_s(RANK, rank)
        own = [b for b in self.attempt.blocks if b.phase is not None and b.t1_s <= until]
        table = np.zeros(len(own), dtype=SPANS)
        begin, end = np.array([b.t0_s for b in own]), np.array([b.t1_s for b in own])
        table["step"] = [b.last for b in own]
        table["t0_ns"], table["t1_ns"] = _mono(node, begin), _mono(node, end)
        table["phase"] = [int(b.phase or 0) for b in own]
        table["e0_mj"], table["e1_mj"] = self._stamps(place, board, rank, begin, end)
        return table

    def samples(self, place: int, board: Board) -> NDArray[Any]:
        """A device's samples, from just before the window to just after it."""
        attempt, power = self.attempt, self.power(place, board)
        node = attempt.nodes[place]
        rng = self.rng(5, place, attempt.boards[place].index(board))
        first, last = attempt.t0_s - OPENED_S, attempt.t1_s + CLOSED_S
        at = np.arange(first, last, self.interval_s)
        at = np.append(at + np.abs(2e-4 * rng.standard_normal(len(at))), last)
        at = at[at <= self._until_s(NODE, place)]
        fault = self._fault_of(place, board)
        if fault is not None and fault.kind == "gap":
            at = at[(at <= fault.at_s) | (at >= fault.until_s)]
        table = np.zeros(len(at), dtype=SAMPLES)
        table["t_ns"] = _mono(node, at)
        read = READ_NS * np.exp(0.3 * rng.standard_normal(len(at)))
        table["read_ns"] = read.astype(np.int64) & READ_MASK_NS
        table["energy_mj"] = self._counter(place, board, at)
        for name in ("power_mw", "temperature_c", "utilization", "clock_mhz"):
            table[name] = np.nan
        silent = np.zeros(len(at), dtype=bool)
        if fault is not None and fault.kind == "silent":
            silent = at >= fault.at_s
            table["flags"][silent] = SampleFlag.READ_FAILED
        if board.package:
            return table
        piece = np.clip(np.searchsorted(power.edges, at, side="right") - 1, 0, len(power.watts) - 1)
        table["power_mw"] = (power.until(at) - power.until(at - AVERAGE_S)) * 1e3 / AVERAGE_S
        table["temperature_c"] = np.rint(power.celsius[piece])
        works = power.watts[piece] > (board.held_w + board.busy_w) / 2
        busy = np.clip(np.rint(97.0 + 1.5 * rng.standard_normal(len(at))), 80, 100)
        table["utilization"] = np.where(works, busy, 0.0)
        slowed = np.where(power.held_back[piece], board.slowed, 1.0)
        table["clock_mhz"] = np.where(works, np.rint(board.clock_mhz * slowed / 15) * 15, IDLE_MHZ)
        table["throttle"] = np.where(power.held_back[piece], THERMAL, 0)
        for name in ("power_mw", "temperature_c", "utilization", "clock_mhz"):
            table[name][silent] = np.nan
        table["throttle"][silent] = 0
        return table

    def _counter(self, place: int, board: Board, t_s: Floats) -> Floats:
        """The energy counter as it is read: whole mJ, since long before, behind by a moment.

        One that begins anew counts from then on; of one that answers no more nothing is known.
        """
        power = self.power(place, board)
        # It moves on a clock of its own; what was used before is a guess that only grows.
        seen = np.floor(np.asarray(t_s) / COUNTER_S) * COUNTER_S
        before_mj = round(0.7e3 * board.busy_w * power.edges[0]) + 5_000_000
        counted = np.floor(power.until(seen) * 1e3) + before_mj
        out: Floats = np.mod(counted, PACKAGE_RANGE_MJ) if board.package else counted
        fault = self._fault_of(place, board)
        if fault is not None and fault.kind == "reset":
            since = np.floor(np.maximum(0.0, power.until(seen) - power.until(fault.at_s)) * 1e3)
            out = np.where(np.asarray(t_s) >= fault.at_s, since, out)
        elif fault is not None and fault.kind == "silent":
            out = np.where(np.asarray(t_s) >= fault.at_s, math.nan, out)
        return out


def _warm(board: Board, edges: Floats, watts: Floats) -> Power:
    """The board's temperature, and the power that it is held back to where that is too high."""
    decay = np.exp(-np.diff(edges) / INERTIA_S).tolist()
    celsius = np.empty(len(watts))
    held_back = np.zeros(len(watts), dtype=bool)
    now = board.inlet_c + board.c_per_w * board.held_w
    capped_w = board.capped_w
    for i, (asked_w, left) in enumerate(zip(watts.tolist(), decay, strict=True)):
        if asked_w > capped_w and now >= LIMIT_C - 0.5:
            watts[i] = asked_w = capped_w
            held_back[i] = board.throttles
        celsius[i] = now
        settled = board.inlet_c + board.c_per_w * asked_w
        now = settled + (now - settled) * left
    return Power(edges, watts, celsius, held_back)


def _mono(node: Node, t_s: Floats) -> Integers:
    """Campaign seconds on the node's monotonic clock; the sum is of integers, to keep the ns."""
    return np.rint(np.asarray(t_s) * 1e9).astype(np.int64) + round(node.up_s * 1e9)
