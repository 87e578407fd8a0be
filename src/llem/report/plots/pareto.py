"""What deployments give for their joules: joules per token against latency and throughput."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llem._numerals import format_si, number
from llem.report.plots.theme import Plot, Theme, log_axis, span

Row = Mapping[str, Any]

# Names beside points: more are a cloud of text.
MOST_NAMED = 8
MOST_COLOURS = 8
# One to a series beside its colour: what is printed in grey tells them apart too.
MARKERS = "os^DvP*X"
MOST_FACTOR = 5.0


@dataclass(frozen=True)
class Panel:
    """What joules per token are drawn against: where small is good (1) or great is (-1)."""

    column: str
    title: str
    label: str
    sign: int
    best: str
    unit: str = ""

    def form(self, value: float) -> str:
        return format_si(value, self.unit, digits=2)


PANELS = (
    Panel("itl_p50_s", "latency", "median time between tokens", 1, "left", "s"),
    Panel("tokens_per_s", "throughput", "tokens per second", -1, "right"),
)


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Places of the points that no other is as good as in both and better in one, where small is
    good; by the first value. Points that are not finite are on no front."""
    finite = [i for i, point in enumerate(points) if all(map(math.isfinite, point))]
    found: list[int] = []
    best = math.inf
    for i in sorted(finite, key=lambda i: points[i]):
        twin = found and points[found[-1]] == points[i]
        if points[i][1] < best or twin:
            found.append(i)
            best = points[i][1]
    return found


def plot(rows: Sequence[Row], by: Sequence[str]) -> Plot | None:
    """The plot of groups of runs (`llem.results.study.deployments.group_served`) by these fields;
    None where no energy is known."""
    shown = [row for row in rows if number(row["j_per_token"]) > 0]
    # What nothing is known of (a server that tells no times between tokens) has no plot.
    panels = [p for p in PANELS if any(number(row[p.column]) > 0 for row in shown)]
    if not panels:
        return None
    both = len(panels) > 1
    corners = " and ".join(
        f"at the bottom {p.best}" + f" of the {place} plot" * both
        for p, place in zip(panels, ("left", "right"), strict=False)
    )
    against = " and ".join(p.label for p in panels)
    return Plot(
        "pareto",
        f"Joules per token against {' and '.join(p.title for p in panels)}",
        "Each point is a deployment over its cycles, with the 95 % interval of its joules per "
        f"token (drawn to a factor of {MOST_FACTOR:g} at most). On the lines are those that "
        f"no other of the same model beats in both; the best corner is {corners}.",
        f"Joules per token against {against}, with logarithmic axes and the Pareto front marked.",
        lambda figure, theme: _draw(shown, by, panels, figure, theme),
        columns=len(panels),
        width=8.6 if both else 6.4,
        height=4.0,
    )


def _draw(
    rows: Sequence[Row], by: Sequence[str], panels: Sequence[Panel], figure: Any, theme: Theme
) -> None:
    from matplotlib.patheffects import withStroke

    joules = np.array([number(row["j_per_token"]) for row in rows])
    low = np.array([number(row["j_per_token_low"]) for row in rows])
    high = np.array([number(row["j_per_token_high"]) for row in rows])
    # one that reaches further is as good as not known, and would set the axis
    low, high = np.maximum(low, joules / MOST_FACTOR), np.minimum(high, joules * MOST_FACTOR)
    errors = np.nan_to_num([joules - low, high - joules])
    series, colours = _series(rows, by, theme)
    # a name may lie over a point's interval
    halo = withStroke(linewidth=2.5, foreground=theme.background)
    for ax, panel in zip(figure.axes, panels, strict=True):
        x, sign = np.array([number(row[panel.column]) for row in rows]), panel.sign
        good = np.isfinite(x) & (x > 0)
        fronts = [
            front([(sign * x[i] if good[i] and own[i] else math.nan, joules[i])
                   for i in range(len(x))])
            for own in _alternatives(rows)
        ]  # fmt: skip
        for best in fronts:
            ax.step(
                x[best], joules[best], where="post", color=theme.quiet, lw=1.2, ls=(0, (4, 3)),
                zorder=2,
            )  # fmt: skip
        for (name, colour), marker in zip(colours.items(), MARKERS, strict=False):
            own = good & np.array([s == name for s in series])
            ax.errorbar(x[own], joules[own], yerr=errors[:, own], fmt=marker, ms=5, color=colour,
                        elinewidth=1.0, capsize=2, zorder=3, label=name)  # fmt: skip
        every = [i for best in fronts for i in best]
        ax.scatter(x[every], joules[every], s=95, facecolors="none", edgecolors=theme.ink, lw=1.1,
                   zorder=4, label="Pareto front")  # fmt: skip
        middle = math.sqrt(float(x[good].min()) * float(x[good].max()))
        for i in every[:: max(1, math.ceil(len(every) / MOST_NAMED))]:
            right = x[i] <= middle
            ax.annotate(_name(rows[i], by[1:] if colours.keys() != {""} else by),
                        (x[i], joules[i]), xytext=(8 if right else -8, 5),
                        textcoords="offset points", ha="left" if right else "right",
                        fontsize=7.5, color=theme.quiet, zorder=5, path_effects=[halo])  # fmt: skip
        ax.set_xlim(span(x[good], 1.4))
        reach = np.concatenate([joules[good] - errors[0][good], joules[good] + errors[1][good]])
        ax.set_ylim(span(reach, 1.3))
        log_axis(ax, "x", panel.form)
        log_axis(ax, "y", _joules)
        ax.set_xlabel(panel.label)
    figure.axes[0].set_ylabel("joules per token")
    handles, names = figure.axes[-1].get_legend_handles_labels()
    kept = [(h, n) for h, n in zip(handles, names, strict=True) if n]
    figure.axes[-1].legend(*zip(*kept, strict=True), fontsize=8, loc="best", title=None)


def _series(rows: Sequence[Row], by: Sequence[str], theme: Theme
            ) -> tuple[list[str], dict[str, Any]]:  # fmt: skip
    """The series of each row, and their colours: by the first field, where there are a few."""
    names = [f"{by[0].rpartition('.')[2]} {_told(row[by[0]])}" for row in rows]
    distinct = list(dict.fromkeys(names))
    if len(by) < 2 or len(distinct) > MOST_COLOURS:
        return [""] * len(rows), {"": theme.blue}
    import matplotlib as mpl

    shades = mpl.colormaps["viridis"](np.linspace(*theme.colormap, len(distinct)))
    return names, dict(zip(distinct, shades, strict=True))


def _name(row: Row, by: Sequence[str]) -> str:
    return ", ".join(f"{name.rpartition('.')[2]} {_told(row[name])}" for name in by)


def _told(value: Any) -> str:
    return "default" if value is None or value == "" or value != value else str(value)


def _alternatives(rows: Sequence[Row]) -> list[list[bool]]:
    """Which rows one may choose among: those of one model, where rows say whose they are."""
    models = [str(row.get("model", "")) for row in rows]
    return [[model == name for model in models] for name in dict.fromkeys(models)]


def _joules(value: float) -> str:
    return format_si(value, "J", digits=2)
