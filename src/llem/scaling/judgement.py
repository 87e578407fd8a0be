"""How far a fit may be trusted: held-out error, what the data identify, what the choices change."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llem.scaling.estimator import Estimator
from llem.scaling.laws import Law
from llem.scaling.newton import ALPHA, BETA, EXPONENT_BOUNDS, E, Problem
from llem.scaling.observations import Observations
from llem.scaling.solve import Solution, descend, scatter, solve

FloatArray = NDArray[np.float64]

# Runs within this factor of the largest compute are held out together.
HELD_OUT_FACTOR = 1.5
# A parameter counts as identified when moving it this far makes the fit worse than noise explains.
PROFILE_E = 0.5
PROFILE_EXPONENT = 1.5
# 95 % point of chi-square with one degree of freedom.
CHI_SQUARE = 3.84
# Bootstrap widths above which a parameter is not identified: exponents and A, B as high/low, E as
# a share of itself on either side.
WIDTH_EXPONENT = 2.0
WIDTH_AMPLITUDE = 1e3
WIDTH_E = 0.5
SENSITIVITY_DELTAS = (1e-1, 1e-2, 1e-3, 1e-4)


def identify(
    problem: Problem,
    weight: FloatArray,
    estimator: Estimator,
    solution: Solution,
    *,
    runs: int,
    intervals: dict[str, tuple[float, float]],
    parameters: dict[str, float],
) -> dict[str, str]:
    """Why each parameter is not identified; an empty text where it is.

    Three judges: a soft bound that holds the parameter, a profile (the parameter moved by a fixed
    step, the others refitted, and the rise of the objective compared with its scatter: rise x
    (runs - 5)/objective against the chi-square point, which is exact for least squares, cautious
    for the absolute value, and does not depend on units), and the width of the bootstrap interval.
    """
    out = dict.fromkeys(parameters, "")
    theta = solution.theta
    floor = problem.floor()
    low, high = EXPONENT_BOUNDS
    if theta[E] < floor + 0.05:
        out["E"] = "the fit drives it to zero"
    for name, axis in (("alpha", ALPHA), ("beta", BETA)):
        if not low < theta[axis] < high:
            out[name] = f"it runs into the bound of the search ({low:g} to {high:g})"

    moves = [
        ("E", E, np.log1p(-PROFILE_E), "half of it"),
        ("E", E, np.log1p(PROFILE_E), "one and a half times it"),
        ("alpha", ALPHA, theta[ALPHA] / PROFILE_EXPONENT - theta[ALPHA], "two thirds of it"),
        ("alpha", ALPHA, theta[ALPHA] * PROFILE_EXPONENT - theta[ALPHA], "one and a half times it"),
        ("beta", BETA, theta[BETA] / PROFILE_EXPONENT - theta[BETA], "two thirds of it"),
        ("beta", BETA, theta[BETA] * PROFILE_EXPONENT - theta[BETA], "one and a half times it"),
    ]
    start = np.tile(theta, (len(moves), 1))
    fixed = np.zeros_like(start)
    for i, (_, axis, shift, _) in enumerate(moves):
        start[i, axis] += shift
        fixed[i, axis] = 1.0
    ladder = estimator.ladder(scatter(problem, theta), problem.rows)
    ends = descend(
        problem, start, weight[None, :], ladder, tolerance=1e-6, max_steps=60, fixed=fixed
    )
    rise = np.maximum(ends.objective - solution.objective, 0.0)
    noise = solution.objective / max(runs - 5, 1) + 1e-26 * float(weight.sum())
    for (name, _, _, words), ratio in zip(moves, rise / noise, strict=True):
        if ratio < CHI_SQUARE and not out[name]:
            out[name] = f"{words} fits the data as well"

    for name, (lo, hi) in intervals.items():
        if out[name] or not (np.isfinite(lo) and np.isfinite(hi)):
            continue
        value = parameters[name]
        if name == "E":
            wide = lo < (1 - WIDTH_E) * value or hi > (1 + WIDTH_E) * value
        else:
            wide = hi > lo * (WIDTH_EXPONENT if name in ("alpha", "beta") else WIDTH_AMPLITUDE)
        if wide:
            out[name] = f"its interval is too wide ({lo:.3g} to {hi:.3g})"
    for amplitude, exponent in (("A", "alpha"), ("B", "beta")):
        if out[exponent] and not out[amplitude]:
            out[amplitude] = f"it moves with {exponent}, which is not identified"
    return out


def held_out_error(observations: Observations, law: Law, estimator: Estimator) -> dict[str, Any]:
    """Refit without the runs of the largest compute, and predict them.

    Returns {largest_flops, fitted_to_flops, rows, runs, mean_abs_relative_error,
    mean_relative_error, params, reason}; errors are (predicted - loss)/loss, NaN with a reason
    when the rest cannot carry a fit.
    """
    nan = float("nan")
    largest = float(np.max(observations.flops))
    peak = np.zeros(observations.runs)
    np.maximum.at(peak, observations.run, observations.flops)
    out_rows = (peak >= largest / HELD_OUT_FACTOR)[observations.run]
    rest = observations.only(~out_rows)
    # Of a run held out, only what lies at the largest compute is a prediction forward.
    judged = out_rows & (observations.flops >= largest / HELD_OUT_FACTOR)
    answer: dict[str, Any] = {
        "largest_flops": largest,
        "fitted_to_flops": float(np.max(rest.flops)) if rest.rows else nan,
        "rows": int(judged.sum()),
        "runs": int(np.unique(observations.run[judged]).size),
        "mean_abs_relative_error": nan,
        "mean_relative_error": nan,
        "params": None,
        "reason": "",
    }
    if rest.rows == 0 or rest.shortage():
        answer["reason"] = "too few runs remain without those of the largest compute"
        return answer
    problem = Problem.of(rest.params, rest.tokens, rest.loss)
    solution = solve(problem, rest.weight, estimator)
    natural = problem.natural(solution.theta)
    predicted = law.loss(
        natural, np.log(observations.params[judged]), np.log(observations.tokens[judged])
    )
    error = predicted / observations.loss[judged] - 1.0
    w = observations.weight[judged]
    w = w / w.sum() if w.sum() > 0 else np.full(error.size, 1.0 / error.size)
    answer["mean_abs_relative_error"] = float(w @ np.abs(error))
    answer["mean_relative_error"] = float(w @ error)
    answer["params"] = law.parameters(natural)
    return answer


def sensitivity(
    problem: Problem,
    weight: FloatArray,
    law: Law,
    observations: Observations,
    *,
    deltas: Iterable[float] = SENSITIVITY_DELTAS,
) -> list[dict[str, Any]]:
    """The fit under other Huber thresholds: the exponent a is robust, B is not."""
    out = []
    for delta in deltas:
        solution = solve(problem, weight, Estimator(delta=delta), starts=4)
        natural = problem.natural(solution.theta)
        a, b = law.exponents(natural, observations.flops_model)
        out.append(
            {
                "loss": "huber",
                "delta": delta,
                "params": law.parameters(natural),
                "exponents": {"a": float(a), "b": float(b)},
            }
        )
    return out


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
