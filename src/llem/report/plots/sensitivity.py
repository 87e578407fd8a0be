"""What other choices of loss function and rows would have answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llem._numerals import format_flops, known, number, percent
from llem.report.choices import Choice, choices, reference_flops
from llem.report.plots.theme import Plot, Theme, count, log_axis, padded, span
from llem.report.runs import Runs


def plot(runs: Runs, fit: Mapping[str, Any] | None) -> Plot | None:
    """The plot, None where the law has no optimum or nothing else was tried."""
    if fit is None or not fit.get("exponents"):
        return None
    found = [c for c in choices(fit) if np.isfinite(c.a) and np.isfinite(c.params)]
    if len(found) < 2 or not found[0].own:
        return None
    band = _band(fit, found[0]) is not None
    return Plot(
        "sensitivity",
        "The answer under other choices",
        "The exponent of N* and the best size, fitted again under other loss functions and without "
        "some rows."
        + (f" Shaded: the {percent(fit['ci']['level'])} interval of this fit." if band else ""),
        "Two dot plots: exponent and best size under each choice.",
        lambda figure, theme: _draw(fit, found, theme, figure),
        columns=2,
        height=1.1 + 0.26 * len(found),
    )


def _band(fit: Mapping[str, Any], own: Choice) -> tuple[float, float] | None:
    """The interval of N* at the compute of the comparison, from the parameters alone."""
    flops = reference_flops(fit)
    near = [*(fit.get("optima") or []), *(fit.get("frontier") or [])]
    for optimum in near:
        ends = (optimum.get("ci_parameters") or {}).get("params") or (None, None)
        same = np.isclose(number(optimum["flops"]), flops, rtol=1e-3)
        if same and optimum["target"]["unit"] == "FLOP" and all(known(v) for v in ends):
            return number(ends[0]), number(ends[1])
    return None


def _draw(fit: Mapping[str, Any], found: Sequence[Choice], theme: Theme, figure: Any) -> None:
    left, right = figure.axes
    places = np.arange(len(found))[::-1]
    ends = (fit["ci"].get("exponents") or {}).get("a") or (None, None)
    interval = (number(ends[0]), number(ends[1])) if all(known(v) for v in ends) else None
    for ax, values, shaded in (
        (left, np.array([c.a for c in found]), interval),
        (right, np.array([c.params for c in found]), _band(fit, found[0])),
    ):
        every = values if shaded is None else np.append(values, shaded)
        if shaded is not None:
            ax.axvspan(*shaded, color=theme.blue, alpha=0.13, lw=0)
        ax.axvline(values[0], color=theme.blue, lw=1.0)
        ax.scatter(values[1:], places[1:], s=30, color=theme.ink, lw=0, zorder=3)
        ax.scatter(values[:1], places[:1], s=42, color=theme.blue, lw=0, zorder=4)
        ax.set_ylim(-0.7, len(found) - 0.3)
        ax.grid(False, axis="y")
        if ax is right:
            ax.set_xlim(span(every, 1.1))
            log_axis(ax, "x", count, narrow=True)
        else:
            ax.set_xlim(padded(every, 0.08))
            ax.locator_params(axis="x", nbins=5)
        ax.tick_params(axis="x", labelsize=8)
        ax.tick_params(axis="y", length=0)
    left.set_yticks(places, [c.label for c in found], fontsize=8.5, color=theme.ink)
    right.set_yticks(places, [""] * len(found))
    left.set_xlabel("exponent a of N*")
    right.set_xlabel(f"best size N* at {format_flops(reference_flops(fit))} FLOP")
