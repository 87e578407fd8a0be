"""The report of a study: which deployment serves a model for the fewest joules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llem.report.page import check_plots, save_plots
from llem.report.plots import pareto

Row = Mapping[str, Any]


def draw_study(out_dir: str | Path, groups: Sequence[Row], by: Sequence[str]) -> list[Path]:
    """Draw groups of runs (`llem.results.deployments.group_served`) as PNG and SVG under `out_dir`;
    returns the files. Raises UnavailableError without matplotlib."""
    check_plots()
    plot = pareto.plot(groups, by)
    return save_plots(out_dir, [plot] if plot is not None else [])


def write_study_report(*_: Any, **__: Any) -> Path:
    raise NotImplementedError
