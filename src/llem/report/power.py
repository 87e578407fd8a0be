"""The picture of a measurement: power by device over time, its phases, window and idle power.

As an SVG file, as a page, and as a PNG (with matplotlib, from the same description).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llem.errors import InputError, UnavailableError
from llem.report import svg
from llem.report.svg import Axis, Point
from llem.report.tables import significant
from llem.report.whole import write_whole

WIDTH, LEFT, RIGHT = 760.0, 58.0, 732.0
HEAD, STRIP, AXIS, BETWEEN = 34.0, 14.0, 46.0, 28.0
# The height of a device's panel, by how many there are.
HEIGHTS = ((1, 190.0), (2, 130.0), (4, 92.0), (8, 62.0))
LEAST_HEIGHT = 40.0
MOST_PANELS = 32
PHASE_CLASSES = 7
# Time without a phase's name: drawn in grey.
UNNAMED = ("rest", "startup")
SUFFIXES = (".svg", ".png", ".html")


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One device: mean power (W) between the edges (s, one more), NaN where it is not known."""

    label: str
    told: str
    edges_s: Sequence[float]
    power_w: Sequence[float]
    idle_w: float = math.nan

    def pieces(self) -> list[list[tuple[float, float]]]:
        """(s, W) of the bins' middles and the outer edges, parted where nothing is known."""
        found: list[list[tuple[float, float]]] = []
        known = [math.isfinite(watts) for watts in self.power_w]
        for i, watts in enumerate(self.power_w):
            if not known[i]:
                continue
            if i == 0 or not known[i - 1]:
                found.append([(self.edges_s[i], watts)])
            found[-1].append(((self.edges_s[i] + self.edges_s[i + 1]) / 2, watts))
            if i + 1 == len(known) or not known[i + 1]:
                found[-1].append((self.edges_s[i + 1], watts))
        return found


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """A phase's stretch of time, s."""

    phase: str
    t0_s: float
    t1_s: float


@dataclass(frozen=True, kw_only=True)
class PowerPicture:
    """What is drawn. `phases` are (name, what is told of it); `windows` what counts, s."""

    title: str
    duration_s: float
    panels: Sequence[Panel]
    stretches: Sequence[Stretch] = ()
    phases: Sequence[tuple[str, str]] = ()
    windows: Sequence[tuple[float, float]] = ()
    notes: Sequence[str] = ()

    @property
    def top_w(self) -> float:
        """The upper end of the axis of power, shared by all devices so that they compare."""
        most = max((w for p in self.panels for w in p.power_w if math.isfinite(w)), default=1.0)
        idle = max((p.idle_w for p in self.panels if math.isfinite(p.idle_w)), default=0.0)
        return 1.08 * max(most, idle, 1e-9)

    def class_of(self, phase: str) -> str:
        """The class of a phase's colour, the same wherever it is drawn."""
        return phase_class(phase, [name for name, _ in self.phases])

    def areas(self, panel: Panel) -> list[tuple[str, list[tuple[float, float]]]]:
        """What lies below a device's line, (phase, (s, W) from left to right): its energy."""
        whole = Stretch(phase="", t0_s=0.0, t1_s=self.duration_s)
        found = []
        for piece in panel.pieces():
            for stretch in self.stretches or (whole,):
                if cut := _between(piece, stretch.t0_s, stretch.t1_s):
                    found.append((stretch.phase, cut))
        return found

    def edges(self) -> list[float]:
        """Where the window begins and ends, where that is inside the picture."""
        least = 0.004 * self.duration_s
        found = {t for window in self.windows for t in window}
        return sorted(t for t in found if least < t < self.duration_s - least)


def phase_class(phase: str, names: Sequence[str]) -> str:
    """`p0`, `p1`, ... in the order of the names; `rest` for time that has no name of its own."""
    named = [name for name in names if name not in UNNAMED]
    return f"p{named.index(phase) % PHASE_CLASSES}" if phase in named else "rest"


def _between(
    points: Sequence[tuple[float, float]], t0_s: float, t1_s: float
) -> list[tuple[float, float]]:
    """A line's part from one moment to another; [] where it has none."""
    import numpy as np

    seconds, watts = [s for s, _ in points], [w for _, w in points]
    first, last = max(t0_s, seconds[0]), min(t1_s, seconds[-1])
    if not last > first:
        return []
    inside = [(s, w) for s, w in points if first < s < last]
    ends = [(t, float(np.interp(t, seconds, watts))) for t in (first, last)]
    return [ends[0], *inside, ends[1]]


def write_power(picture: PowerPicture, path: str | Path) -> Path:
    """Write the picture as .svg, .png or .html, whole or not at all; returns its path.

    Raises InputError for another suffix, UnavailableError for a PNG without matplotlib.
    """
    path = Path(path)
    match path.suffix.lower():
        case ".svg":
            content = draw_power(picture).encode()
        case ".html":
            content = power_page(picture).encode()
        case ".png":
            content = _png(picture)
        case other:
            raise InputError(str(path), [f"{other!r} is no kind of picture: {', '.join(SUFFIXES)}"])
    write_whole(path, content)
    return path


def draw_power(picture: PowerPicture) -> str:
    """The picture as an SVG file that stands alone, on white."""
    style = _plain_colours(_file("power.css"), _file("style.css"))
    font = "system-ui, 'Helvetica Neue', Arial, 'Liberation Sans', sans-serif"
    before = f"<style>text {{ font-family: {font}; }}\n{style}</style>"
    return _svg(picture, before=before, ground=True)


def power_page(picture: PowerPicture) -> str:
    """The picture as one HTML page, light and dark, with nothing beside it."""
    notes = "".join(f"<li>{svg.clean(note)}</li>" for note in picture.notes)
    warnings = (
        f'<section class="warnings"><h2>To be known</h2><ul>{notes}</ul></section>' if notes else ""
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{svg.clean(picture.title)}</title>"
        f"<style>{_file('style.css')}svg {{ display: block; width: 100%; height: auto; }}\n"
        f"{_file('power.css')}</style></head><body><main>"
        f'<figure><div class="scroll">{_svg(picture)}</div></figure>{warnings}'
        "</main></body></html>\n"
    )


def _svg(picture: PowerPicture, *, before: str = "", ground: bool = False) -> str:
    shown = list(picture.panels)[:MOST_PANELS]
    height = next((h for most, h in HEIGHTS if len(shown) <= most), LEAST_HEIGHT)
    x = Axis(0.0, max(picture.duration_s, 1e-9), LEFT, RIGHT)
    parts = [svg.text((LEFT, 20), picture.title, "head")]
    legend, top = _legend(picture, HEAD + 4)
    parts += legend
    if picture.stretches:
        parts += _strip(picture, x, top)
        top += STRIP
    first = top
    bodies: list[str] = []
    for panel in shown:
        body, top = _panel(panel, picture, x, top + BETWEEN, height)
        bodies += body
    floor = top
    end = x.at(picture.duration_s)
    ticks = svg.time_ticks(picture.duration_s, 8)
    for tick in ticks:
        at = x.at(tick)
        label = time_label(tick, picture.duration_s)
        parts.append(svg.text((at, floor + 17), label, "tick", anchor="middle"))
    for edge in picture.edges():
        bodies.append(svg.line((x.at(edge), first), (x.at(edge), floor), "window"))
    parts += bodies
    parts.append(svg.text(((LEFT + end) / 2, floor + 36), "time", "axis", anchor="middle"))
    bottom = floor + AXIS
    told = list(picture.notes) if ground else []
    if len(picture.panels) > len(shown):
        told.append(f"{len(picture.panels) - len(shown)} devices more are not drawn")
    if picture.edges():
        told.insert(0, "Dotted: where what counts begins and ends.")
    for note in told:
        for line in _folded(note, 118):
            parts.append(svg.text((LEFT, bottom + 10), line, "tick"))
            bottom += 15
    bottom += 8
    paper = svg.element("rect", width=WIDTH, height=bottom, fill="#ffffff") if ground else ""
    words = f"{picture.title}: power by device over time"
    drawn = svg.picture(WIDTH, bottom, [before, paper, *parts], told=words)
    size = f'<svg width="{svg.pixels(WIDTH)}" height="{svg.pixels(bottom)}" '
    return drawn.replace("<svg ", size, 1) if ground else drawn


def _legend(picture: PowerPicture, top: float) -> tuple[list[str], float]:
    """Each phase with its colour and its energy, in lines; and where they end."""
    parts: list[str] = []
    left, y = LEFT, top
    for name, told in picture.phases:
        words = f"{name} {told}".strip()
        # 6.7 pixels are the mean of a letter at 12 pixels
        wide = 16 + 6.7 * len(words) + 14
        if left + wide > RIGHT and left > LEFT:
            left, y = LEFT, y + 18
        parts.append(svg.bar(left, left + 10, y, y + 10, picture.class_of(name)))
        parts.append(svg.text((left + 16, y + 9.5), words))
        left += wide
    if any(math.isfinite(panel.idle_w) for panel in picture.panels):
        if left + 80 > RIGHT:
            left, y = LEFT, y + 18
        parts.append(svg.line((left, y + 5), (left + 18, y + 5), "idle"))
        parts.append(svg.text((left + 24, y + 9.5), "idle"))
        left += 80
    return parts, (y + 20 if left > LEFT else top - 8)


def _strip(picture: PowerPicture, x: Axis, top: float) -> list[str]:
    """The phases as blocks above the panels."""
    parts = []
    for s in picture.stretches:
        left, right = x.at(max(0.0, s.t0_s)), x.at(min(picture.duration_s, s.t1_s))
        if right > left:
            told = f"{s.phase}: {time_label(round(s.t1_s - s.t0_s, 2), 1)}"
            parts.append(svg.bar(left, right, top, top + STRIP - 6, picture.class_of(s.phase),
                                 told=told))  # fmt: skip
    return parts


def _panel(
    panel: Panel, picture: PowerPicture, x: Axis, top: float, height: float
) -> tuple[list[str], float]:
    floor = top + height
    y = Axis(0.0, picture.top_w, floor, top)
    parts = []
    for tick in svg.time_ticks(picture.duration_s, 8):
        parts.append(svg.line((x.at(tick), top), (x.at(tick), floor), "grid"))
    ticks = y.ticks(5 if height > 120 else 3 if height > 50 else 2)
    unit, factor = ("kW", 1e3) if picture.top_w >= 2000 else ("W", 1.0)
    parts += svg.upward(
        y, ticks, lambda w: f"{significant(w / factor, 3) if w else '0'} {unit}", left=LEFT,
        right=RIGHT,
    )  # fmt: skip
    parts += [svg.line((LEFT, floor), (RIGHT, floor), "edge")]
    for phase, cut in picture.areas(panel):
        class_ = f"area {picture.class_of(phase)}" if phase else "power"
        parts.append(svg.area([(x.at(s), y.at(w)) for s, w in cut], floor, class_, told=phase))
    for piece in panel.pieces():
        points: list[Point] = [(x.at(s), y.at(w)) for s, w in piece]
        parts.append(svg.polyline(points, "power"))
    if math.isfinite(panel.idle_w):
        parts.append(svg.line((LEFT, y.at(panel.idle_w)), (RIGHT, y.at(panel.idle_w)), "idle"))
    parts.append(svg.text((LEFT, top - 7), panel.label, "name"))
    parts.append(svg.text((RIGHT, top - 7), panel.told, "told", anchor="end"))
    return parts, floor


def time_label(seconds: float, duration_s: float) -> str:
    """`30 s`, `5 min`, `2 h`: in the unit that suits the whole."""
    for limit, factor, unit in ((180, 1, "s"), (3 * 3600, 60, "min"), (4 * 86400, 3600, "h")):
        if duration_s < limit:
            return f"{seconds / factor:g} {unit}"
    return f"{seconds / 86400:g} d"


def _folded(text: str, width: int) -> list[str]:
    import textwrap

    return textwrap.wrap(text, width) or [""]


def _file(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _plain_colours(css: str, page: str) -> str:
    """Without variables, which many programs that read SVG do not know: the light page's."""
    light = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]+)", page.partition("@media")[0]))
    return re.sub(r"var\(--([a-z-]+)\)", lambda found: light[found[1]], css)


def _png(picture: PowerPicture) -> bytes:
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise UnavailableError(
            "a PNG is drawn by matplotlib, which is not installed here",
            remedy="pip install 'llem[plot]', or write .svg or .html",
        )
    from llem.report.plots.power import power_plot

    return power_plot(picture).png()
