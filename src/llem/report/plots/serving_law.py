"""The law of serving: what a token costs against size, and how well it foretells what it has not
seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llem._numerals import format_si, known, number, percent
from llem.report.plots.theme import Plot, Theme, count, log_axis, span

Row = Mapping[str, Any]

# Lengths that are as good as those of the curves.
ALIKE = 1.02
JUDGED = (("all", "all runs"), ("params_left_out", "sizes left out"),
          ("batch_left_out", "batches left out"), ("tokens_in_left_out", "prompts left out"),
          ("tokens_out_left_out", "answers left out"))  # fmt: skip


def plot(name: str, law: Mapping[str, Any], rows: Sequence[Row], place: int = 0) -> Plot | None:
    """The plot of a variant's law of energy; `rows` are its deployments. None without curves."""
    if not law["curves"]:
        return None
    use = law["use"]
    lengths = f"{use['tokens_in']:g} tokens in and {use['tokens_out']:g} out"
    return Plot(
        f"serving-law-{place}" if place else "serving-law",
        f"What a token costs: {name}",
        f"Left: the law at requests of {lengths}, with its {percent(law['level'])} intervals; "
        "points: deployments of these lengths and batches as measured. Right: root mean square of "
        "ln(foretold / measured) on all runs, and on each value of what is named left out in turn "
        "(power law: of size, batch and lengths).",
        "A plot of joules per token against parameters for several batches, and bars of the errors "
        "of the law and of a power law.",
        lambda figure, theme: _draw(law, rows, figure, theme),
        columns=2,
        width=9.0,
        height=4.1,
    )


def _draw(law: Mapping[str, Any], rows: Sequence[Row], figure: Any, theme: Theme) -> None:
    from matplotlib import colormaps

    ax, bars = figure.axes
    low, high = theme.colormap
    shades = colormaps["viridis"](np.linspace(low, high, max(2, len(law["curves"]))))
    values = []
    for curve, colour in zip(law["curves"], shades, strict=False):
        x, y = np.array(curve["params"]), np.array(curve["value"])
        ends = [np.array([number(v) for v in curve[side]]) for side in ("low", "high")]
        if np.isfinite(ends).all():
            ax.fill_between(x, *ends, color=colour, alpha=0.2, lw=0)
        ax.plot(x, y, color=colour, lw=1.6, label=f"batch {curve['batch']:g}")
        own = [row for row in rows if _alike(row, law["use"], curve["batch"])]
        seen = np.array([[number(row["params"]), number(row["j_per_token"])] for row in own])
        if len(seen):
            ax.scatter(*seen.T, s=22, color=colour, lw=0.8, edgecolor=theme.background, zorder=3)
            values += seen[:, 1].tolist()
        values += y.tolist()
    log_axis(ax, "x", count)
    log_axis(ax, "y", lambda value: format_si(value, law["unit"]))
    good = np.array([v for v in values if v > 0])
    if good.size:
        ax.set_ylim(span(good, 1.2))
    ax.set_xlabel("parameters N")
    ax.set_ylabel(f"{law['unit']} per token that comes out")
    ax.legend(fontsize=8.5, loc="upper left", handlelength=1.4)
    _errors(law, bars, theme)


def _errors(law: Mapping[str, Any], ax: Any, theme: Theme) -> None:
    told = [(words, law["errors"][name]) for name, words in JUDGED if name in law["errors"]]
    places = -np.arange(len(told), dtype=float)
    for key, off, colour, label in (
        ("law", 0.19, theme.blue, "the law"), ("power_law", -0.19, theme.quiet, "a power law"),
    ):  # fmt: skip
        size = np.array([100 * number(error[key]) for _, error in told])
        ax.barh(places + off, size, height=0.34, color=colour, lw=0, label=label)
        for place, width in zip(places, size, strict=True):
            ax.annotate(f"{width:.3g}", (width, place + off), xytext=(3, 0), va="center",
                        textcoords="offset points", fontsize=8, color=theme.quiet)  # fmt: skip
    noise = law["errors"].get("noise")
    if known(noise):
        ax.axvline(100 * number(noise), color=theme.orange, lw=1.1, ls=(0, (4, 3)),
                   label="between cycles")  # fmt: skip
    ax.set_yticks(places, [words for words, _ in told])
    ax.set_xlim(0, 1.18 * ax.get_xlim()[1])
    ax.set_xlabel("error, %")
    ax.legend(fontsize=8.5, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3,
              handlelength=1.2, columnspacing=1.2)  # fmt: skip


def _alike(row: Row, use: Mapping[str, float], batch: float) -> bool:
    """Whether a deployment served requests of these lengths in such batches."""
    for name, wanted in (
        ("effective.batch_size", batch),
        ("prompts.input_tokens", use["tokens_in"]),
        ("prompts.output_tokens", use["tokens_out"]),
    ):
        value = number(row.get(name))
        if not 1 / ALIKE < value / wanted < ALIKE:
            return False
    return True
