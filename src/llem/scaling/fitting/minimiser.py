"""Damped Newton for thousands of fits at once, whatever the law.

The problems of a batch share the observations and differ in their weights (a bootstrap), their
starts, their Huber thresholds or the parameters held fixed (profiles).

The step solves (H + lambda G) s = -g with H the exact Hessian and G the reweighted Gauss-Newton
matrix sum c psi(r)/r J J'. Damping in the metric G rather than in a diagonal makes the path
independent of units and of the centring. Where H is not positive definite, the step is that of
|H|, its eigenvalues taken absolute.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from llem.scaling.fitting.problem import BLOCK_ELEMENTS, PARTS, Local, Problem
from llem.scaling.native import compiled

FloatArray = NDArray[np.float64]

# Longest step of a shape, and of an amplitude, which is searched in its log.
STEP_CAP = 0.75
LOG_STEP_CAP = 2.0
MAX_STEPS = 200
# So many steps in a row, refused or without gain, end a fit: it crawls along a flat valley.
QUIET_STEPS = 6
# Steps back to the floor of a valley after a refused one.
CORRECTIONS = 3
FIRST_DAMPING = 1e-2
# Curvature along which a saddle is left, as a share of the largest; the cap limits the step.
FLATTEST = 1e-9
LAST_DAMPING = 1e12


class Weights(Protocol):
    """Weights of many problems, made when they are wanted: a bootstrap of long tables is large."""

    def take(self, index: NDArray[np.intp]) -> FloatArray:
        """Row weights of the problems `index` (m,): shape (m, n)."""


@dataclass(frozen=True)
class Minima:
    """Where the batch ended: theta (k, p) centred, objective (k,), steps (k,).

    converged (k,): whether Newton's model promised no more; False where a fit was cut off or crept.
    """

    theta: FloatArray
    objective: FloatArray
    converged: NDArray[np.bool_]
    steps: NDArray[np.int64]

    def take(self, index: NDArray[np.intp]) -> Minima:
        """Some of the problems."""
        return Minima(
            self.theta[index], self.objective[index], self.converged[index], self.steps[index]
        )


@dataclass(frozen=True)
class _Given:
    """Weights that lie in an array already: (k, n), or (1, n) shared by all problems."""

    weight: FloatArray

    def take(self, index: NDArray[np.intp]) -> FloatArray:
        return self.weight if self.weight.shape[0] == 1 else self.weight[index]


class _Kernel:
    """Evaluates problems, in slabs of rows where a table is long."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        n = problem.rows
        self.block = int(getattr(problem, "block_elements", BLOCK_ELEMENTS))
        self.slabs = [slice(i, min(i + self.block, n)) for i in range(0, n, self.block)]
        self.cap = np.where(np.isfinite(problem.upper), STEP_CAP, LOG_STEP_CAP)

    def __call__(self, theta: FloatArray, weight: FloatArray, delta: FloatArray) -> Local:
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            if len(self.slabs) == 1:
                return self.problem.evaluate(theta, weight, delta, self.slabs[0])
            parts = [self.problem.evaluate(theta, weight[:, s], delta, s) for s in self.slabs]
        return Local(*(sum(getattr(part, name) for part in parts) for name in PARTS))

    def clip(self, theta: FloatArray) -> FloatArray:
        """theta (k, p) within the bounds."""
        return np.clip(theta, self.problem.lower, self.problem.upper)

    def stopped(self, theta: FloatArray, gradient: FloatArray) -> NDArray[np.bool_]:
        """Coordinates (k, p) at a bound that the descent would cross: they stay there."""
        low = (theta <= self.problem.lower) & (gradient > 0)
        return np.asarray(low | ((theta >= self.problem.upper) & (gradient < 0)))


def solve_spd(matrix: FloatArray, rhs: FloatArray) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Solve a batch of small symmetric systems (k, d, d); False where not positive definite.

    Gauss-Jordan without exchange of rows: its pivots are those of Cholesky, so their signs tell
    whether a matrix is positive definite, and each problem answers for itself where numpy's
    Cholesky raises for the whole batch.
    """
    d = rhs.shape[1]
    # Problems last: each elimination then runs along contiguous memory.
    work = np.empty((d, d + 1, rhs.shape[0]))
    work[:, :d] = matrix.transpose(1, 2, 0)
    work[:, d] = rhs.T
    scale = np.abs(np.einsum("iik->ik", work[:, :d]))
    pivots = np.empty_like(scale)
    with np.errstate(all="ignore"):
        for j in range(d):
            pivots[j] = work[j, j]
            work[j, j + 1 :] /= pivots[j]
            for i in range(d):
                if i != j:
                    work[i, j + 1 :] -= work[i, j] * work[j, j + 1 :]
        # A pivot lost to rounding says nothing about the sign: treat it as not positive.
        positive = np.all(pivots > 1e-13 * scale, axis=0)
    return np.where(positive, work[:, d], 0.0).T, positive


def minimise(
    problem: Problem,
    start: FloatArray,
    weight: FloatArray | Weights,
    *,
    delta: FloatArray | float,
    tolerance: float = 1e-14,
    fixed: FloatArray | None = None,
    basis: FloatArray | None = None,
    max_steps: int = MAX_STEPS,
) -> Minima:
    """Minimise the Huber sum of every problem of a batch.

    start: (k, p) centred. weight: (k, n), or (1, n) shared by all, or `Weights`. delta: Huber
    threshold of log residuals (inf: least squares), one or (k,). tolerance: stop when the decrease
    that Newton's model still promises is below this share of the objective (scale-free). fixed:
    (k, p) of 0/1; parameters marked 1 stay at their start (profiles). basis: (k, p, p); steps are
    then basis @ u with u free where `fixed` is 0, which holds a combination of parameters.

    A block of problems is worked on together; as soon as one ends, the next takes its place, so
    that a few slow ones do not hold up the rest.
    """
    k = start.shape[0]
    source = _Given(weight) if isinstance(weight, np.ndarray) else weight
    shared = isinstance(weight, np.ndarray) and weight.shape[0] == 1
    kernel = _Kernel(problem)
    deltas = np.broadcast_to(np.asarray(delta, dtype=np.float64), (k,))
    held = np.zeros(start.shape) if fixed is None else fixed
    # A basis of its own for each problem is rare and small: an empty one means none.
    bases = np.empty((k, 0, 0)) if basis is None else basis
    out = Minima(
        np.array(start, dtype=np.float64, copy=True),
        np.full(k, np.inf),
        np.zeros(k, dtype=bool),
        np.zeros(k, dtype=np.int64),
    )
    size = max(1, kernel.block // max(problem.rows, 1))
    # Refilling one by one would cost an evaluation each: wait until a share of the block is free.
    batch = max(1, size // 4)
    waiting = 0
    pool: _Pool | None = None
    while waiting < k or pool is not None:
        free = size - (0 if pool is None else pool.size)
        if waiting < k and (pool is None or free >= batch):
            index = np.arange(waiting, min(waiting + free, k))
            waiting += index.size
            w = source.take(index)
            given = (start[index], w, deltas[index], held[index], bases[index])
            fresh = _Pool.at(kernel, index, *given, shared)
            pool = fresh if pool is None else pool.join(fresh)
        assert pool is not None
        pool = pool.advance(kernel, out, tolerance, max_steps)
    return out


@dataclass
class _Pool:
    """The problems being worked on, and where each stands."""

    index: NDArray[np.intp]
    theta: FloatArray
    weight: FloatArray
    dust: FloatArray
    delta: FloatArray
    fixed: FloatArray
    basis: FloatArray
    here: Local
    damping: FloatArray
    quiet: NDArray[np.int64]
    steps: NDArray[np.int64]
    shared: bool

    ARRAYS = ("index", "theta", "dust", "delta", "fixed", "basis", "damping", "quiet", "steps")

    @classmethod
    def at(
        cls,
        kernel: _Kernel,
        index: NDArray[np.intp],
        theta: FloatArray,
        weight: FloatArray,
        delta: FloatArray,
        fixed: FloatArray,
        basis: FloatArray,
        shared: bool,
    ) -> _Pool:
        k = index.size
        return cls(
            index=index,
            theta=np.array(theta, copy=True),
            weight=weight,
            # Noise-free data end at rounding error, where a relative rule would never be met.
            dust=np.broadcast_to(1e-28 * weight.sum(axis=1), (k,)),
            delta=delta,
            fixed=fixed,
            basis=basis,
            here=kernel(theta, weight, delta),
            damping=np.full(k, FIRST_DAMPING),
            quiet=np.zeros(k, dtype=np.int64),
            steps=np.zeros(k, dtype=np.int64),
            shared=shared,
        )

    @property
    def size(self) -> int:
        return int(self.index.size)

    def join(self, other: _Pool) -> _Pool:
        for name in self.ARRAYS:
            setattr(self, name, np.concatenate([getattr(self, name), getattr(other, name)]))
        if not self.shared:
            self.weight = np.concatenate([self.weight, other.weight])
        self.here = self.here.join(other.here)
        return self

    def keep(self, keep: NDArray[np.bool_]) -> None:
        for name in self.ARRAYS:
            setattr(self, name, getattr(self, name)[keep])
        if not self.shared:
            self.weight = self.weight[keep]
        self.here = self.here.take(keep)

    def advance(
        self, kernel: _Kernel, out: Minima, tolerance: float, max_steps: int
    ) -> _Pool | None:
        """One step of every problem; those that ended are written to `out` and leave."""
        here = self.here
        move, promised, solved = self._step(kernel, here, self.theta, slice(None))
        dust = here.value <= self.dust
        stuck = (self.damping > LAST_DAMPING) | ~solved | ~np.isfinite(here.value)
        late = self.steps >= max_steps - 1
        settled = ((promised <= tolerance * here.value) & (self.damping < 1.0) & ~stuck) | dust
        done = settled | (self.quiet >= QUIET_STEPS) | stuck | late
        if done.any():
            at = self.index[done]
            out.theta[at], out.objective[at] = self.theta[done], here.value[done]
            out.converged[at] = settled[done]
            out.steps[at] = self.steps[done]
            if done.all():
                return None
            going = ~done
            self.keep(going)
            here, move, promised = self.here, move[going], promised[going]
        trial = self._clip(kernel, self.theta + move)
        there = kernel(trial, self.weight, self.delta)
        with np.errstate(invalid="ignore", divide="ignore"):
            gain = here.value - there.value
            ratio = np.where(promised > 0, gain / promised, 0.0)
        accept = (gain > 0) & np.isfinite(there.value)
        if not accept.all():
            self._second_chance(kernel, ~accept & np.isfinite(there.value), trial, there)
            gain = here.value - there.value
            accept = (gain > 0) & np.isfinite(there.value)
        self.quiet = np.where(gain > 10 * tolerance * here.value, 0, self.quiet + 1)
        damping = np.where(accept & (ratio > 0.7), self.damping * 0.15, self.damping)
        damping = np.where(accept & (ratio < 0.3), damping * 3.0, damping)
        damping = np.where(~accept, np.maximum(damping * 10.0, 1e-2), damping)
        self.damping = np.maximum(damping, 1e-12)
        self.theta = np.where(accept[:, None], trial, self.theta)
        here.replace(accept, there)
        self.steps = self.steps + 1
        return self

    def _step(
        self, kernel: _Kernel, at: Local, theta: FloatArray, rows: slice | NDArray[np.intp]
    ) -> tuple[FloatArray, FloatArray, NDArray[np.bool_]]:
        fixed = self.fixed[rows]
        if not self.basis.shape[1]:
            stopped = kernel.stopped(theta, at.gradient)
            fixed = np.maximum(fixed, stopped) if stopped.any() else fixed
        return newton_step(at, self.damping[rows], fixed, self.basis[rows], kernel.cap)

    def _clip(self, kernel: _Kernel, theta: FloatArray) -> FloatArray:
        # A combination held by a basis would be broken by a bound: profiles are local anyway.
        return theta if self.basis.shape[1] else kernel.clip(theta)

    def _second_chance(
        self, kernel: _Kernel, refused: NDArray[np.bool_], trial: FloatArray, there: Local
    ) -> None:
        """A refused step may have left a curved valley: a few more lead back to its floor.

        Where that ends lower than the problem stood, it replaces the trial, in place. Without it
        the minimiser creeps along such valleys by steps that shrink with their bend.
        """
        rows = np.flatnonzero(refused)
        at, point = there.take(refused), trial[rows]
        for _ in range(CORRECTIONS):
            if rows.size == 0:
                return
            move, _, solved = self._step(kernel, at, point, rows)
            point = self._clip(kernel, point + move)
            weight = self.weight if self.shared else self.weight[rows]
            before, at = at.value, kernel(point, weight, self.delta[rows])
            better = solved & (at.value < self.here.value[rows])
            trial[rows[better]] = point[better]
            there.put(rows[better], at.take(better))
            going = solved & ~better & (at.value < before)
            rows, point, at = rows[going], point[going], at.take(going)


def newton_step(
    here: Local, damping: FloatArray, fixed: FloatArray, basis: FloatArray, cap: FloatArray
) -> tuple[FloatArray, FloatArray, NDArray[np.bool_]]:
    """The damped step (k, p), the decrease its model promises (k,), and whether there is a step.

    cap: (p,) longest step of each coordinate.
    """
    parts = (here.gradient, here.hessian, here.metric)
    if basis.shape[1]:
        turned = basis.transpose(0, 2, 1)
        gradient = (turned @ here.gradient[:, :, None])[:, :, 0]
        parts = (gradient, turned @ here.hessian @ basis, turned @ here.metric @ basis)
    held = fixed if fixed.any() else None
    library = compiled.library()
    if library is None or fixed.shape[1] > compiled.LARGEST_DIMENSION:
        move, promised, solved = _step_numpy(*parts, damping, held, cap)
    else:
        move, promised, solved = library.newton(*parts, damping, held, cap)
    if not solved.all():
        bad = np.flatnonzero(~solved)
        gradient, hessian, metric = (part[bad] for part in parts)
        diagonal, free = np.einsum("kii->ki", metric), 1.0 - fixed[bad]
        if held is not None:
            gradient, hessian = _hold(gradient, hessian, held[bad])
        away = _saddle_free(hessian, gradient, diagonal, damping[bad]) * free
        move[bad], promised[bad], solved[bad] = _capped(away, gradient, hessian, cap)
    if basis.shape[1]:
        move = (basis @ move[:, :, None])[:, :, 0]
    return move, promised, solved


def _step_numpy(
    gradient: FloatArray,
    hessian: FloatArray,
    metric: FloatArray,
    damping: FloatArray,
    fixed: FloatArray | None,
    cap: FloatArray,
) -> tuple[FloatArray, FloatArray, NDArray[np.bool_]]:
    """`Library.newton` without a compiler: steps to the minima of the models that have one."""
    metric = metric.copy()
    diagonal = np.einsum("kii->ki", metric)
    diagonal += 1e-10 * diagonal + _least(diagonal)
    if fixed is not None:
        _, metric = _hold(gradient, metric, fixed)
        gradient, hessian = _hold(gradient, hessian, fixed)
    move, solved = solve_spd(hessian + damping[:, None, None] * metric, -gradient)
    move, promised, finite = _capped(move, gradient, hessian, cap)
    return move, promised, solved & finite


def _hold(
    gradient: FloatArray, matrix: FloatArray, fixed: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Gradient and matrix of the free parameters; those held get a curvature of one."""
    free = 1.0 - fixed
    matrix = matrix * (free[:, :, None] * free[:, None, :])
    np.einsum("kii->ki", matrix)[...] += fixed
    return gradient * free, matrix


def _capped(
    move: FloatArray, gradient: FloatArray, hessian: FloatArray, cap: FloatArray
) -> tuple[FloatArray, FloatArray, NDArray[np.bool_]]:
    """Moves of bounded length, what the model promises of them, and which of them are moves."""
    solved = np.all(np.isfinite(move), axis=1)
    move = np.where(solved[:, None], move, 0.0)
    longest = np.max(np.abs(move) / cap, axis=1)
    move = move * np.minimum(1.0, 1.0 / np.maximum(longest, 1e-300))[:, None]
    curve = np.sum((hessian @ move[:, :, None])[:, :, 0] * move, axis=1)
    return move, -(np.sum(gradient * move, axis=1) + 0.5 * curve), solved


def _least(diagonal: FloatArray) -> FloatArray:
    """A trace of the largest entry (k, p), so that no direction is without any scale."""
    return np.asarray(1e-14 * diagonal.max(axis=1, keepdims=True) + 1e-300)


def _saddle_free(
    hessian: FloatArray, gradient: FloatArray, diagonal: FloatArray, damping: FloatArray
) -> FloatArray:
    """Step of |H|: down along directions of negative curvature as well, at their own scale.

    More damping would make H positive too, but a valley that is flat in the metric needs so much
    of it that the steps become endless.
    """
    out = np.full(gradient.shape, np.nan)
    fine = np.isfinite(hessian).all(axis=(1, 2)) & np.isfinite(gradient).all(axis=1)
    if not fine.any():
        return out
    hessian, gradient = hessian[fine], gradient[fine]
    diagonal, damping = diagonal[fine], damping[fine]
    size = np.sqrt(diagonal + _least(diagonal))
    scaled = hessian / (size[:, :, None] * size[:, None, :])
    values, vectors = np.linalg.eigh(scaled)
    bend = np.abs(values)
    bend = np.maximum(bend, FLATTEST * bend.max(axis=1, keepdims=True)) + damping[:, None]
    along = np.einsum("kji,kj->ki", vectors, gradient / size)
    out[fine] = -np.einsum("kij,kj->ki", vectors, along / bend) / size
    return out


def refine(problem: Problem, ends: Minima, weight: FloatArray, *, delta: float) -> Minima:
    """Full Newton steps as long as the gradient shrinks: the digits that damping left over.

    weight: (1, n) or (k, n).
    """
    kernel = _Kernel(problem)
    theta = ends.theta
    k = theta.shape[0]
    deltas, plain = np.full(k, delta), np.empty((k, 0, 0))
    here = kernel(theta, weight, deltas)
    for _ in range(4):
        fixed = kernel.stopped(theta, here.gradient).astype(float)
        move, _, solved = newton_step(here, np.full(k, 1e-12), fixed, plain, kernel.cap)
        trial = kernel.clip(theta + move)
        there = kernel(trial, weight, deltas)
        free = 1.0 - fixed
        shorter = np.linalg.norm(there.gradient * free, axis=1) < np.linalg.norm(
            here.gradient * free, axis=1
        )
        better = solved & shorter & (there.value <= here.value * (1 + 1e-14))
        if not better.any():
            break
        theta = np.where(better[:, None], trial, theta)
        here.replace(better, there)
    return Minima(theta, here.value, ends.converged, ends.steps)


def derivatives(
    problem: Problem, theta: FloatArray, weight: FloatArray, *, delta: float
) -> tuple[Local, NDArray[np.bool_]]:
    """The problem at one centred theta (p,) under weight (n,), and which coordinates a bound stops.

    At a minimum the gradient of the others (p,) vanishes.
    """
    kernel = _Kernel(problem)
    point = np.atleast_2d(theta)
    local = kernel(point, np.atleast_2d(weight), np.full(1, delta))
    return local, kernel.stopped(point, local.gradient)[0]
