"""What a record's events say of its window and its phases, and what a run's ranks say of theirs.

`measure` writes `begin` and `end` for each process of the node, and what these mark: `mark` (from
now on), `phase` and `phase-end` (inside). All times are of the node's monotonic clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llem.records import Columns, NodeRecord, RankRecord
from llem.results.ranks.ranks import last_of_each_step
from llem.results.ranks.timeline import REST, stretches, timeline

SLIVER_NS = 20_000_000


@dataclass(frozen=True)
class Span:
    """A named stretch of time, [t0_ns, t1_ns]."""

    name: str
    t0_ns: int
    t1_ns: int


def measured_window(record: NodeRecord) -> tuple[int, int] | None:
    """From the first process' begin to the last one's end; None where the record tells no both."""
    events = record.events
    begun = events["t_ns"][events["code"] == b"begin"]
    ended = events["t_ns"][np.isin(events["code"], (b"end", b"rank-lost"))]
    began, left = np.count_nonzero(events["code"] == b"begin"), len(ended)
    # who neither ended nor was lost was still inside when the record stopped
    if not len(begun) or left < began:
        return None
    return int(begun.min()), int(ended.max())


def sampled_window(record: NodeRecord) -> tuple[int, int] | None:
    """From the first sample of any device to the last; None where there is none."""
    times = [device.samples["t_ns"] for device in record.devices if len(device.samples)]
    if not times:
        return None
    return min(int(t.min()) for t in times), max(int(t.max()) for t in times)


def marked_spans(record: NodeRecord) -> list[Span]:
    """The phases that a program has marked, without gaps or overlaps; [] where it marked none.

    Where several processes of the node have marked, the marks of the lowest rank are told.
    """
    window = measured_window(record) or sampled_window(record)
    by_name: dict[str, list[tuple[int, str, str]]] = {}
    for event in record.events:
        code = event["code"].decode()
        if code in ("mark", "phase", "phase-end"):
            who, _, name = event["text"].decode("utf-8", "replace").partition(": ")
            by_name.setdefault(who, []).append((int(event["t_ns"]), code, name))
    if not by_name or window is None:
        return []
    marks = by_name[min(by_name, key=_rank_of)]
    return _innermost(sorted(marks, key=lambda mark: mark[0]), *window)


def step_spans(record: RankRecord, window: tuple[int, int]) -> list[Span]:
    """The phases of a training by its steps, evaluations and checkpoints, over all of `window`."""
    if not len(record.steps):
        return []
    line = timeline(last_of_each_step(Columns.of(record.steps)), record.spans)
    found = [Span(part.phase, part.t0_ns, part.t1_ns) for part in stretches(line, window)]
    return _without_slivers(found)


def _innermost(marks: Sequence[tuple[int, str, str]], t0_ns: int, t1_ns: int) -> list[Span]:
    """The phase of each moment: the innermost that is open, else the last mark."""
    open_: list[str] = []
    base = REST
    spans: list[Span] = []
    at, now = t0_ns, base
    for t_ns, code, name in marks:
        if code == "mark":
            base = name
        elif code == "phase":
            open_.append(name)
        elif name in open_:
            # the last of that name: threads may leave theirs in any order
            del open_[len(open_) - 1 - open_[::-1].index(name)]
        then = open_[-1] if open_ else base
        moment = min(max(t_ns, at), t1_ns)
        if then != now:
            if moment > at:
                spans.append(Span(now, at, moment))
            at, now = moment, then
    if t1_ns > at:
        spans.append(Span(now, at, t1_ns))
    return _without_slivers(spans)


def _without_slivers(spans: list[Span]) -> list[Span]:
    """The moment between one phase's end and the next one's begin is no phase of its own.

    It belongs to what came before it, at the very beginning to what comes after.
    """
    found: list[Span] = []
    begin_ns = spans[0].t0_ns if spans else 0
    for span in spans:
        if span.name == REST and span.t1_ns - span.t0_ns < SLIVER_NS and len(spans) > 1:
            if found:
                found[-1] = Span(found[-1].name, found[-1].t0_ns, span.t1_ns)
                begin_ns = span.t1_ns
        elif found and found[-1].name == span.name:
            found[-1] = Span(span.name, found[-1].t0_ns, span.t1_ns)
            begin_ns = span.t1_ns
        else:
            found.append(Span(span.name, begin_ns, span.t1_ns))
            begin_ns = span.t1_ns
    return found


def _rank_of(who: str) -> tuple[int, str]:
    number = who.rpartition(" ")[2]
    return (int(number) if number.isdigit() else -1, who)
