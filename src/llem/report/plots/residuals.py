"""What the law does not explain, against size, tokens and compute."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llem.report.choices import law_of
from llem.report.plots.theme import Plot, Theme, compute, count, log_axis, span, thinned
from llem.report.runs import FloatArray, Runs

# Residuals beyond FAR_OUT times this quantile are drawn at the edge.
MOST = 0.95
FAR_OUT = 6.0
# Names nearer than this share of the height would lie on each other.
CROWDED = 0.08


def plot(runs: Runs, fit: Mapping[str, Any] | None) -> Plot | None:
    """The plot, None where nothing was fitted."""
    if fit is None or not (runs.placed & runs.fitted).any():
        return None
    rows = np.flatnonzero(runs.placed & runs.fitted)
    percent = _percent(runs, rows, fit)
    if not np.isfinite(percent).any():
        return None
    return Plot(
        "residuals",
        "What the law does not explain",
        "Relative error of the law for each fitted run, against size, tokens and compute. "
        "A trend here means that the law has the wrong form. The worst runs are named"
        + (", triangles lie outside the range." if (abs(percent) > _limit(percent)).any() else "."),
        "Three scatter plots of residuals around zero.",
        lambda figure, theme: _draw(runs, rows, percent, theme, figure),
        columns=3,
        width=7.8,
        height=3.1,
    )


def _percent(runs: Runs, rows: np.ndarray[Any, Any], fit: Mapping[str, Any]) -> FloatArray:
    """Loss above the law in per cent, of rows (m,)."""
    law = law_of(fit)
    unique = runs.unique_tokens[rows]
    predicted = law.predict(
        fit["params"],
        runs.params[rows],
        runs.tokens[rows],
        flops=runs.flops[rows],
        unique_tokens=unique if np.isfinite(unique).all() else None,
    )
    return np.asarray(100 * (runs.loss[rows] / predicted - 1))


def _draw(
    runs: Runs, rows: np.ndarray[Any, Any], percent: FloatArray, theme: Theme, figure: Any
) -> None:
    limit = _limit(percent)
    worst = np.argsort(-np.abs(percent), kind="stable")[:2]
    beyond = np.abs(percent) > limit
    percent = np.clip(percent, -0.97 * limit, 0.97 * limit)
    shown = thinned(np.arange(rows.size))
    columns = (
        ("parameters N", runs.params[rows], count),
        ("tokens D", runs.tokens[rows], count),
        ("compute C, FLOP", runs.flops[rows], compute),
    )
    crowded = rows.size > 60
    for i, (ax, (label, x, form)) in enumerate(zip(figure.axes, columns, strict=True)):
        ax.axhline(0, color=theme.quiet, lw=1.0)
        ax.scatter(
            x[shown], percent[shown], s=9 if crowded else 17, color=theme.blue,
            alpha=0.6 if crowded else 0.85, lw=0, zorder=3,
        )  # fmt: skip
        for side, marker in ((1, "^"), (-1, "v")):
            out = beyond & (side * percent > 0)
            ax.scatter(
                x[out], percent[out], s=22, marker=marker, color=theme.orange, lw=0, zorder=4
            )
        ax.set_xlim(span(x, 1.7))
        ax.set_ylim(-limit, limit)
        log_axis(ax, "x", form, narrow=True)
        ax.tick_params(axis="x", labelsize=8)
        ax.set_xlabel(label)
        if i == 0:
            ax.set_ylabel("loss above the law, %")
        else:
            ax.tick_params(axis="y", labelleft=False)
        if i == 2 and len(rows) > 4:
            _name_worst(
                ax, [(float(x[j]), float(percent[j]), runs.run_id[rows[j]]) for j in worst], theme
            )


def _limit(percent: FloatArray) -> float:
    """Half height of the plot: all residuals, unless a few would press the others to a line."""
    size = np.abs(percent[np.isfinite(percent)])
    whole, most = float(size.max()), float(np.quantile(size, MOST))
    return 1.25 * max(2.0 * most if whole > FAR_OUT * most else whole, 1e-6)


def _name_worst(ax: Any, points: list[tuple[float, float, str]], theme: Theme) -> None:
    low, high = ax.get_xlim()
    bottom, top = ax.get_ylim()
    if len(points) > 1 and abs(points[0][1] - points[1][1]) < CROWDED * (top - bottom):
        points = points[:1]
    for x, y, name in points:
        right = np.log(x / low) > 0.5 * np.log(high / low)
        # Away from zero, but within the plot.
        up = (y > 0) == (abs(y) < 0.9 * top)
        ax.annotate(
            name if len(name) <= 14 else name[:13] + "…", (x, y),
            xytext=(-5 if right else 5, 3 if up else -3), textcoords="offset points",
            ha="right" if right else "left", va="bottom" if up else "top", fontsize=7.5,
            color=theme.quiet,
        )  # fmt: skip
