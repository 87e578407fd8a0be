"""Which runs to make: those that tell most about the optimum at the target for their cost.

What counts is the error of log N* at the target of the fit that will be made, which is `fit_law`'s
default: a plain law, every run with the same weight. The error has two parts. Noise first. With n_i
runs of cell i, j_i the gradient of the cell's log loss and c that of log N*, by the law's
parameters, s_i the scatter of runs from seed to seed and r that of cells (see `scatter`),

    var = c' M^-1 V M^-1 c,    M = sum n_i m_i j_i j_i',
    V = sum (n_i v_i + n_i (n_i - 1) w_i) j_i j_i',

where m = E psi' and v = E psi^2 of Huber's function psi on normal noise of variance s_i^2 + r^2
(Huber 1964), and w is E psi psi of two runs of a cell: runs that scatter more count less, as in the
fit. Where all are alike and r is 0 that is
kappa s^2 c' (sum n_i j_i j_i')^-1 c, kappa = v / (s m)^2 being what Huber's function costs (pi/2
where delta is far below s). Noise alone would have everything spent on the smallest runs there are.

Then the law's own error. The truth is taken to be law x exp(d), d a random function of (log N,
log D): exponents that drift, steps that set small runs apart, and a smooth Gaussian process for
what nobody thought of. No number of seeds averages it away. The fit carries it into log N* as

    b = sum n_i m_i (c' M^-1 j_i) d_i - d*,

d* being what d does to the optimum itself (see `_Stakes`), and the variance of b over d is added.

Runs are taken one after another, each the one that lowers the log of the sum most for its cost, on
average over several laws: resamples of the fit so far, or published laws before there is one.
Seeds of one cell lower the noise and not b, and are capped. D-, V- and c-optimal designs are the
first part alone (Fedorov 1972); to add the misfit as a Gaussian process follows Sacks and Ylvisaker
1978, "Linear estimation for approximately linear models".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llem.planning.scatter import Scatter
from llem.scaling import CHINCHILLA, Estimator, FlopsModel

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

E, A, B, ALPHA, BETA = range(5)
# More laws than these make a plan slower and hardly another.
LAWS = 6
# Above this, what one odd cell (a model off its family's line, a bug at one batch size) could do
# outweighs what its seeds tell. Fewer cost noise; see docs/design.md.
SEEDS_OF_A_CELL = 50
# What twice or half the budget would give is stated beside the plan.
BUDGETS = (0.5, 1.0, 2.0)
# The cloud of laws that a first wave is judged by: arXiv 2203.15556 as printed, the same runs
# fitted again (digitised in arXiv 2404.10102), and arXiv 2305.16264 (exponents tied).
PUBLISHED = (
    {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28},
    {"E": 1.8172, "A": 477.8, "B": 2143.4, "alpha": 0.3473, "beta": 0.3672},
    {"E": 1.87, "A": 521.0, "B": 1488.0, "alpha": 0.35, "beta": 0.35},
)

# Information that no design lacks, in runs: one of too few cells is hopeless, not infinite.
RIDGE = 1e-9
# Points to a side of the grid that stands for the Gaussian process, and what is dropped of it.
INDUCING = 7
NEGLIGIBLE = 1e-4
STEPS_BELOW_LARGEST = (1.0, 2.0, 3.0)
STEP_WIDTH = 0.3
# Of many runs so large a share is chosen at a time.
BURST = 0.01
LN10 = math.log(10.0)


@dataclass(frozen=True)
class LawError:
    """How wrong a law is expected to be: standard deviations, each of an independent component.

    drift: of what each exponent gains in a decade of its variable (alpha in N, beta in D): the
    first term that a power law leaves out. An extrapolation feels little else so much. small: of
    log loss, of each of three steps that lift all runs below 1/10, 1/100 and 1/1000 of the largest
    compute. smooth: of log loss, of a Gaussian process of (log10 N, log10 D) with covariance
    exp(-r^2 / (2 length^2)), r in decades. The law's parameters absorb most of that.

    The values are chosen, not measured: see docs/design.md.
    """

    drift: float = 0.02
    small: float = 0.02
    smooth: float = 0.04
    length: float = 3.5


@dataclass(frozen=True)
class Cells:
    """What can be run, or was: parameters, tokens, and the cost of one seed, each of shape (n,).

    The cost is in any unit, the start of a run included; an infinite one keeps a cell that was
    observed from being chosen again.
    """

    params: FloatArray
    tokens: FloatArray
    cost: FloatArray

    def __len__(self) -> int:
        return int(self.params.size)


@dataclass(frozen=True)
class Question:
    """What is asked of the runs, and what is held for true meanwhile.

    laws: (k, 5) log E, log A, log B, alpha, beta, one row for each law that may be the truth.
    """

    target_flops: float
    laws: FloatArray
    scatter: Scatter = field(default_factory=Scatter)
    law_error: LawError = LawError()
    estimator: Estimator = field(default_factory=Estimator)
    flops_model: FlopsModel = field(default_factory=FlopsModel)


@dataclass(frozen=True)
class Expected:
    """Standard errors of a design's answer at the target, stated before it is run.

    se_log_params and se_loss (nats): from noise, what repeated campaigns would scatter by if the
    law is right. law_error_*: what a law as wrong as `LawError` says adds, in quadrature.
    """

    se_log_params: float
    se_loss: float
    law_error_log_params: float
    law_error_loss: float

    @property
    def total_log_params(self) -> float:
        """Both parts of the error of log N*."""
        return math.hypot(self.se_log_params, self.law_error_log_params)


@dataclass(frozen=True)
class Design:
    """Runs to make of each cell (n,), their cost, and what they promise with those done already.

    for_budget: the same for other shares of the budget, the best use of each.
    """

    counts: IntArray
    cost: float
    expected: Expected
    for_budget: Mapping[float, Expected]


def prior_laws() -> FloatArray:
    """Laws (k, 5) that may be true before anything is measured: published fits."""
    return np.array([CHINCHILLA.natural(law) for law in PUBLISHED])


def spread_of_laws(laws: FloatArray, target_flops: float, *, count: int = LAWS) -> FloatArray:
    """`count` of many laws (m, 5), such as resamples of a fit: quantiles of log N* at the target.

    Each stands for an equal share of all, so that a lost resample has little weight.
    """
    laws = laws[np.all(np.isfinite(laws), axis=1)]
    if laws.shape[0] <= count:
        return laws
    log_n, _ = CHINCHILLA.optimum(laws, target_flops, FlopsModel())
    order = np.argsort(log_n, kind="stable")
    middle = (np.arange(count) + 0.5) / count * laws.shape[0]
    return np.asarray(laws[order[middle.astype(np.intp)]])


def expected_error(cells: Cells, counts: IntArray | FloatArray, *, question: Question) -> Expected:
    """What runs, `counts` (n,) of each cell, will tell about the target."""
    state = _State(_Stakes.of(cells, question))
    state.add_all(np.asarray(counts, dtype=np.float64))
    return state.expected()


def choose_runs(
    cells: Cells,
    *,
    question: Question,
    budget: float,
    done: IntArray | None = None,
    per_cell: int = SEEDS_OF_A_CELL,
    max_runs: int | None = None,
    budgets: Sequence[float] = BUDGETS,
) -> Design:
    """Spend `budget`, in the unit of the cells' cost, on the runs that tell most.

    done (n,): runs observed already, which are free and stay in the fit. per_cell: most runs of a
    cell, those done included. max_runs: most new runs; fewer runs are then larger ones.
    """
    stakes = _Stakes.of(cells, question)
    before = np.zeros(len(cells)) if done is None else np.asarray(done, dtype=np.float64)
    fee = 0.0
    if max_runs is not None:
        fee = _fee(stakes, cells, before, budget, per_cell, max_runs)
    state = _State(stakes)
    state.add_all(before)
    found: dict[float, Expected] = {}
    counts, cost, spent = np.zeros(len(cells)), 0.0, 0.0
    for share in sorted({*budgets, 1.0}):
        limit = None if max_runs is None else max(1, round(share * max_runs))
        spent = _take(state, cells, before, share * budget, spent, per_cell, limit, fee)
        found[share] = state.expected()
        if share == 1.0:
            counts, cost = state.counts - before, spent
    return Design(counts.astype(np.int64), cost, found[1.0], {b: found[b] for b in budgets})


def huber_moments(noise: FloatArray, threshold: float) -> tuple[FloatArray, FloatArray]:
    """E psi' and E psi^2 of Huber's function on normal noise of standard deviations (n,).

    1 and the variance where the threshold is far above the noise. The variance of an estimate is
    E psi^2 / E[psi']^2 times that of the mean (Huber 1964).
    """
    slope, square = np.ones(noise.shape), noise**2
    for i, sd in enumerate(noise.tolist()):
        t = threshold / sd if sd > 0 else math.inf
        if t <= 8:
            inside = math.erf(t / math.sqrt(2))
            edge = 2 * t * math.exp(-t * t / 2) / math.sqrt(2 * math.pi)
            slope[i] = inside
            square[i] *= inside - edge + t * t * (1 - inside)
    return slope, square


def in_common(correlation: FloatArray, efficiency: FloatArray) -> FloatArray:
    """Correlation of psi of two normal variables, by their own and by the efficiency 1/kappa (n,).

    Exact for the mean (efficiency 1), where it is their own, and for the sign (efficiency 2/pi),
    whose is 2/pi asin of it (Sheppard 1899); between those it is divided so that it has the right
    slope at 0, the efficiency.
    """
    sign = 2 / math.pi
    share = np.clip((1 - efficiency) / (1 - sign), 0.0, 1.0)
    arc = sign * np.arcsin(np.minimum(correlation, 1.0))
    return np.asarray(share * arc + (1 - share) * correlation)


def _fee(
    stakes: _Stakes, cells: Cells, before: FloatArray, budget: float, per_cell: int, max_runs: int
) -> float:
    """What a run is charged beyond its cost so that the budget buys no more than `max_runs`."""

    def too_many(fee: float) -> bool:
        state = _State(stakes)
        state.add_all(before)
        _take(state, cells, before, budget, 0.0, per_cell, max_runs + 1, fee)
        return float(np.sum(state.counts - before)) > max_runs

    if not too_many(0.0):
        return 0.0
    low, high = math.log(1e-5 * budget / max_runs), math.log(10 * budget / max_runs)
    for _ in range(7):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if too_many(math.exp(middle)) else (low, middle)
    return math.exp(high)


def _take(
    state: _State,
    cells: Cells,
    before: FloatArray,
    budget: float,
    spent: float,
    per_cell: int,
    max_runs: int | None,
    fee: float,
) -> float:
    """Add runs while the budget lasts and they help; returns what is spent then."""
    charged = cells.cost + fee
    while True:
        runs = float(np.sum(state.counts - before))
        left = budget - spent
        open_ = (cells.cost <= left) & (state.counts < per_cell)
        if not open_.any() or (max_runs is not None and runs >= max_runs):
            return spent
        gain = np.where(open_, state.gains() / charged, -np.inf)
        best = int(np.argmax(gain))
        if gain[best] <= 0:
            return spent
        many = min(1 + int(BURST * runs), per_cell - int(state.counts[best]))
        many = max(1, min(many, int(left / cells.cost[best])))
        if max_runs is not None:
            many = min(many, max_runs - int(runs))
        state.add(best, many)
        spent += many * float(cells.cost[best])


@dataclass(frozen=True)
class _Stakes:
    """What every design of these cells shares: k laws, n cells, p parameters, r components of d.

    jacobian (k, n, p): of log loss, coordinates centred. aim (k, p): gradient of log N*. at_target
    (k, p): of log L at the optimum. loss (k,): there, in nats. d (n, r): what the components of d
    add to the log loss of each cell. d_optimum (k, r): what they do to log N* of the truth, and
    d_loss (k, r) to its log loss. weight, square, together (n,): m, v and w of runs of each cell,
    see above, in units in which the largest m is 1.

    With C = k N^g D fixed, L' = 0 moves by -L d'/L'' when L becomes L (1 + d), primes by log N
    along the line of constant compute, and L'' = alpha^2 A/N^alpha + g^2 beta^2 B/D^beta.
    """

    jacobian: FloatArray
    aim: FloatArray
    at_target: FloatArray
    loss: FloatArray
    d: FloatArray
    d_optimum: FloatArray
    d_loss: FloatArray
    weight: FloatArray
    square: FloatArray
    together: FloatArray

    @classmethod
    def of(cls, cells: Cells, question: Question) -> _Stakes:
        x, y = np.log(cells.params), np.log(cells.tokens)
        laws, model = np.atleast_2d(question.laws), question.flops_model
        g = model.exponent
        log_n, log_d = CHINCHILLA.optimum(laws, question.target_flops, model)
        centre_x, centre_y = float(x.mean()), float(y.mean())
        jacobian = _slopes(laws, x[None, :], y[None, :], centre_x, centre_y)
        at_target = _slopes(laws, log_n[:, None], log_d[:, None], centre_x, centre_y)[:, 0]
        loss = CHINCHILLA.loss(laws, log_n, log_d)

        alpha, beta = laws[:, ALPHA], laws[:, BETA]
        total = alpha + g * beta
        aim = np.zeros_like(laws)
        aim[:, A], aim[:, B] = 1 / total, -1 / total
        aim[:, ALPHA] = (1 / alpha - log_n) / total
        aim[:, BETA] = (log_d - 1 / beta) / total
        # Amplitudes are those at the centre, log A - alpha x: log A moves with alpha.
        aim[:, ALPHA] += centre_x * aim[:, A]
        aim[:, BETA] += centre_y * aim[:, B]

        log_k = math.log(model.coefficient)
        largest = float(np.max(log_k + g * x + y))
        corners = np.concatenate([x, log_n]), np.concatenate([y, log_d])
        smooth = _Smooth.over(*corners, error=question.law_error)
        drift = _Drift(laws, centre_x, centre_y, question.law_error.drift)
        steps = _steps(log_k + g * x + y - largest, question.law_error)
        shared = np.concatenate([smooth(x, y), steps], axis=1)
        shared = np.broadcast_to(shared, (laws.shape[0], *shared.shape))
        d = np.concatenate([shared, drift(x[None, :], y[None, :])], axis=2)

        def far_out(x: FloatArray, y: FloatArray) -> FloatArray:
            """The components at logs (k,), one of each law, beyond all steps: (k, r)."""
            none = np.zeros((laws.shape[0], steps.shape[1]))
            drifts = drift(x[:, None], y[:, None])[:, 0]
            return np.concatenate([smooth(x, y), none, drifts], axis=1)

        d_loss = far_out(log_n, log_d)
        h = 1e-3
        slope = far_out(log_n + h, log_d - g * h) - far_out(log_n - h, log_d + g * h)
        bend = alpha**2 * at_target[:, A] + (g * beta) ** 2 * at_target[:, B]
        d_optimum = -slope / (2 * h * bend[:, None])
        scatter = question.scatter
        noise = scatter.of_runs(cells.tokens)
        slope, square = huber_moments(noise, question.estimator.threshold)
        weight, square = slope / slope.max(), square / slope.max() ** 2
        efficiency = weight**2 * noise**2 / square
        together = square * in_common((scatter.cells / noise) ** 2, efficiency)
        return cls(
            jacobian, aim, at_target, loss, d, d_optimum, d_loss, weight, square, together
        )  # fmt: skip


def _slopes(
    laws: FloatArray, x: FloatArray, y: FloatArray, centre_x: float, centre_y: float
) -> FloatArray:
    """Gradient of log loss by the law's parameters at logs x, y (k or 1, n): (k, n, 5).

    Amplitudes are those at the centre, as in the problem that `fit_law` solves.
    """
    e, a, b, alpha, beta = (laws[:, i, None] for i in range(5))
    terms = np.stack(np.broadcast_arrays(e + 0 * x, a - alpha * x, b - beta * y))
    share = np.exp(terms - np.logaddexp.reduce(terms, axis=0))
    slopes = [share[E], share[A], share[B], -share[A] * (x - centre_x), -share[B] * (y - centre_y)]
    return np.stack(slopes, axis=-1)


def _steps(log_share: FloatArray, error: LawError) -> FloatArray:
    """Lift of cells whose compute is exp(log_share) of the largest: (n, steps)."""
    below = np.array(STEPS_BELOW_LARGEST)
    return np.asarray(error.small / (1 + np.exp((log_share[:, None] / LN10 + below) / STEP_WIDTH)))


@dataclass(frozen=True)
class _Drift:
    """Exponents of laws (k, 5) that change by `a_decade`: alpha as N grows, and beta as D does.

    log(A / N^alpha) gains -a_decade (log N - centre)^2 / (2 log 10). Where the centre lies matters
    to nothing: A and alpha absorb it.
    """

    laws: FloatArray
    centre_x: float
    centre_y: float
    a_decade: float

    def __call__(self, x: FloatArray, y: FloatArray) -> FloatArray:
        """Log loss of each component, one standard deviation, at logs (k or 1, n): (k, n, 2)."""
        slopes = _slopes(self.laws, x, y, self.centre_x, self.centre_y)
        # The slopes by alpha and beta carry minus one power of the distance already.
        distance = np.stack(np.broadcast_arrays(x - self.centre_x, y - self.centre_y), axis=-1)
        return np.asarray(0.5 * self.a_decade / LN10 * slopes[..., [ALPHA, BETA]] * distance)


@dataclass(frozen=True)
class _Smooth:
    """A Gaussian process of (log10 N, log10 D) as r components with independent normal weights.

    It is projected on its values at a grid of points (Nystroem): a length of decades over a few
    decades leaves little between them.
    """

    points: FloatArray
    root: FloatArray
    error: LawError

    @classmethod
    def over(cls, x: FloatArray, y: FloatArray, *, error: LawError) -> _Smooth:
        """The process where logs x and y (n,) lie, and between."""
        sides = [np.linspace(v.min(), v.max(), INDUCING) / LN10 for v in (x, y)]
        points = np.stack(np.meshgrid(*sides, indexing="ij"), axis=-1).reshape(-1, 2)
        value, vector = np.linalg.eigh(_covariance(points, points, error.length))
        kept = value > NEGLIGIBLE * value[-1]
        return cls(points, vector[:, kept] / np.sqrt(value[kept]), error)

    def __call__(self, x: FloatArray, y: FloatArray) -> FloatArray:
        """Log loss of each component, one standard deviation of it, at logs (n,): (n, r)."""
        at = np.stack([x, y], axis=-1) / LN10
        covariance = _covariance(at, self.points, self.error.length)
        return np.asarray(self.error.smooth * covariance @ self.root)


def _covariance(one: FloatArray, other: FloatArray, length: float) -> FloatArray:
    square = np.sum((one[:, None, :] - other[None, :, :]) ** 2, axis=-1)
    return np.asarray(np.exp(-square / (2 * length**2)))


class _State:
    """A design in the making: its information, and how the components of d enter the fit."""

    def __init__(self, stakes: _Stakes) -> None:
        k, n, p = stakes.jacobian.shape
        self.stakes = stakes
        self.counts = np.zeros(n)
        self.information = np.tile(RIDGE * np.eye(p), (k, 1, 1))
        # Of those as well: what M lacks is not known at all, instead of without noise.
        self.variance = float(stakes.square.max()) * self.information
        self.mixing = np.zeros((k, p, stakes.d.shape[2]))
        # Products of d with itself, with S (k, n, p) and with what it does to the optimum: (k, n).
        self._d_square = np.sum(stakes.d**2, axis=2)
        self._overlap = np.zeros((k, n, p))
        self._with_optimum = (stakes.d @ stakes.d_optimum[:, :, None])[..., 0]

    def add_all(self, counts: FloatArray) -> None:
        """Add `counts` (n,) runs of each cell."""
        s = self.stakes
        weighted = (counts * s.weight)[None, :, None] * s.jacobian
        self.information += weighted.transpose(0, 2, 1) @ s.jacobian
        added = self._added(counts, self.counts, s.square, s.together)
        self.variance += (added[None, :, None] * s.jacobian).transpose(0, 2, 1) @ s.jacobian
        mixing = weighted.transpose(0, 2, 1) @ s.d
        self.mixing += mixing
        self._overlap += s.d @ mixing.transpose(0, 2, 1)
        self.counts += counts

    def add(self, cell: int, runs: int) -> None:
        """Add some runs of one cell."""
        s = self.stakes
        slope, d = s.jacobian[:, cell], s.d[:, cell]
        weight = runs * float(s.weight[cell])
        outer = slope[:, :, None] * slope[:, None, :]
        self.information += weight * outer
        before = float(self.counts[cell])
        self.variance += outer * float(
            self._added(float(runs), before, s.square[cell], s.together[cell])
        )
        self.mixing += weight * slope[:, :, None] * d[:, None, :]
        self._overlap += (s.d @ d[:, :, None]) * (weight * slope[:, None, :])
        self.counts[cell] += runs

    @staticmethod
    def _added(runs: Any, before: Any, square: Any, together: Any) -> Any:
        """By what V grows along j j' where a cell of `before` runs gets more of them."""
        return runs * square + runs * (runs + 2 * before - 1) * together

    def gains(self) -> FloatArray:
        """Fall of the log of the squared error of log N* by one more run of each cell: (n,).

        Rank-one updates of M^-1 (Sherman and Morrison): with u = M^-1 c, h = m j' M^-1 j and
        q = m j'u / (1 + h), a run makes u - q M^-1 j of u, j'u / (1 + h) of j'u, and adds
        q (d - j' M^-1 S) to b = S'u - d*.
        """
        s = self.stakes
        inverse = np.linalg.inv(self.information)
        u = inverse @ s.aim[:, :, None]
        across = self.mixing.transpose(0, 2, 1)
        b = across @ u - s.d_optimum[:, :, None]
        noise = np.sum(u * (self.variance @ u), axis=1)
        now = noise + np.sum(b * b, axis=1)
        spread = s.jacobian @ inverse
        left = (s.jacobian @ u)[..., 0]
        left /= 1 + s.weight * np.einsum("knp,knp->kn", spread, s.jacobian)
        q = s.weight * left
        # d - j' M^-1 S, dotted with b and squared, without forming it: it is (k, n, r).
        with_b = (self._overlap @ u - spread @ (self.mixing @ b))[..., 0] - self._with_optimum
        twice = spread @ (self.mixing @ across + self.variance) - 2 * self._overlap
        square = self._d_square + np.einsum("knp,knp->kn", spread, twice)
        with_b -= (spread @ (self.variance @ u))[..., 0]
        own = s.square + 2 * self.counts * s.together
        then = now + own * left**2 + 2 * q * with_b + q * q * square
        fall = np.log(now) - np.log(np.maximum(then, 1e-6 * now))
        return np.asarray(fall.mean(axis=0))

    def expected(self) -> Expected:
        """Standard errors, geometric means over the laws."""
        s = self.stakes
        inverse = np.linalg.inv(self.information)

        def both(aim: FloatArray, own: FloatArray) -> tuple[FloatArray, FloatArray]:
            u = np.einsum("kij,kj->ki", inverse, aim)
            b = np.einsum("kir,ki->kr", self.mixing, u) - own
            noise = np.einsum("ki,kij,kj->k", u, self.variance, u)
            return np.sqrt(noise), np.linalg.norm(b, axis=1)

        params = both(s.aim, s.d_optimum)
        loss = both(s.at_target * s.loss[:, None], s.d_loss * s.loss[:, None])
        names = ("se_log_params", "law_error_log_params", "se_loss", "law_error_loss")
        with np.errstate(divide="ignore"):
            logs = [np.mean(np.log(value)) for value in params + loss]
        return Expected(**{n: math.exp(v) for n, v in zip(names, logs, strict=True)})
