"""How well the law predicts budgets that it was not fitted to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llem._numerals import known, number
from llem.report.plots.theme import Plot, Theme, compute, log_axis, numbers, span
from llem.report.runs import Runs


def plot(runs: Runs, fit: Mapping[str, Any] | None) -> Plot | None:
    """The plot, None where no budget could be left out."""
    levels = [
        v
        for v in ((fit or {}).get("leave_one_out") or {}).get("levels") or []
        if known(v["mean_relative_error"]) and known(v["flops"])
    ]
    if fit is None or len(levels) < 2:
        return None
    return Plot(
        "left-out",
        "Budgets that the law had not seen",
        "Each budget left out in turn and predicted from the rest. Bar: mean size of the error of "
        "the loss; point: its mean with its sign (above zero: the law expects too much loss). "
        "Diamond: the largest compute, predicted from all below it.",
        "Bars of prediction error against compute.",
        lambda figure, theme: _draw(fit, levels, theme, figure),
        width=7.2,
        height=3.2,
    )


def _draw(
    fit: Mapping[str, Any], levels: list[Mapping[str, Any]], theme: Theme, figure: Any
) -> None:
    (ax,) = figure.axes
    c = numbers(levels, "flops")
    size = 100 * numbers(levels, "mean_abs_relative_error")
    signed = 100 * numbers(levels, "mean_relative_error")
    ax.axhline(0, color=theme.quiet, lw=1.0)
    ax.vlines(c, -size, size, color=theme.blue, lw=7, alpha=0.22)
    ax.scatter(c, signed, s=30, color=theme.blue, lw=0, zorder=3, label="left out in turn")
    every = [*size, *np.abs(signed)]
    x = c
    held_out = fit.get("held_out") or {}
    if known(held_out.get("mean_relative_error")):
        top = number(held_out["largest_flops"])
        value = 100 * number(held_out["mean_relative_error"])
        ax.scatter(
            [top], [value], s=46, marker="D", facecolor=theme.background,
            edgecolor=theme.orange, lw=1.6, zorder=4, label="largest compute, held out",
        )  # fmt: skip
        every.append(abs(value))
        x = np.append(c, top)
    limit = 1.35 * max(*every, 1e-6)
    # Bars that stand close are told of one above the other.
    above, last, apart = 0, -np.inf, 0.09 * np.log(x.max() / x.min() * 1.8**2)
    for i in np.argsort(c):
        place, half, rows = c[i], size[i], levels[i]["rows"]
        above = (above + 1) % 3 if np.log(place) - last < apart else 0
        last = np.log(place)
        ax.annotate(
            f"{rows} row{'s' if rows != 1 else ''}", (place, half), xytext=(0, 4 + 10 * above),
            textcoords="offset points", ha="center", va="bottom", fontsize=7.5, color=theme.quiet,
        )  # fmt: skip
    ax.set_ylim(-limit, limit)
    ax.set_xlim(span(x, 1.8))
    log_axis(ax, "x", compute)
    ax.set_xlabel("compute C, FLOP")
    ax.set_ylabel("error of the loss, %")
    ax.legend(fontsize=8.5, loc="lower left", ncols=2, handlelength=1.2)
