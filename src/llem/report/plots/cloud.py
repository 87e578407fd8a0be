"""The resamples at each target: where their optima lie, and what loss they expect there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llem._numerals import known, number, percent
from llem.report.plots.theme import (
    FloatArray,
    Plot,
    Theme,
    count,
    log_axis,
    padded,
    span,
)
from llem.report.runs import Runs
from llem.report.tables import format_target, is_far
from llem.scaling import FlopsModel

MAX_TARGETS = 3
MIN_POINTS = 20
# Of the kernel, as a share of Scott's rule, and points of the grid on each side.
SMOOTHING = 0.85
GRID = 70


def plot(runs: Runs, fit: Mapping[str, Any] | None) -> Plot | None:
    """The plot, None without a bootstrap."""
    shown = [
        optimum
        for optimum in (fit or {}).get("optima") or []
        if len((optimum.get("cloud") or {}).get("params") or []) >= MIN_POINTS
    ][:MAX_TARGETS]
    if fit is None or not shown:
        return None
    level = percent(fit["ci"]["level"])
    one = len(shown) == 1
    words = (
        f"Each point: the optimum of one resample. Cross: the {level} intervals of N* and D* "
        "(thin: with the allowance for the law's own error, far beyond the data). Line: sizes and "
        f"tokens of one compute. Outline: {level} of the resamples in size and loss."
    )
    return Plot(
        "cloud",
        "The optimum under resampling",
        words,
        "Scatter plots of best size and best tokens, and of best size and loss, over resamples.",
        lambda figure, theme: _draw(fit, shown, theme, figure),
        rows=1 if one else 2,
        columns=2 if one else len(shown),
        height=3.5 if one else 5.6,
        width=7.6 if one or len(shown) == 2 else 8.4,
    )


def _draw(
    fit: Mapping[str, Any], shown: Sequence[Mapping[str, Any]], theme: Theme, figure: Any
) -> None:
    axes = np.array(figure.axes).reshape((1, 2) if len(shown) == 1 else (2, len(shown)))
    for i, optimum in enumerate(shown):
        upper, lower = axes[0] if len(shown) == 1 else axes[:, i]
        x = np.array(optimum["cloud"]["params"])
        y = np.array(optimum["cloud"]["tokens"])
        loss = np.array(optimum["cloud"]["loss"])
        _sizes_and_tokens(upper, fit, optimum, x, y, theme)
        _sizes_and_loss(lower, fit, optimum, x, loss, theme)
        first = i == 0
        upper.set_ylabel("best tokens D*" if first or len(shown) == 1 else "")
        lower.set_ylabel("loss, nats per token" if first or len(shown) == 1 else "")
        title = format_target(optimum["target"]) + (", far beyond the data" * is_far(optimum))
        upper.set_title(title, loc="left", fontsize=10, color=theme.ink)


def _sizes_and_tokens(
    ax: Any,
    fit: Mapping[str, Any],
    optimum: Mapping[str, Any],
    x: FloatArray,
    y: FloatArray,
    theme: Theme,
) -> None:
    n, d = number(optimum["params"]), number(optimum["tokens"])
    spread = {
        name: np.array([number(v) for v in optimum["ci"][name]]) for name in ("params", "tokens")
    }
    wide_x, wide_y = np.append(x, spread["params"]), np.append(y, spread["tokens"])
    ax.set_xlim(span(wide_x[np.isfinite(wide_x)], 1.15))
    ax.set_ylim(span(wide_y[np.isfinite(wide_y)], 1.15))
    low, high = ax.get_xlim()
    line = np.geomspace(low, high, 60)
    model = FlopsModel.from_dict(dict(fit["flops_model"]))
    ax.plot(line, model.tokens(line, number(optimum["flops"])), color=theme.quiet, lw=0.9, zorder=1)
    ax.scatter(x, y, s=10, color=theme.blue, alpha=0.3, lw=0, zorder=2)
    for key, width in (("ci", 0.9), ("ci_parameters", 2.2)):
        ends = (optimum.get(key) or {}).get("params"), (optimum.get(key) or {}).get("tokens")
        if all(known(v) for pair in ends if pair for v in pair):
            ax.plot(ends[0], [d, d], color=theme.ink, lw=width, zorder=3, solid_capstyle="butt")
            ax.plot([n, n], ends[1], color=theme.ink, lw=width, zorder=3, solid_capstyle="butt")
    ax.scatter([n], [d], s=42, facecolor=theme.orange, edgecolor=theme.ink, lw=1.2, zorder=4)
    log_axis(ax, "x", count, narrow=True)
    log_axis(ax, "y", count, narrow=True)
    ax.tick_params(labelsize=8)
    ax.set_xlabel("best size N*")


def _sizes_and_loss(
    ax: Any,
    fit: Mapping[str, Any],
    optimum: Mapping[str, Any],
    x: FloatArray,
    loss: FloatArray,
    theme: Theme,
) -> None:
    ax.scatter(x, loss, s=10, color=theme.blue, alpha=0.3, lw=0, zorder=2)
    ring = _density(np.log(x), loss, number(fit["ci"]["level"]))
    if ring is not None:
        at_x, at_y, height, least = ring
        ax.contour(np.exp(at_x), at_y, height, [least], colors=[theme.blue], linewidths=1.3)
    n, value = number(optimum["params"]), number(optimum["loss"])
    ax.scatter([n], [value], s=42, facecolor=theme.orange, edgecolor=theme.ink, lw=1.2, zorder=4)
    ax.set_xlim(span(x, 1.08))
    ax.set_ylim(padded(np.append(loss, value), 0.08))
    log_axis(ax, "x", count, narrow=True)
    ax.tick_params(labelsize=8)
    ax.set_xlabel("best size N*")


def _density(
    x: FloatArray, y: FloatArray, level: float
) -> tuple[FloatArray, FloatArray, FloatArray, float] | None:
    """Smoothed density of resamples on a grid, and the height above which `level` of them lie.

    Clouds of weakly told laws are bent, which an ellipse would not show. None of a flat cloud.
    """
    table = np.stack([x, y])
    spread = table.std(axis=1)
    if not (spread > 1e-9 * np.abs(table).max(axis=1)).all():
        return None
    centre = table.mean(axis=1)
    u, v = (table - centre[:, None]) / spread[:, None]
    width = SMOOTHING * x.size ** (-1.0 / 6.0)
    room = 3.0 * width
    grid_u = np.linspace(u.min() - room, u.max() + room, GRID)
    grid_v = np.linspace(v.min() - room, v.max() + room, GRID)

    def kernel(points: FloatArray, grid: FloatArray) -> FloatArray:
        return np.asarray(np.exp(-0.5 * ((points[:, None] - grid) / width) ** 2))

    along_u, along_v = kernel(u, grid_u), kernel(v, grid_v)
    at_points = np.sum(kernel(u, u) * kernel(v, v), axis=0)
    least = float(np.quantile(at_points, 1 - level))
    at_x, at_y = centre[0] + spread[0] * grid_u, centre[1] + spread[1] * grid_v
    return at_x, at_y, along_v.T @ along_u, least
