"""How far single runs lie off a law: what is known of it before a run, and what runs have shown.

Two parts, both of log loss. *Seeds*: two runs that differ in nothing but the seed (initialisation
and order of data) end at different losses. *Cells*: the mean of many seeds of one model on so many
tokens still lies off a smooth law, since sizes, batches and learning rates come in steps and fit
some cells better than others. Seeds average the first away and never the second.

Evaluation adds nothing to this by its size: all runs of a campaign are evaluated on the same
tokens, whose luck they share, so that it moves E and no difference between runs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

# Tokens at which `Scatter.seeds` is told.
TOKENS = 1e6
# So many runs the guess of either part is worth beside what is measured.
PRIOR_RUNS = 4


@dataclass(frozen=True)
class Scatter:
    """Standard deviations of log loss: between seeds at a million tokens, and between cells.

    seeds: of a run of D tokens it is seeds (1e6 / D)^decay. Source of the defaults: 89 cells of
    this project's reference family with two to twenty seeds (237 degrees of freedom, 8e3 to 4e6
    tokens, 9e3 to 3e5 parameters) have 1.02 % (+- .08) and .287 (+- .010); size, batch and steps
    add nothing that these could tell. It goes on to where arXiv 2406.19146 repeated its runs: there
    .22 and .06 % at 1.5e8 and 2e10 tokens, .28 and .07 % in that paper's own account. cells: of
    published campaigns of good recipes .3 to 1.0 %, of tiny ones with one batch for all 0 to .6 %,
    with batches in powers of two 1.0 to 1.4 %. See docs/design.md. degrees: of freedom that all of
    it is known by.
    """

    seeds: float = 0.010
    decay: float = 0.29
    cells: float = 0.010
    degrees: float = PRIOR_RUNS

    def of_seeds(self, tokens: FloatArray) -> FloatArray:
        """Standard deviation between seeds of runs of so many tokens (n,)."""
        return np.asarray(self.seeds * (tokens / TOKENS) ** -self.decay)

    def of_runs(self, tokens: FloatArray) -> FloatArray:
        """Standard deviation of single runs of so many tokens (n,) about a law: both parts."""
        return np.hypot(self.of_seeds(tokens), self.cells)

    def typical(self, tokens: FloatArray, counts: FloatArray | None = None) -> float:
        """The root mean square of `of_runs`, of `counts` (n,) runs each."""
        return math.sqrt(float(np.average(self.of_runs(tokens) ** 2, weights=counts)))

    def measured(
        self,
        log_loss: FloatArray,
        tokens: FloatArray,
        cell: NDArray[np.intp],
        fitted: FloatArray,
        *,
        parameters: int,
    ) -> Scatter:
        """What runs have shown, drawn towards this one, which counts as a few runs of its own.

        log_loss, tokens, cell, fitted (n,): of each run, the number of its cell and the log loss by
        a law of so many `parameters` that was fitted to them. Seeds' scatter keeps its fall with
        tokens and is measured where cells have several; that of cells is what is left of the
        distance of their means from the law.
        """
        _, first, inverse, count = np.unique(
            cell, return_index=True, return_inverse=True, return_counts=True
        )
        mean = np.bincount(inverse, weights=log_loss) / count
        square = float(np.sum(((log_loss - mean[inverse]) / self.of_seeds(tokens)) ** 2))
        between_seeds = log_loss.size - count.size
        seeds = math.sqrt((square + PRIOR_RUNS) / (between_seeds + PRIOR_RUNS))
        found = replace(self, seeds=self.seeds * seeds)
        between_cells = count.size - parameters
        if between_cells >= 1:
            # A mean that its seeds leave uncertain tells little of the cell.
            of_mean = found.of_seeds(tokens[first]) ** 2 / count
            share = (self.cells**2 / (self.cells**2 + of_mean)) ** 2 if self.cells else 0 * of_mean
            share = share * between_cells / count.size
            off = (mean - fitted[first]) ** 2 * count.size / between_cells - of_mean
            told = float(np.sum(share * off)) + PRIOR_RUNS * self.cells**2
            variance = told / (float(np.sum(share)) + PRIOR_RUNS)
            found = replace(found, cells=math.sqrt(max(0.0, variance)))
        return replace(found, degrees=self.degrees + between_seeds + max(0, between_cells))
