"""A law given by a formula, bound to its data: the objective, its derivatives and its starts."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from llem.scaling.fitting.estimator import Estimator, Space
from llem.scaling.fitting.nonnegative import solve_normal
from llem.scaling.fitting.problem import FLOOR_LOG_SHARE, Local
from llem.scaling.laws.compiled import Compiled, DerivativePlan
from llem.scaling.laws.expression import Node, evaluate
from llem.scaling.laws.starts import SEED_LOG_SHARE, spread, start_grid

FloatArray = NDArray[np.float64]

# Elements of one (starts x rows) array of the seeds.
SEED_ELEMENTS = 65536
# Rounds of linear least squares where definitions depend on amplitudes.
SEED_ROUNDS = 6


class FormulaProblem:
    """Observations of a formula's law. Columns hold logs of variables, each of shape (n,).

    The coordinate of an amplitude A with factor g is log A + log |g(centre)|, the log of its term
    at the centre of the data: whatever the units, coordinates are of the size of log L and the
    problem is well conditioned. Coordinates of other parameters are the natural ones.
    """

    def __init__(
        self,
        compiled: Compiled,
        columns: Mapping[str, FloatArray],
        centre: Mapping[str, float],
        z: FloatArray,
        *,
        plan: DerivativePlan | None = None,
        floor: float | None = None,
        space: Space = "log",
    ) -> None:
        self.compiled = compiled
        self.columns = dict(columns)
        self.centre = dict(centre)
        self.z = z
        self.space = space
        self.floor = float(np.mean(z)) - FLOOR_LOG_SHARE if floor is None else floor
        self._plan = compiled.plan(centre) if plan is None else plan
        parameters = compiled.parameters
        low, high = [], []
        for i, p in enumerate(parameters):
            if i in compiled.offsets:
                low.append(self.floor)
                high.append(np.inf)
            elif p.role == "amplitude":
                low.append(float(np.log(p.low)))
                high.append(float(np.log(p.high)))
            else:
                low.append(p.low)
                high.append(p.high)
        self.lower, self.upper = np.array(low), np.array(high)
        symbols = compiled.formula.variables
        self._values = {symbols[v]: column for v, column in self.columns.items()}
        self._loss_data = self._plan.loss.bind(self._values)
        self._all_data = self._plan.all.bind(self._values)

    @property
    def rows(self) -> int:
        """Number of observations."""
        return int(self.z.size)

    @property
    def dimension(self) -> int:
        """Number of parameters."""
        return len(self.compiled.coordinates)

    def only(self, rows: NDArray[np.intp]) -> FormulaProblem:
        """Some of the rows, about the same centre."""
        return FormulaProblem(
            self.compiled,
            {v: column[rows] for v, column in self.columns.items()},
            self.centre,
            self.z[rows],
            plan=self._plan,
            floor=self.floor,
            space=self.space,
        )

    # Coordinates -----------------------------------------------------------------------------

    def natural(self, theta: FloatArray) -> FloatArray:
        """Centred coordinates (..., p) to the law's own."""
        return self._moved(theta, -1.0)

    def centred(self, natural: FloatArray) -> FloatArray:
        """The inverse of `natural`."""
        return self._moved(natural, 1.0)

    def _moved(self, point: FloatArray, sign: float) -> FloatArray:
        out = np.array(point, dtype=np.float64, copy=True)
        compiled = self.compiled
        values = self._coordinates(out)
        for v, c in self.centre.items():
            values[compiled.formula.variables[v]] = np.asarray(c)
        # Offsets depend on what is not moved, so that both directions see the same numbers.
        offsets = evaluate(compiled.offsets.values(), values)
        for i, offset in zip(compiled.offsets, offsets, strict=True):
            out[..., i] += sign * offset
        return out

    def _coordinates(self, point: FloatArray) -> dict[Node, FloatArray]:
        pairs = enumerate(self.compiled.coordinates)
        return {symbol: point[..., i].copy() for i, symbol in pairs}

    # The objective ---------------------------------------------------------------------------

    def residuals(self, theta: FloatArray) -> FloatArray:
        """log L - log Lhat for theta (k, p): shape (k, n); NaN where Lhat is not positive.

        In the space of the loss itself L - Lhat.
        """
        t = np.atleast_2d(np.asarray(theta, dtype=np.float64))
        with np.errstate(all="ignore"):
            (f,) = self._plan.loss.run(list(self._loss_data), list(t.T[:, :, None]))
            f = np.broadcast_to(f, (t.shape[0], self.rows))
            return np.exp(self.z) - f if self.space == "loss" else self.z - np.log(f)

    def jacobian(self, theta: FloatArray) -> FloatArray:
        """Gradient of log Lhat (or of Lhat) of each row at one theta (p,): shape (n, p)."""
        columns = list(np.asarray(theta, dtype=np.float64).reshape(-1, 1, 1))
        with np.errstate(all="ignore"):
            outputs = self._plan.all.run(list(self._all_data), columns)
            slopes = outputs[1 : self.dimension + 1]
            by = 1.0 if self.space == "loss" else outputs[0]
            return np.stack([np.broadcast_to(s / by, (1, self.rows))[0] for s in slopes], axis=1)

    def evaluate(
        self, theta: FloatArray, weight: FloatArray, delta: FloatArray, rows: slice
    ) -> Local:
        """Huber sums and exact derivatives; see `Problem`.

        With u = log Lhat, Lhat = f: u_i = f_i/f and u_ij = f_ij/f - u_i u_j. In the space of the
        loss itself u = f. A problem whose formula is not positive and finite everywhere has the
        value inf.
        """
        by_log = self.space == "log"
        plan = self._plan.all
        z = self.z[rows]
        k, n, p = theta.shape[0], z.size, self.dimension
        with np.errstate(all="ignore"):
            whole = n == self.rows
            data = list(self._all_data) if whole else plan.rows(self._all_data, rows)
            outputs = plan.run(data, list(theta.T[:, :, None]))
            f = np.broadcast_to(outputs[0], (k, n))
            r = np.log(f) if by_log else np.array(f)
            np.subtract(z if by_log else np.exp(z), r, out=r)
            inverse = 1.0 / f if by_log else np.ones_like(f)

            limit = delta[:, None]
            psi = np.clip(r, -limit, limit)
            inside = psi == r
            half = r - 0.5 * psi
            half *= psi
            half *= weight
            value = half.sum(axis=1)
            np.divide(psi, r, out=r, where=~inside)
            r[inside] = 1.0
            r *= weight  # weight psi/r
            psi *= weight
            q = weight * inside
            if by_log:
                q += psi

            slopes = np.empty((k, p, n))
            for i, slope in enumerate(outputs[1 : p + 1]):
                np.multiply(slope, inverse, out=slopes[:, i])
            # Both matrices and the gradient in one product: rows are the weighted slopes.
            left = np.empty((k, 2 * p + 1, n))
            np.multiply(slopes, q[:, None], out=left[:, :p])
            np.multiply(slopes, r[:, None], out=left[:, p : 2 * p])
            left[:, 2 * p] = psi
            products = left @ slopes.transpose(0, 2, 1)
            hessian = products[:, :p].copy()
            metric = products[:, p : 2 * p].copy()
            gradient = -products[:, 2 * p]
            psi *= inverse
            total: FloatArray | None = None
            for output, places in self._plan.curves:
                if 1 <= output <= p:
                    curve = -gradient[:, output - 1]
                elif plan.full[output]:
                    curve = np.einsum("kn,kn->k", psi, outputs[output])
                else:
                    if total is None:
                        total = psi.sum(axis=1)
                    narrow = np.broadcast_to(outputs[output], (k, outputs[output].shape[-1]))
                    curve = total * narrow[:, 0] if narrow.shape[1] == 1 else (psi * narrow).sum(1)
                for i, j in places:
                    hessian[:, i, j] -= curve
                    if i != j:
                        hessian[:, j, i] -= curve
            refused = ~(f > 0).all(axis=1) | ~np.isfinite(value)
            refused |= ~np.isfinite(hessian).all(axis=(1, 2)) | ~np.isfinite(gradient).all(axis=1)
        if refused.any():
            value[refused] = np.inf
            gradient[refused] = 0.0
            hessian[refused] = metric[refused] = np.eye(p)
        return Local(value, gradient, hessian, metric)

    # Starts ----------------------------------------------------------------------------------

    def seeds(self, weight: FloatArray, estimator: Estimator, *, count: int) -> FloatArray:
        """Starts from a grid over the parameters that are not amplitudes.

        At each point the amplitudes minimise the squares of relative errors of the loss, clipped at
        zero by non-negative least squares; where definitions depend on amplitudes, some rounds of
        that. The points are then ranked by the wanted objective, and the kept ones spread over its
        valleys.
        """
        compiled = self.compiled
        linear = list(compiled.factors)
        others = [i for i in range(self.dimension) if i not in compiled.factors]
        ranges = []
        for i in others:
            ranges.append((self.lower[i], self.upper[i], compiled.parameters[i]))
        unit, grid = start_grid(ranges)
        theta = np.empty((grid.shape[0], self.dimension))
        theta[:, others] = grid
        theta[:, linear] = float(np.mean(self.z)) - np.log(max(len(linear), 1))
        value = np.empty(grid.shape[0])
        block = max(1, SEED_ELEMENTS // self.rows)
        for begin in range(0, grid.shape[0], block):
            part = slice(begin, begin + block)
            if linear:
                self._solve_amplitudes(theta[part], weight, linear)
            rho = estimator.rho(self.residuals(theta[part]))
            value[part] = rho @ weight
        value[~np.isfinite(value)] = np.inf
        return theta[spread(value, unit, count)]

    def _solve_amplitudes(self, theta: FloatArray, weight: FloatArray, linear: list[int]) -> None:
        """Put the amplitudes of least squares into theta (g, p)."""
        compiled = self.compiled
        g, n, m = theta.shape[0], self.rows, len(linear)
        inverse_loss = np.exp(-self.z)
        rounds = 1 if compiled.exact_factors else SEED_ROUNDS
        for _ in range(rounds):
            values = self._coordinates(self.natural(theta)[:, None, :])
            values.update(self._values)
            # A definition after those that it needs, all at the present amplitudes.
            for symbol, body in compiled.definitions.items():
                (values[symbol],) = evaluate([body], values)
            *factors, rest = evaluate([*compiled.factors.values(), compiled.rest], values)
            design = np.empty((g, m, n))
            for i, factor in enumerate(factors):
                design[:, i] = factor * inverse_loss
            target = np.broadcast_to(1.0 - rest * inverse_loss, (g, n))
            fine = np.isfinite(design.sum(axis=(1, 2)) + target.sum(axis=1))
            design = np.where(fine[:, None, None], design, 0.0)
            # Columns of like size, so that the normal equations keep their digits.
            size = np.abs(design).max(axis=2)
            size[size == 0.0] = 1.0
            design /= size[:, :, None]
            weighted = design * weight
            gram = weighted @ design.transpose(0, 2, 1)
            moment = (weighted @ np.where(fine[:, None], target, 0.0)[:, :, None])[:, :, 0]
            found = solve_normal(gram, moment) / size
            with np.errstate(divide="ignore"):
                logs = np.log(found)
            natural = self.natural(theta)
            natural[:, linear] = logs
            # A term clipped to zero starts a little above it: from exactly nothing no gradient
            # leads back.
            centred = self.centred(natural)[:, linear]
            theta[:, linear] = np.maximum(centred, self.floor + FLOOR_LOG_SHARE - SEED_LOG_SHARE)
