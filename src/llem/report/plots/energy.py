"""Energy of the runs against compute, and what the cost law leaves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llem._numerals import JOULES_PER_WH, format_si, known, number, percent
from llem.report.plots.theme import FloatArray, Plot, Theme, compute, log_axis, numbers, span
from llem.report.runs import Runs
from llem.scaling import CostLaw

# Errors below this are none to look at.
LEAST_PERCENT = 0.1


def plot(runs: Runs, fit: Mapping[str, Any] | None) -> Plot | None:
    """The plot, None where no energy was measured."""
    shown = np.isfinite(runs.energy_j) & (runs.energy_j > 0) & (runs.flops > 0)
    if not shown.any():
        return None
    kinds = {quality for quality, drawn in zip(runs.quality, shown, strict=True) if drawn}
    return Plot(
        "energy",
        "Energy against compute",
        _caption(fit, estimated=kinds == {"model"}),
        "Plot with logarithmic axes of the energy of each run against its compute.",
        lambda figure, theme: _draw(runs, fit, theme, figure),
        columns=2,
    )


def _caption(fit: Mapping[str, Any] | None, *, estimated: bool) -> str:
    law = _cost(fit)
    how = "as a model of the processor estimates it" if estimated else "as measured"
    if law is None:
        return f"Energy of each run {how}; too few runs for a cost law."
    return (
        f"Left: energy of each run {how}. Right: what the cost law leaves, given each run's "
        f"tokens and FLOPs (mean error {percent(law['mean_error'])})."
    )


def _cost(fit: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    law = ((fit or {}).get("costs") or {}).get("energy_j")
    return law if law and not law["reason"] else None


def _errors(law: Mapping[str, Any] | None, runs: Runs) -> FloatArray:
    """Measured over predicted, less one, of each run (n,); NaN where not known."""
    out = np.full(runs.flops.shape, np.nan)
    if law is None:
        return out
    rows = np.flatnonzero(runs.fitted)
    # The file's residuals know the layout of each run; a long file lists none.
    left = [number(v) for v in law.get("residuals") or []]
    if len(left) == rows.size:
        out[rows] = 1.0 / (1.0 + np.array(left)) - 1.0
    else:
        cost = CostLaw.from_dict(dict(law))
        predicted = cost.predict(runs.tokens[rows], runs.flops[rows], params=runs.params[rows])
        out[rows] = runs.energy_j[rows] / predicted - 1.0
    return out


def _draw(runs: Runs, fit: Mapping[str, Any] | None, theme: Theme, figure: Any) -> None:
    ax, below = figure.axes
    top = float(np.nanmax(runs.energy_j, initial=0.0))
    # One unit on an axis: that in which the text tells the greatest of them.
    unit, joules = ("Wh", JOULES_PER_WH) if top >= 1e3 * JOULES_PER_WH else ("J", 1.0)
    shown = np.isfinite(runs.energy_j) & (runs.energy_j > 0) & (runs.flops > 0)
    kinds = sorted({q for q, ok in zip(runs.quality, shown, strict=True) if ok})
    law = _cost(fit)
    error = 100 * _errors(law, runs)
    for marker, colour, kind in zip("os^vP", (theme.blue, theme.orange) * 3, kinds, strict=False):
        rows = shown & np.array([q == kind for q in runs.quality])
        style = {"s": 24, "color": colour, "marker": marker, "lw": 0, "zorder": 3, "alpha": 0.85}
        label = kind if kind != "none" else "energy of a run"
        ax.scatter(runs.flops[rows], runs.energy_j[rows] / joules, label=label, **style)
        below.scatter(runs.flops[rows], error[rows], **style)
    if law is not None and fit is not None:
        high = float(runs.flops[shown].max()) * 3
        near = [o for o in fit["frontier"] if number(o["flops"]) <= high and known(o["energy_j"])]
        if len(near) > 1:
            ax.plot(
                numbers(near, "flops"), numbers(near, "energy_j") / joules, color=theme.ink, lw=1.1,
                ls=(0, (4, 3)), label="cost law, at the optimum",
            )  # fmt: skip
    for each in (ax, below):
        each.set_xlim(span(runs.flops[shown], 2.0))
        log_axis(each, "x", compute)
        each.set_xlabel("compute C, FLOP")
    ax.set_ylim(span(runs.energy_j[shown] / joules, 2.0))
    log_axis(ax, "y", lambda value: format_si(value, unit, digits=1))
    ax.set_ylabel("energy of the run")
    ax.legend(loc="upper left", fontsize=8.5)
    below.axhline(0, color=theme.quiet, lw=1.0)
    below.set_ylabel("energy above the cost law, %")
    finite = np.abs(error[shown & np.isfinite(error)])
    if finite.size:
        limit = 1.25 * max(float(finite.max()), LEAST_PERCENT)
        below.set_ylim(-limit, limit)
    else:
        below.set_visible(False)
