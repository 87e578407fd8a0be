"""How far single runs lie off a law: what is known of it before a run, and what runs have shown.

Two parts, both of log loss. *Seeds*: two runs that differ in nothing but the seed (initialisation
and order of data) end at different losses. *Cells*: the mean of many seeds of one model on so many
tokens still lies off a smooth law, since sizes, batches and learning rates come in steps and fit
some cells better than others. Seeds average the first away and never the second.

All runs of a campaign are evaluated on the same tokens, whose luck they share: it moves E and no
difference between runs. What is left is that seeds differ on some of these tokens more than on
others, which is part of what seeds differ by.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

# Tokens at which `Scatter.seeds` is told.
TOKENS = 1e6
# Standard deviation of log loss between seeds by evaluation on one token; it falls with the root of
# their number. Three seeds of a model of 36 thousand parameters, 131,072 tokens in blocks of 1,024:
# .14 to .18 % of a run, where the losses themselves are known within 1.3 %.
EVALUATION = 0.6
# So many runs the guess of either part is worth beside what is measured.
PRIOR_RUNS = 4


@dataclass(frozen=True)
class Scatter:
    """Standard deviations of log loss: between seeds at a million tokens, and between cells.

    seeds: of a run of D tokens it is seeds (1e6 / D)^decay. 89 cells of this project's reference
    family with 2 to 20 seeds (237 degrees of freedom, 8e3 to 4e6 tokens, 9e3 to 3e5 parameters)
    have 1.02 +- .06 % and .287 +- .022; beside tokens the batch tells nothing more and the size
    little. Where arXiv 2406.19146 repeated its runs (5e7 to 7e9 tokens) the formula has .31 to
    .08 % and that paper .71 to .07 %. cells: 0 to 1.7 % of eight tiny campaigns, and what the
    errors of N* of six published ones amount to. See docs/design.md. evaluation: what is added to
    seeds' scatter by evaluating on few tokens. degrees: of freedom by which all of it is known.
    """

    seeds: float = 0.010
    decay: float = 0.29
    cells: float = 0.007
    evaluation: float = 0.0
    degrees: float = PRIOR_RUNS

    @classmethod
    def expected(cls, data: object) -> Scatter:
        """Before anything is measured, of runs on such data (its `evaluation_tokens` count)."""
        tokens = getattr(data, "evaluation_tokens", None) or math.inf
        return cls(evaluation=EVALUATION / math.sqrt(tokens))

    def of_seeds(self, tokens: FloatArray) -> FloatArray:
        """Standard deviation between seeds of runs of so many tokens (n,)."""
        return np.hypot(self.seeds * (tokens / TOKENS) ** -self.decay, self.evaluation)

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
        found = replace(self, seeds=self.seeds * seeds, evaluation=self.evaluation * seeds)
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
