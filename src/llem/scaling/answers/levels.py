"""How far costs lie off a law, by size, deployment or run and cycle, and what resamples it gives.

A law is never quite right: it is off alike for all deployments of a size, and for all cycles of one
deployment. The variance of each level is told from the sums of residuals over the level's groups
(fitting constants, Henderson 1953): residuals are r = M e, where M takes out what the coefficients
held, so |Z_i' r|^2 of the groups Z_i of a level is expected to be the sum over levels j of variance
j times |Z_i' M Z_j|^2. What a few sizes say of their variance is itself uncertain: each resample
draws the sums anew by their chi-squared distribution (generalised pivots, Weerahandi 1993), of
degrees of freedom by Satterthwaite (1946), then the errors of all runs by these variances.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llem.scaling.fitting.nonnegative import solve_normal

FloatArray = NDArray[np.float64]
Groups = NDArray[np.intp]

# Of so many degrees at least a level's sums are drawn.
LEAST_DEGREES = 2.0
# Share of the largest below which a direction of the columns is rounding.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Levels:
    """Groups of runs (n,), the coarsest first, each group within one of the level before; `lasting`
    of the levels are a deployment's own, whichever cycle it is."""

    groups: tuple[Groups, ...]
    lasting: int

    @classmethod
    def of(cls, size: Groups, deployment: Groups, *, least_sizes: int) -> Levels:
        """Sizes (where there are enough of them), deployments, and cycles where there are any."""
        count = int(size.max()) + 1
        _, unit = np.unique(size * size.size + deployment, return_inverse=True)
        groups = [size] if count >= least_sizes else []
        if not groups or int(unit.max()) + 1 > count:
            groups.append(unit)
        lasting = len(groups)
        if int(unit.max()) + 1 < size.size:
            groups.append(np.arange(size.size))
        return cls(tuple(groups), lasting)


def variances(
    random: np.random.Generator,
    count: int,
    levels: Levels,
    *,
    left: FloatArray,
    columns: FloatArray,
) -> FloatArray:
    """Draws (count, levels) of each level's variance, from the residuals `left` (n,) of a least
    squares on `columns` (n, m)."""
    basis, size, _ = np.linalg.svd(columns, full_matrices=False)
    held = basis[:, size > ROUNDING * size.max()]
    taken = [_sums(group, held) for group in levels.groups]
    amount = len(levels.groups)
    expected = np.empty((amount, amount))
    for i, coarse in enumerate(levels.groups):
        for j in range(i, amount):
            fine = levels.groups[j]
            own = np.bincount(fine).astype(float)
            within = np.empty(own.size, dtype=np.intp)
            within[fine] = coarse
            both = np.einsum("gp,gp->g", taken[j], taken[i][within])
            grams = float(np.sum((taken[i].T @ taken[i]) * (taken[j].T @ taken[j])))
            expected[i, j] = expected[j, i] = own @ own - 2.0 * own @ both + grams
    diagonal = np.maximum(np.diag(expected), 1e-300)
    trace = np.array([left.size - np.sum(each**2) for each in taken])
    degrees = np.maximum(LEAST_DEGREES, trace**2 / diagonal)
    sums = np.array([np.sum(_sums(group, left[:, None]) ** 2) for group in levels.groups])
    drawn = sums * degrees / random.chisquare(degrees, (count, amount)) / diagonal
    system = expected / diagonal[:, None]
    gram = np.broadcast_to(system.T @ system, (count, amount, amount))
    return solve_normal(gram, drawn @ system)


@dataclass(frozen=True)
class Draws:
    """Standard normal draws for phases whose errors go together by the correlation `alike`:
    `shared` (count, groups) of each level, and of a further group of each."""

    random: np.random.Generator
    levels: Levels
    alike: float
    shared: tuple[FloatArray, ...]

    @classmethod
    def of(
        cls,
        random: np.random.Generator,
        count: int,
        levels: Levels,
        residuals: Sequence[FloatArray],
    ) -> Draws:
        """For phases with these residuals (n,)."""
        alike = 1.0
        if len(residuals) > 1:
            a, b = residuals
            alike = float(a @ b) / max(1e-300, float(np.sqrt((a @ a) * (b @ b))))
        shared = tuple(random.normal(size=(count, int(g.max()) + 2)) for g in levels.groups)
        return cls(random, levels, min(1.0, max(0.0, alike)), shared)

    def errors(self, drawn: FloatArray) -> tuple[FloatArray, FloatArray]:
        """By variances (k, levels): errors (k, n) of the runs of one phase, and of a deployment of
        a further size (k,)."""
        of_runs = np.zeros((len(drawn), self.levels.groups[0].size))
        further = np.zeros(len(drawn))
        of_levels = zip(drawn.T, self.shared, self.levels.groups, strict=True)
        for place, (variance, shared, group) in enumerate(of_levels):
            own = self.random.normal(size=shared.shape)
            z = np.sqrt(self.alike) * shared + np.sqrt(1.0 - self.alike) * own
            z *= np.sqrt(variance)[:, None]
            of_runs += z[:, group]
            if place < self.levels.lasting:
                further += z[:, -1]
        return of_runs, further


def _sums(group: Groups, rows: FloatArray) -> FloatArray:
    """Of rows (n, p) by group, (groups, p)."""
    found = np.zeros((int(group.max()) + 1, rows.shape[1]))
    np.add.at(found, group, rows)
    return found
