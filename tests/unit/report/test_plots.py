"""Plots draw what the data allow, for every law, and leave out the rest."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from llem.report.plots import DARK, LIGHT, Plot, make_plots
from llem.report.plots.theme import MAX_POINTS, count, thinned
from llem.report.runs import gather, gather_columns
from llem.scaling import fit_law

LAWS = (
    "chinchilla_tied",
    "compute_power_law",
    "repeated_tokens",
    "E + A/N^alpha + B/D^beta + G/(N*D)^gamma",
)


def names(runs: Any, fit: dict[str, Any] | None) -> list[str]:
    return [plot.name for plot in make_plots(runs, fit)]


def without_law(rows: list[dict[str, Any]]) -> list[str]:
    return names(gather(rows), None)


def test_without_a_law_there_are_the_runs_alone(rows: list[dict[str, Any]]) -> None:
    assert without_law(rows) == ["loss", "energy"]
    assert without_law([{**row, "energy_j": None} for row in rows]) == ["loss"]
    assert without_law([]) == []


def test_what_a_fit_does_not_hold_is_not_drawn(
    rows: list[dict[str, Any]], fit: dict[str, Any]
) -> None:
    for optimum in fit["optima"]:
        optimum["cloud"] = {}
    fit["profiles"] = {}
    fit["sensitivity"] = []
    fit["leave_one_out"] = {"levels": []}
    assert names(gather(rows, fit), fit) == ["loss", "optimum", "energy", "residuals"]


@pytest.mark.slow
@pytest.mark.parametrize("law", LAWS)
def test_every_law_is_drawn(law: str) -> None:
    rng = np.random.default_rng(0)
    n = np.tile(np.geomspace(1e6, 1e8, 5), 5)
    d = np.repeat(np.geomspace(2e7, 2e9, 5), 5)
    loss = (1.8 + 480 / n**0.35 + 2100 / d**0.37) * np.exp(0.003 * rng.standard_normal(25))
    unique = np.minimum(d, 3e8)
    found = fit_law(n, d, loss, law=law, unique_tokens=unique, targets=[1e18], bootstrap=10)
    fit = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    columns = {"params": n, "tokens": d, "loss": loss, "unique_tokens": unique}
    plots = make_plots(gather_columns(columns, {}, fit), fit)
    drawn = {plot.name for plot in plots}
    assert {"loss", "residuals", "profiles"} <= drawn
    assert ("optimum" in drawn) == (law != "compute_power_law")
    for plot in plots:
        if plot.name in ("loss", "residuals"):
            assert plot.svg(LIGHT).startswith(b"<?xml")


def test_a_parameter_that_is_not_identified_is_said_to_be(
    rows: list[dict[str, Any]], fit: dict[str, Any]
) -> None:
    fit["identified"]["B"] = False
    plot = next(p for p in make_plots(gather(rows, fit), fit) if p.name == "profiles")
    plot.svg(LIGHT)
    titles = [ax.get_title(loc="left") for ax in plot._drawn["light"].axes]
    assert [t for t in titles if "not identified" in t] == ["B = 1864, not identified"]


def test_a_page_is_drawn_the_same_whether_the_other_was_before_it_or_not(
    rows: list[dict[str, Any]], fit: dict[str, Any]
) -> None:
    """Axes and colour bar stand where the first drawing placed them."""

    def loss() -> Plot:
        return next(p for p in make_plots(gather(rows, fit), fit) if p.name == "loss")

    second = loss()
    second.svg(LIGHT)
    assert second.svg(DARK) == loss().svg(DARK)


def test_a_great_table_is_thinned() -> None:
    assert thinned(np.arange(10**6)).size <= MAX_POINTS
    assert thinned(np.arange(50)).size == 50


def test_rows_dropped_as_checkpoints_are_not_marked_as_fitted(rows: list[dict[str, Any]]) -> None:
    dropped = [{"run_id": "run-05", "row": 5, "reason": "warm-up"}]
    fit = {"checkpoints": {"dropped": dropped}, "excluded": [{"run_id": "run-07"}]}
    fitted = gather(rows, fit).fitted
    assert not fitted[[3, 5, 7, 11, 17]].any()
    assert fitted.sum() == 19


@pytest.mark.parametrize(
    ("value", "text"), [(1e9, "1 G"), (2.2e9, "2.2 G"), (75e6, "75 M"), (1.25e6, "1.25 M")]
)
def test_ticks_are_as_exact_as_they_need(value: float, text: str) -> None:
    assert count(value) == text
