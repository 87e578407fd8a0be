"""When the jobs of a plan would run if the site were free: a list schedule of its elements.

Nobody knows how long jobs wait in a queue that others use; this is what the plan alone demands.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from llem.report.plan.cells import Cell, cells_of
from llem.report.tables import number

# (time, change of the number in use), summed up by `in_use`.
Change = tuple[float, int]


@dataclass(frozen=True)
class Span:
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

    used: (seconds, nodes in use from then on), the last with none.
    """

    spans: tuple[Span, ...]
    nodes: int
    used: tuple[tuple[float, int], ...]

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

    def begins(self, array: int) -> list[float]:
        """When each of the array's jobs in a row begins, in seconds."""
        first: dict[int, float] = {}
        for span in self.spans:
            if span.array == array:
                first.setdefault(span.segment, span.start_s)
        return list(first.values())

    def elements_of(self, array: int) -> list[tuple[float, int]]:
        """(seconds, elements of the array at work from then on)."""
        changes: list[Change] = []
        for span in self.spans:
            if span.array == array:
                changes += [(span.start_s, span.elements), (span.end_s, -span.elements)]
        return list(in_use(changes))


def in_use(changes: Sequence[Change]) -> Iterator[tuple[float, int]]:
    """Changes at times, summed up: what is in use from each time on."""
    count = 0
    for time, group in groupby(sorted(changes), key=lambda change: change[0]):
        count += sum(change for _, change in group)
        yield time, count


@dataclass
class _Array:
    """An array that waits or runs: `jobs` are the groups (seconds, elements) of each in a row."""

    index: int
    throttle: float
    nodes: int
    share: int
    jobs: list[list[tuple[float, int]]]
    segment: int = 0
    running: int = 0

    @property
    def waiting(self) -> list[tuple[float, int]]:
        return self.jobs[self.segment] if self.segment < len(self.jobs) else []

    def goes_on(self) -> None:
        """To the next job in a row, when no element of the last one waits or runs."""
        while self.segment < len(self.jobs) and not self.running and not self.waiting:
            self.segment += 1


@dataclass
class _Site:
    """Nodes, those in use as a whole, and the parts in use of others, in `parts` to a node.

    Elements of less than a node share nodes as closely as they can: a part is never split over
    two, for as many of one shape as fit a node take it up whole.
    """

    nodes: int
    parts: int
    whole: int = 0
    shared: int = 0
    used: list[tuple[float, int]] = field(default_factory=list)

    @property
    def in_use(self) -> int:
        return self.whole - (-self.shared // self.parts)

    def room(self, array: _Array) -> int:
        """How many more of its elements can run now."""
        if not array.share:
            return (self.nodes - self.in_use) // array.nodes
        return ((self.nodes - self.whole) * self.parts - self.shared) // array.share

    def take(self, array: _Array, elements: int) -> None:
        """Put elements on nodes; fewer than none: they leave."""
        if array.share:
            self.shared += elements * array.share
        else:
            self.whole += elements * array.nodes
        array.running += elements

    def note(self, time: float) -> None:
        if self.used and self.used[-1][0] == time:
            self.used.pop()
        self.used.append((time, self.in_use))


def timeline(plan: Mapping[str, Any], cells: Sequence[Cell] | None = None) -> Timeline:
    """Arrays in the order of the plan, each element as soon as there is room for it.

    Kept are the nodes of the site (elements at a time on the local executor), the throttle of
    each array, and that a chained array begins its next job when all of its last one has ended.
    plan: the content of plan.json; `cells`: its cells, where they are at hand.
    """
    lengths = {
        name: cell.predicted("duration_s")
        for cell in (cells_of(plan) if cells is None else cells)
        for name in cell.run_ids
    }
    site, arrays = _places(plan, lengths)
    pending = list(arrays)
    ending: list[tuple[float, int, int, int]] = []
    spans: list[Span] = []
    now = 0.0
    while pending or ending:
        for array in pending:
            if site.in_use >= site.nodes and not site.shared % site.parts:
                break
            groups = array.waiting
            while groups:
                seconds, count = groups[-1]
                most = min(count, site.room(array), array.throttle - array.running)
                if most < 1:
                    break
                started = int(most)
                site.take(array, started)
                heapq.heappush(ending, (now + seconds, array.index, array.segment, started))
                spans.append(Span(array.index, array.segment, now, now + seconds, started))
                groups.pop()
                if started < count:
                    groups.append((seconds, count - started))
        site.note(now)
        now = ending[0][0]
        while ending and ending[0][0] == now:
            _, index, _, count = heapq.heappop(ending)
            site.take(arrays[index], -count)
            arrays[index].goes_on()
        pending = [array for array in pending if array.waiting or array.running]
    site.note(now)
    return Timeline(tuple(spans), site.nodes, tuple(site.used))


def _places(plan: Mapping[str, Any], lengths: Mapping[str, float]) -> tuple[_Site, list[_Array]]:
    """What there is, and what wants it."""
    settings = plan["site"]
    local = settings.get("executor") == "local"
    devices = int(settings.get("gpus_per_node", 1))
    start_s = number(settings.get("startup_s", 0.0))
    values = plan["arrays"]
    # As many elements of each shape as a node holds; a node is so many parts that all are whole.
    held = {a["gpus_per_node"]: max(1, devices // a["gpus_per_node"]) for a in values}
    parts = 1 if local else math.lcm(*held.values())
    arrays = []
    for index, array in enumerate(values):
        nodes, fit = int(array["nodes"]), held[array["gpus_per_node"]]
        arrays.append(
            _Array(
                index=index,
                throttle=math.inf if local else array.get("throttle") or math.inf,
                nodes=1 if local else nodes,
                share=0 if local or fit == 1 else nodes * parts // fit,
                jobs=_jobs(array, lengths, start_s),
            )
        )
    available = int(settings.get("concurrency" if local else "nodes", 1))
    # A plan is never refused here: what asks for more than there is runs alone.
    return _Site(max([available, *(a.nodes for a in arrays)]), parts), arrays


def _jobs(
    array: Mapping[str, Any], lengths: Mapping[str, float], start_s: float
) -> list[list[tuple[float, int]]]:
    """Groups of equal elements of each job in a row, the first to start last in its list.

    A job of a chain trains until its time limit (the minutes that it keeps for its checkpoint are
    not counted); one that finds its run complete ends at once, and is left out.
    """
    works = [math.fsum(lengths[name] for name in element) for element in array["elements"]]
    chain = int(array.get("segments", 1))
    most = math.inf if chain == 1 else max(array["time_limit_s"] - start_s, 1.0)
    jobs = []
    for number_ in range(chain):
        # The last one takes what is left, be it more than its time.
        top = math.inf if number_ == chain - 1 else most
        left = [work - number_ * most if number_ else work for work in works]
        times = [min(work, top) + start_s for work in left if work > 0 or not number_]
        groups = [(seconds, sum(1 for _ in group)) for seconds, group in groupby(times)]
        if groups:
            jobs.append(groups[::-1])
    return jobs
