"""The plots of a report, each drawn for a light and for a dark page.

No pyplot: figures are made and drawn without any state of the process, so a report can be written
from a thread or beside a user's own plots.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llem.report.runs import Runs
from llem.report.tables import format_flops, format_target, known, number, percent
from llem.scaling import FlopsModel, get_law

FloatArray = NDArray[np.float64]

MAX_LEVEL_CURVES = 9
FONTS = ["Inter", "Helvetica Neue", "Arial", "Liberation Sans", "DejaVu Sans"]


@dataclass(frozen=True)
class Theme:
    """Colours of one page; the accents keep 4.5:1 on the background and differ for colour-blind."""

    name: str
    background: str
    ink: str
    quiet: str
    grid: str
    blue: str
    orange: str
    colormap: tuple[float, float]


LIGHT = Theme(
    "light", "#ffffff", "#1c2127", "#5f6b76", "#e3e7eb", "#0b63b0", "#b84a00", (0.0, 0.82)
)
DARK = Theme("dark", "#15191e", "#e8ebee", "#9aa5b0", "#2c343c", "#6db3f2", "#ff9d57", (0.42, 1.0))


@dataclass(frozen=True)
class Plot:
    """One plot: a name (of its file), what it shows, and how to draw it."""

    name: str
    title: str
    caption: str
    alt: str
    draw: Callable[[Theme], Any]

    def svg(self, theme: Theme) -> bytes:
        """The plot as SVG, the same bytes for the same data."""
        import matplotlib as mpl

        buffer = io.BytesIO()
        with mpl.rc_context({"svg.hashsalt": self.name, "svg.fonttype": "path"}):
            self.draw(theme).savefig(buffer, format="svg", metadata={"Date": None})
        return buffer.getvalue()

    def png(self, theme: Theme = LIGHT) -> bytes:
        """The plot as PNG for papers and slides, 200 dots an inch."""
        buffer = io.BytesIO()
        self.draw(theme).savefig(buffer, format="png", dpi=200, metadata={"Software": None})
        return buffer.getvalue()


def make_plots(runs: Runs, fit: Mapping[str, Any] | None) -> list[Plot]:
    """The plots that the data allow, in the order of the page."""
    plots = []
    if runs.placed.any():
        plots.append(
            Plot(
                "loss",
                "Loss against model size",
                _loss_caption(fit),
                "Scatter plot of loss against model size, one colour for each compute level.",
                lambda theme: _draw_loss(runs, fit, theme),
            )
        )
    if fit is not None and fit.get("frontier"):
        plots.append(
            Plot(
                "optimum",
                "Best size and tokens against compute",
                "Line: the optimum of the law, dashed beyond the measured compute. Band: its "
                f"{percent(fit['ci']['level'])} interval. "
                "Ringed: the targets. Diamonds: isoFLOP minima, a cross-check that uses no law "
                "and is biased.",
                "Two plots with logarithmic axes: best model size and best number of tokens "
                "against compute, with an uncertainty band.",
                lambda theme: _draw_optimum(runs, fit, theme),
            )
        )
    if (np.isfinite(runs.energy_j) & (runs.energy_j > 0) & (runs.flops > 0)).any():
        plots.append(
            Plot(
                "energy",
                "Energy against compute",
                _energy_caption(fit),
                "Plot with logarithmic axes of the energy of each run against its compute.",
                lambda theme: _draw_energy(runs, fit, theme),
            )
        )
    if fit is not None and (runs.placed & runs.fitted).any():
        plots.append(
            Plot(
                "residuals",
                "What the law does not explain",
                "Relative error of the law for each fitted run, against size, tokens and compute. "
                "A trend here means that the law has the wrong form. The worst runs are named.",
                "Three scatter plots of residuals around zero.",
                lambda theme: _draw_residuals(runs, fit, theme),
            )
        )
    return plots


def _loss_caption(fit: Mapping[str, Any] | None) -> str:
    if fit is None:
        return "One colour for each compute level. No law could be fitted."
    return (
        "One colour for each compute level; lines: the law at that compute; dashed: its optimum. "
        "Diamonds: minimum of a parabola through the runs of a level. Crosses: runs left out."
    )


def _energy_caption(fit: Mapping[str, Any] | None) -> str:
    law = _cost(fit)
    if law is None:
        return "Energy of each run as measured; too few measurements for a cost law."
    return (
        "Left: energy of each run as measured. Right: what the cost law leaves, given each run's "
        f"tokens and FLOPs (mean error {percent(law['mean_error'])})."
    )


def _cost(fit: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    law = ((fit or {}).get("costs") or {}).get("energy_j")
    return law if law and not law["reason"] else None


def _figure(
    theme: Theme, columns: int = 1, *, width: float = 7.2, height: float = 4.2
) -> tuple[Any, Any]:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style = {
        "font.family": "sans-serif",
        "font.sans-serif": _installed_fonts(),
        "font.size": 9.5,
        "text.color": theme.ink,
        "axes.labelcolor": theme.ink,
        "axes.edgecolor": theme.quiet,
        "axes.linewidth": 0.8,
        "axes.facecolor": theme.background,
        "xtick.color": theme.quiet,
        "ytick.color": theme.quiet,
        "grid.color": theme.grid,
        "grid.linewidth": 0.7,
        "legend.frameon": False,
        "mathtext.fontset": "dejavusans",
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(width, height), facecolor=theme.background, layout="constrained")
        axes = figure.subplots(1, columns, squeeze=False)[0]
        for ax in axes:
            ax.spines[["top", "right"]].set_visible(False)
            ax.grid(True, which="major")
            ax.set_axisbelow(True)
    # What is drawn later needs the style again, outside this context.
    return figure, style


def _installed_fonts() -> list[str]:
    """The wished fonts that exist; matplotlib warns of each that does not."""
    from matplotlib import font_manager

    names = set(font_manager.get_font_names())
    return [name for name in FONTS if name in names] or ["DejaVu Sans"]


def _styled(draw: Callable[..., Any]) -> Callable[..., Any]:
    """Draw within the style of the figure."""

    def wrapped(runs: Runs, fit: Any, theme: Theme) -> Any:
        import matplotlib as mpl

        layout = LAYOUTS[draw.__name__]
        figure, style = _figure(theme, **layout)
        with mpl.rc_context(style):
            draw(runs, fit, theme, figure)
        return figure

    return wrapped


LAYOUTS: dict[str, dict[str, Any]] = {
    "_draw_loss": {"columns": 1, "height": 4.5},
    "_draw_optimum": {"columns": 2, "height": 3.7, "width": 7.6},
    "_draw_energy": {"columns": 2, "height": 3.6, "width": 7.6},
    "_draw_residuals": {"columns": 3, "height": 3.1, "width": 7.8},
}


def _log_axis(ax: Any, axis: str, form: Callable[[float], str]) -> None:
    """A logarithmic axis whose labels are as a person says them, denser where it is short."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    which = ax.xaxis if axis == "x" else ax.yaxis
    (ax.set_xscale if axis == "x" else ax.set_yscale)("log")
    low, high = ax.get_xlim() if axis == "x" else ax.get_ylim()
    decades = np.log10(high / low)
    subs = (1.0, 2.0, 5.0) if decades < 2.2 else (1.0, 3.0) if decades < 3 else (1.0,)
    which.set_major_locator(LogLocator(base=10, subs=subs, numticks=7 if len(subs) == 1 else 15))
    which.set_major_formatter(FuncFormatter(lambda v, _: form(v)))
    # Hundreds of unlabelled ticks would take most of the time of drawing.
    which.set_minor_locator(NullLocator())


def _count(value: float) -> str:
    from llem.report.tables import format_count

    return format_count(value, digits=1)


def _compute(value: float) -> str:
    """10^x for powers of ten, 2x10^x between."""
    exponent = int(np.floor(np.log10(value) + 1e-9))
    lead = value / 10.0**exponent
    head = "" if abs(lead - 1) < 1e-6 else rf"{lead:.2g}\times"
    return rf"${head}10^{{{exponent}}}$"


@_styled
def _draw_loss(runs: Runs, fit: Mapping[str, Any] | None, theme: Theme, figure: Any) -> None:
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm

    from llem.scaling.isoflop import compute_levels

    (ax,) = figure.axes
    placed = np.flatnonzero(runs.placed)
    levels = [placed[rows] for rows in compute_levels(runs.flops[placed])]
    flops = np.array([np.exp(np.mean(np.log(runs.flops[rows]))) for rows in levels])
    norm = LogNorm(flops.min(), flops.max() if flops.max() > flops.min() else flops.min() * 10)
    low, high = theme.colormap
    colours = [colormaps["viridis"](low + (high - low) * float(norm(c))) for c in flops]
    ax.set_xlim(_span(runs.params[placed], 1.35))
    curves = _curve_levels([len(rows) for rows in levels])
    for i, (rows, colour, c) in enumerate(zip(levels, colours, flops, strict=True)):
        used = rows[runs.fitted[rows]]
        out = rows[~runs.fitted[rows]]
        label = f"{format_flops(c)} FLOP" if len(levels) <= MAX_LEVEL_CURVES else None
        ax.scatter(
            runs.params[used], runs.loss[used], s=22, color=colour, zorder=3, label=label, lw=0
        )
        ax.scatter(
            runs.params[out], runs.loss[out], s=30, color=colour, marker="x", lw=1.3, zorder=3
        )
        if fit is not None and i in curves:
            n = np.geomspace(*_span(runs.params[rows], 1.5), 160)
            model = FlopsModel.from_dict(fit["flops_model"])
            loss = get_law(fit["law"]).predict(fit["params"], n, model.tokens(n, c))
            ax.plot(n, loss, color=colour, lw=1.3, alpha=0.9)
    finite = runs.loss[runs.fitted & runs.placed] if runs.fitted.any() else runs.loss[placed]
    if finite.size:
        # Diverged runs must not squeeze the rest of the plot; what lies outside is told below.
        ax.set_ylim(_padded(finite, 0.12))
        top = ax.get_ylim()[1]
        above = int(np.count_nonzero(runs.loss[placed] > top))
        if above:
            words = f"{above} run{'s' if above > 1 else ''} left out above this range"
            ax.annotate(
                f"↑ {words}", (0.985, 0.985), xycoords="axes fraction", ha="right", va="top",
                color=theme.quiet, fontsize=8.5,
            )  # fmt: skip
    if fit is not None:
        _draw_minima(ax, fit, theme)
        frontier = fit["frontier"]
        n = np.array([number(o["params"]) for o in frontier])
        loss = np.array([number(o["loss"]) for o in frontier])
        ax.plot(n, loss, color=theme.ink, lw=1.1, ls=(0, (4, 3)), label="optimum", zorder=2)
    _log_axis(ax, "x", _count)
    ax.set_xlabel("parameters N")
    ax.set_ylabel("loss, nats per token")
    ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8.5, handlelength=1.4)


def _draw_minima(ax: Any, fit: Mapping[str, Any], theme: Theme) -> None:
    minima = [v for v in (fit.get("isoflop") or {}).get("levels", []) if not v["refusal"]]
    if minima:
        ax.scatter(
            [v["params"] for v in minima], [v["loss"] for v in minima], marker="D", s=34, lw=1.2,
            facecolor=theme.background, edgecolor=theme.ink, zorder=4, label="isoFLOP minimum",
        )  # fmt: skip


def _curve_levels(sizes: list[int]) -> set[int]:
    """The levels that get a curve: all, or the nine with most runs."""
    order = sorted(range(len(sizes)), key=lambda i: (-sizes[i], i))
    return set(order[:MAX_LEVEL_CURVES])


def _span(values: FloatArray, factor: float) -> tuple[float, float]:
    return float(values.min()) / factor, float(values.max()) * factor


def _padded(values: FloatArray, share: float) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    room = share * (high - low or abs(high) or 1.0)
    return low - room, high + room


@_styled
def _draw_optimum(runs: Runs, fit: Mapping[str, Any], theme: Theme, figure: Any) -> None:
    frontier = fit["frontier"]
    c = np.array([number(o["flops"]) for o in frontier])
    observed = c <= number(fit["range"]["flops"][1]) * 1.01
    for ax, name, words, colour in (
        (figure.axes[0], "params", "best size N*", theme.blue),
        (figure.axes[1], "tokens", "best tokens D*", theme.orange),
    ):
        value = np.array([number(o[name]) for o in frontier])
        band = np.array([[number(v) for v in o["ci"][name]] for o in frontier])
        if np.isfinite(band).all():
            ax.fill_between(c, band[:, 0], band[:, 1], color=colour, alpha=0.18, lw=0)
        ax.plot(c[observed], value[observed], color=colour, lw=2)
        last = max(int(observed.sum()) - 1, 0)
        ax.plot(c[last:], value[last:], color=colour, lw=1.6, ls=(0, (3, 2)))
        if name == "params":
            minima = [v for v in (fit.get("isoflop") or {}).get("levels", []) if not v["refusal"]]
            ax.scatter(
                [v["flops"] for v in minima], [v["params"] for v in minima], marker="D", s=26,
                facecolor=theme.background, edgecolor=theme.ink, lw=1.1, zorder=4,
            )  # fmt: skip
        _draw_targets(ax, fit, name, colour, theme)
        ax.set_xlim(_span(c, 1.6))
        ax.set_yscale("log")
        bottom, top = ax.get_ylim()
        # Room above the line for the name of the target.
        ax.set_ylim(bottom, top * (top / bottom) ** 0.12)
        _log_axis(ax, "x", _compute)
        _log_axis(ax, "y", _count)
        ax.set_xlabel("compute C, FLOP")
        ax.set_title(words, loc="left", fontsize=10, color=theme.ink)


def _draw_targets(ax: Any, fit: Mapping[str, Any], name: str, colour: str, theme: Theme) -> None:
    ends = [number(o["flops"]) for o in fit["frontier"]]
    apart = 0.3 * np.log(max(ends) / min(ends))
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
        ax.annotate(
            f"{format_target(optimum['target'])}\n{_count_fine(y)}", (x, y), xytext=(-9, 6),
            textcoords="offset points", ha="right", va="bottom", fontsize=8.5, color=theme.ink,
        )  # fmt: skip


def _count_fine(value: float) -> str:
    from llem.report.tables import format_count

    return format_count(value)


def _energy_label(joules: float) -> str:
    from llem.report.tables import format_si

    return format_si(joules, "J", digits=1)


@_styled
def _draw_energy(runs: Runs, fit: Mapping[str, Any] | None, theme: Theme, figure: Any) -> None:
    ax, below = figure.axes
    shown = np.isfinite(runs.energy_j) & (runs.energy_j > 0) & (runs.flops > 0)
    kinds = sorted({q for q, ok in zip(runs.quality, shown, strict=True) if ok})
    law = _cost(fit)
    predicted = np.full(runs.flops.shape, np.nan)
    if law is not None:
        predicted = law["constant"] + law["per_token"] * runs.tokens + law["per_flop"] * runs.flops
    error = 100 * (runs.energy_j / predicted - 1)
    for marker, colour, kind in zip("os^vP", (theme.blue, theme.orange) * 3, kinds, strict=False):
        rows = shown & np.array([q == kind for q in runs.quality])
        style = {"s": 24, "color": colour, "marker": marker, "lw": 0, "zorder": 3, "alpha": 0.85}
        label = kind if kind != "none" else "energy of a run"
        ax.scatter(runs.flops[rows], runs.energy_j[rows], label=label, **style)
        below.scatter(runs.flops[rows], error[rows], **style)
    if law is not None and fit is not None:
        high = float(runs.flops[shown].max()) * 3
        near = [o for o in fit["frontier"] if number(o["flops"]) <= high and known(o["energy_j"])]
        if len(near) > 1:
            ax.plot(
                [o["flops"] for o in near], [o["energy_j"] for o in near], color=theme.ink, lw=1.1,
                ls=(0, (4, 3)), label="cost law, at the optimum",
            )  # fmt: skip
    for each in (ax, below):
        each.set_xlim(_span(runs.flops[shown], 2.0))
        _log_axis(each, "x", _compute)
        each.set_xlabel("compute C, FLOP")
    ax.set_ylim(_span(runs.energy_j[shown], 2.0))
    _log_axis(ax, "y", _energy_label)
    ax.set_ylabel("energy of the run")
    ax.legend(loc="upper left", fontsize=8.5)
    below.axhline(0, color=theme.quiet, lw=1.0)
    below.set_ylabel("measured above the cost law, %")
    finite = np.abs(error[shown & np.isfinite(error)])
    if finite.size:
        limit = 1.25 * max(float(finite.max()), 1e-6)
        below.set_ylim(-limit, limit)
    else:
        below.set_visible(False)


@_styled
def _draw_residuals(runs: Runs, fit: Mapping[str, Any], theme: Theme, figure: Any) -> None:
    rows = np.flatnonzero(runs.placed & runs.fitted)
    predicted = get_law(fit["law"]).predict(fit["params"], runs.params[rows], runs.tokens[rows])
    percent = 100 * np.expm1(np.log(runs.loss[rows] / predicted))
    limit = 1.25 * max(float(np.max(np.abs(percent))), 1e-6)
    worst = np.argsort(-np.abs(percent), kind="stable")[:2]
    columns = (
        ("parameters N", runs.params[rows], _count),
        ("tokens D", runs.tokens[rows], _count),
        ("compute C, FLOP", runs.flops[rows], _compute),
    )
    for i, (ax, (label, x, form)) in enumerate(zip(figure.axes, columns, strict=True)):
        ax.axhline(0, color=theme.quiet, lw=1.0)
        ax.scatter(x, percent, s=17, color=theme.blue, alpha=0.85, lw=0, zorder=3)
        ax.set_xlim(_span(x, 1.7))
        ax.set_ylim(-limit, limit)
        _log_axis(ax, "x", form)
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


def _name_worst(ax: Any, points: list[tuple[float, float, str]], theme: Theme) -> None:
    low, high = ax.get_xlim()
    for x, y, name in points:
        right = np.log(x / low) > 0.5 * np.log(high / low)
        ax.annotate(
            name if len(name) <= 14 else name[:13] + "…", (x, y),
            xytext=(-5 if right else 5, 3 if y > 0 else -3), textcoords="offset points",
            ha="right" if right else "left", va="bottom" if y > 0 else "top", fontsize=7.5,
            color=theme.quiet,
        )  # fmt: skip
