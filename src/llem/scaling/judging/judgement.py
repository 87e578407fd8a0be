"""How far a fit may be trusted: the law fitted again to parts of the data, and asked for the rest.

Every refit is a vector of weights or a Huber threshold over the same rows, so all of them are
solved as one batch, each from the optimum and from the other minima that the full fit found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llem._numerals import format_flops
from llem.scaling.fitting.estimator import Estimator
from llem.scaling.fitting.problem import Problem
from llem.scaling.fitting.solve import Solution, descend, scatter
from llem.scaling.judging.isoflop import compute_levels
from llem.scaling.laws.law import Law
from llem.scaling.observations import Observations

FloatArray = NDArray[np.float64]
Mask = NDArray[np.bool_]

# Runs within this factor of the largest compute are held out together.
HELD_OUT_FACTOR = 1.5
# Leave-one-budget-out: more levels than this are joined to groups of neighbours.
MAX_GROUPS = 8
MIN_GROUPS = 3
STARTS_EACH = 3
SENSITIVITY_DELTAS = (1e-1, 1e-2, 1e-3, 1e-4)
HIGH_LOSS_SHARE = 0.05
WORST_SHARE = 0.05


@dataclass(frozen=True)
class Refit:
    """One wanted refit: which rows take part (n,), under which estimator, and its result.

    natural (p,): where it ended, NaN until solved or where `reason` says why not.
    """

    label: str
    keep: Mask
    estimator: Estimator
    judged: Mask
    natural: FloatArray
    reason: str = ""


@dataclass(frozen=True)
class Judgement:
    """The parts of fit.json that say how far a fit may be trusted; see `judge`."""

    held_out: dict[str, Any]
    leave_one_out: dict[str, Any]
    sensitivity: list[dict[str, Any]]


def judge(
    data: Observations, law: Law, problem: Problem, solution: Solution, estimator: Estimator
) -> Judgement:
    """Held-out error, leave-one-budget-out error, and what the choices change.

    Errors are (predicted - loss)/loss over the rows left out: `mean_abs_relative_error` and
    `mean_relative_error`, NaN with a reason where the rest cannot carry a fit.
    """
    groups = _groups(data)
    residual = problem.residuals(solution.theta)[0]
    wanted = [
        _without_largest(data, law, estimator),
        *(_without(data, law, estimator, group) for group in groups),
        *_choices(data, law, estimator, residual),
    ]
    done = _solve(problem, solution, data.weight, wanted)
    held_out, left_out = done[0], done[1 : 1 + len(groups)]
    return Judgement(
        held_out=_held_out(data, law, held_out),
        leave_one_out=_leave_one_out(data, law, left_out),
        sensitivity=[_changed(data, law, r) for r in done[1 + len(groups) :]],
    )


def _solve(
    problem: Problem, solution: Solution, weight: FloatArray, wanted: Sequence[Refit]
) -> list[Refit]:
    """All refits that can be fitted, as one batch; each takes the best of its starts."""
    starts = solution.ends[:STARTS_EACH]
    usable = [i for i, refit in enumerate(wanted) if not refit.reason]
    if not usable:
        return list(wanted)
    m = starts.shape[0]
    theta = np.tile(starts, (len(usable), 1))
    weights = _Parts(weight, [wanted[i].keep for i in usable for _ in range(m)])
    typical = scatter(problem, solution.theta)
    ladders = [
        wanted[i].estimator.ladder(typical, int(wanted[i].keep.sum()))
        for i in usable
        for _ in range(m)
    ]
    depth = max(len(ladder) for ladder in ladders)
    # A short ladder waits on its first rung: those rows are solved once and then warm.
    rungs = np.array([(ladder[0],) * (depth - len(ladder)) + ladder for ladder in ladders]).T
    ends = descend(problem, theta, weights, rungs, tolerance=1e-13, max_steps=80)
    best = ends.objective.reshape(-1, m).argmin(axis=1) + m * np.arange(len(usable))
    natural = problem.natural(ends.theta[best])
    out = list(wanted)
    for place, i in enumerate(usable):
        r = wanted[i]
        out[i] = Refit(r.label, r.keep, r.estimator, r.judged, natural[place], r.reason)
    return out


@dataclass(frozen=True)
class _Parts:
    """Weights of refits (see `minimiser.Weights`): those of the rows that each keeps."""

    weight: FloatArray
    keep: Sequence[Mask]

    def take(self, index: NDArray[np.intp]) -> FloatArray:
        return np.stack([self.weight * self.keep[i] for i in index])


def _refit(
    data: Observations, law: Law, label: str, keep: Mask, estimator: Estimator, judged: Mask
) -> Refit:
    reason = ""
    if law.shortage(data, keep):
        reason = "too few runs remain"
    return Refit(label, keep, estimator, judged, np.full(len(law.parameters), np.nan), reason)


def _peaks(data: Observations) -> FloatArray:
    """Largest compute of the run of each row: a run is held out whole."""
    peak = np.zeros(data.runs)
    np.maximum.at(peak, data.run, data.flops)
    return np.asarray(peak[data.run])


def _without_largest(data: Observations, law: Law, estimator: Estimator) -> Refit:
    limit = float(np.max(data.flops)) / HELD_OUT_FACTOR
    out = _peaks(data) >= limit
    # Of a run held out, only what lies at the largest compute is a prediction forward.
    return _refit(data, law, "largest compute", ~out, estimator, out & (data.flops >= limit))


def _groups(data: Observations) -> list[tuple[float, float]]:
    """Ranges of compute to leave out one by one: the levels, or groups of neighbouring levels."""
    peak = _peaks(data)
    levels = compute_levels(peak)
    if len(levels) > MAX_GROUPS:
        sizes = np.cumsum([len(rows) for rows in levels])
        part = np.minimum((sizes - 1) * MAX_GROUPS // sizes[-1], MAX_GROUPS - 1)
        levels = [
            np.concatenate([rows for rows, p in zip(levels, part, strict=True) if p == i])
            for i in np.unique(part)
        ]
    if len(levels) < MIN_GROUPS:
        return []
    return [(float(peak[rows].min()), float(peak[rows].max())) for rows in levels]


def _without(
    data: Observations, law: Law, estimator: Estimator, group: tuple[float, float]
) -> Refit:
    low, high = group
    peak = _peaks(data)
    out = (peak >= low) & (peak <= high)
    judged = out & (data.flops >= low / HELD_OUT_FACTOR)
    label = f"{format_flops(low)} to {format_flops(high)} FLOP"
    return _refit(data, law, label, ~out, estimator, judged)


def _choices(
    data: Observations, law: Law, estimator: Estimator, residual: FloatArray
) -> list[Refit]:
    """Other thresholds, other loss functions, and rows that one might have left out."""
    everything = np.ones(data.rows, dtype=bool)
    nothing = ~everything
    out = [
        _refit(
            data,
            law,
            f"delta {delta:g}",
            everything,
            replace(estimator, loss="huber", delta=delta),
            nothing,
        )
        for delta in SENSITIVITY_DELTAS
    ]
    out.append(
        _refit(data, law, "least squares", everything, replace(estimator, loss="squares"), nothing)
    )
    used = data.weight > 0
    high = data.loss > np.quantile(data.loss[used], 1 - HIGH_LOSS_SHARE)
    worst = np.abs(residual) > np.quantile(np.abs(residual[used]), 1 - WORST_SHARE)
    levels = compute_levels(data.flops[used])
    first = data.flops <= data.flops[used][levels[0]].max()
    for label, leave in (
        ("without the 5 % highest losses", high),
        ("without the 5 % largest residuals", worst),
        ("without the smallest compute", first),
        ("without the smallest models", data.params <= 1.05 * data.params[used].min()),
        ("without the largest models", data.params >= data.params[used].max() / 1.05),
    ):
        out.append(_refit(data, law, label, ~leave, estimator, nothing))
    return out


def _errors(data: Observations, law: Law, refit: Refit) -> FloatArray:
    """(predicted - loss)/loss of the judged rows."""
    rows = refit.judged
    unique = data.unique_tokens
    predicted = law.loss(
        refit.natural,
        np.log(data.params[rows]),
        np.log(data.tokens[rows]),
        log_flops=np.log(data.flops[rows]),
        log_unique=None if unique is None else np.log(unique[rows]),
    )
    return np.asarray(predicted / data.loss[rows] - 1.0)


def _means(data: Observations, law: Law, refit: Refit) -> tuple[float, float]:
    if refit.reason or not refit.judged.any():
        return float("nan"), float("nan")
    error = _errors(data, law, refit)
    w = data.weight[refit.judged]
    w = w / w.sum() if w.sum() > 0 else np.full(error.size, 1.0 / error.size)
    return float(w @ np.abs(error)), float(w @ error)


def _held_out(data: Observations, law: Law, refit: Refit) -> dict[str, Any]:
    absolute, signed = _means(data, law, refit)
    kept = data.flops[refit.keep]
    return {
        "largest_flops": float(np.max(data.flops)),
        "fitted_to_flops": float(kept.max()) if kept.size else float("nan"),
        "rows": int(refit.judged.sum()),
        "runs": int(np.unique(data.run[refit.judged]).size),
        "mean_abs_relative_error": absolute,
        "mean_relative_error": signed,
        "params": None if refit.reason else law.named(refit.natural),
        "reason": f"{refit.reason} without those of the largest compute" if refit.reason else "",
    }


def _leave_one_out(data: Observations, law: Law, refits: Sequence[Refit]) -> dict[str, Any]:
    levels = []
    for refit in refits:
        absolute, signed = _means(data, law, refit)
        levels.append(
            {
                "left_out": refit.label,
                "flops": float(np.exp(np.mean(np.log(data.flops[refit.judged])))),
                "rows": int(refit.judged.sum()),
                "mean_abs_relative_error": absolute,
                "mean_relative_error": signed,
                "reason": refit.reason,
            }
        )
    errors = np.array([v["mean_abs_relative_error"] for v in levels])
    rows = np.array([v["rows"] for v in levels])
    usable = np.isfinite(errors)
    share = rows[usable] / rows[usable].sum() if usable.any() else rows[usable]
    few = "fewer than three amounts of compute" if not levels else "too few runs remain"
    return {
        "mean_abs_relative_error": float(share @ errors[usable]) if usable.any() else float("nan"),
        "levels": levels,
        "reason": "" if usable.any() else few,
    }


def _changed(data: Observations, law: Law, refit: Refit) -> dict[str, Any]:
    out: dict[str, Any] = {
        "choice": refit.label,
        **{key: refit.estimator.to_dict()[key] for key in ("loss", "delta")},
        "rows": int(refit.keep.sum()),
        "params": None,
        "exponents": None,
        "reason": refit.reason,
    }
    if not refit.reason:
        out["params"] = law.named(refit.natural)
        out["exponents"] = exponents(law, refit.natural, data)
    return out


def exponents(law: Law, natural: FloatArray, data: Observations) -> dict[str, float] | None:
    """The exponents a and b at the largest compute observed; None where the law has no optimum."""
    if not law.has_optimum:
        return None
    a, b = law.exponents(natural, data.flops_model, flops=float(np.max(data.flops)))
    return {"a": float(a), "b": float(b)}


def residual_summary(
    observations: Observations, residual: FloatArray, *, worst: int = 5
) -> dict[str, Any]:
    """Size of the residuals log L - log Lhat (n,), and the runs that fit worst."""
    w = observations.weight / observations.weight.sum()
    order = np.argsort(-np.abs(residual), kind="stable")[:worst]
    return {
        "rms": float(np.sqrt(w @ residual**2)),
        "mean": float(w @ residual),
        "median_abs": float(np.median(np.abs(residual[observations.weight > 0]))),
        "max_abs": float(np.max(np.abs(residual))),
        "worst": [
            {"row": int(i), "run_id": observations.name_of(int(i)), "residual": float(residual[i])}
            for i in order
        ],
    }
