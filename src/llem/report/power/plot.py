"""The picture of a measurement with matplotlib, for a PNG; it shows the same."""

from __future__ import annotations

import math
from typing import Any

from llem.report.plots.theme import Plot, Theme
from llem.report.power.picture import MOST_PANELS, PowerPicture, time_label
from llem.report.svg import time_ticks

# As in power.css.
COLOURS = {"p0": "#0072b2", "p1": "#e69f00", "p2": "#009e73", "p3": "#cc79a7", "p4": "#56b4e9",
           "p5": "#d55e00", "p6": "#8c7b00", "rest": "#8a949e"}  # fmt: skip


def power_plot(picture: PowerPicture) -> Plot:
    """One panel a device, below each other."""
    count = min(len(picture.panels), MOST_PANELS)
    return Plot(
        name="power", title=picture.title, caption="", alt=picture.title, rows=max(count, 1),
        draw=lambda figure, theme: _draw(picture, figure, theme), width=8.0,
        height=1.1 + count * (2.4 if count == 1 else 1.6 if count <= 4 else 1.1),
    )  # fmt: skip


def _draw(picture: PowerPicture, figure: Any, theme: Theme) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    kilo = picture.top_w >= 2000
    factor = 1e3 if kilo else 1.0
    ticks = time_ticks(picture.duration_s, 8)
    for ax, panel in zip(figure.axes, picture.panels, strict=False):
        for phase, cut in picture.areas(panel):
            colour, alpha = (
                (COLOURS[picture.class_of(phase)], 0.42) if phase else (theme.blue, 0.16)
            )
            ax.fill_between([s for s, _ in cut], [w / factor for _, w in cut], color=colour,
                            alpha=alpha, linewidth=0)  # fmt: skip
        for piece in panel.pieces():
            seconds, watts = [s for s, _ in piece], [w / factor for _, w in piece]
            ax.plot(seconds, watts, color=theme.blue, linewidth=1.0)
        if math.isfinite(panel.idle_w):
            ax.axhline(panel.idle_w / factor, color=theme.orange, linewidth=0.9, linestyle="--")
        for edge in picture.edges():
            ax.axvline(edge, color=theme.ink, linewidth=0.8, linestyle=":")
        ax.set(xlim=(0, picture.duration_s), ylim=(0, picture.top_w / factor))
        ax.set_xticks(ticks, [time_label(t, picture.duration_s) for t in ticks])
        ax.set_ylabel("kW" if kilo else "W")
        ax.set_title(panel.label, loc="left", fontsize=9, fontweight="bold")
        ax.set_title(panel.told, loc="right", fontsize=9, color=theme.quiet)
        if ax is not figure.axes[-1]:
            ax.tick_params(labelbottom=False)
    figure.suptitle(picture.title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    handles: list[Any] = [
        Patch(color=COLOURS[picture.class_of(name)], alpha=0.42, label=f"{name} {told}".strip())
        for name, told in picture.phases
    ]
    if any(math.isfinite(panel.idle_w) for panel in picture.panels):
        line = Line2D([], [], color=theme.orange, linestyle="--", linewidth=0.9)
        line.set_label("idle")
        handles.append(line)
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)),
                      fontsize=8.5)  # fmt: skip
