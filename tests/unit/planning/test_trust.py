"""A law is trusted as far as the runs bear it out."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from llem.planning.design import Cells
from llem.planning.scatter import Scatter
from llem.planning.trust import CONTRADICTED, lack_of_fit, near_optimum
from llem.planning.waves import Learnt
from llem.scaling import CHINCHILLA, FlopsModel

LAW = {"E": 1.8172, "A": 477.8, "B": 2143.4, "alpha": 0.3473, "beta": 0.3672}
NOISE = 0.005
FloatArray = NDArray[np.float64]


def grid() -> tuple[FloatArray, FloatArray]:
    """A wide isoFLOP grid, its two lower levels three times: 24 cells."""
    flops, shift = np.meshgrid([1e17, 3e17, 1e18, 3e18], np.linspace(-1.2, 1.2, 6), indexing="ij")
    params = np.sqrt(flops / 120) * 10**shift
    tokens = flops / (6 * params)
    again = [*range(4), 0, 1, 0, 1]
    return params[again].ravel(), tokens[again].ravel()


def kaplan(params: FloatArray, tokens: FloatArray) -> FloatArray:
    """A law of another form: arXiv 2001.08361, equation 1.5."""
    return np.asarray(((8.8e13 / params) ** 0.8 + 5.4e13 / tokens) ** 0.095)


def learnt(loss: FloatArray, seed: int) -> Learnt:
    """From runs that scatter as is usual, by seed and by cell."""
    params, tokens = grid()
    rng, usual = np.random.default_rng(seed), Scatter()
    cell = np.unique(params * 1e12 + tokens, return_inverse=True)[1]
    off = usual.of_seeds(tokens) * rng.standard_normal(params.size)
    off += usual.cells * rng.standard_normal(cell.max() + 1)[cell]
    columns = {
        "params": params,
        "tokens": tokens,
        "flops": 6 * params * tokens,
        "loss": loss * np.exp(off),
    }
    return Learnt.of(
        [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    )


@pytest.mark.parametrize("seed", range(3))
def test_runs_of_the_law_do_not_contradict_it_and_runs_of_another_do(seed: int) -> None:
    right = learnt(CHINCHILLA.predict(LAW, *grid()), seed)
    assert 0.3 < right.lack_of_fit < 3
    assert not right.contradicted
    assert learnt(kaplan(*grid()), seed).contradicted


def test_lack_of_fit_is_one_where_cells_differ_by_what_noise_makes_of_them() -> None:
    rng = np.random.default_rng(0)
    cell = np.repeat(np.arange(400), 3)
    fitted = rng.standard_normal(400)[cell]
    log_loss = fitted + NOISE * rng.standard_normal(1200)
    tokens = np.full(1200, 1e9)
    seeds = Scatter(seeds=NOISE, decay=0.0, cells=0.0)
    assert lack_of_fit(log_loss, tokens, cell, fitted, scatter=seeds) == pytest.approx(1, abs=0.25)
    # Cells that are off by twice the noise of their mean of three.
    sd = 2 * NOISE / np.sqrt(3)
    off = log_loss + sd * rng.standard_normal(400)[cell]
    assert lack_of_fit(off, tokens, cell, fitted, scatter=seeds) == pytest.approx(5, rel=0.2)
    # Where cells may differ by as much that is no lack of fit.
    both = Scatter(seeds=NOISE, decay=0.0, cells=sd)
    assert lack_of_fit(off, tokens, cell, fitted, scatter=both) == pytest.approx(1, abs=0.25)


def test_without_seeds_nothing_is_said_against_a_law() -> None:
    log_loss, tokens, fitted = np.arange(40.0), np.full(40, 1e9), np.zeros(40)
    assert lack_of_fit(log_loss, tokens, np.arange(40), fitted, scatter=Scatter()) == 0.0
    of_pairs = lack_of_fit(log_loss, tokens, np.arange(40) // 2, fitted, scatter=Scatter())
    assert of_pairs > CONTRADICTED


def test_near_the_optimum_is_a_band_of_models_at_the_larger_amounts_of_compute() -> None:
    flops, shift = np.meshgrid(np.geomspace(1e16, 1e19, 4), np.linspace(-1.5, 1.5, 7))
    flops, shift = flops.ravel(), shift.ravel()
    law = CHINCHILLA.natural(LAW)
    best = np.exp(CHINCHILLA.optimum(law, flops, FlopsModel())[0])
    params = best * 10**shift
    cells = Cells(params, flops / (6 * params), flops)
    near = near_optimum(cells, law, largest_flops=1e19, model=FlopsModel())
    assert np.array_equal(near, (np.abs(shift) < 0.75) & (flops > 5e16))
