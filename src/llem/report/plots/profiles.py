"""A profile for each parameter: how much worse the fit gets when it is held elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llem._numerals import number, significant
from llem.report.plots.theme import Plot, Theme, log_axis
from llem.report.runs import FloatArray, Runs

COLUMNS = 3
# What lies higher says nothing more.
TOP = 3.0
# An amplitude that is told over such a range is told in logs.
WIDE = 4.0


def plot(runs: Runs, fit: Mapping[str, Any] | None) -> Plot | None:
    """The plot, None where there are no profiles."""
    found = {n: p for n, p in ((fit or {}).get("profiles") or {}).items() if len(p["value"]) > 2}
    if fit is None or not found:
        return None
    rows = -(-len(found) // COLUMNS)
    return Plot(
        "profiles",
        "How well the data tell each parameter",
        "The rise of the objective where a parameter is held at a value and the others are fitted "
        "again, as a deviance. Shaded: its 95 % interval, where the rise stays below the dashed "
        "threshold. A curve that stays below it on a side says that the data do not tell the "
        "parameter.",
        "One small plot for each parameter: a curve with its minimum at the estimate.",
        lambda figure, theme: _draw(fit, found, theme, figure),
        rows=rows,
        columns=min(COLUMNS, len(found)),
        height=0.5 + 2.0 * rows,
    )


def _draw(
    fit: Mapping[str, Any], found: Mapping[str, Mapping[str, Any]], theme: Theme, figure: Any
) -> None:
    why = fit.get("identified") or {}
    for ax, (name, entry) in zip(figure.axes, found.items(), strict=False):
        value = np.array([number(v) for v in entry["value"]])
        rise = np.array([number(v) for v in entry["deviance"]])
        threshold = number(entry["threshold"])
        wide = value[0] > 0 and value[-1] > WIDE * value[0]
        x, y = _smooth(value, rise, wide)
        low, high = entry["interval"]
        left = value[0] if low is None else number(low)
        right = value[-1] if high is None else number(high)
        ax.axvspan(left, right, color=theme.blue, alpha=0.13, lw=0)
        ax.plot(x, y, color=theme.blue, lw=1.7)
        ax.scatter(value, rise, s=9, color=theme.blue, lw=0, zorder=3)
        ax.axhline(threshold, color=theme.quiet, lw=1.0, ls=(0, (4, 3)))
        best = number(fit["params"][name])
        ax.axvline(best, color=theme.ink, lw=0.9)
        ax.set_ylim(0, TOP * threshold)
        ax.set_xlim(value[0], value[-1])
        if wide:
            log_axis(ax, "x", _plain, narrow=True)
        else:
            ax.locator_params(axis="x", nbins=4)
        ax.tick_params(labelsize=8)
        title = f"{name} = {significant(best)}"
        told = why.get(name, True)
        ax.set_title(
            title if told else f"{title}, not identified", loc="left", fontsize=9.5,
            color=theme.ink if told else theme.orange,
        )  # fmt: skip
    for ax in figure.axes[len(found) :]:
        ax.set_visible(False)
    for ax in figure.axes[::COLUMNS]:
        ax.set_ylabel("deviance")


def _smooth(value: FloatArray, rise: FloatArray, wide: bool) -> tuple[FloatArray, FloatArray]:
    """The root of a deviance is all but a line on each side: drawn so, it needs few points."""
    turn = np.log if wide else np.asarray
    side = np.where(np.arange(rise.size) < int(np.argmin(rise)), -1.0, 1.0)
    root = side * np.sqrt(np.maximum(rise, 0.0))
    x = (np.geomspace if wide else np.linspace)(float(value[0]), float(value[-1]), 200)
    return x, np.interp(turn(x), turn(value), root) ** 2


def _plain(value: float) -> str:
    return significant(value, 1)
