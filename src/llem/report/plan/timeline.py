"""When the jobs of a plan would run if the site were free: a list schedule of its elements.

Nobody knows how long jobs wait in a queue that others use; this is what the plan alone demands.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple

from llem._numerals import number
from llem.report.plan.cells import Cell, cells_of

# (seconds, how many from then on).
Step = tuple[float, int]
# Jobs in a row that are placed one by one: at a day each, three years.
MOST_JOBS = 1000
# (seconds, elements): elements that take equally long.
Group = tuple[float, int]


class Span(NamedTuple):
    """So many equal elements of an array at work from one time to another, in seconds.

    array: its place in plan.json. segment: 0, or which of the array's jobs in a row.
    """

    array: int
    segment: int
    start_s: float
    end_s: float
    elements: int


@dataclass(frozen=True)
class Timeline:
    """The schedule; `nodes` is how many there are, or how many elements a laptop runs at a time.

    used: (seconds, nodes in use from then on), the last with none. elements: the same of each
    array's elements at work.
    """

    spans: tuple[Span, ...]
    nodes: int
    used: tuple[Step, ...]
    elements: tuple[tuple[Step, ...], ...]

    @property
    def end_s(self) -> float:
        """When the last element ends; 0 where nothing runs."""
        return self.used[-1][0] if self.used else 0.0

    @property
    def busy(self) -> float:
        """The share of the nodes' time, up to the end, in which they are in use."""
        if not self.end_s:
            return 0.0
        spans = zip(self.used, self.used[1:], strict=False)
        return math.fsum(n * (b - a) for (a, n), (b, _) in spans) / (self.nodes * self.end_s)

    def heaviest(self, most: int) -> list[int]:
        """The arrays whose elements take longest in all, at most so many, in the plan's order."""
        loads = [0.0] * len(self.elements)
        for span in self.spans:
            loads[span.array] += span.elements * (span.end_s - span.start_s)
        return sorted(sorted(range(len(loads)), key=lambda a: -loads[a])[:most])

    def begins(self, array: int) -> list[float]:
        """When each of the array's jobs in a row begins, in seconds."""
        first: dict[int, float] = {}
        for span in self.spans:
            if span.array == array and span.segment not in first:
                first[span.segment] = span.start_s
        return list(first.values())


@dataclass
class _Array:
    """An array that waits or runs; an element takes `need` parts of nodes.

    waiting: groups of its present job, the first to start last. later: its jobs in a row after
    that. steps: elements at work, so far.
    """

    index: int
    throttle: float
    need: int
    waiting: list[Group]
    later: Iterator[list[Group]]
    segment: int = 0
    running: int = 0
    steps: list[Step] = field(default_factory=list)

    def goes_on(self) -> bool:
        """To the next job in a row; False where there is none."""
        self.waiting = next(self.later, [])
        self.segment += 1
        return bool(self.waiting)

    def change(self, elements: int, now: float) -> None:
        """So many elements start; fewer than none: they have ended."""
        self.running += elements
        _note(self.steps, now, self.running)


def _note(steps: list[Step], time: float, count: int) -> None:
    """What there is from a time on; the last word on that time counts."""
    if steps and steps[-1][0] == time:
        steps[-1] = (time, count)
    else:
        steps.append((time, count))


def times_of(plan: Mapping[str, Any]) -> Timeline | None:
    """The timeline of a plan, where the planner could say how long each run takes."""
    cells = cells_of(plan)
    if not all(math.isfinite(c.predicted("duration_s")) for c in cells) or not plan["arrays"]:
        return None
    return timeline(plan, cells)


def timeline(plan: Mapping[str, Any], cells: Sequence[Cell] | None = None) -> Timeline:
    """Arrays in the order of the plan, each element as soon as there is room for it.

    Kept are the nodes of the site (elements at a time on the local executor), the throttle of
    each array, and that a chained array begins its next job when all of its last one has ended.
    plan: the content of plan.json; `cells`: its cells, where they are at hand.
    """
    lengths: dict[str, float] = {}
    for cell in cells_of(plan) if cells is None else cells:
        lengths.update(dict.fromkeys(cell.run_ids, cell.predicted("duration_s")))
    nodes, parts, arrays = _places(plan, lengths)
    free = nodes * parts
    ready = [array for array in arrays if array.waiting]
    ending: list[tuple[float, int, int]] = []
    spans: list[Span] = []
    used: list[Step] = []
    now = 0.0
    while ready or ending:
        for array in ready:
            if not free:
                break
            free = _start(array, free, now, spans, ending)
        _note(used, now, nodes - free // parts)
        if not all(array.waiting for array in ready):
            ready = [array for array in ready if array.waiting]
        now = ending[0][0]
        while ending and ending[0][0] == now:
            _, index, count = heapq.heappop(ending)
            array = arrays[index]
            array.change(-count, now)
            free += count * array.need
            if not array.running and not array.waiting and array.goes_on():
                ready = sorted([*ready, array], key=lambda a: a.index)
    _note(used, now, nodes - free // parts)
    return Timeline(tuple(spans), nodes, tuple(used), tuple(tuple(a.steps) for a in arrays))


def _start(
    array: _Array,
    free: int,
    now: float,
    spans: list[Span],
    ending: list[tuple[float, int, int]],
) -> int:
    """Start as many elements of an array as there is room for; returns the parts then free."""
    while array.waiting:
        seconds, count = array.waiting[-1]
        started = int(min(count, free // array.need, array.throttle - array.running))
        if started < 1:
            break
        free -= started * array.need
        array.change(started, now)
        heapq.heappush(ending, (now + seconds, array.index, started))
        spans.append(Span(array.index, array.segment, now, now + seconds, started))
        if started < count:
            array.waiting[-1] = (seconds, count - started)
        else:
            array.waiting.pop()
    return free


def _places(plan: Mapping[str, Any], lengths: Mapping[str, float]) -> tuple[int, int, list[_Array]]:
    """How many nodes there are, in how many parts each is counted, and what wants them.

    Elements of less than a node share nodes as closely as they can. A part is never split over
    two nodes: as many elements of one shape as a node holds take it up whole.
    """
    settings = plan["site"]
    local = settings.get("executor") == "local"
    devices = int(settings.get("gpus_per_node", 1))
    start_s = number(settings.get("startup_s", 0.0))
    values = plan["arrays"]
    # A local element is counted as a node, of which there are as many as run at a time.
    held = [1 if local else max(1, devices // a["gpus_per_node"]) for a in values]
    parts = math.lcm(*held)
    arrays = []
    for index, (array, fit) in enumerate(zip(values, held, strict=True)):
        jobs = _jobs(array, lengths, start_s + number(array.get("start_s", 0.0)))
        arrays.append(
            _Array(
                index=index,
                throttle=math.inf if local else array.get("throttle") or math.inf,
                need=(1 if local else int(array["nodes"])) * parts // fit,
                waiting=next(jobs, []),
                later=jobs,
            )
        )
    available = int(settings.get("concurrency" if local else "nodes", 1))
    # A plan is never refused here: what asks for more than there is runs alone.
    largest = max((-(-a.need // parts) for a in arrays), default=1)
    return max(available, largest), parts, arrays


def _jobs(
    array: Mapping[str, Any], lengths: Mapping[str, float], start_s: float
) -> Iterator[list[Group]]:
    """The groups of each job in a row.

    A job of a chain trains until its time limit (the minutes that it keeps for its checkpoint are
    not counted); one that finds its run complete ends at once, and is left out. Of a chain longer
    than anybody waits for the end is one job, as long as those that it stands for.
    """
    left = [sum(map(lengths.__getitem__, names)) for names in array["elements"]]
    chain = min(int(array.get("segments", 1)), MOST_JOBS)
    most = max(array["time_limit_s"] - start_s, 1.0)
    for _ in range(chain - 1):
        yield _groups([min(work, most) + start_s for work in left])
        left = [work - most for work in left if work > most]
    # The last one takes what is left, be it more than its time.
    yield _groups([work + start_s for work in left])


def _groups(times: Sequence[float]) -> list[Group]:
    return [(seconds, len(list(group))) for seconds, group in groupby(times)][::-1]
