"""Damped Newton for many fits of L = E + A/N^alpha + B/D^beta at once.

All problems share the observations and differ in their weights (a bootstrap) or their starts.
Coordinates are (a, b, e, alpha, beta) with log N and log D centred, so that

    log Lhat = log( exp(a - alpha x) + exp(b - beta y) + exp(e) ),   x, y centred logs.

In raw coordinates the condition number of the problem is near 1e11; in these it is harmless.

The step solves (H + lambda G) s = -g with H the exact Hessian and G the reweighted Gauss-Newton
matrix sum c psi(r)/r J J'. Damping in the metric G rather than in a diagonal makes the path
independent of units and of the centring. Where H is not positive definite, the step is that of
|H|, its eigenvalues taken absolute.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

A, B, E, ALPHA, BETA = range(5)
DIMENSION = 5

# Soft bounds: a quadratic wall outside, exactly nothing inside, so a well posed fit never feels
# them, and a badly posed one ends at a named bound instead of drifting for ever.
EXPONENT_BOUNDS = (0.05, 2.0)
# Smallest share exp(-9) = 1.2e-4 of the typical loss that a term may have: below it the data
# cannot tell it from zero.
FLOOR_LOG_SHARE = 9.0
WALL = 200.0

STEP_CAP = 0.75
MAX_STEPS = 200
# So many steps in a row, refused or without gain, end a fit: it crawls along a flat valley.
QUIET_STEPS = 6
# Elements of one (problems x observations) block: about 128 kB, so that the dozen work arrays of
# a block stay in the processor's cache.
BLOCK_ELEMENTS = 16384


@dataclass(frozen=True)
class Problem:
    """Centred observations: x = log N - mean, y = log D - mean, z = log L, each of shape (n,)."""

    x: FloatArray
    y: FloatArray
    z: FloatArray
    centre_x: float
    centre_y: float

    @classmethod
    def of(cls, params: FloatArray, tokens: FloatArray, loss: FloatArray) -> Problem:
        """Centre the logs of parameters (count), tokens (count) and loss (nats)."""
        log_n, log_d = np.log(params), np.log(tokens)
        cx, cy = float(np.mean(log_n)), float(np.mean(log_d))
        return cls(x=log_n - cx, y=log_d - cy, z=np.log(loss), centre_x=cx, centre_y=cy)

    @property
    def rows(self) -> int:
        """Number of observations."""
        return int(self.z.size)

    def floor(self) -> float:
        """Soft floor of a, b and e."""
        return float(np.mean(self.z)) - FLOOR_LOG_SHARE

    def natural(self, theta: FloatArray) -> FloatArray:
        """Centred (..., 5) to log A, log B, log E, alpha, beta of uncentred N and D."""
        out = np.array(theta, dtype=np.float64, copy=True)
        out[..., A] += out[..., ALPHA] * self.centre_x
        out[..., B] += out[..., BETA] * self.centre_y
        return out

    def residuals(self, theta: FloatArray) -> FloatArray:
        """log L - log Lhat for theta (k, 5): shape (k, n)."""
        t = np.atleast_2d(theta)
        e = t[:, E, None]
        s = np.exp(t[:, A, None] - t[:, ALPHA, None] * self.x - e)
        s += np.exp(t[:, B, None] - t[:, BETA, None] * self.y - e)
        return self.z - e - np.log1p(s)


@dataclass(frozen=True)
class Minima:
    """Where the batch ended: theta (k, 5) centred, objective (k,) without walls, converged (k,)."""

    theta: FloatArray
    objective: FloatArray
    converged: NDArray[np.bool_]
    steps: NDArray[np.int64]


@dataclass
class _Local:
    """Value, gradient, Hessian and damping metric of each problem of a block."""

    total: FloatArray  # objective and walls, (k,)
    value: FloatArray  # objective alone, (k,)
    gradient: FloatArray  # (k, 5)
    hessian: FloatArray  # (k, 5, 5)
    metric: FloatArray  # (k, 5, 5)

    def replace(self, where: NDArray[np.bool_], other: _Local) -> None:
        self.total[where] = other.total[where]
        self.value[where] = other.value[where]
        self.gradient[where] = other.gradient[where]
        self.hessian[where] = other.hessian[where]
        self.metric[where] = other.metric[where]

    def take(self, keep: NDArray[np.bool_]) -> _Local:
        return _Local(
            self.total[keep],
            self.value[keep],
            self.gradient[keep],
            self.hessian[keep],
            self.metric[keep],
        )


class _Kernel:
    """Evaluates a block of problems; holds what all of them share."""

    def __init__(self, problem: Problem, delta: float) -> None:
        self.problem = problem
        self.delta = delta
        one = np.ones_like(problem.x)
        x, y = problem.x, problem.y
        self.basis = np.ascontiguousarray(np.stack([one, x, y, x * x, y * y, x * y], axis=1))
        self.floor = problem.floor()
        self.wall_scale = WALL * min(delta, 1e-2)

    def __call__(self, theta: FloatArray, weight: FloatArray) -> _Local:
        """Evaluate theta (k, 5) under weight (k, n) or (1, n)."""
        p, delta = self.problem, self.delta
        k, n = theta.shape[0], p.rows
        e = theta[:, E, None]
        shares = np.empty((3, k, n))
        w1, w2, w3 = shares
        np.multiply(theta[:, ALPHA, None], -p.x, out=w1)
        w1 += theta[:, A, None] - e
        np.exp(w1, out=w1)
        np.multiply(theta[:, BETA, None], -p.y, out=w2)
        w2 += theta[:, B, None] - e
        np.exp(w2, out=w2)
        np.add(w1, w2, out=w3)
        w3 += 1.0
        r = np.log(w3)
        r += e
        np.subtract(p.z, r, out=r)
        np.divide(1.0, w3, out=w3)
        w1 *= w3
        w2 *= w3

        psi = np.clip(r, -delta, delta)
        inside = psi == r
        half = r - 0.5 * psi
        half *= psi
        half *= weight
        value = half.sum(axis=1)
        # psi/r is 1 inside and delta/|r| beyond; dividing only there spares 0/0 as well.
        np.divide(psi, r, out=r, where=~inside)
        r[inside] = 1.0
        r *= weight
        psi_c = psi * weight
        q = weight * inside
        q += psi_c

        products = np.empty((15, k, n))
        pair = products[:6]
        np.multiply(w1, w1, out=pair[0])
        np.multiply(w1, w2, out=pair[1])
        np.multiply(w1, w3, out=pair[2])
        np.multiply(w2, w2, out=pair[3])
        np.multiply(w2, w3, out=pair[4])
        np.multiply(w3, w3, out=pair[5])
        np.multiply(pair, r, out=products[6:12])
        pair *= q
        np.multiply(shares, psi_c, out=products[12:15])
        # Fifteen small products, not one large: large ones wake the threads of the BLAS, which
        # cost more than they bring here.
        moments = products @ self.basis

        gradient = np.empty((k, DIMENSION))
        m1, m2, m3 = moments[12], moments[13], moments[14]
        gradient[:, A], gradient[:, B], gradient[:, E] = -m1[:, 0], -m2[:, 0], -m3[:, 0]
        gradient[:, ALPHA], gradient[:, BETA] = m1[:, 1], m2[:, 2]
        hessian = _gram(moments[:6])
        metric = _gram(moments[6:12])
        hessian[:, A, A] -= m1[:, 0]
        hessian[:, B, B] -= m2[:, 0]
        hessian[:, E, E] -= m3[:, 0]
        for i, j, curve in (
            (A, ALPHA, m1[:, 1]),
            (B, BETA, m2[:, 2]),
        ):
            hessian[:, i, j] += curve
            hessian[:, j, i] += curve
        hessian[:, ALPHA, ALPHA] -= m1[:, 3]
        hessian[:, BETA, BETA] -= m2[:, 4]
        total = value.copy()
        self._add_walls(theta, weight, total, gradient, hessian)
        return _Local(total, value, gradient, hessian, metric)

    def _add_walls(
        self,
        theta: FloatArray,
        weight: FloatArray,
        total: FloatArray,
        gradient: FloatArray,
        hessian: FloatArray,
    ) -> None:
        scale = self.wall_scale * np.broadcast_to(weight.sum(axis=1), total.shape)
        low, high = EXPONENT_BOUNDS
        lower = np.array([self.floor, self.floor, self.floor, low, low])
        upper = np.array([np.inf, np.inf, np.inf, high, high])
        excess = np.maximum(theta - upper, 0.0) + np.minimum(theta - lower, 0.0)
        if not excess.any():
            return
        total += 0.5 * scale * np.sum(excess * excess, axis=1)
        gradient += scale[:, None] * excess
        axis = np.arange(DIMENSION)
        hessian[:, axis, axis] += scale[:, None] * (excess != 0.0)


def _gram(m: FloatArray) -> FloatArray:
    """Sum of weight x J J' from moments m (6, k, 6) of the products of shares.

    J = (w1, w2, w3, -w1 x, -w2 y); rows of m: w1w1, w1w2, w1w3, w2w2, w2w3, w3w3; columns: the
    basis 1, x, y, x^2, y^2, xy.
    """
    out = np.empty((m.shape[1], DIMENSION, DIMENSION))
    entries = (
        (A, A, m[0, :, 0]),
        (A, B, m[1, :, 0]),
        (A, E, m[2, :, 0]),
        (A, ALPHA, -m[0, :, 1]),
        (A, BETA, -m[1, :, 2]),
        (B, B, m[3, :, 0]),
        (B, E, m[4, :, 0]),
        (B, ALPHA, -m[1, :, 1]),
        (B, BETA, -m[3, :, 2]),
        (E, E, m[5, :, 0]),
        (E, ALPHA, -m[2, :, 1]),
        (E, BETA, -m[4, :, 2]),
        (ALPHA, ALPHA, m[0, :, 3]),
        (ALPHA, BETA, m[1, :, 5]),
        (BETA, BETA, m[3, :, 4]),
    )
    for i, j, column in entries:
        out[:, i, j] = column
        if i != j:
            out[:, j, i] = column
    return out


def solve_spd(matrix: FloatArray, rhs: FloatArray) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Solve a batch of small symmetric systems (k, d, d); False where not positive definite.

    Gauss-Jordan without exchange of rows: its pivots are those of Cholesky, so their signs tell
    whether a matrix is positive definite, and each problem answers for itself where numpy's
    Cholesky raises for the whole batch.
    """
    d = rhs.shape[1]
    work = np.concatenate([matrix, rhs[:, :, None]], axis=2)
    scale = np.abs(np.einsum("kii->ki", matrix))
    pivots = np.empty_like(rhs)
    with np.errstate(all="ignore"):
        for j in range(d):
            pivot = work[:, j, j].copy()
            pivots[:, j] = pivot
            row = work[:, j, None, j:] / pivot[:, None, None]
            factor = work[:, :, j].copy()
            factor[:, j] = pivot - 1.0  # leaves the scaled row in place of the pivot's own
            work[:, :, j:] -= factor[:, :, None] * row
        # A pivot lost to rounding says nothing about the sign: treat it as not positive.
        positive = np.all(pivots > 1e-13 * scale, axis=1)
    return np.where(positive[:, None], work[:, :, d], 0.0), positive


def minimise(
    problem: Problem,
    start: FloatArray,
    weight: FloatArray,
    *,
    delta: float,
    tolerance: float = 1e-14,
    fixed: FloatArray | None = None,
    max_steps: int = MAX_STEPS,
) -> Minima:
    """Minimise the Huber sum of every problem of a batch.

    start: (k, 5) centred. weight: (k, n), or (1, n) shared by all. delta: Huber threshold of log
    residuals (inf: least squares). tolerance: stop when the decrease that Newton's model still
    promises is below this share of the objective (scale-free). fixed: (k, 5) of 0/1; parameters
    marked 1 stay at their start (profiles).
    """
    k = start.shape[0]
    size = max(1, BLOCK_ELEMENTS // max(problem.rows, 1))
    kernel = _Kernel(problem, delta)
    shared = weight.shape[0] == 1
    parts = []
    for begin in range(0, k, size):
        block = slice(begin, min(begin + size, k))
        parts.append(
            _minimise_block(
                kernel,
                start[block],
                weight if shared else weight[block],
                None if fixed is None else fixed[block],
                tolerance,
                max_steps,
            )
        )
    return Minima(
        theta=np.concatenate([p.theta for p in parts]),
        objective=np.concatenate([p.objective for p in parts]),
        converged=np.concatenate([p.converged for p in parts]),
        steps=np.concatenate([p.steps for p in parts]),
    )


def _minimise_block(
    kernel: _Kernel,
    start: FloatArray,
    weight: FloatArray,
    fixed: FloatArray | None,
    tolerance: float,
    max_steps: int,
) -> Minima:
    k = start.shape[0]
    shared = weight.shape[0] == 1
    out_theta = np.array(start, dtype=np.float64, copy=True)
    out_value = np.full(k, np.inf)
    out_done = np.zeros(k, dtype=bool)
    out_steps = np.zeros(k, dtype=np.int64)

    index = np.arange(k)
    theta = out_theta.copy()
    here = kernel(theta, weight)
    damping = np.full(k, 1e-2)
    quiet = np.zeros(k, dtype=np.int64)
    # Noise-free data end at rounding error, where a relative rule would never be met.
    dust = 1e-28 * np.broadcast_to(weight.sum(axis=1), (k,))
    for step in range(max_steps):
        move, promised, solved = _newton_step(here, damping, fixed)
        done = (promised <= tolerance * here.total) & (damping < 1.0)
        done |= (quiet >= QUIET_STEPS) | (damping > 1e12) | ~solved | (here.total <= dust)
        if step == max_steps - 1:
            done[:] = True
        if done.any():
            at = index[done]
            out_theta[at], out_value[at] = theta[done], here.value[done]
            settled = (damping <= 1e12) & solved & (step < max_steps - 1)
            out_done[at], out_steps[at] = settled[done], step
            keep = ~done
            if not keep.any():
                break
            index, theta, here = index[keep], theta[keep], here.take(keep)
            damping, quiet, dust = damping[keep], quiet[keep], dust[keep]
            move, promised = move[keep], promised[keep]
            weight = weight if shared else weight[keep]
            fixed = None if fixed is None else fixed[keep]
        trial = theta + move
        there = kernel(trial, weight)
        gain = here.total - there.total
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = np.where(promised > 0, gain / promised, 0.0)
        accept = (gain > 0) & np.isfinite(there.total)
        small = gain <= 10 * tolerance * here.total
        quiet = np.where(small, quiet + 1, 0)
        damping = np.where(accept & (ratio > 0.7), damping * 0.15, damping)
        damping = np.where(accept & (ratio < 0.3), damping * 3.0, damping)
        damping = np.where(~accept, np.maximum(damping * 10.0, 1e-2), damping)
        damping = np.maximum(damping, 1e-12)
        theta = np.where(accept[:, None], trial, theta)
        here.replace(accept, there)
    return Minima(out_theta, out_value, out_done, out_steps)


def _newton_step(
    here: _Local, damping: FloatArray, fixed: FloatArray | None
) -> tuple[FloatArray, FloatArray, NDArray[np.bool_]]:
    """The damped step, the decrease promised by the model, and whether there is a step."""
    gradient, hessian = here.gradient, here.hessian
    axis = np.arange(DIMENSION)
    metric = here.metric.copy()
    diagonal = metric[:, axis, axis]
    ridge = 1e-10 * diagonal + 1e-14 * diagonal.max(axis=1, keepdims=True) + 1e-300
    metric[:, axis, axis] += ridge
    if fixed is not None:
        free = 1.0 - fixed
        gradient = gradient * free
        mask = free[:, :, None] * free[:, None, :]
        hessian = hessian * mask
        hessian[:, axis, axis] += fixed
        metric = metric * mask
        metric[:, axis, axis] += fixed
    move, solved = solve_spd(hessian + damping[:, None, None] * metric, -gradient)
    if not solved.all():
        bad = ~solved
        move[bad] = _saddle_free(hessian[bad], gradient[bad], diagonal[bad], damping[bad])
        solved = np.all(np.isfinite(move), axis=1)
    move = np.where(solved[:, None], move, 0.0)
    longest = np.max(np.abs(move), axis=1)
    move = move * np.minimum(1.0, STEP_CAP / np.maximum(longest, 1e-300))[:, None]
    curve = np.einsum("ki,kij,kj->k", move, hessian, move)
    promised = -(np.sum(gradient * move, axis=1) + 0.5 * curve)
    return move, promised, solved


def _saddle_free(
    hessian: FloatArray, gradient: FloatArray, diagonal: FloatArray, damping: FloatArray
) -> FloatArray:
    """Step of |H|: down along directions of negative curvature as well, at their own scale.

    More damping would make H positive too, but a valley that is flat in the metric needs so much
    of it that the steps become endless.
    """
    size = np.sqrt(diagonal + 1e-14 * diagonal.max(axis=1, keepdims=True) + 1e-300)
    scaled = hessian / (size[:, :, None] * size[:, None, :])
    values, vectors = np.linalg.eigh(scaled)
    bend = np.abs(values)
    bend = np.maximum(bend, 1e-4 * bend.max(axis=1, keepdims=True)) + damping[:, None]
    along = np.einsum("kji,kj->ki", vectors, gradient / size)
    return np.asarray(-np.einsum("kij,kj->ki", vectors, along / bend) / size)


def refine(problem: Problem, ends: Minima, weight: FloatArray, *, delta: float) -> Minima:
    """Full Newton steps as long as the gradient shrinks: the digits that damping left over."""
    kernel = _Kernel(problem, delta)
    theta = ends.theta
    here = kernel(theta, weight)
    for _ in range(4):
        move, _, solved = _newton_step(here, np.full(theta.shape[0], 1e-12), None)
        there = kernel(theta + move, weight)
        better = solved & (
            np.linalg.norm(there.gradient, axis=1) < np.linalg.norm(here.gradient, axis=1)
        )
        better &= there.total <= here.total * (1 + 1e-14)
        if not better.any():
            break
        theta = np.where(better[:, None], theta + move, theta)
        here.replace(better, there)
    return Minima(theta, here.value, ends.converged, ends.steps)


def derivatives(
    problem: Problem, theta: FloatArray, weight: FloatArray, *, delta: float
) -> tuple[float, FloatArray, FloatArray]:
    """Objective, gradient (5,) and exact Hessian (5, 5) at one centred theta, walls included."""
    local = _Kernel(problem, delta)(np.atleast_2d(theta), np.atleast_2d(weight))
    return float(local.value[0]), local.gradient[0], local.hessian[0]
