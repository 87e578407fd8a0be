"""A law of serving fitted to runs: non-negative terms, errors of what is left out, intervals.

What is made small is the logarithm of predicted over measured, of what lies far off less (Huber):
each step solves non-negative least squares of the linearised logarithms. How much the device's own
cache holds is the one number that is searched for, over a grid, and taken where it makes the fit
better by more than a further coefficient would by chance (Schwarz 1978).

Intervals: the errors of runs are drawn anew by the variances of sizes, deployments and cycles
(`levels`; of fewer than four sizes deployments and cycles alone) and all is fitted again,
about what was fitted, with the size of the device's cache that then fits best. What a deployment
costs lies off the law besides, by a size's and a deployment's error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llem.scaling.answers.levels import Draws, Levels, variances
from llem.scaling.answers.serving import Part, Resamples, ServingLaw, Use
from llem.scaling.answers.servingterms import (
    DECODE,
    OF_PHASE,
    PREFILL,
    TOGETHER,
    Counts,
    Family,
    Models,
    columns,
)
from llem.scaling.errors import DataFault, ScalingDataError
from llem.scaling.fitting.basis import extended
from llem.scaling.fitting.bootstrap import LEAST_SPARE
from llem.scaling.laws.huber import mean_loss, weights

FloatArray = NDArray[np.float64]
Mask = NDArray[np.bool_]

# Least share of a term's column that those before it must leave unexplained.
REMAINDER = 0.02
ROUNDS = 30
# Relative change of what is fitted at which it is found, and nearly.
SETTLED, ROUGHLY = 1e-8, 1e-3
# What is fitted is no less than this share of what was measured, whose logarithm would else rule.
LEAST_SHARE = 1e-3
# So many models are drawn whole; of fewer, deployments.
LEAST_SIZES = 4
# Sizes of a device's cache that are tried, how often nearer ones are then, and the most values
# that any holds.
CACHES, FINER, LARGEST_CACHE = 10, 3, 1e8
# Trace on the diagonal of a system whose columns are scaled to 1.
TRACE = 1e-12
# What is left out in turn when the law is judged.
SPLITS = ("params", "batch", "tokens_in", "tokens_out")
# Resamples look for the cache's size among so many, up to so many times the fitted one's.
CACHES_DRAWN, CACHE_RANGE = 9, 4.0


def fit_serving(
    cost: ArrayLike,
    *,
    models: Models,
    counts: Counts,
    batch: ArrayLike,
    tokens_in: ArrayLike,
    tokens_out: ArrayLike,
    prefill: ArrayLike | None = None,
    decode: ArrayLike | None = None,
    deployment: Sequence[str] | None = None,
    quantity: str = "energy_j",
    unit: str = "J",
    bootstrap: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    judged: bool = True,
) -> ServingLaw:
    """Fit the law to runs: columns (n,), of a run's whole measured window.

    prefill, decode: their parts of `cost`, where all of them are known: then each phase has terms
    of its own. batch, tokens_in and tokens_out (of a request, means) say what was asked, for the
    questions' default and for what is left out when the law is judged. deployment: whose cycles
    the runs are; they are drawn together. judged: whether errors are looked for, which takes most
    of the time. Raises ScalingDataError with every fault.
    """
    asked = {name: np.asarray(values, dtype=np.float64) for name, values in
             (("params", models.params), ("batch", batch), ("tokens_in", tokens_in),
              ("tokens_out", tokens_out))}  # fmt: skip
    y = np.asarray(cost, dtype=np.float64)
    _check({quantity: y, **asked}, counts)
    costs = {TOGETHER: y}
    if prefill is not None and decode is not None:
        apart = {PREFILL: np.asarray(prefill, dtype=float), DECODE: np.asarray(decode, dtype=float)}
        if all((np.isfinite(v) & (v > 0)).all() for v in apart.values()):
            costs = apart
    own = list(range(y.size)) if deployment is None else list(deployment)
    units, unit_of = np.unique(np.array(own).astype(str), return_inverse=True)
    runs = _Runs(models, counts, costs, len(units))
    found = runs.solve()
    parts = found.parts
    size_of = np.unique(models.params, return_inverse=True)[1]
    spare = len(units) - max(len(p.names) for p in parts)
    warnings: list[str] = []
    samples = Resamples.none(len(found.coefficients), len(parts))
    if bootstrap and spare < LEAST_SPARE:
        needed = max(len(p.names) for p in parts) + LEAST_SPARE
        warnings.append(f"no intervals: {len(units)} deployments are too few ({needed} needed)")
    elif bootstrap:
        levels = Levels.of(size_of, unit_of, least_sizes=LEAST_SIZES)
        samples = _resample(runs, found, levels, bootstrap, np.random.default_rng(seed))
    return ServingLaw(
        quantity=quantity,
        unit=unit,
        parts=parts,
        coefficients=found.coefficients,
        samples=samples,
        cached=found.cached,
        family=Family.through(models),
        rows=y.size,
        deployments=len(units),
        use=Use(*(max(1.0, float(np.quantile(asked[n], 0.5, method="inverted_cdf")))
                  for n in ("batch", "tokens_in", "tokens_out"))),
        range={name: (float(v.min()), float(v.max())) for name, v in asked.items()},
        errors=judge(runs, found, asked, y, unit_of) if judged else {},
        level=level,
        warnings=tuple(warnings),
        residuals=runs.foretold(found) / y - 1.0,
    )  # fmt: skip


def _check(column: dict[str, FloatArray], counts: Counts) -> None:
    faults = []
    names = list(column)
    count = column[names[0]].size
    whole = {**column, **{f"counts.{name}": values for name, values in vars(counts).items()}}
    for name, values in whole.items():
        if values.shape != (count,):
            faults.append(DataFault.of(name, f"has shape {values.shape}, expected ({count},)"))
            continue
        counted = name not in column
        good = np.isfinite(values) & ((values >= 0) if counted else (values > 0))
        least = "0 or more" if counted else "above 0"
        for row in np.flatnonzero(~good).tolist():
            faults.append(DataFault.of(name, f"must be a finite number {least}", row=row,
                                       value=float(values[row])))  # fmt: skip
    if count < 3:
        faults.append(DataFault.of(names[0], f"{count} runs; 3 are needed"))
    if faults:
        raise ScalingDataError(faults)


@dataclass(frozen=True)
class _Found:
    parts: tuple[Part, ...]
    coefficients: FloatArray
    cached: float


@dataclass(frozen=True)
class _Runs:
    """Runs with what they cost, by phase; `units` deployments."""

    models: Models
    counts: Counts
    costs: dict[str, FloatArray]
    units: int

    def columns(self, part: Part, cached: float) -> FloatArray:
        return columns(self.models, self.counts, part.phase, part.names, cached=cached)

    def take(self, kept: Mask) -> _Runs:
        costs = {phase: y[kept] for phase, y in self.costs.items()}
        return replace(self, models=self.models.take(kept), counts=self.counts.take(kept),
                       costs=costs)  # fmt: skip

    def parts(self, cached: float) -> tuple[Part, ...]:
        """The phases, with the terms that these runs can tell apart."""
        found: list[Part] = []
        at = 0
        for phase, y in self.costs.items():
            x = columns(self.models, self.counts, phase, OF_PHASE[phase], cached=cached)
            names, not_used = _select(OF_PHASE[phase], x / y[:, None], self.units)
            found.append(Part(phase, names, slice(at, at + len(names)), tuple(not_used)))
            at += len(names)
        return tuple(found)

    def solve(self) -> _Found:
        """The terms, their coefficients, and how much the device's own cache holds."""
        ys = list(self.costs.values())
        scores: dict[float, float] = {}
        start = ys

        def at(cached: float) -> float:
            nonlocal start
            parts = self.parts(cached)
            x = [self.columns(part, cached) for part in parts]
            solved = [_solve(*each, settled=ROUGHLY) for each in zip(x, ys, start, strict=True)]
            start = [a @ c for a, c in zip(x, solved, strict=True)]
            misfit = sum(math.log(max(1e-12, mean_loss(np.log(f / y))))
                         for f, y in zip(start, ys, strict=True))  # fmt: skip
            scores[cached] = self.units * misfit
            return scores[cached]

        at(0.0)
        # a model's values are told from a cache's by how cost grows with its size
        least = 0.25 * float(self.models.multiplied.min())
        largest = min(LARGEST_CACHE, float(self.models.multiplied.max()))
        if np.unique(self.models.multiplied).size > 2 and least < largest:
            grid = np.geomspace(least, largest, CACHES).tolist()
            near = min(grid, key=at)
            step = math.log(grid[1] / grid[0])
            for turn in range(1, FINER + 1):
                by = math.exp(step / 2**turn)
                near = min((near, near / by, near * by), key=lambda c: scores.get(c) or at(c))
            if scores[near] + math.log(max(2, self.units)) > scores[0.0]:
                near = 0.0
        else:
            near = 0.0
        parts = self.parts(near)
        solved = [_solve(self.columns(p, near), y, y) for p, y in zip(parts, ys, strict=True)]
        return _Found(parts, np.concatenate(solved), near)

    def foretold(self, found: _Found) -> FloatArray:
        """What the law says of these runs, all phases together."""
        return np.asarray(
            sum(self.columns(p, found.cached) @ found.coefficients[p.at] for p in found.parts)
        )


def _select(
    names: Sequence[str], x: FloatArray, units: int
) -> tuple[tuple[str, ...], list[dict[str, str]]]:
    """The terms that columns x (n, m) can tell apart, and why the others are left out."""
    chosen: list[str] = []
    basis = np.empty((len(x), 0))
    not_used = []
    for name, column in zip(names, x.T, strict=True):
        reason = ""
        if not np.any(column > 0):
            reason = "there is none in these runs, or its size is not known"
        elif units < len(chosen) + 1:
            reason = f"{units} deployments are too few for {len(chosen) + 1} terms"
        else:
            wider = extended(basis, column[:, None] / np.linalg.norm(column), least=REMAINDER)
            if wider is None:
                reason = f"these runs cannot tell it from {', '.join(chosen)}"
            else:
                basis = wider
        if reason:
            not_used.append({"name": name, "reason": reason})
        else:
            chosen.append(name)
    return tuple(chosen), not_used


def _solve(
    x: FloatArray, y: FloatArray, start: FloatArray, *, settled: float = SETTLED
) -> FloatArray:
    """Coefficients (m,) >= 0 of columns x (n, m) that make the logarithms of x c / y small;
    start (n,): what is nearly fitted, or y itself."""
    size = x.max(axis=0)
    size = np.where(size > 0, size, 1.0)
    z = x / size
    fitted = np.maximum(start, LEAST_SHARE * y)
    found: FloatArray = np.zeros(x.shape[1])
    for _ in range(ROUNDS):
        # log(z c) about what was fitted: log(f) + z c / f - 1
        off = np.log(y / fitted)
        weight = np.sqrt(weights(off))
        rows = z * (weight / fitted)[:, None]
        found = _nonnegative(rows.T @ rows, rows.T @ (weight * (1.0 + off)))
        before, fitted = fitted, np.maximum(z @ found, LEAST_SHARE * y)
        if float(np.abs(fitted / before - 1.0).max()) <= settled:
            break
    return np.asarray(found / size)


def _nonnegative(gram: FloatArray, moment: FloatArray) -> FloatArray:
    """The c >= 0 that makes c'Gc/2 - c'm least, by Lawson and Hanson's active set."""
    from scipy.optimize import nnls

    scale = 1.0 / np.sqrt(np.maximum(np.diag(gram), 1e-300))
    scaled = gram * scale[:, None] * scale[None, :] + TRACE * np.eye(len(gram))
    root = np.linalg.cholesky(scaled + 1e-10 * np.eye(len(gram)))
    right = np.linalg.solve(root, moment * scale)
    try:
        found, _ = nnls(root.T, right, maxiter=50 * len(gram))
    except RuntimeError:  # it went round in circles among columns that are nearly the same
        from llem.scaling.fitting.nonnegative import solve_normal

        found = solve_normal(scaled[None], (moment * scale)[None])[0]
    return np.asarray(found * scale)


def _resample(
    runs: _Runs, found: _Found, levels: Levels, count: int, random: np.random.Generator
) -> Resamples:
    caches = np.array([found.cached])
    if found.cached > 0:
        caches = found.cached * np.geomspace(1 / CACHE_RANGE, CACHE_RANGE, CACHES_DRAWN)
    systems = [_System.of(runs, found, part, caches) for part in found.parts]
    draws = Draws.of(random, count, levels, [system.left for system in systems])
    # of each phase what is fitted, and of each cache the misfit, which the phases share
    wanted, further = [], np.empty((count, len(systems)))
    misfit = np.zeros((count, caches.size))
    for place, system in enumerate(systems):
        off, new = draws.errors(variances(random, count, levels, left=system.weight * system.left,
                                          columns=system.directions))  # fmt: skip
        wanted.append(system.weight + off)
        misfit += system.misfit(wanted[-1])
        # runs that lie far off hardly move the law; further deployments may as well
        further[:, place] = system.outlying * new
    which = np.argmin(misfit, axis=1)
    return Resamples(
        np.concatenate([s.solve(w, which) for s, w in zip(systems, wanted, strict=True)], axis=1),
        caches[which],
        further,
    )


@dataclass(frozen=True)
class _System:
    """One phase about what was fitted: weighted `rows` (caches, n, m) of columns scaled by `scale`
    (m,), for each cache that is tried, the fitted one in the middle; `left` (n,) in logarithms, the
    square roots `weight` (n,) of their weights, and what is `free` (m,) of the bound at 0."""

    rows: FloatArray
    scale: FloatArray
    left: FloatArray
    weight: FloatArray
    free: Mask
    change: FloatArray

    @classmethod
    def of(cls, runs: _Runs, found: _Found, part: Part, caches: FloatArray) -> _System:
        y, coefficients = runs.costs[part.phase], found.coefficients[part.at]
        x = runs.columns(part, found.cached)
        fitted = np.maximum(x @ coefficients, LEAST_SHARE * y)
        left = np.log(y / fitted)
        weight = np.sqrt(weights(left))
        by_cache = np.stack([runs.columns(part, float(c)) for c in caches])
        rows = by_cache * (weight / fitted)[:, None]
        scale = rows.max(axis=(0, 1))
        scale = np.where(scale > 0, scale, 1.0)
        near = by_cache[[max(0, caches.size // 2 - 1), min(caches.size - 1, caches.size // 2 + 1)]]
        change = (near[1] - near[0]) @ coefficients * weight / fitted
        return cls(rows / scale, scale, left, weight, coefficients > 0, change)

    @property
    def directions(self) -> FloatArray:
        """(n, m + 1): what the fit could take of the errors: its columns, and the cache's size."""
        change = self.change / max(1e-300, float(np.abs(self.change).max()))
        return np.column_stack([self.rows[len(self.rows) // 2], change])

    @property
    def outlying(self) -> float:
        """How much farther off runs lie than those that the law heeds."""
        heeded = float(np.mean((self.weight * self.left) ** 2))
        return math.sqrt(float(np.mean(self.left**2)) / max(1e-300, heeded))

    def misfit(self, wanted: FloatArray) -> FloatArray:
        """(k, caches): logarithm of the sum of squares that the free columns leave of (k, n)."""
        found = []
        for rows in self.rows[:, :, self.free]:
            basis, size, _ = np.linalg.svd(rows, full_matrices=False)
            taken = wanted @ basis[:, size > 1e-9 * size.max()]
            found.append(np.sum(wanted**2, axis=1) - np.sum(taken**2, axis=1))
        return np.asarray(np.log(np.maximum(1e-12, np.stack(found, axis=1))))

    def solve(self, wanted: FloatArray, which: NDArray[np.intp]) -> FloatArray:
        """Coefficients (k, m), each by its cache."""
        found = np.empty((len(wanted), self.scale.size))
        for cache, rows in enumerate(self.rows):
            own = np.flatnonzero(which == cache)
            gram = rows.T @ rows
            for k, moment in zip(own, wanted[own] @ rows, strict=True):
                found[k] = _nonnegative(gram, moment)
        return found / self.scale


def judge(
    runs: _Runs,
    found: _Found,
    asked: dict[str, FloatArray],
    y: FloatArray,
    unit: NDArray[np.intp],
) -> dict[str, Any]:
    """How far off the law is, and a power law of size, batch and lengths beside it: root mean
    squares of ln(foretold / measured).

    `all` of what was fitted, `noise` between cycles of one deployment, `prefill` and `decode` where
    they are told apart, and `<name>_left_out` of what was not fitted, each value in turn (fewer
    than three say nothing), with `values` of each.
    """
    everything = np.ones(y.size, dtype=bool)
    tokens = runs.counts.requests * asked["tokens_out"]
    of_law = runs.foretold(found)
    errors: dict[str, Any] = {
        "all": {
            "law": _rms(np.log(of_law / y)),
            "power_law": _rms(np.log(_power(asked, tokens, y, everything) / y)),
        }
    }
    cycles = np.bincount(unit)
    if (spare := int((cycles - 1).sum())) > 0:
        middle = (np.bincount(unit, np.log(y)) / cycles)[unit]
        errors["noise"] = math.sqrt(float(np.sum((np.log(y) - middle) ** 2)) / spare)
    if len(found.parts) > 1:
        for part in found.parts:
            fitted = runs.columns(part, found.cached) @ found.coefficients[part.at]
            errors[part.phase] = {"law": _rms(np.log(fitted / runs.costs[part.phase]))}
    for name in SPLITS:
        values = np.unique(asked[name])
        if values.size < 3:
            continue
        law, power, each = np.full(y.size, np.nan), np.full(y.size, np.nan), []
        for value in values:
            out = asked[name] == value
            rest = runs.take(~out)
            if np.count_nonzero(~out) < len(found.coefficients) + 1:
                continue
            told = runs.take(out).foretold(rest.solve())
            law[out] = np.log(np.maximum(told, 1e-300) / y[out])
            power[out] = np.log(_power(asked, tokens, y, ~out)[out] / y[out])
            each.append({"value": float(value), "law": _rms(law[out]),
                         "power_law": _rms(power[out])})  # fmt: skip
        if each:
            errors[f"{name}_left_out"] = {"law": _rms(law), "power_law": _rms(power),
                                          "values": each}  # fmt: skip
    return errors


def _power(
    asked: dict[str, FloatArray], tokens: FloatArray, y: FloatArray, kept: Mask
) -> FloatArray:
    """Cost by a power law of what was asked for each token that comes out, fitted to `kept` rows;
    of what does not vary in them the power is 0."""
    x = np.stack([np.log(asked[name]) for name in SPLITS], axis=1)
    middle = x[kept].mean(axis=0)
    z = np.log(y / tokens)
    solution, *_ = np.linalg.lstsq(x[kept] - middle, z[kept] - z[kept].mean(), rcond=1e-8)
    return np.asarray(np.exp(z[kept].mean() + (x - middle) @ solution) * tokens)


def _rms(off: FloatArray) -> float:
    known = off[np.isfinite(off)]
    return float(np.sqrt(np.mean(known**2))) if known.size else math.nan
