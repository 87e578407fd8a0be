"""What all plots share: colours of a light and a dark page, figures, axes that read well.

No pyplot: figures are made and drawn without any state of the process, so a report can be written
from a thread or beside a user's own plots.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llem._numerals import format_count, number

FloatArray = NDArray[np.float64]

FONTS = ["Inter", "Helvetica Neue", "Arial", "Liberation Sans", "DejaVu Sans"]
# More points than this make a plot heavy and no clearer: every k-th is shown.
MAX_POINTS = 4000


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

    def style(self) -> dict[str, Any]:
        """Matplotlib's settings."""
        return {
            "font.family": "sans-serif",
            "font.sans-serif": _installed_fonts(),
            "font.size": 9.5,
            "text.color": self.ink,
            "axes.labelcolor": self.ink,
            "axes.edgecolor": self.quiet,
            "axes.linewidth": 0.8,
            "axes.facecolor": self.background,
            "xtick.color": self.quiet,
            "ytick.color": self.quiet,
            "grid.color": self.grid,
            "grid.linewidth": 0.7,
            "legend.frameon": False,
            "mathtext.fontset": "dejavusans",
        }


LIGHT = Theme(
    "light", "#ffffff", "#1c2127", "#5f6b76", "#e3e7eb", "#0b63b0", "#b84a00", (0.0, 0.82)
)
DARK = Theme("dark", "#15191e", "#e8ebee", "#9aa5b0", "#2c343c", "#6db3f2", "#ff9d57", (0.42, 1.0))


@dataclass(frozen=True)
class Plot:
    """One plot: a name (of its file), what it shows, how large it is and how it is drawn.

    draw(figure, theme) fills a figure of `rows` x `columns` axes; width and height in inches.
    """

    name: str
    title: str
    caption: str
    alt: str
    draw: Callable[[Any, Theme], None]
    rows: int = 1
    columns: int = 1
    width: float = 7.6
    height: float = 3.6
    _drawn: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def svg(self, theme: Theme) -> bytes:
        """The plot as SVG, the same bytes for the same data."""
        salt = {"svg.hashsalt": self.name, "svg.fonttype": "path"}
        return self._saved(theme, salt, format="svg", metadata={"Date": None})

    def png(self, theme: Theme = LIGHT) -> bytes:
        """The plot as PNG for papers and slides, 200 dots an inch."""
        return self._saved(theme, {}, format="png", dpi=200, metadata={"Software": None})

    def _saved(self, theme: Theme, settings: Mapping[str, Any], **options: Any) -> bytes:
        import matplotlib as mpl

        buffer = io.BytesIO()
        with mpl.rc_context({**theme.style(), **settings}):
            if theme.name not in self._drawn:
                self._drawn[theme.name] = self._figure(theme)
            self._drawn[theme.name].savefig(buffer, **options)
        return buffer.getvalue()

    def _figure(self, theme: Theme) -> Any:
        from matplotlib.figure import Figure

        size = (self.width, self.height)
        figure = Figure(figsize=size, facecolor=theme.background, layout="constrained")
        for ax in figure.subplots(self.rows, self.columns, squeeze=False).flat:
            ax.spines[["top", "right"]].set_visible(False)
            ax.grid(True, which="major")
            ax.set_axisbelow(True)
        self.draw(figure, theme)
        # Axes are placed once, not at every saving, and alike on both pages.
        twin = next(iter(self._drawn.values()), None)
        engine = figure.get_layout_engine()
        if engine is not None and twin is None:
            engine.execute(figure)
        figure.set_layout_engine(None)
        for ax, placed in zip(figure.axes, twin.axes if twin else (), strict=False):
            ax.set_position(placed.get_position(original=True))
        return figure


_FONTS: list[str] = []


def _installed_fonts() -> list[str]:
    """The wished fonts that exist; matplotlib warns of each that does not."""
    if not _FONTS:
        from matplotlib import font_manager

        names = set(font_manager.get_font_names())
        _FONTS.extend([name for name in FONTS if name in names] or ["DejaVu Sans"])
    return list(_FONTS)


def log_axis(ax: Any, axis: str, form: Callable[[float], str], *, narrow: bool = False) -> None:
    """A logarithmic axis whose labels are as a person says them, denser where it is short.

    narrow: a small panel, with room for few labels.
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

    which = ax.xaxis if axis == "x" else ax.yaxis
    (ax.set_xscale if axis == "x" else ax.set_yscale)("log")
    low, high = ax.get_xlim() if axis == "x" else ax.get_ylim()
    decades = np.log10(high / low)
    few = 4 if narrow else 7
    if decades < (0.7 if narrow else 0.5):
        which.set_major_locator(FixedLocator(_round_values(low, high, few)))
    else:
        subs = (1.0, 2.0, 5.0) if decades < 2.2 else (1.0, 3.0) if decades < 3 else (1.0,)
        if narrow:
            subs = (1.0, 2.0, 5.0) if decades < 1.2 else (1.0, 3.0) if decades < 1.8 else (1.0,)
        numticks = few if len(subs) == 1 else 15
        which.set_major_locator(LogLocator(base=10, subs=subs, numticks=numticks))
    which.set_major_formatter(FuncFormatter(lambda v, _: form(v)))
    # Hundreds of unlabelled ticks would take most of the time of drawing.
    which.set_minor_locator(NullLocator())


def _round_values(low: float, high: float, count: int) -> list[float]:
    """Round numbers between the ends, where not even a factor of five lies between them."""
    step = 10.0 ** np.floor(np.log10((high - low) / count))
    for factor in (1, 2, 5, 10):
        values = np.arange(np.ceil(low / (step * factor)), high / (step * factor)) * step * factor
        if values.size <= count:
            break
    return [float(v) for v in values]


def count(value: float) -> str:
    """`3 B`: parameters and tokens at a tick, as exact as ticks are."""
    digits = next((d for d in (1, 2) if np.isclose(float(f"{value:.{d - 1}e}"), value)), 3)
    return format_count(value, digits=digits)


def compute(value: float) -> str:
    """10^x for powers of ten, 2x10^x between."""
    exponent = int(np.floor(np.log10(value) + 1e-9))
    lead = value / 10.0**exponent
    head = "" if abs(lead - 1) < 1e-6 else rf"{lead:.2g}\times"
    return rf"${head}10^{{{exponent}}}$"


def span(values: FloatArray, factor: float) -> tuple[float, float]:
    """Ends of a logarithmic axis."""
    return float(values.min()) / factor, float(values.max()) * factor


def padded(values: FloatArray, share: float) -> tuple[float, float]:
    """Ends of a plain axis."""
    low, high = float(values.min()), float(values.max())
    room = share * (high - low or abs(high) or 1.0)
    return low - room, high + room


def thinned(rows: NDArray[np.intp]) -> NDArray[np.intp]:
    """At most MAX_POINTS of these rows, evenly taken."""
    stride = -(-rows.size // MAX_POINTS)
    return rows[:: max(stride, 1)]


def minima(fit: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The levels of the isoFLOP check that have a minimum."""
    return [v for v in (fit.get("isoflop") or {}).get("levels", []) if not v["refusal"]]


def numbers(entries: Any, name: str) -> FloatArray:
    """A column of entries of fit.json, NaN where null."""
    return np.array([number(entry[name]) for entry in entries], dtype=np.float64)
