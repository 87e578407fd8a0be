"""Inline SVG for pages: axes with good ticks, and marks, as text that HTML takes in as it is.

Colours and fonts are the page's: marks carry classes, and style.css says what they look like.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

Point = tuple[float, float]

# What XML 1.0 cannot hold, escaped or not.
NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
# Mantissas of ticks on a logarithmic axis, the densest first; then every so many decades.
MANTISSAS = ((1.0, 2.0, 5.0), (1.0, 3.0), (1.0,))
DECADES = (2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 50, 100)
# Steps of an axis of time, in seconds; beyond, round numbers of days.
TIME_STEPS = (
    *(1, 2, 5, 10, 15, 30),
    *(60 * k for k in (1, 2, 5, 10, 15, 30)),
    *(3600 * k for k in (1, 2, 3, 6, 12)),
)
DAY_S = 86400


@dataclass(frozen=True)
class Axis:
    """Values from `low` to `high` on pixels from `start` to `end`, linear or logarithmic."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """The pixel of a value; beyond the ends for values beyond them."""
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def holds(self, value: float) -> bool:
        """Whether a value lies between the ends."""
        return self.low <= value <= self.high

    def ticks(self, most: int = 7) -> list[float]:
        """At most so many round values between the ends."""
        return (log_ticks if self.log else plain_ticks)(self.low, self.high, most)


def plain_ticks(low: float, high: float, most: int = 7) -> list[float]:
    """The most multiples of 1, 2 or 5 times a power of ten that `most` allows, ends included."""
    step = 10.0 ** math.floor(math.log10((high - low) / max(most, 1)))
    while True:
        for factor in (1, 2, 5):
            found = _multiples(low, high, step * factor)
            if len(found) <= most:
                return found
        step *= 10


def log_ticks(low: float, high: float, most: int = 7) -> list[float]:
    """Round values between positive ends, as dense as `most` allows; even where the ends are near.

    1, 2 and 5 of each decade, else 1 and 3, else powers of ten, else every second or third.
    """
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))

    def within(values: Sequence[float]) -> list[float]:
        return [v for v in values if low * (1 - 1e-9) <= v <= high * (1 + 1e-9)]

    for mantissas in MANTISSAS:
        found = within([m * 10.0**k for k in range(first, last + 1) for m in mantissas])
        if len(found) <= most:
            break
    else:
        for step in DECADES:
            found = within([10.0**k for k in range(first, last + 1) if k % step == 0])
            if len(found) <= most:
                break
    # Between near ends hardly one of these lies: there a logarithmic axis is nearly a plain one.
    return found if len(found) >= 3 or high / low > 5 else plain_ticks(low, high, most)


def time_ticks(end_s: float, most: int = 7) -> list[float]:
    """Round times from 0 to `end_s` seconds, two at least and at most so many."""
    if end_s < 2:
        return plain_ticks(0.0, end_s, most)
    for step in TIME_STEPS:
        if end_s / step < most:
            return _multiples(0.0, end_s, step)
    return [DAY_S * day for day in plain_ticks(0.0, end_s / DAY_S, most) if day == int(day)]


def _multiples(low: float, high: float, step: float) -> list[float]:
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def clean(text: object) -> str:
    """Text for XML and HTML: escaped, without characters that no document may hold."""
    return escape(NOT_XML.sub("\ufffd", str(text)))


def pixels(value: float) -> str:
    """A length to a tenth of a pixel, as short as it goes."""
    return f"{round(value, 1) + 0.0:.7g}"


def element(name: str, content: str = "", **attributes: object) -> str:
    """One element; `content` is markup, attributes are escaped. `class_` and `text_anchor` are
    written as SVG has them, numbers as pixels, and what is None or empty is left out."""
    parts = [
        f' {key.rstrip("_").replace("_", "-")}="'
        f'{pixels(value) if isinstance(value, (int, float)) else clean(value)}"'
        for key, value in attributes.items()
        if value is not None and value != ""
    ]
    inside = f">{content}</{name}>" if content else "/>"
    return f"<{name}{''.join(parts)}{inside}"


def title(words: str) -> str:
    """The text that a pointer at rest over an element shows."""
    return f"<title>{clean(words)}</title>" if words else ""


def text(at: Point, words: str, class_: str = "", *, anchor: str = "", turn: float = 0.0) -> str:
    """Words at a point, from it on, or ending there (`end`), or around it (`middle`)."""
    x, y = at
    turned = f"rotate({pixels(turn)} {pixels(x)} {pixels(y)})" if turn else ""
    return element("text", clean(words), x=x, y=y, class_=class_, text_anchor=anchor,
                   transform=turned)  # fmt: skip


def line(start: Point, end: Point, class_: str = "") -> str:
    """A straight line."""
    return element("line", x1=start[0], y1=start[1], x2=end[0], y2=end[1], class_=class_)


def polyline(points: Sequence[Point], class_: str = "") -> str:
    """A line through points."""
    path = " ".join(f"{pixels(x)},{pixels(y)}" for x, y in points)
    return element("polyline", points=path, class_=class_)


def area(points: Sequence[Point], floor: float, class_: str = "", *, told: str = "") -> str:
    """What lies between a line through points and the height `floor`."""
    corners = [(points[0][0], floor), *points, (points[-1][0], floor)]
    path = " ".join(f"{pixels(x)},{pixels(y)}" for x, y in corners)
    return element("polygon", title(told), points=path, class_=class_)


def bar(left: float, right: float, top: float, floor: float, class_: str, *, told: str = "") -> str:
    """A bar, never thinner or lower than can be seen."""
    height, width = max(floor - top, 0.5), max(right - left, 0.5)
    # Written out, and so is a point: a plan has hundreds.
    return (
        f'<rect x="{pixels(left)}" y="{pixels(floor - height)}" width="{width:.2f}" '
        f'height="{pixels(height)}" class="{clean(class_)}">{title(told)}</rect>'
    )


def dot(at: Point, radius: float, class_: str, *, told: str = "") -> str:
    """A point."""
    return (
        f'<circle cx="{pixels(at[0])}" cy="{pixels(at[1])}" r="{pixels(radius)}" '
        f'class="{clean(class_)}">{title(told)}</circle>'
    )


def picture(width: float, height: float, content: Sequence[str], *, told: str) -> str:
    """The whole picture, as wide as its place; `told` says what it shows to who cannot see it."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {pixels(width)} {pixels(height)}" '
        f'role="img" aria-label="{clean(told)}">' + "\n".join(content) + "</svg>"
    )


def across(axis: Axis, ticks: Sequence[float], form: Callable[[float], str], *, top: float,
           floor: float) -> list[str]:  # fmt: skip
    """A horizontal axis below `floor`: a grid line and a label at each tick."""
    parts = []
    for tick in ticks:
        x = axis.at(tick)
        parts += [
            line((x, top), (x, floor), "grid"),
            text((x, floor + 17), form(tick), "tick", anchor="middle"),
        ]
    return [*parts, line((axis.start, floor), (axis.end, floor), "edge")]


def upward(axis: Axis, ticks: Sequence[float], form: Callable[[float], str], *, left: float,
           right: float) -> list[str]:  # fmt: skip
    """A vertical axis left of `left`: a grid line and a label at each tick."""
    parts = []
    for tick in ticks:
        y = axis.at(tick)
        parts += [
            line((left, y), (right, y), "grid"),
            text((left - 8, y + 4), form(tick), "tick", anchor="end"),
        ]
    return [*parts, line((left, axis.start), (left, axis.end), "edge")]
