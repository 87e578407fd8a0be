"""What a run costs, as a law of its own: energy or device time from N, D and the layout.

    cost = sum of coefficient x feature,   coefficients >= 0

The features are those of `features.py`; what the runs cannot tell apart is left out, and said to
be. Relative least squares: a run of 10 kJ and one of 10 MJ count the same. Errors are made small
relative to what is predicted, found in a few rounds: relative to what was measured, a run that came
out cheap would count more than one that came out dear, and the law be too low by twice the noise's
variance (8 % at a noise of 20 %). What lies far off, as a run that was killed and tried again,
counts less (Huber 1964). The residual of a run that is told is (predicted - cost)/cost.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llem.scaling.answers.features import (
    CORE,
    FEATURES,
    ORDER,
    Columns,
    Layout,
    Layouts,
    fill,
    known_columns,
)
from llem.scaling.answers.levels import Draws, Levels, variances
from llem.scaling.fitting.basis import extended
from llem.scaling.fitting.bootstrap import KEPT_ELEMENTS
from llem.scaling.fitting.nonnegative import solve_normal
from llem.scaling.laws.huber import LEAST_NOISE, weights

FloatArray = NDArray[np.float64]
NAN = float("nan")

MIN_ROWS = 3
# A feature needs at least so many runs for each coefficient that is then fitted.
ROWS_PER_FEATURE = 3
# Least share of a feature's column that those before it must leave unexplained. The layout's are
# asked for more: told apart by rounding or by noise alone, they would be anything elsewhere.
CORE_REMAINDER = 1e-6
LAYOUT_REMAINDER = 0.05
HELD_OUT_SHARE = 0.2
# Rounds in which what errors are relative to settles, and the change at which it has.
ROUNDS = 30
SETTLED = 1e-7
# What is predicted is no less than this share of what was measured, or one run would count alone.
LEAST_SHARE = 1e-3
# An error of so many standard deviations counts in full.
HUBER = 3.0
# Median of |x| of a normal x of standard deviation 1.
NORMAL_MEDIAN = 0.6745
# Fewer sizes than these say nothing of how far a size lies off a law.
LEAST_SIZES = 4
# Beyond so many rows the file lists no residuals.
RESIDUALS_LISTED = 5000
# Columns in a reader's words.
WORDS = {"energy_j": "energy", "gpu_seconds": "GPU time"}


def in_words(quantity: str) -> str:
    """`energy` of the column energy_j, and so on."""
    return WORDS.get(quantity, quantity)


@dataclass(frozen=True)
class Term:
    """A fitted feature: coefficient in `unit` for one unit of `formula`."""

    name: str
    coefficient: float
    unit: str
    formula: str

    def to_dict(self) -> dict[str, Any]:
        """As in fit.json."""
        return {
            "name": self.name,
            "coefficient": self.coefficient,
            "unit": self.unit,
            "formula": self.formula,
        }


@dataclass(frozen=True)
class Lines:
    """A cost at one layout, linear in tokens for given N: shape () each, or (k,) of resamples.

    cost = fixed + (per_token + per_flop C/D + per_param N) D
    """

    fixed: FloatArray
    per_token: FloatArray
    per_flop: FloatArray
    per_param: FloatArray

    def __add__(self, other: Lines) -> Lines:
        return Lines(
            self.fixed + other.fixed,
            self.per_token + other.per_token,
            self.per_flop + other.per_flop,
            self.per_param + other.per_param,
        )

    def times(self, factor: float) -> Lines:
        """The same cost in another unit."""
        return Lines(
            self.fixed * factor,
            self.per_token * factor,
            self.per_flop * factor,
            self.per_param * factor,
        )


@dataclass(frozen=True)
class CostLaw:
    """A fitted cost law, or the reason why there is none.

    quantity and unit name what is predicted ("energy_j" in J, "gpu_seconds" in s). terms: the
    features fitted. left_out: the rows without a measurement. not_used: {name, reason} of features
    left out. layout: what predictions assume, the largest layout seen. mean_error: mean absolute
    relative error over the rows used. residuals: (predicted - cost)/cost of every row, NaN where
    left out. held_out: the runs of largest cost as predicted from the rest, None where these are
    too few. `reason` is empty when fitted.
    """

    quantity: str
    unit: str
    terms: tuple[Term, ...]
    rows: int
    left_out: tuple[int, ...]
    mean_error: float
    reason: str = ""
    layout: Layout = field(default_factory=Layout)
    not_used: tuple[dict[str, str], ...] = ()
    residuals: tuple[float, ...] = ()
    held_out: dict[str, Any] | None = None

    @property
    def fitted(self) -> bool:
        """Whether there is a law."""
        return not self.reason

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the features, in the order of `coefficients`."""
        return tuple(t.name for t in self.terms)

    @property
    def coefficients(self) -> FloatArray:
        """(m,) in the order of `terms`."""
        return np.array([t.coefficient for t in self.terms])

    @property
    def constant(self) -> float:
        """What every run pays at the assumed layout, in `unit`."""
        return float(self.lines().fixed)

    @property
    def per_token(self) -> float:
        """What every token pays at the assumed layout whatever the model, in `unit`."""
        return float(self.lines().per_token)

    @property
    def per_flop(self) -> float:
        """What every FLOP pays, in `unit`."""
        return float(self.lines().per_flop)

    def predict(
        self,
        tokens: FloatArray | float,
        flops: FloatArray | float,
        *,
        params: FloatArray | float = NAN,
        layouts: Layouts | None = None,
    ) -> FloatArray:
        """Cost of runs in `unit`; NaN when not fitted.

        layouts: of each run; without it, the assumed one. params: needed by the all-reduce alone.
        """
        d = np.asarray(tokens, dtype=np.float64)
        if layouts is None:
            batch = self.layout.batch_tokens
            steps = d if batch is None else d / batch
            layouts = Layouts(self.layout.ranks, self.layout.nodes, steps)
        columns = fill(d, np.asarray(flops, dtype=np.float64), params, layouts)
        if not self.fitted:
            return np.full(np.shape(columns.tokens), NAN)
        total = np.zeros(np.shape(columns.tokens))
        for term in self.terms:
            if term.coefficient > 0:  # nothing times an unknown size is nothing
                total = total + term.coefficient * FEATURES[term.name].of(columns)
        return np.asarray(total)

    def lines(
        self, coefficients: FloatArray | None = None, *, layout: Layout | None = None
    ) -> Lines:
        """The cost at a layout (the assumed one) for coefficients (..., m) (the estimate)."""
        values = self.coefficients if coefficients is None else coefficients
        at = self.layout if layout is None else layout
        steps = 1.0 if at.batch_tokens is None else 1.0 / at.batch_tokens
        zero = np.zeros(values.shape[:-1]) if self.fitted else np.full(values.shape[:-1], NAN)
        c = dict(zip(self.names, np.moveaxis(values, -1, 0), strict=True))
        across = c.get("all_reduce", zero) + (at.nodes > 1) * c.get("between_nodes", zero)
        return Lines(
            fixed=zero + c.get("start", zero) * at.ranks,
            per_token=zero + c.get("per_token", zero) + c.get("step", zero) * steps * at.ranks,
            per_flop=zero + c.get("per_flop", zero),
            per_param=zero + across * steps * (at.ranks - 1.0),
        )

    def to_dict(self) -> dict[str, Any]:
        """One entry of `costs` in fit.json; constant, per_token, per_flop: at the layout."""
        lines = self.lines()
        listed = len(self.residuals) <= RESIDUALS_LISTED
        return {
            "quantity": self.quantity,
            "unit": self.unit,
            "terms": [t.to_dict() for t in self.terms],
            "layout": self.layout.to_dict(),
            "constant": float(lines.fixed),
            "per_token": float(lines.per_token),
            "per_flop": float(lines.per_flop),
            "per_param_token": float(lines.per_param),
            "rows": self.rows,
            "left_out": list(self.left_out),
            "not_used": [dict(entry) for entry in self.not_used],
            "mean_error": self.mean_error,
            "held_out": self.held_out,
            "residuals": list(self.residuals) if listed else [],
            "reason": self.reason,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> CostLaw:
        """The inverse of `to_dict`; null becomes NaN."""
        return cls(
            quantity=data["quantity"],
            unit=data["unit"],
            terms=tuple(
                Term(t["name"], _number(t["coefficient"]), t["unit"], t["formula"])
                for t in data["terms"]
            ),
            rows=int(data["rows"]),
            left_out=tuple(data["left_out"]),
            mean_error=_number(data["mean_error"]),
            reason=data["reason"],
            layout=Layout.from_dict(data["layout"]),
            not_used=tuple(data["not_used"]),
            residuals=tuple(_number(v) for v in data["residuals"]),
            held_out=data["held_out"],
        )


def fit_cost(
    cost: FloatArray | None,
    tokens: FloatArray,
    flops: FloatArray,
    *,
    weight: FloatArray,
    quantity: str,
    unit: str,
    params: FloatArray | None = None,
    layouts: Layouts | None = None,
    run: NDArray[np.intp] | None = None,
) -> CostLaw:
    """Fit one cost law; columns (n,), NaN costs are left out and named.

    params and layouts: what the terms of the layout need; a column that is not known in every
    measured row is not used. run: number of the run of each row, whose rows are held out together.
    """
    if cost is None:
        return CostLaw(quantity, unit, (), 0, (), NAN, f"{quantity} was not given")
    measured = _usable(cost)
    usable = measured & (weight > 0)
    left_out = tuple(int(i) for i in np.flatnonzero(~measured))
    rows = int(np.count_nonzero(usable))
    if rows < MIN_ROWS:
        reason = f"{quantity} was measured in {rows} of {cost.size} rows; {MIN_ROWS} are needed"
        return CostLaw(quantity, unit, (), rows, left_out, NAN, reason)
    known, absent = known_columns(params, layouts or Layouts(), measured)
    columns = fill(tokens, flops, *known)
    numbers = np.arange(cost.size) if run is None else run
    names, not_used = _select(cost, columns, weight, numbers, usable, absent)
    design = Design.of(cost, columns, names, weight=weight)
    coefficients = design.solve(design.sums(weight[None, :]))[0]
    predicted = sum(c * FEATURES[n].of(columns) for n, c in zip(names, coefficients, strict=True))
    with np.errstate(all="ignore"):
        residuals = np.where(usable, predicted / cost - 1.0, NAN)
    share = weight[usable] / np.sum(weight[usable])
    return CostLaw(
        quantity=quantity,
        unit=unit,
        terms=tuple(
            Term(n, float(c), unit, _formula(n, absent))
            for n, c in zip(names, coefficients, strict=True)
        ),
        rows=rows,
        left_out=left_out,
        mean_error=float(share @ np.abs(residuals[usable])),
        layout=_largest(columns, usable, absent),
        not_used=tuple(not_used),
        residuals=tuple(residuals.tolist()),
        held_out=_held_out(cost, columns, names, weight, numbers, usable),
    )


def cost_design(
    cost: FloatArray,
    tokens: FloatArray,
    flops: FloatArray,
    *,
    params: FloatArray | None = None,
    layouts: Layouts | None = None,
    names: Sequence[str] = CORE,
    weight: FloatArray | None = None,
) -> Design:
    """The design of a cost law with the features `names`; see `fit_cost` for the columns."""
    known, _ = known_columns(params, layouts or Layouts(), _usable(cost))
    return Design.of(cost, fill(tokens, flops, *known), names, weight=weight)


@dataclass(frozen=True)
class Design:
    """Relative features of each row, and their products, of which a resample is a weighted sum.

    rows (n, m): feature/predicted, of unit size, 0 where there is no cost; predicted by the fit to
    all rows, for every resample. size (m,): what the columns were divided by. wanted (n,):
    cost/predicted. counts (n,): what a row counts, 1 or less far off. products (n, m m + m + 1):
    row x row, row x wanted, both by counts, and 1 where there is a cost.
    """

    rows: FloatArray
    size: FloatArray
    wanted: FloatArray
    counts: FloatArray
    products: FloatArray

    @classmethod
    def of(
        cls,
        cost: FloatArray,
        columns: Columns,
        names: Sequence[str],
        *,
        weight: FloatArray | None = None,
    ) -> Design:
        """The design of these features, for rows of this weight (n,) (None: all alike)."""
        usable = _usable(cost)
        w = np.ones(cost.size) if weight is None else weight
        counted = usable & (w > 0)
        predicted, counts = cost, np.ones(cost.size)
        found = cls._relative_to(cost, predicted, columns, names, counts)
        if not np.any(counted):
            return found
        for _ in range(ROUNDS):
            before = predicted
            told = found.rows * found.size @ found.solve(found.sums(w[None, :]))[0] * before
            predicted = np.where(usable, np.maximum(told, LEAST_SHARE * cost), cost)
            if np.count_nonzero(counted) >= ROWS_PER_FEATURE * len(names):
                counts = _counts(cost / predicted - 1.0, w * counted)
            found = cls._relative_to(cost, predicted, columns, names, counts)
            if np.max(np.abs(predicted[usable] / before[usable] - 1.0)) < SETTLED:
                break
        return found

    @classmethod
    def _relative_to(
        cls,
        cost: FloatArray,
        scale: FloatArray,
        columns: Columns,
        names: Sequence[str],
        counts: FloatArray,
    ) -> Design:
        usable = _usable(cost)
        relative = _relative(scale, columns, names)
        # Columns of unit size, so that the normal equations keep their digits.
        size = np.max(np.abs(relative), axis=0, initial=0.0)
        size = np.where(size > 0, size, 1.0)
        rows = relative / size
        n, m = rows.shape
        pairs = (rows[:, :, None] * rows[:, None, :]).reshape(n, m * m)
        wanted = np.divide(cost, scale, out=np.zeros_like(cost), where=usable)
        products = counts[:, None] * np.concatenate([pairs, rows * wanted[:, None]], axis=1)
        products = np.concatenate([products, usable[:, None]], axis=1)
        return cls(rows, size, wanted, counts, products)

    def sums(self, weight: FloatArray) -> FloatArray:
        """Gram, moment and weight of resamples: (k, n) to (k, m m + m + 1). Sums add up."""
        return np.asarray(weight @ self.products)

    def solve(self, sums: FloatArray) -> FloatArray:
        """Coefficients (k, m) from sums; NaN where a resample holds no measured row."""
        m = self.size.size
        gram = np.ascontiguousarray(sums[:, : m * m]).reshape(-1, m, m)
        out: FloatArray = solve_normal(gram, sums[:, m * m : m * m + m]) / self.size
        out[sums[:, -1] <= 0] = np.nan
        return out


def draw_costs(
    design: Design,
    coefficients: FloatArray,
    *,
    weight: FloatArray,
    size: NDArray[np.intp] | None,
    run: NDArray[np.intp],
    count: int,
    seed: int,
) -> FloatArray:
    """Coefficients (count, m) that the law of a further run could have as well.

    size and run (n,): numbers of each row's model and run. Errors of sizes, runs and rows are drawn
    anew and the law is fitted again, then multiplied with what a further size and run are off by:
    costs are foretold of runs, which are off any law.
    """
    used = (weight > 0) & np.any(design.rows != 0, axis=1)
    root = np.sqrt(weight[used] * design.counts[used])
    rows = design.rows[used] * root[:, None]
    wanted = design.wanted[used] * root
    left = wanted - rows @ (coefficients * design.size)
    runs = np.unique(run[used], return_inverse=True)[1]
    sizes = runs if size is None else np.unique(size[used], return_inverse=True)[1]
    levels = Levels.of(sizes, runs, least_sizes=LEAST_SIZES)
    random = np.random.default_rng([seed, count])
    drawn = variances(random, count, levels, left=left, columns=rows)
    found = []
    for block in np.array_split(drawn, math.ceil(count * left.size / KEPT_ELEMENTS)):
        off, further = Draws.of(random, len(block), levels, [left]).errors(block)
        gram = np.broadcast_to(rows.T @ rows, (len(block), rows.shape[1], rows.shape[1]))
        solved = solve_normal(gram, (wanted + off) @ rows) / design.size
        found.append(solved * np.exp(further)[:, None])
    return np.concatenate(found)


def _counts(error: FloatArray, weight: FloatArray) -> FloatArray:
    """What each row counts (n,) by its relative error: 1, or less beyond HUBER deviations."""
    far = np.where(weight > 0, np.abs(error), 0.0)
    order = np.argsort(far, kind="stable")
    below = np.cumsum(weight[order])
    median = float(far[order][np.searchsorted(below, 0.5 * below[-1])])
    return weights(far, noise=max(LEAST_NOISE, median / NORMAL_MEDIAN), edge=HUBER)


def _relative(scale: FloatArray, columns: Columns, names: Sequence[str]) -> FloatArray:
    """(n, m) of feature/scale, 0 where there is none."""
    usable = _usable(scale)
    inverse = np.divide(1.0, scale, out=np.zeros_like(scale), where=usable)
    features = [np.broadcast_to(FEATURES[name].of(columns), scale.shape) for name in names]
    stacked = np.stack(features, axis=1) * inverse[:, None]
    return np.where(usable[:, None], stacked, 0.0)


def _select(
    cost: FloatArray,
    columns: Columns,
    weight: FloatArray,
    run: NDArray[np.intp],
    usable: NDArray[np.bool_],
    absent: dict[str, str],
) -> tuple[tuple[str, ...], list[dict[str, str]]]:
    """The features that these runs can tell apart, and why the others are left out."""
    runs = np.unique(run[usable]).size
    chosen: list[str] = []
    basis = np.empty((int(np.count_nonzero(usable)), 0))
    not_used = []
    root_weight = np.sqrt(weight[usable])[:, None]
    for name in ORDER:
        reason = _missing(name, columns, usable, absent)
        core = name in CORE
        if not reason and not core and runs < ROWS_PER_FEATURE * (len(chosen) + 1):
            reason = f"{runs} runs are too few for {len(chosen) + 1} terms"
        if not reason:
            column = root_weight * _relative(cost, columns, [name])[usable]
            column = column / np.max(np.abs(column))
            wider = extended(basis, column, least=CORE_REMAINDER if core else LAYOUT_REMAINDER)
            if wider is None:
                reason = f"these runs cannot tell it from {_join(chosen)}"
            else:
                basis = wider
        if reason:
            not_used.append({"name": name, "reason": reason})
        else:
            chosen.append(name)
    return tuple(n for n in FEATURES if n in chosen), not_used


def _missing(name: str, columns: Columns, usable: NDArray[np.bool_], absent: dict[str, str]) -> str:
    """Why a feature cannot be computed, or says nothing; empty where neither holds."""
    if name == "step":
        # With steps in proportion to tokens and one rank it is per_token by another name.
        return absent.get("ranks", "") if "steps" in absent else ""
    if name in ("all_reduce", "between_nodes"):
        for needed in ("params", "ranks"):
            if needed in absent:
                return absent[needed]
        if np.all(columns.ranks[usable] == 1):
            return "every run had one rank"
    if name == "between_nodes":
        if "nodes" in absent:
            return absent["nodes"]
        if np.all(columns.nodes[usable] == 1):
            return "every run had one node"
    return ""


def _formula(name: str, absent: dict[str, str]) -> str:
    formula = FEATURES[name].formula
    return formula.replace("steps", "tokens") if "steps" in absent else formula


def _join(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _largest(columns: Columns, usable: NDArray[np.bool_], absent: dict[str, str]) -> Layout:
    """The layout of most ranks: its nodes, and the median of its batches."""
    ranks = float(np.max(columns.ranks[usable]))
    those = usable & (columns.ranks == ranks)
    batch = None
    if "steps" not in absent:
        batch = float(np.median(columns.tokens[those] / columns.steps[those]))
    return Layout(ranks, float(np.max(columns.nodes[those])), batch)


def _held_out(
    cost: FloatArray,
    columns: Columns,
    names: Sequence[str],
    weight: FloatArray,
    run: NDArray[np.intp],
    usable: NDArray[np.bool_],
) -> dict[str, Any] | None:
    """The runs of largest cost as predicted from all others; None where these are too few."""
    runs, index = np.unique(run[usable], return_inverse=True)
    largest = np.zeros(runs.size)
    np.maximum.at(largest, index, cost[usable])
    count = max(1, round(HELD_OUT_SHARE * runs.size))
    out = np.isin(run, runs[np.argsort(-largest, kind="stable")[:count]]) & usable
    rest = usable & ~out
    if np.count_nonzero(rest) < max(MIN_ROWS, len(names) + 1):
        return None
    design = Design.of(np.where(rest, cost, NAN), columns, names, weight=weight)
    coefficients = design.solve(design.sums(weight[None, :]))[0]
    error = _relative(cost, columns, names)[out] @ coefficients - 1.0
    return {
        "runs": count,
        "rows": np.flatnonzero(out).tolist(),
        "mean_abs_relative_error": float(np.mean(np.abs(error))),
        "mean_relative_error": float(np.mean(error)),
        "largest_fitted": float(np.max(cost[rest])),
        "largest_held_out": float(np.max(cost[out])),
    }


def _usable(cost: FloatArray) -> NDArray[np.bool_]:
    return np.isfinite(cost) & (cost > 0)


def _number(value: Any) -> float:
    return NAN if value is None else float(value)
