"""How far runs lie off a law: what is assumed of it, and what runs make of that."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import NDArray

from llem.planning.scatter import PRIOR_RUNS, Scatter

FloatArray = NDArray[np.float64]
TRUE = Scatter(seeds=0.02, cells=0.004)
PARAMETERS = 5


def measured(rng: np.random.Generator, *, cells: int, seeds: int, truth: Scatter = TRUE) -> Scatter:
    """By runs that scatter as `truth` has it about a law of no parameters."""
    cell = np.repeat(np.arange(cells), seeds)
    tokens = np.geomspace(1e6, 1e9, cells)[cell]
    log_loss = truth.of_seeds(tokens) * rng.standard_normal(cell.size)
    log_loss += truth.cells * rng.standard_normal(cells)[cell]
    return Scatter().measured(log_loss, tokens, cell, np.zeros(cell.size), parameters=0)


def test_seeds_differ_by_a_percent_at_a_million_tokens_and_less_the_more_they_see() -> None:
    tokens = np.array([1e6, 1.5e8, 2e10])
    assert Scatter().of_seeds(tokens) == pytest.approx([0.010, 0.0023, 0.00056], rel=0.05)
    # Cells differ by as much however long runs are.
    assert Scatter().of_runs(tokens)[2] == pytest.approx(0.007, rel=0.01)


def test_few_evaluation_tokens_add_to_what_seeds_differ_by() -> None:
    def added(tokens: int | None) -> float:
        return Scatter.expected(SimpleNamespace(evaluation_tokens=tokens)).evaluation

    assert added(131_072) == pytest.approx(0.0017, rel=0.05)
    assert added(4096) == pytest.approx(added(131_072) * math.sqrt(32))
    # Data of samples are not counted in tokens.
    assert added(None) == 0.0
    few = replace(Scatter(), evaluation=0.01)
    assert few.of_seeds(np.array([1e6, 1e30])) == pytest.approx([0.01 * math.sqrt(2), 0.01])


def test_many_runs_are_believed() -> None:
    found = measured(np.random.default_rng(0), cells=300, seeds=3)
    assert found.seeds == pytest.approx(TRUE.seeds, rel=0.1)
    assert found.cells == pytest.approx(TRUE.cells, rel=0.15)
    assert found.degrees == PRIOR_RUNS + 900


def test_few_runs_move_the_guess_a_little_towards_them() -> None:
    found = [measured(np.random.default_rng(k), cells=4, seeds=2) for k in range(200)]
    seeds = math.sqrt(np.mean([s.seeds**2 for s in found]))
    # Four degrees of freedom of .02 beside four of .01.
    assert seeds == pytest.approx(math.sqrt((0.02**2 + 0.01**2) / 2), rel=0.1)
    assert all(s.degrees == PRIOR_RUNS + 8 for s in found)


def test_without_seeds_theirs_stays_a_guess_and_cells_are_measured_beyond_it() -> None:
    far = Scatter(seeds=Scatter().seeds, cells=0.03)
    found = measured(np.random.default_rng(1), cells=200, seeds=1, truth=far)
    assert found.seeds == Scatter().seeds
    assert found.cells == pytest.approx(0.03, rel=0.15)
    none = Scatter(seeds=Scatter().seeds, cells=0.0)
    assert measured(np.random.default_rng(2), cells=200, seeds=1, truth=none).cells < 0.003


def test_as_few_cells_as_a_law_has_parameters_tell_nothing_of_it() -> None:
    cell, tokens = np.arange(PARAMETERS), np.full(PARAMETERS, 1e9)
    nothing = np.zeros(PARAMETERS)
    found = Scatter().measured(nothing, tokens, cell, nothing, parameters=PARAMETERS)
    assert found == Scatter()


def test_the_typical_run_is_weighed_by_how_many_there_are() -> None:
    tokens = np.array([1e6, 1e12])
    both = Scatter(seeds=0.03, decay=0.5, cells=0.0)
    assert both.typical(tokens, np.array([1.0, 0.0])) == pytest.approx(0.03)
    assert both.typical(tokens, np.array([1.0, 3.0])) == pytest.approx(0.015, rel=1e-3)
