"""Loss against model size, one colour for each compute level, with the law."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llem._numerals import format_flops
from llem.report.choices import law_of
from llem.report.plots.theme import (
    FloatArray,
    Plot,
    Theme,
    count,
    log_axis,
    minima,
    numbers,
    padded,
    span,
    thinned,
)
from llem.report.runs import Runs
from llem.scaling import FlopsModel, Law

MAX_LEVEL_CURVES = 9


def plot(runs: Runs, fit: Mapping[str, Any] | None) -> Plot | None:
    """The plot, None where no run has a loss."""
    if not runs.placed.any():
        return None
    return Plot(
        "loss",
        "Loss against model size",
        _caption(fit),
        "Scatter plot of loss against model size, one colour for each compute level.",
        lambda figure, theme: _draw(runs, fit, theme, figure),
        width=7.2,
        height=4.5,
    )


def _caption(fit: Mapping[str, Any] | None) -> str:
    if fit is None:
        return "One colour for each compute level. No law could be fitted."
    words = "One colour for each compute level; lines: the law at that compute"
    words += "; dashed: its optimum. " if fit.get("frontier") else ". "
    if minima(fit):
        words += "Diamonds: minimum of a parabola through the runs of a level. "
    return f"{words}Crosses: runs left out."


def _draw(runs: Runs, fit: Mapping[str, Any] | None, theme: Theme, figure: Any) -> None:
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm

    from llem.scaling.judging.isoflop import compute_levels

    (ax,) = figure.axes
    law = None if fit is None else law_of(fit)
    placed = np.flatnonzero(runs.placed)
    levels = [placed[rows] for rows in compute_levels(runs.flops[placed])]
    flops = np.array([np.exp(np.mean(np.log(runs.flops[rows]))) for rows in levels])
    norm = LogNorm(flops.min(), flops.max() if flops.max() > flops.min() else flops.min() * 10)
    low, high = theme.colormap
    colours = [colormaps["viridis"](low + (high - low) * float(norm(c))) for c in flops]
    ax.set_xlim(span(runs.params[placed], 1.35))
    curves = _curve_levels([len(rows) for rows in levels])
    shown = set(thinned(placed).tolist())
    for i, (rows, colour, c) in enumerate(zip(levels, colours, flops, strict=True)):
        seen = rows[[int(r) in shown for r in rows]]
        used, out = seen[runs.fitted[seen]], seen[~runs.fitted[seen]]
        label = f"{format_flops(c)} FLOP" if len(levels) <= MAX_LEVEL_CURVES else None
        ax.scatter(
            runs.params[used], runs.loss[used], s=22, color=colour, zorder=3, label=label, lw=0
        )
        ax.scatter(
            runs.params[out], runs.loss[out], s=30, color=colour, marker="x", lw=1.3, zorder=3
        )
        if fit is not None and law is not None and i in curves:
            n = np.geomspace(*span(runs.params[rows], 1.5), 160)
            curve = _curve(fit, law, n, c, runs.unique_tokens[rows])
            ax.plot(n, curve, color=colour, lw=1.3, alpha=0.9)
    finite = runs.loss[runs.fitted & runs.placed] if runs.fitted.any() else runs.loss[placed]
    if finite.size:
        # Diverged runs must not squeeze the rest of the plot; what lies outside is told below.
        ax.set_ylim(padded(finite, 0.12))
        top = ax.get_ylim()[1]
        above = int(np.count_nonzero(runs.loss[placed] > top))
        if above:
            words = f"{above} run{'s' if above > 1 else ''} left out above this range"
            ax.annotate(
                f"↑ {words}", (0.985, 0.985), xycoords="axes fraction", ha="right", va="top",
                color=theme.quiet, fontsize=8.5,
            )  # fmt: skip
    if fit is not None:
        found = minima(fit)
        if found:
            ax.scatter(
                numbers(found, "params"), numbers(found, "loss"), marker="D", s=34, lw=1.2,
                facecolor=theme.background, edgecolor=theme.ink, zorder=4,
                label="isoFLOP minimum",
            )  # fmt: skip
        if fit.get("frontier"):
            n, loss = numbers(fit["frontier"], "params"), numbers(fit["frontier"], "loss")
            ax.plot(n, loss, color=theme.ink, lw=1.1, ls=(0, (4, 3)), label="optimum", zorder=2)
    log_axis(ax, "x", count)
    ax.set_xlabel("parameters N")
    ax.set_ylabel("loss, nats per token")
    if len(levels) > MAX_LEVEL_CURVES:
        _colour_bar(figure, ax, theme, flops, (low, high))
        where: dict[str, Any] = {"loc": "best"}
    else:
        where = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)}
    if ax.get_legend_handles_labels()[1]:
        ax.legend(fontsize=8.5, handlelength=1.4, **where)


def _curve(
    fit: Mapping[str, Any], law: Law, n: FloatArray, flops: float, unique: FloatArray
) -> FloatArray:
    """Loss of the law along a level; NaN where its runs have data of different sizes."""
    model = FlopsModel.from_dict(dict(fit["flops_model"]))
    tokens = model.tokens(n, flops)
    options: dict[str, FloatArray | float] = {}
    if "C" in law.variables:
        options["flops"] = flops
    if "U" in law.variables:
        if not np.isfinite(unique).any() or np.ptp(np.log(unique)) > 0.01:
            return np.full(n.size, np.nan)
        options["unique_tokens"] = float(unique[0])
    return law.predict(fit["params"], n, tokens, **options)


def _colour_bar(
    figure: Any, ax: Any, theme: Theme, flops: FloatArray, ends: tuple[float, float]
) -> None:
    """What the colours mean where the levels are too many to name."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, LogNorm

    part = ListedColormap(colormaps["viridis"](np.linspace(*ends, 200)))
    mapped = ScalarMappable(LogNorm(flops.min(), flops.max()), part)
    bar = figure.colorbar(mapped, ax=ax, aspect=35, pad=0.02)
    bar.set_label("compute C, FLOP")
    bar.outline.set_visible(False)
    bar.ax.minorticks_off()


def _curve_levels(sizes: list[int]) -> set[int]:
    """The levels that get a curve: all, or the nine with most runs."""
    order = sorted(range(len(sizes)), key=lambda i: (-sizes[i], i))
    return set(order[:MAX_LEVEL_CURVES])
