"""The plots of a report, each drawn for a light and for a dark page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llem.report.plots import (
    cloud,
    energy,
    left_out,
    loss,
    optimum,
    profiles,
    residuals,
    sensitivity,
)
from llem.report.plots.theme import DARK, LIGHT, Plot, Theme
from llem.report.runs import Runs

__all__ = ["DARK", "LIGHT", "Plot", "Theme", "make_plots"]

# In the order of the page: what was found, what it costs, how far to trust it.
_MODULES = (loss, optimum, cloud, energy, residuals, left_out, profiles, sensitivity)


def make_plots(runs: Runs, fit: Mapping[str, Any] | None) -> list[Plot]:
    """The plots that the data allow, in the order of the page."""
    drawn = (module.plot(runs, fit) for module in _MODULES)
    return [plot for plot in drawn if plot is not None]
