"""The picture of a measurement: power by device over time, its phases, window and idle power.

As an SVG file, as a page, and as a PNG (with matplotlib, from the same description).
"""

from __future__ import annotations

import math
import re
from pathlib import Path

from llem._numerals import significant
from llem.errors import InputError, UnavailableError
from llem.report import svg
from llem.report.power.picture import (
    MOST_PANELS,
    Panel,
    PowerPicture,
    time_label,
)
from llem.report.power.plot import power_plot
from llem.report.svg import Axis, Point
from llem.report.whole import write_whole

WIDTH, LEFT, RIGHT = 760.0, 58.0, 732.0
HEAD, STRIP, AXIS, BETWEEN = 34.0, 14.0, 46.0, 28.0
# The height of a device's panel, by how many there are.
HEIGHTS = ((1, 190.0), (2, 130.0), (4, 92.0), (8, 62.0))
LEAST_HEIGHT = 40.0
SUFFIXES = (".svg", ".png", ".html")


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
    style = _plain_colours(_power_style(), _style())
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
        f"<style>{_style()}svg {{ display: block; width: 100%; height: auto; }}\n"
        f"{_power_style()}</style></head><body><main>"
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


def _folded(text: str, width: int) -> list[str]:
    import textwrap

    return textwrap.wrap(text, width) or [""]


def _style() -> str:
    """The style of every page."""
    return Path(__file__).parent.with_name("style.css").read_text(encoding="utf-8")


def _power_style() -> str:
    return Path(__file__).with_name("power.css").read_text(encoding="utf-8")


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
    return power_plot(picture).png()
