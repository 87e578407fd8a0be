"""What serving costs: energy (or device time) of forward passes, by model size, batch and length.

A forward pass over n sequences that hold `context` tokens together, of a model of N parameters that
keeps kv values of each token, costs

    a + b N + c N n + d kv context + e n,      a, b, c, d, e >= 0

    a   per pass: launches, synchronising, what the device draws while the host works
    b   per parameter and pass: the weights are read once a pass, whatever the batch
    c   per parameter and token: the arithmetic, 2 FLOP each
    d   per value of the KV cache that is read: attention over what is there
    e   per token: its vocabulary row, sampling, its text

The energy of a run is the sum over its passes, so that sums of what was counted are all that is
needed, and no pass is measured alone: that is not possible, since a counter is slower than one. It
is the additive form of a roofline (Williams, Waterman and Patterson 2009; of energy: Choi et al.,
A roofline model of energy, 2013, where energy adds while time overlaps). Where a device's time is
the longer of reading and arithmetic the form is off by what it draws idle meanwhile, at most near
the corner. A power law of N, batch and length has no floor and no corner: both are fitted, and held
against each other on sizes and batches that were left out.

Relative least squares, as of a training's cost. Intervals are from a wild bootstrap: what the law
leaves of each deployment, all its cycles together, is put back with a random factor and the law
fitted again. A few deployments (the smallest batch, the longest prompt) hold the law where it is,
so their residuals are small: they are undone of that by (I - H_gg)^-1 first (Bell and McCaffrey
2002, CR3), and drawn from six points as few clusters need (Webb 2014). Student's t of the
deployments to spare takes the place of the normal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llem.scaling.errors import DataFault, OptionError, ScalingDataError
from llem.scaling.fitting.bootstrap import LEAST_SPARE, percentile_interval, student_ratio
from llem.scaling.fitting.nonnegative import solve_normal

FloatArray = NDArray[np.float64]
NAN = float("nan")

SCHEMA = "llem.serving/1"
FORMULA = "a F + b N F + c N T + d kv K + e T"
# Terms in the order in which they stay where the runs cannot tell two apart.
TERMS: dict[str, tuple[str, str]] = {
    "arithmetic": ("N x tokens", "per parameter and token"),
    "weights": ("N x passes", "per parameter and pass"),
    "pass": ("passes", "per pass"),
    "token": ("tokens", "per token"),
    "cache": ("kv x context", "per value read of the KV cache"),
}
# Least share of a term's column that those before it must leave unexplained.
REMAINDER = 0.02
ROUNDS = 4
# Values of the KV cache grow as layers x width, and N as layers x width^2: of models of one shape
# as N to this power.
KV_EXPONENT = 2.0 / 3.0


@dataclass(frozen=True)
class ServedRuns:
    """Counts of runs, columns (n,): parameters, forward passes, tokens that they read, `context`,
    the tokens that decoding sequences held summed over passes, and values that the KV cache keeps
    of one token."""

    params: FloatArray
    passes: FloatArray
    tokens: FloatArray
    context: FloatArray
    kv: FloatArray

    def columns(self, names: Sequence[str]) -> FloatArray:
        """(n, m) of the terms `names`."""
        every = {
            "pass": self.passes,
            "weights": self.params * self.passes,
            "arithmetic": self.params * self.tokens,
            "cache": self.kv * self.context,
            "token": self.tokens,
        }
        return np.stack([every[name] for name in names], axis=-1)


@dataclass(frozen=True)
class Use:
    """How a model is served: `batch` sequences at once, prompts and answers of so many tokens."""

    batch: float
    tokens_in: float
    tokens_out: float

    def __post_init__(self) -> None:
        for name in ("batch", "tokens_in", "tokens_out"):
            if not getattr(self, name) >= 1:
                raise OptionError(name, getattr(self, name), "1 or more")

    def of_request(self, params: FloatArray, kv: FloatArray) -> ServedRuns:
        """The counts of one request, its share of its batch's passes."""
        i, o = self.tokens_in, self.tokens_out
        one = np.ones(np.shape(params))
        return ServedRuns(
            params=np.asarray(params, dtype=np.float64) * one,
            passes=one * o / self.batch,
            tokens=one * (i + o - 1),
            # after its k-th pass, 1 <= k < o, a sequence holds i + k + 1 tokens
            context=one * ((o - 1) * (i + 1) + o * (o - 1) / 2),
            kv=np.asarray(kv, dtype=np.float64) * one,
        )

    def to_dict(self) -> dict[str, float]:
        return dict(vars(self))


@dataclass(frozen=True)
class ServingLaw:
    """A fitted law of what serving costs, in `unit` (J, or s of devices).

    names, coefficients: the terms. samples: (k, m) resamples of the coefficients. kv_scale and
    kv_exponent: values of the KV cache as a power of N, by the models that were seen. use: the
    median of what was measured, where a question does not say. errors: mean absolute relative
    error of all rows (`all`), and of models and batches that were left out, of this law and of a
    power law.
    """

    quantity: str
    unit: str
    names: tuple[str, ...]
    coefficients: FloatArray
    samples: FloatArray
    kv_scale: float
    kv_exponent: float
    rows: int
    deployments: int
    use: Use
    range: dict[str, tuple[float, float]]
    errors: dict[str, Any]
    level: float = 0.95
    not_used: tuple[dict[str, str], ...] = ()
    warnings: tuple[str, ...] = ()
    residuals: FloatArray = field(default_factory=lambda: np.empty(0))

    def kv(self, params: ArrayLike) -> FloatArray:
        """Values that the KV cache keeps of a token, of a model of N parameters."""
        return np.asarray(self.kv_scale * np.asarray(params, dtype=float) ** self.kv_exponent)

    def per_token(
        self, params: ArrayLike, use: Use | None = None, *, coefficients: FloatArray | None = None
    ) -> FloatArray:
        """Cost of a token that comes out, its request's prompt with it; (...,) as `params`.

        coefficients: (..., m) in place of the estimate's, broadcast against `params`.
        """
        at = use or self.use
        n = np.asarray(params, dtype=np.float64)
        values = self.coefficients if coefficients is None else coefficients
        features = at.of_request(n, self.kv(n)).columns(self.names)
        return np.asarray((features * values).sum(axis=-1) / at.tokens_out)

    def interval(self, params: float, use: Use | None = None) -> tuple[float, float]:
        """Of `per_token` at one size; NaN without resamples."""
        drawn = self.per_token(np.full(len(self.samples), params), use, coefficients=self.samples)
        return percentile_interval(drawn, self.level)

    def to_dict(self) -> dict[str, Any]:
        """As in fit.json of a study; NaN still NaN."""
        low, high = (
            np.quantile(self.samples, [(1 - self.level) / 2, (1 + self.level) / 2], axis=0)
            if len(self.samples)
            else (np.full(len(self.names), NAN),) * 2
        )
        return {
            "quantity": self.quantity,
            "unit": self.unit,
            "formula": FORMULA,
            "terms": [
                {
                    "name": name,
                    "coefficient": float(value),
                    "ci": [float(a), float(b)],
                    "unit": f"{self.unit} {TERMS[name][1]}",
                    "formula": TERMS[name][0],
                }
                for name, value, a, b in zip(self.names, self.coefficients, low, high, strict=True)
            ],
            "kv": {"scale": self.kv_scale, "exponent": self.kv_exponent},
            "rows": self.rows,
            "deployments": self.deployments,
            "use": self.use.to_dict(),
            "range": {name: list(ends) for name, ends in self.range.items()},
            "errors": self.errors,
            "level": self.level,
            "not_used": [dict(entry) for entry in self.not_used],
            "warnings": list(self.warnings),
            "residuals": self.residuals.tolist(),
        }


def fit_serving(
    cost: ArrayLike,
    *,
    params: ArrayLike,
    passes: ArrayLike,
    tokens: ArrayLike,
    context: ArrayLike,
    kv: ArrayLike | None = None,
    batch: ArrayLike,
    tokens_in: ArrayLike,
    tokens_out: ArrayLike,
    deployment: Sequence[str] | None = None,
    quantity: str = "energy_j",
    unit: str = "J",
    bootstrap: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> ServingLaw:
    """Fit the law to runs: columns (n,), of a run's whole measured window.

    passes, tokens, context, kv: see `ServedRuns` (kv NaN or not given: the cache is not told
    apart). batch, tokens_in and tokens_out (of a request, means) say what was asked, for the
    questions' default and for what is left out when the law is judged. deployment: whose cycles
    the runs are; they are drawn together. Raises ScalingDataError with every fault.
    """
    column = {
        name: np.asarray(values, dtype=np.float64)
        for name, values in (
            (quantity, cost), ("params", params), ("passes", passes), ("tokens", tokens),
            ("context", context), ("batch", batch), ("tokens_in", tokens_in),
            ("tokens_out", tokens_out),
        )
    }  # fmt: skip
    count = column[quantity].size
    column["kv"] = np.full(count, NAN) if kv is None else np.asarray(kv, dtype=np.float64)
    _check(column)
    own = list(range(count)) if deployment is None else list(deployment)
    units, unit_of = np.unique(np.array(own).astype(str), return_inverse=True)
    scale, exponent = _kv_law(column["params"], column["kv"])
    known_kv = np.where(np.isfinite(column["kv"]), column["kv"], 0.0)
    runs = ServedRuns(
        column["params"], column["passes"], column["tokens"], column["context"], known_kv
    )
    y = column[quantity]
    names, not_used = _select(runs, y, len(units))
    coefficients = _solve(runs, y, names)
    residuals = runs.columns(names) @ coefficients / y - 1.0
    spare = len(units) - len(names)
    warnings: list[str] = []
    samples = np.empty((0, len(names)))
    if bootstrap and spare < LEAST_SPARE:
        needed = len(names) + LEAST_SPARE
        warnings.append(f"no intervals: {len(units)} deployments are too few ({needed} needed)")
    elif bootstrap:
        wide = student_ratio(spare, NormalDist().inv_cdf(0.5 + 0.5 * level))
        samples = _wild(runs.columns(names), y, coefficients, unit_of, wide, bootstrap, seed)
    asked = {name: column[name] for name in ("params", "batch", "tokens_in", "tokens_out")}
    return ServingLaw(
        quantity=quantity,
        unit=unit,
        names=names,
        coefficients=coefficients,
        samples=samples,
        kv_scale=scale,
        kv_exponent=exponent,
        rows=count,
        deployments=len(units),
        use=Use(*(max(1.0, float(np.median(asked[n]))) for n in
                  ("batch", "tokens_in", "tokens_out"))),
        range={name: (float(v.min()), float(v.max())) for name, v in asked.items()},
        errors=_errors(runs, y, names, asked, residuals),
        level=level,
        not_used=tuple(not_used),
        warnings=tuple(warnings),
        residuals=residuals,
    )  # fmt: skip


def _check(column: dict[str, FloatArray]) -> None:
    faults = []
    count = next(iter(column.values())).size
    for name, values in column.items():
        if values.shape != (count,):
            faults.append(DataFault.of(name, f"has shape {values.shape}, expected ({count},)"))
            continue
        if name == "kv":
            continue
        least = 0.0 if name == "context" else np.nextafter(0.0, 1.0)
        for row in np.flatnonzero(~(np.isfinite(values) & (values >= least))).tolist():
            value = float(values[row])
            faults.append(DataFault.of(name, "must be a finite number above 0", row=row,
                                       value=value))  # fmt: skip
    if count < 3:
        faults.append(DataFault.of(next(iter(column)), f"{count} runs; 3 are needed"))
    if faults:
        raise ScalingDataError(faults)


def _kv_law(params: FloatArray, kv: FloatArray) -> tuple[float, float]:
    """Values of the cache as a power of N: through the models seen, or of one shape with them."""
    good = np.isfinite(kv) & (kv > 0)
    if not good.any():
        return 0.0, KV_EXPONENT
    x, y = np.log(params[good]), np.log(kv[good])
    exponent = float(np.polyfit(x, y, 1)[0]) if np.ptp(x) > 0.1 else KV_EXPONENT
    return float(np.exp(np.mean(y - exponent * x))), exponent


def _relative(runs: ServedRuns, y: FloatArray, names: Sequence[str]) -> FloatArray:
    return runs.columns(names) / y[:, None]


def _solve(
    runs: ServedRuns, y: FloatArray, names: Sequence[str], kept: NDArray[np.bool_] | None = None
) -> FloatArray:
    """Coefficients (m,) of least relative squares over the rows `kept`.

    Divided by what was measured a fit is too low by the noise's variance, since low rows weigh
    most: from the second round on it is what was fitted that rows are divided by.
    """
    columns = runs.columns(names)
    rows = slice(None) if kept is None else kept
    x, measured = columns[rows], y[rows]
    by = measured
    found: FloatArray = np.zeros(len(names))
    for _ in range(ROUNDS):
        z = x / by[:, None]
        size = z.max(axis=0)
        size = np.where(size > 0, size, 1.0)
        z = z / size
        moment = z.T @ (measured / by)
        found = np.asarray(solve_normal((z.T @ z)[None], moment[None])[0] / size)
        by = x @ found
    return found


# Factors of mean 0 and variance 1.
WEBB = np.sqrt([0.5, 1.0, 1.5])


def _wild(
    columns: FloatArray,
    y: FloatArray,
    coefficients: FloatArray,
    unit: NDArray[np.intp],
    wide: float,
    count: int,
    seed: int,
) -> FloatArray:
    """Coefficients (k, m) of resamples; unit (n,): the deployment of each row."""
    fitted = columns @ coefficients
    rows = columns / fitted[:, None]
    size = rows.max(axis=0)
    rows = rows / size
    left = y / fitted - 1.0
    gram = rows.T @ rows
    # only what is not held at zero has a leverage
    free = coefficients > 0
    inverse = np.linalg.pinv(gram[np.ix_(free, free)])
    held = rows[:, free]
    whole = np.empty_like(left)
    for group in range(int(unit.max()) + 1):
        own = unit == group
        hat = held[own] @ inverse @ held[own].T
        whole[own] = np.linalg.lstsq(np.eye(len(hat)) - hat, left[own], rcond=None)[0]
    random = np.random.default_rng(seed)
    factor = random.choice(np.concatenate([-WEBB, WEBB]), (count, int(unit.max()) + 1)) * wide
    drawn = 1.0 + factor[:, unit] * whole
    found = solve_normal(np.broadcast_to(gram, (count, *gram.shape)), drawn @ rows)
    return np.asarray(found / size)


def _select(
    runs: ServedRuns, y: FloatArray, units: int
) -> tuple[tuple[str, ...], list[dict[str, str]]]:
    """The terms that these runs can tell apart, and why the others are left out."""
    chosen: list[str] = []
    basis = np.empty((y.size, 0))
    not_used = []
    for name in TERMS:
        column = _relative(runs, y, [name])
        reason = ""
        if not np.any(column > 0):
            reason = "the size of the KV cache is not known"
        elif units < len(chosen) + 1:
            reason = f"{units} deployments are too few for {len(chosen) + 1} terms"
        else:
            column = column / np.linalg.norm(column)
            rest = column - basis @ (basis.T @ column)
            rest = rest - basis @ (basis.T @ rest)
            left = float(np.linalg.norm(rest))
            if left <= REMAINDER:
                reason = f"these runs cannot tell it from {', '.join(chosen)}"
            else:
                basis = np.concatenate([basis, rest / left], axis=1)
        if reason:
            not_used.append({"name": name, "reason": reason})
        else:
            chosen.append(name)
    return tuple(chosen), not_used


def _errors(
    runs: ServedRuns,
    y: FloatArray,
    names: Sequence[str],
    asked: dict[str, FloatArray],
    residuals: FloatArray,
) -> dict[str, Any]:
    """The law and a power law on what is left out: each size in turn, and each batch."""
    of_power = _power(asked, y, runs.tokens, np.ones(y.size, bool)) / y - 1.0
    found: dict[str, Any] = {
        "all": {"law": _mean(residuals), "power_law": _mean(of_power)},
    }
    for name in ("params", "batch"):
        values = np.unique(asked[name])
        if values.size < 3:
            continue
        off: list[FloatArray] = []
        power: list[FloatArray] = []
        for value in values:
            out = asked[name] == value
            if np.count_nonzero(~out) < len(names) + 1:
                continue
            coefficients = _solve(runs, y, names, ~out)
            off.append((runs.columns(names) @ coefficients / y - 1.0)[out])
            power.append((_power(asked, y, runs.tokens, ~out) / y - 1.0)[out])
        if off:
            found[f"{name}_left_out"] = {
                "law": _mean(np.concatenate(off)),
                "power_law": _mean(np.concatenate(power)),
            }
    return found


def _power(
    asked: dict[str, FloatArray], y: FloatArray, tokens: FloatArray, kept: NDArray[np.bool_]
) -> FloatArray:
    """Cost by a power law of N, batch and length for each token, fitted to the rows `kept`."""
    length = asked["tokens_in"] + asked["tokens_out"]
    x = np.stack([np.ones(y.size), *(np.log(v) for v in (asked["params"], asked["batch"], length))])
    solution, *_ = np.linalg.lstsq(x[:, kept].T, np.log(y / tokens)[kept], rcond=None)
    return np.asarray(np.exp(solution @ x) * tokens)


def _mean(errors: FloatArray) -> float:
    return float(np.mean(np.abs(errors))) if errors.size else math.nan
