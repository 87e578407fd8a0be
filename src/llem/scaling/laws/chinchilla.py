"""L(N, D) = E + A/N^alpha + B/D^beta: the law of most fits, with a kernel of its own.

Coordinates of the minimiser are (e, a, b, alpha, beta) with log N and log D centred, so that

    log Lhat = log( exp(e) + exp(a - alpha x) + exp(b - beta y) ),   x, y centred logs.

In raw coordinates the condition number of the problem is near 1e11; in these it is harmless.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from llem.scaling.fitting.nonnegative import solve_normal
from llem.scaling.fitting.problem import BLOCK_ELEMENTS, FLOOR_LOG_SHARE, Local
from llem.scaling.flops import FlopsModel
from llem.scaling.laws.law import EXPONENT_BOUNDS, Law, Parameter
from llem.scaling.laws.starts import SEED_LOG_SHARE
from llem.scaling.native import compiled

if TYPE_CHECKING:
    from llem.scaling.fitting.estimator import Estimator, Space
    from llem.scaling.fitting.problem import Problem
    from llem.scaling.observations import Observations

FloatArray = NDArray[np.float64]

E, A, B, ALPHA, BETA = range(5)
DIMENSION = 5

GRID_SIDE = 24
# About a thousand fits of some hundred rows: so many share the costs of a step of the minimiser.
COMPILED_BLOCK_ELEMENTS = 262_144
# Exponents of the grid of starts: published ones lie between .1 and .8.
GRID_RANGE = (0.04, 2.0)


@dataclass(frozen=True)
class Chinchilla(Law):
    """The law of arXiv 2203.15556, eq. 2."""

    def bind(self, data: Observations, *, space: Space = "log") -> Problem:
        """Centre the logs of the columns. The kernel knows residuals of log loss alone."""
        if space == "loss":
            from llem.scaling.laws.formula import FormulaLaw

            return FormulaLaw.parse(self.formula).bind(data, space=space)
        return ChinchillaProblem.of(data.params, data.tokens, data.loss)

    def loss(
        self,
        natural: FloatArray,
        log_params: FloatArray | float,
        log_tokens: FloatArray | float,
        *,
        log_flops: FloatArray | float | None = None,
        log_unique: FloatArray | float | None = None,
    ) -> FloatArray:
        """Loss at logs of N and D; the law knows neither compute nor repetition."""
        e, a, b, alpha, beta = np.moveaxis(natural, -1, 0)
        return np.asarray(
            np.exp(e) + np.exp(a - alpha * log_params) + np.exp(b - beta * log_tokens)
        )

    def optimum(
        self,
        natural: FloatArray,
        flops: FloatArray | float,
        model: FlopsModel,
        *,
        log_unique: float | None = None,
    ) -> tuple[FloatArray, FloatArray]:
        """log N* and log D* that minimise the loss under k N^g D = C.

        With D = C/(k N^g) the loss is E + A N^-alpha + B (C/k)^-beta N^(g beta). Its derivative
        in log N vanishes where alpha A N^-alpha = g beta B (C/k)^-beta N^(g beta), hence

            log N* = [ log(alpha A / (g beta B)) + beta log(C/k) ] / (alpha + g beta)

        and D* = C/(k N*^g). The second derivative is positive, so it is the only minimum.
        For g = 1, k = 6 this is eq. 4 of arXiv 2203.15556.
        """
        _, log_a, log_b, alpha, beta = np.moveaxis(natural, -1, 0)
        g = model.exponent
        log_c = np.log(np.asarray(flops, dtype=np.float64) / model.coefficient)
        head = np.log(alpha) + log_a - np.log(g * beta) - log_b
        log_n = (head + beta * log_c) / (alpha + g * beta)
        return log_n, log_c - g * log_n

    def exponents(
        self, natural: FloatArray, model: FlopsModel, *, flops: float
    ) -> tuple[FloatArray, FloatArray]:
        """a = beta/(alpha + g beta), b = alpha/(alpha + g beta), the same at every compute."""
        alpha, beta = natural[..., ALPHA], natural[..., BETA]
        total = alpha + model.exponent * beta
        return beta / total, alpha / total


CHINCHILLA = Chinchilla(
    name="chinchilla",
    formula="L(N, D) = E + A/N^alpha + B/D^beta",
    source="arXiv 2203.15556",
    parameters=(
        Parameter("E", constant=True),
        Parameter("A"),
        Parameter("B"),
        Parameter("alpha", "shape", *EXPONENT_BOUNDS),
        Parameter("beta", "shape", *EXPONENT_BOUNDS),
    ),
)


@dataclass(frozen=True)
class ChinchillaProblem:
    """Centred observations: x = log N - mean, y = log D - mean, z = log L, each of shape (n,)."""

    x: FloatArray
    y: FloatArray
    z: FloatArray
    centre_x: float
    centre_y: float
    lower: FloatArray = field(init=False)
    upper: FloatArray = field(init=False)

    def __post_init__(self) -> None:
        floor = float(np.mean(self.z)) - FLOOR_LOG_SHARE
        low, high = EXPONENT_BOUNDS
        object.__setattr__(self, "lower", np.array([floor, floor, floor, low, low]))
        object.__setattr__(self, "upper", np.array([np.inf, np.inf, np.inf, high, high]))

    @classmethod
    def of(cls, params: FloatArray, tokens: FloatArray, loss: FloatArray) -> ChinchillaProblem:
        """Centre the logs of parameters (count), tokens (count) and loss (nats)."""
        log_n, log_d = np.log(params), np.log(tokens)
        cx, cy = float(np.mean(log_n)), float(np.mean(log_d))
        return cls(x=log_n - cx, y=log_d - cy, z=np.log(loss), centre_x=cx, centre_y=cy)

    @property
    def rows(self) -> int:
        """Number of observations."""
        return int(self.z.size)

    @property
    def dimension(self) -> int:
        """Number of parameters."""
        return DIMENSION

    @property
    def block_elements(self) -> int:
        """Problems x rows best evaluated at once: the library has no arrays to keep in cache."""
        return BLOCK_ELEMENTS if compiled.library() is None else COMPILED_BLOCK_ELEMENTS

    @cached_property
    def basis(self) -> FloatArray:
        """1, x, y, x^2, y^2, xy of each row: shape (n, 6)."""
        x, y = self.x, self.y
        columns = [np.ones_like(x), x, y, x * x, y * y, x * y]
        return np.ascontiguousarray(np.stack(columns, axis=1))

    def only(self, rows: NDArray[np.intp]) -> ChinchillaProblem:
        """Some of the rows, in the same coordinates."""
        return ChinchillaProblem(
            self.x[rows], self.y[rows], self.z[rows], self.centre_x, self.centre_y
        )

    def natural(self, theta: FloatArray) -> FloatArray:
        """Centred (..., 5) to log E, log A, log B, alpha, beta of uncentred N and D."""
        out = np.array(theta, dtype=np.float64, copy=True)
        out[..., A] += out[..., ALPHA] * self.centre_x
        out[..., B] += out[..., BETA] * self.centre_y
        return out

    def centred(self, natural: FloatArray) -> FloatArray:
        """The inverse of `natural`."""
        out = np.array(natural, dtype=np.float64, copy=True)
        out[..., A] -= out[..., ALPHA] * self.centre_x
        out[..., B] -= out[..., BETA] * self.centre_y
        return out

    def residuals(self, theta: FloatArray) -> FloatArray:
        """log L - log Lhat for theta (k, 5): shape (k, n)."""
        t = np.atleast_2d(theta)
        e = t[:, E, None]
        s = np.exp(t[:, A, None] - t[:, ALPHA, None] * self.x - e)
        s += np.exp(t[:, B, None] - t[:, BETA, None] * self.y - e)
        return np.asarray(self.z - e - np.log1p(s))

    def jacobian(self, theta: FloatArray) -> FloatArray:
        """Gradient of log Lhat of each row at one theta (5,): shape (n, 5)."""
        terms = np.empty((3, self.rows))
        terms[E] = theta[E]
        terms[A] = theta[A] - theta[ALPHA] * self.x
        terms[B] = theta[B] - theta[BETA] * self.y
        shares = np.exp(terms - np.logaddexp.reduce(terms, axis=0))
        return np.stack([*shares, -shares[A] * self.x, -shares[B] * self.y], axis=1)

    def evaluate(
        self, theta: FloatArray, weight: FloatArray, delta: FloatArray, rows: slice
    ) -> Local:
        """Huber sums and exact derivatives; see `Problem`."""
        library = compiled.library()
        if library is None:
            return self._evaluate_numpy(theta, weight, delta, rows)
        columns = (self.x[rows], self.y[rows], self.z[rows])
        return Local(*library.chinchilla(columns, theta, weight, delta))

    def _evaluate_numpy(
        self, theta: FloatArray, weight: FloatArray, delta: FloatArray, rows: slice
    ) -> Local:
        """`evaluate` without a compiler; chinchilla.c follows it."""
        x, y = self.x[rows], self.y[rows]
        k, n = theta.shape[0], x.size
        e = theta[:, E, None]
        shares = np.empty((3, k, n))
        w1, w2, w3 = shares
        np.multiply(theta[:, ALPHA, None], -x, out=w1)
        w1 += theta[:, A, None] - e
        np.exp(w1, out=w1)
        np.multiply(theta[:, BETA, None], -y, out=w2)
        w2 += theta[:, B, None] - e
        np.exp(w2, out=w2)
        np.add(w1, w2, out=w3)
        w3 += 1.0
        r = np.log(w3)
        r += e
        np.subtract(self.z[rows], r, out=r)
        np.divide(1.0, w3, out=w3)
        w1 *= w3
        w2 *= w3

        limit = delta[:, None]
        psi = np.clip(r, -limit, limit)
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
        moments = products @ self.basis[rows]

        gradient = np.empty((k, DIMENSION))
        m1, m2, m3 = moments[12], moments[13], moments[14]
        gradient[:, A], gradient[:, B], gradient[:, E] = -m1[:, 0], -m2[:, 0], -m3[:, 0]
        gradient[:, ALPHA], gradient[:, BETA] = m1[:, 1], m2[:, 2]
        hessian = _gram(moments[:6])
        metric = _gram(moments[6:12])
        hessian[:, A, A] -= m1[:, 0]
        hessian[:, B, B] -= m2[:, 0]
        hessian[:, E, E] -= m3[:, 0]
        for i, j, curve in ((A, ALPHA, m1[:, 1]), (B, BETA, m2[:, 2])):
            hessian[:, i, j] += curve
            hessian[:, j, i] += curve
        hessian[:, ALPHA, ALPHA] -= m1[:, 3]
        hessian[:, BETA, BETA] -= m2[:, 4]
        return Local(value, gradient, hessian, metric)

    def seeds(self, weight: FloatArray, estimator: Estimator, *, count: int) -> FloatArray:
        """Starts from a grid of exponents, at each of which the law is linear in (E, A, B).

        Every pair of exponents gets its best (E, A, B) in closed form (variable projection): they
        minimise the squares of relative errors of the loss, clipped at zero by non-negative least
        squares. So five unknowns are searched in two dimensions and nothing depends on guessed
        magnitudes. The grid points are then ranked by the wanted objective.
        """
        line = np.geomspace(*GRID_RANGE, GRID_SIDE)
        side = line.size
        inverse_loss = np.exp(-self.z)
        p = np.exp(-line[:, None] * self.x) * inverse_loss  # (side, n)
        q = np.exp(-line[:, None] * self.y) * inverse_loss
        c = inverse_loss
        w = weight
        gram = np.empty((side, side, 3, 3))
        gram[:, :, 0, 0] = np.sum(w * c * c)
        gram[:, :, 0, 1] = gram[:, :, 1, 0] = (p @ (w * c))[:, None]
        gram[:, :, 0, 2] = gram[:, :, 2, 0] = (q @ (w * c))[None, :]
        gram[:, :, 1, 1] = ((p * p) @ w)[:, None]
        gram[:, :, 2, 2] = ((q * q) @ w)[None, :]
        gram[:, :, 1, 2] = gram[:, :, 2, 1] = (p * w) @ q.T
        moment = np.empty((side, side, 3))
        moment[:, :, 0] = np.sum(w * c)
        moment[:, :, 1] = (p @ w)[:, None]
        moment[:, :, 2] = (q @ w)[None, :]
        linear = solve_normal(gram.reshape(-1, 3, 3), moment.reshape(-1, 3))

        # A term clipped to zero starts a little above it: from exactly nothing no gradient leads
        # back.
        smallest = np.exp(self.lower[E] + FLOOR_LOG_SHARE - SEED_LOG_SHARE)
        theta = np.empty((side * side, DIMENSION))
        theta[:, :3] = np.log(np.maximum(linear, smallest))
        theta[:, ALPHA] = np.repeat(line, side)
        theta[:, BETA] = np.tile(line, side)
        value = self._grid_objective(theta[:, :3], p, q, weight, estimator)
        return theta[_spread(value.reshape(side, side), count)]

    def _grid_objective(
        self,
        logs: FloatArray,
        p: FloatArray,
        q: FloatArray,
        weight: FloatArray,
        estimator: Estimator,
    ) -> FloatArray:
        """Objective at every pair of exponents. p and q (side, n): N^-alpha/L and D^-beta/L."""
        side = p.shape[0]
        linear = np.exp(logs).reshape(side, side, 3)
        inverse_loss = np.exp(-self.z)
        value = np.empty((side, side))
        for i in range(side):
            ratio = linear[i, :, E, None] * inverse_loss + linear[i, :, A, None] * p[i]
            ratio += linear[i, :, B, None] * q
            value[i] = estimator.rho(-np.log(ratio)) @ weight
        return value.ravel()


def _gram(m: FloatArray) -> FloatArray:
    """Sum of weight x J J' from moments m (6, k, 6) of the products of shares.

    J = (w3, w1, w2, -w1 x, -w2 y); rows of m: w1w1, w1w2, w1w3, w2w2, w2w3, w3w3; columns: the
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


def _spread(value: FloatArray, count: int) -> NDArray[np.intp]:
    """Flat indices of `count` grid points, best first: half local minima, half the best of all."""
    side = value.shape[0]
    padded = np.pad(value, 1, constant_values=np.inf)
    around = np.stack(
        [
            padded[1 + i : 1 + i + side, 1 + j : 1 + j + side]
            for i in (-1, 0, 1)
            for j in (-1, 0, 1)
            if (i, j) != (0, 0)
        ]
    )
    is_valley = np.all(value[None] <= around, axis=0).ravel()
    flat = value.ravel()
    order = np.argsort(flat, kind="stable")
    valleys = order[is_valley[order]][: count // 2]
    # Every second of the ranked points: close neighbours lead to the same place.
    taken = set(valleys.tolist())
    rest = [i for i in order[::2] if i not in taken]
    chosen = [*valleys.tolist(), *rest[: count - valleys.size]]
    return np.array(sorted(chosen, key=lambda i: float(flat[i])), dtype=np.intp)
