"""The pictures of a plan: its design in the (N, D) plane, its cost by cell, its timeline."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

from llem._numerals import (
    format_count,
    format_duration,
    format_flops,
    format_gpu_hours,
    format_times,
    number,
    percent,
)
from llem.report import svg
from llem.report.plan.cells import Cell, Level, total
from llem.report.plan.timeline import Timeline
from llem.report.svg import Axis

WIDTH = 760.0
# A target is drawn where it lies no more than this beyond the largest run, else an arrow to it.
FAR = 1e4
# Labels of two levels nearer than this (pixels) would cover each other.
LABEL_GAP = 14.0
LARGEST_DOT, SMALLEST_DOT = 11.0, 2.0
# More bars, rows or steps than this say no more than these.
MOST_BARS = 300
MOST_ROWS = 20
MOST_STEPS = 200
ROW = 26.0


@dataclass(frozen=True)
class Goal:
    """Where the answer is wanted: FLOPs, tokens per parameter at the prior optimum, what it is
    called, and the factor within which N* is promised there at 95 % (NaN: not known)."""

    flops: float
    tokens_per_param: float
    name: str
    factor: float

    @property
    def params(self) -> float:
        """N at the prior optimum, by C = 6 N D."""
        return math.sqrt(self.flops / (6 * self.tokens_per_param))


def design(levels: Sequence[Level], goal: Goal) -> str:
    """Cells in the (N, D) plane, compute levels joined, the prior optimum and the target."""
    cells = [cell for level in levels for cell in level.cells]
    largest = levels[-1].flops
    shown = goal.flops <= FAR * largest
    n, d = [c.params for c in cells], [c.tokens for c in cells]
    if shown:
        # What is promised to either side is in view, unless that would be all of it.
        wide = min(goal.factor, 3.0) if math.isfinite(goal.factor) else 1.0
        n += [goal.params / wide, goal.params * wide]
        d += [
            goal.tokens_per_param * goal.params / wide,
            goal.tokens_per_param * goal.params * wide,
        ]
    # Room to the left for what a level is called, and above for what the target is.
    wide, high = max(max(n) / min(n), 3.0), max(max(d) / min(d), 3.0)
    x = Axis(min(n) / wide**0.17 / 1.1, max(n) * wide**0.06 * 1.1, 66, WIDTH - 8, log=True)
    y = Axis(min(d) / high**0.06 / 1.1, max(d) * high**0.12 * 1.1, 404, 12, log=True)
    parts = svg.across(x, x.ticks(8), _count, top=y.end, floor=y.start)
    parts += svg.upward(y, y.ticks(8), _count, left=x.start, right=x.end)
    parts += [
        svg.text((0.5 * (x.start + x.end), y.start + 38), "parameters N", "axis", anchor="middle"),
        svg.text((14, 0.5 * (y.start + y.end)), "tokens D", "axis", anchor="middle", turn=-90),
    ]
    parts += _prior(x, y, goal.tokens_per_param)
    parts += _unique(x, y, cells)
    parts += _levels(x, y, levels)
    most, largest_dot = max(c.seeds for c in cells), _radius(x, y, levels)
    for level in levels:
        for cell in level.cells:
            radius = max(SMALLEST_DOT, largest_dot * math.sqrt(cell.seeds / most))
            at = (x.at(cell.params), y.at(cell.tokens))
            parts.append(svg.dot(at, radius, f"dot l{level.place}", told=_told(cell)))
    parts += _target(x, y, goal) if shown else _far_target(x, y, goal, largest)
    return svg.picture(WIDTH, y.start + 48, parts, told="The design: cells in the plane of "
                       "parameters and tokens, compute levels, and the target")  # fmt: skip


def _radius(x: Axis, y: Axis, levels: Sequence[Level]) -> float:
    """Of the cell with the most seeds: as large as lets the cells of a level be told apart."""
    gaps = sorted(
        math.hypot(x.at(a.params) - x.at(b.params), y.at(a.tokens) - y.at(b.tokens))
        for level in levels
        for a, b in pairwise(level.cells)
    )
    gap = gaps[len(gaps) // 2] if gaps else math.inf
    most = max(c.seeds for level in levels for c in level.cells)
    return max(SMALLEST_DOT, min(LARGEST_DOT, 5.0 * math.sqrt(math.sqrt(most)), 0.5 * gap))


def _told(cell: Cell) -> str:
    words = f"{format_count(cell.params)} parameters on {format_count(cell.tokens)} tokens: "
    words += f"{format_flops(cell.flops_each)} FLOP a run, "
    words += f"{cell.seeds} seed{'s' if cell.seeds > 1 else ''}"
    if math.isfinite(cell.gpu_hours):
        words += f", {format_gpu_hours(cell.gpu_hours)} in all"
    return words


def _levels(x: Axis, y: Axis, levels: Sequence[Level]) -> list[str]:
    """The cells of a level joined, and at its left end what one run of it costs."""
    parts = []
    last = math.inf
    for level in levels:
        points = [(x.at(c.params), y.at(c.tokens)) for c in level.cells]
        if len(points) > 1:
            parts.append(svg.polyline(points, f"level l{level.place}"))
        at = (points[0][0] - 14, points[0][1] + 4)
        if last - at[1] >= LABEL_GAP:
            last = at[1]
            # Without the unit, which would reach over the axis; the caption names it.
            words = format_flops(level.flops)
            parts.append(svg.text(at, words, f"name l{level.place}", anchor="end"))
    return parts


def _prior(x: Axis, y: Axis, tokens_per_param: float) -> list[str]:
    """The line D = r N, where it crosses the picture."""
    low = max(x.low, y.low / tokens_per_param)
    high = min(x.high, y.high / tokens_per_param)
    if low >= high:
        return []
    start, end = ((x.at(n), y.at(n * tokens_per_param)) for n in (low, high))
    turn = math.degrees(math.atan2(end[1] - start[1], end[0] - start[0]))
    # Named on its upper side, along its lower end unless what levels are called stands there.
    away = math.radians(turn)
    right, up = math.cos(away), math.sin(away)
    words = f"D = {tokens_per_param:g} N, the prior optimum"
    if low > x.low:
        at, anchor = (start[0] + 24 * right + 7 * up, start[1] + 24 * up - 7 * right), ""
    else:
        at, anchor = (end[0] - 24 * right + 7 * up, end[1] - 24 * up - 7 * right), "end"
    named = svg.text(at, words, "tick", anchor=anchor, turn=turn)
    return [svg.line(start, end, "prior"), named]


def _unique(x: Axis, y: Axis, cells: Sequence[Cell]) -> list[str]:
    """Where a run has seen all of the data once, if that is in view."""
    data = cells[0].run.get("data") or {}
    unique = _once(data)
    if not y.holds(unique):
        return []
    at = y.at(unique)
    words = f"all {format_count(unique)} tokens of the data, once"
    if data.get("mixture"):
        words = f"{format_count(unique)} tokens: the first file of the mixture is read through"
    return [
        svg.line((x.start, at), (x.end, at), "prior"),
        svg.text((x.end - 4, at + 15), words, "tick", anchor="end"),
    ]


def _once(data: Mapping[str, Any]) -> float:
    """As many tokens can be trained on before one is read again; of a mixture, one of any file."""
    parts = data.get("mixture")
    if not parts:
        return number(data.get("tokens")) - number(data.get("evaluation_tokens"))
    whole = sum(number(part["weight"]) for part in parts)
    return min(_once(part["data"]) * whole / number(part["weight"]) for part in parts)


def _target(x: Axis, y: Axis, goal: Goal) -> list[str]:
    """The target's isoFLOP line by 6 N D, its prior optimum, and how far off N* may lie."""

    def on_line(params: float) -> svg.Point:
        return x.at(params), y.at(goal.flops / (6 * params))

    low = max(x.low, goal.flops / (6 * y.high))
    high = min(x.high, goal.flops / (6 * y.low))
    parts = [svg.line(on_line(low), on_line(high), "goal thin")]
    if math.isfinite(goal.factor):
        # An interval may be wider than the picture.
        ends = (max(low, goal.params / goal.factor), min(high, goal.params * goal.factor))
        parts.append(svg.line(on_line(ends[0]), on_line(ends[1]), "goal thick"))
    at = on_line(goal.params)
    parts.append(svg.dot(at, 4.5, "goal", told=f"target {goal.name}"))
    words = f"target {goal.name}"
    parts.append(svg.text((at[0] - 28, at[1] + 4), words, "goal name", anchor="end"))
    return parts


def _far_target(x: Axis, y: Axis, goal: Goal, largest: float) -> list[str]:
    """An arrow along the prior optimum, with how far it goes."""
    words = f"target {goal.name}: {format_times(goal.flops / largest)} times the largest run"
    tip = (x.end - 6, y.end + 8)
    return [
        svg.line((tip[0] - 26, tip[1] + 20), tip, "goal thin"),
        svg.polyline([(tip[0] - 10, tip[1] + 1), tip, (tip[0] - 3, tip[1] + 10)], "goal thin"),
        svg.text((tip[0] - 34, tip[1] + 16), words, "goal name", anchor="end"),
    ]


@dataclass(frozen=True)
class Cost:
    """What cells cost, dearest first, in one unit: `hours` of devices or, without them, FLOPs."""

    hours: bool
    cells: tuple[Cell, ...]
    places: Mapping[int, int]

    @classmethod
    def of(cls, levels: Sequence[Level]) -> Cost:
        cells = [cell for level in levels for cell in level.cells]
        places = {cell.level: level.place for level in levels for cell in level.cells}
        hours = total([c.gpu_hours for c in cells]) > 0
        key = (lambda c: c.gpu_hours) if hours else (lambda c: c.flops)
        return cls(hours, tuple(sorted(cells, key=key, reverse=True)), places)

    def of_cell(self, cell: Cell) -> float:
        return cell.gpu_hours if self.hours else cell.flops

    @property
    def total(self) -> float:
        return total([self.of_cell(c) for c in self.cells])

    def told(self, value: float) -> str:
        """`36.2 GPUh`, or FLOPs."""
        return format_gpu_hours(value) if self.hours else f"{format_flops(value)} FLOP"

    @property
    def half(self) -> int:
        """How many of the dearest cells cost half of all."""
        sums, half = accumulate(self.of_cell(c) for c in self.cells), 0.5 * self.total
        return next(i for i, s in enumerate(sums, 1) if s >= half * (1 - 1e-12))


def named_cell(cell: Cell) -> str:
    """What a bar's cell trains."""
    return f"{format_count(cell.params)} parameters on {format_count(cell.tokens)} tokens"


def cost(found: Cost, *, named: Callable[[Cell], str] = named_cell, what: str = "cell") -> str:
    """A bar for each cell, the dearest first, and below what the cells up to each make of all.

    `named` says what a cell is, `what` what all of them are called.
    """
    shown = found.cells[:MOST_BARS]
    left, right = 66.0, WIDTH - 8
    slot = (right - left) / len(shown)
    gap = 0.16 * slot if slot > 4 else 0.0
    whole, top = found.total, found.of_cell(shown[0])
    y = Axis(0.0, top, 206, 12)
    parts = svg.upward(y, y.ticks(5), _cost_tick, left=left, right=right)
    share = Axis(0.0, 1.0, 314, 244)
    parts += svg.upward(share, [0.0, 0.5, 1.0], percent, left=left, right=right)
    sums: list[svg.Point] = [(left, share.at(0.0))]
    so_far = 0.0
    for index, cell in enumerate(shown):
        value = found.of_cell(cell)
        so_far += value
        at = left + index * slot
        sums.append((at + slot, share.at(so_far / whole)))
        told = f"{named(cell)}: {found.told(value)}, {percent(value / whole)} of all"
        class_ = f"bar l{found.places[cell.level]}"
        parts.append(svg.bar(at + 0.5 * gap, at + slot - 0.5 * gap, y.at(value), y.start,
                             class_, told=told))  # fmt: skip
    parts += [
        svg.line((left, y.start), (right, y.start), "edge"),
        svg.area(sums, share.start, "sum"),
        svg.polyline(sums, "sum"),
        svg.text((left, share.end - 12), "share of all, summed from the left", "tick"),
        svg.text((right, y.start + 17), f"each bar a {what}, the dearest first", "tick",
                 anchor="end"),
    ]  # fmt: skip
    half = left + found.half * slot
    if found.half <= len(shown):
        words = f"half: {found.half} of {len(found.cells)} {what}s"
        near_end = half > 0.6 * right
        beside = (half - 8 if near_end else half + 8, share.at(0.5) + 16)
        parts.append(svg.dot((half, sums[found.half][1]), 3.5, "sum"))
        parts.append(svg.text(beside, words, anchor="end" if near_end else ""))
    told = f"Cost by {what}, the dearest first, and the share of all summed up"
    return svg.picture(WIDTH, share.start + 12, parts, told=told)


def _cost_tick(value: float) -> str:
    """A value of the axis of cost, without its unit, which the caption names."""
    if not value:
        return "0"
    return format_flops(value) if value >= 1e7 else f"{value:,.6g}"


def schedule(found: Timeline, arrays: Sequence[Mapping[str, Any]], *, local: bool) -> str:
    """A row for each array, as high as its share of elements at work, and the nodes in use."""
    shown = found.heaviest(MOST_ROWS)
    left, right = 208.0, WIDTH - 12
    x = Axis(0.0, found.end_s, left, right)
    floor = 12 + ROW * (len(shown) + 1) + 10
    ticks = svg.time_ticks(found.end_s)
    parts = svg.across(x, ticks, clock(ticks[-1] - ticks[-2]), top=8, floor=floor)
    for row, index in enumerate(shown):
        array, steps = arrays[index], found.elements[index]
        base = 12 + ROW * (row + 1) - 5
        peak = max(count for _, count in steps)
        told = (
            f"{array['name']}: {len(array['elements'])} elements, up to {peak} at a time, "
            f"from {format_duration(steps[0][0])} to {format_duration(steps[-1][0])}"
        )
        parts.append(svg.text((0, base - 3), array["name"], "tick mono"))
        parts.append(svg.area(_steps(steps, x, base, peak), base, "work", told=told))
        begins = found.begins(index)[1:] if int(array.get("segments", 1)) > 1 else []
        for at in map(x.at, begins):
            parts.append(svg.line((at, base), (at, base - ROW + 7), "cut"))
    base = floor - 5
    told = f"up to {max(n for _, n in found.used)} of {found.nodes} in use"
    name = f"all: of {found.nodes} {'at a time' if local else 'nodes'}"
    parts.append(svg.text((0, base - 3), name, "axis"))
    parts.append(svg.area(_steps(found.used, x, base, found.nodes), base, "all", told=told))
    top = base - ROW + 8
    parts.append(svg.line((left, top), (right, top), "limit"))
    return svg.picture(WIDTH, floor + 26, parts, told="When arrays would run if the site were free")


def _count(value: float) -> str:
    """`30 M`: a count at a tick, as exact as ticks are."""
    digits = next((d for d in (1, 2) if math.isclose(float(f"{value:.{d - 1}e}"), value)), 3)
    return format_count(value, digits=digits)


def clock(step_s: float) -> Callable[[float], str]:
    """How times are written on an axis with ticks that far apart: all in the unit of the step."""
    units = ((86400, "d"), (3600, "h"), (60, "min"))
    size, name = next((unit for unit in units if step_s % unit[0] == 0), (1, "s"))
    return lambda v: f"{v / size:,.6g} {name}".replace(",", "\u202f") if v else "0"


def _steps(steps: Sequence[tuple[float, int]], x: Axis, floor: float, peak: int) -> list[svg.Point]:
    """A stepped line; of many steps within two pixels, the highest."""
    scale = (x.end - x.start) / x.high
    if len(steps) > MOST_STEPS:
        highest: dict[int, int] = {}
        for time, count in steps:
            place = int(0.5 * scale * time)
            if count > highest.get(place, -1):
                highest[place] = count
        pairs = [(x.start + 2.0 * place, count) for place, count in highest.items()]
    else:
        pairs = [(x.start + scale * time, count) for time, count in steps]
    points: list[svg.Point] = []
    for at, count in pairs:
        if points:
            points.append((at, points[-1][1]))
        points.append((at, floor - (ROW - 8) * count / max(peak, 1)))
    return points
