"""Best size and tokens against compute, with their intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llem._numerals import format_count, known, number, percent
from llem.report.plots.theme import Plot, Theme, compute, count, log_axis, minima, numbers, span
from llem.report.runs import Runs
from llem.report.tables import format_target


def plot(runs: Runs, fit: Mapping[str, Any] | None) -> Plot | None:
    """The plot, None where the law has no optimum."""
    if fit is None or not fit.get("frontier"):
        return None
    band = f" Band: its {percent(fit['ci']['level'])} interval." if _has_band(fit) else ""
    diamonds = (
        " Diamonds: isoFLOP minima, a cross-check that uses no law and is biased."
        if minima(fit)
        else ""
    )
    return Plot(
        "optimum",
        "Best size and tokens against compute",
        f"Line: the optimum of the law, dashed beyond the measured compute.{band} "
        f"Ringed: the targets.{diamonds}",
        "Two plots with logarithmic axes: best model size and best number of tokens "
        "against compute, with an uncertainty band.",
        lambda figure, theme: _draw(fit, theme, figure),
        columns=2,
        height=3.7,
    )


def _has_band(fit: Mapping[str, Any]) -> bool:
    return all(known(v) for o in fit["frontier"] for v in o["ci"]["params"])


def _draw(fit: Mapping[str, Any], theme: Theme, figure: Any) -> None:
    frontier = fit["frontier"]
    c = numbers(frontier, "flops")
    observed = c <= number(fit["range"]["flops"][1]) * 1.01
    for ax, name, words, colour in (
        (figure.axes[0], "params", "best size N*", theme.blue),
        (figure.axes[1], "tokens", "best tokens D*", theme.orange),
    ):
        value = numbers(frontier, name)
        if _has_band(fit):
            for key, alpha in (("ci", 0.16), ("ci_parameters", 0.16)):
                band = np.array([[number(v) for v in o[key][name]] for o in frontier])
                ax.fill_between(c, band[:, 0], band[:, 1], color=colour, alpha=alpha, lw=0)
        ax.plot(c[observed], value[observed], color=colour, lw=2)
        last = max(int(observed.sum()) - 1, 0)
        ax.plot(c[last:], value[last:], color=colour, lw=1.6, ls=(0, (3, 2)))
        if name == "params" and minima(fit):
            ax.scatter(
                numbers(minima(fit), "flops"), numbers(minima(fit), "params"), marker="D", s=26,
                facecolor=theme.background, edgecolor=theme.ink, lw=1.1, zorder=4,
            )  # fmt: skip
        _draw_targets(ax, fit, name, colour, theme)
        ax.set_xlim(span(c, 1.6))
        ax.set_yscale("log")
        bottom, top = ax.get_ylim()
        # Room above and below the line for the names of the targets.
        room = (top / bottom) ** 0.12
        ax.set_ylim(bottom / room, top * room)
        log_axis(ax, "x", compute)
        log_axis(ax, "y", count)
        ax.set_xlabel("compute C, FLOP")
        ax.set_title(words, loc="left", fontsize=10, color=theme.ink)


def _draw_targets(ax: Any, fit: Mapping[str, Any], name: str, colour: str, theme: Theme) -> None:
    ends = numbers(fit["frontier"], "flops")
    apart = 0.3 * np.log(ends.max() / ends.min())
    named: list[float] = []
    for optimum in fit["optima"]:
        if not known(optimum[name]):
            continue
        x, y = number(optimum["flops"]), number(optimum[name])
        low, high = (number(v) for v in optimum["ci"][name])
        if np.isfinite([low, high]).all():
            ax.plot([x, x], [low, high], color=theme.ink, lw=1.2, zorder=4)
        ax.scatter([x], [y], s=44, facecolor=colour, edgecolor=theme.ink, lw=1.3, zorder=5)
        if any(abs(np.log(x / other)) < apart for other in named):
            continue
        named.append(x)
        right = np.log(x / ends.min()) > 0.3 * np.log(ends.max() / ends.min())
        ax.annotate(
            f"{format_target(optimum['target'])}\n{format_count(y)}", (x, y),
            xytext=(-9, 6) if right else (9, -6), textcoords="offset points",
            ha="right" if right else "left", va="bottom" if right else "top", fontsize=8.5,
            color=theme.ink,
        )  # fmt: skip
