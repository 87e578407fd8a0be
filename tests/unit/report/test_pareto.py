"""Joules per token against latency and throughput: what is known is drawn, and nothing else."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from llem.report.plots.pareto import plot
from llem.report.plots.theme import DARK, LIGHT, Plot

NAN = math.nan
BY = ["options.batch_size", "options.attention"]


def deployments(count: int, *, latency: bool = True, rate: bool = True) -> list[dict[str, Any]]:
    """Batches 1, 2, 4, .. of two attentions, whose joules per token fall with the batch."""
    return [
        {"options.batch_size": 2**i, "options.attention": attention, "model": "m",
         "j_per_token": 8.0 / 2**i + extra, "j_per_token_low": 7.0 / 2**i,
         "j_per_token_high": NAN if i == 0 else 9.5 / 2**i + extra,
         "itl_p50_s": 0.01 * 1.3**i if latency else NAN,
         "tokens_per_s": 100.0 * 2**i if rate else None}
        for i in range(count)
        for attention, extra in (("eager", 0.4), ("sdpa", 0.1))
    ]  # fmt: skip


def drawn(found: Plot | None) -> Any:
    """The figure, with every warning an error: a layout that does not converge warns."""
    assert found is not None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for theme in (LIGHT, DARK):
            assert found.png(theme).startswith(b"\x89PNG")
    return found._drawn["light"]


@pytest.mark.parametrize("count", [1, 2, 6, 12])
def test_both_plots_are_drawn_side_by_side(count: int) -> None:
    found = plot(deployments(count), BY)
    figure = drawn(found)
    assert [ax.get_xlabel() for ax in figure.axes] == [
        "median time between tokens", "tokens per second"
    ]  # fmt: skip
    assert found is not None and found.title.endswith("latency and throughput")


@pytest.mark.parametrize(
    ("known", "label", "word"),
    [({"latency": False}, "tokens per second", "throughput"),
     ({"rate": False}, "median time between tokens", "latency")],
)  # fmt: skip
def test_what_is_not_known_leaves_no_empty_plot(
    known: dict[str, bool], label: str, word: str
) -> None:
    found = plot(deployments(6, **known), BY)
    figure = drawn(found)
    [ax] = figure.axes
    assert ax.get_xlabel() == label and ax.get_ylabel() == "joules per token"
    assert found is not None and found.title == f"Joules per token against {word}"
    assert "left plot" not in found.caption and "Pareto front" in found.alt
    # One plot is not as wide as two, and takes most of its picture.
    assert found.width < 8.6 and ax.get_position().width > 0.75


def test_nothing_is_drawn_without_joules_or_without_anything_to_set_them_against() -> None:
    assert plot(deployments(3, latency=False, rate=False), BY) is None
    assert plot([row | {"j_per_token": NAN} for row in deployments(3)], BY) is None


def test_every_label_lies_within_the_picture() -> None:
    """Long values of an option, which stand beside the points."""
    rows = deployments(6)
    for row in rows:
        row["options.attention"] = "flash_attention_3_with_sinks"
    figure = drawn(plot(rows, list(reversed(BY))))
    renderer = FigureCanvasAgg(figure).get_renderer()
    inside = figure.bbox
    for ax in figure.axes:
        for text in ax.texts:
            box = text.get_window_extent(renderer)
            assert inside.x0 <= box.x0 and box.x1 <= inside.x1, text.get_text()
