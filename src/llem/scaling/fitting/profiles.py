"""Profiles: one parameter held at a value, all others fitted again, for a row of values.

The rise of the objective over its minimum, in units that make it a deviance: 2 rise / kappa, with
kappa the ratio of the sandwich variance to the inverse curvature. For least squares this is the
likelihood ratio; for Huber sums and for runs of several rows it has the same chi-square scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llem.scaling.fitting.estimator import Estimator
from llem.scaling.fitting.problem import FLOOR_LOG_SHARE, NEGLIGIBLE_LOG_SHARE, Problem
from llem.scaling.fitting.solve import Solution, descend, scatter
from llem.scaling.laws.law import Law

FloatArray = NDArray[np.float64]

# Where the profile is computed, in standard errors on either side.
STEPS = np.array([0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0])
# 95 % point of chi-square with one degree of freedom.
CHI_SQUARE = 3.841459
# Widest step, as a share of a shape and in the log of an amplitude: beyond it a parameter is not
# identified anyway.
WIDEST_SHAPE = 1.0
WIDEST_LOG = 3.0
LEAST_STEP = 1e-5
# A parameter is identified when its profile interval lies within these factors of the estimate.
IDENTIFIED_SHAPE = 1.5
IDENTIFIED_LOWEST, IDENTIFIED_HIGHEST = 0.5, 1.5


@dataclass(frozen=True)
class Profile:
    """Profile of one parameter.

    value (m,): ascending values of the parameter, the estimate among them. deviance (m,): 0 at the
    estimate; above `threshold` a value is outside the 95 % interval. interval: where the deviance
    crosses the threshold, None at an end that it does not reach.
    """

    value: FloatArray
    deviance: FloatArray
    threshold: float
    interval: tuple[float | None, float | None]

    def to_dict(self) -> dict[str, Any]:
        """One entry of `profiles` in fit.json."""
        return {
            "value": self.value.tolist(),
            "deviance": self.deviance.tolist(),
            "threshold": self.threshold,
            "interval": list(self.interval),
        }


def natural_jacobian(problem: Problem, theta: FloatArray) -> FloatArray:
    """d natural / d theta at one theta (p,): shape (p, p). Exact where `natural` is linear."""
    step = 1e-4
    moves = np.eye(theta.size) * step
    slope = problem.natural(theta + moves) - problem.natural(theta - moves)
    return np.asarray(slope.T / (2 * step))


def profile(
    problem: Problem,
    law: Law,
    weight: FloatArray,
    estimator: Estimator,
    solution: Solution,
    covariance: FloatArray,
    bread: FloatArray,
) -> dict[str, Profile]:
    """Profiles of all parameters of the law. covariance and bread: see `sandwich.covariance`."""
    theta = solution.theta
    p = theta.size
    turn = natural_jacobian(problem, theta)
    natural = problem.natural(theta)
    spread, flat = turn @ covariance @ turn.T, turn @ bread @ turn.T
    starts, bases, fixed, owner = [], [], [], []
    for j, parameter in enumerate(law.parameters):
        widest = WIDEST_LOG if parameter.role == "amplitude" else WIDEST_SHAPE * abs(natural[j])
        error = float(np.sqrt(max(spread[j, j], 0.0)))
        # Data without noise have no error: a step that stands above rounding all the same.
        error = np.clip(error, LEAST_STEP * widest, widest / STEPS[-1])
        shifts = np.concatenate([-STEPS[::-1], STEPS]) * error
        values = natural[j] + shifts
        if parameter.role == "shape":
            shifts = shifts[(values > parameter.low) & (values < parameter.high)]
        # The others move along with it as their covariance says.
        along = covariance @ turn[j] / spread[j, j] if spread[j, j] > 0 else np.eye(p)[j]
        basis = np.eye(p)
        basis[j] = -turn[j] / turn[j, j]
        basis[j, j] = 1.0
        for shift in shifts:
            starts.append(theta + along * shift)
            bases.append(basis)
            fixed.append(np.eye(p)[j])
            owner.append(j)
    ladder = estimator.ladder(scatter(problem, theta), problem.rows)
    ends = descend(
        problem,
        np.array(starts),
        weight[None, :],
        ladder,
        tolerance=1e-6,
        max_steps=60,
        fixed=np.array(fixed),
        basis=np.array(bases),
    )
    held = problem.natural(ends.theta)
    out = {}
    # Data without noise leave rounding error, which must not be divided by.
    dust = 1e-26 * float(weight.sum())
    for j, parameter in enumerate(law.parameters):
        mine = np.array(owner) == j
        scale = spread[j, j] / flat[j, j] if flat[j, j] > 0 and spread[j, j] > 0 else np.inf
        rise = np.maximum(ends.objective[mine] - solution.objective, 0.0)
        deviance = np.append(2 * rise / (scale + dust), 0.0)
        value = np.append(held[mine, j], natural[j])
        order = np.argsort(value)
        value, deviance = value[order], deviance[order]
        low, high = _crossings(value, deviance, float(natural[j]))
        if parameter.role == "amplitude":
            value = np.exp(value)
            low, high = (None if v is None else float(np.exp(v)) for v in (low, high))
        out[parameter.name] = Profile(value, deviance, CHI_SQUARE, (low, high))
    return out


def _crossings(
    value: FloatArray, deviance: FloatArray, estimate: float
) -> tuple[float | None, float | None]:
    """Where the root of the deviance, near straight, crosses that of the threshold."""
    root, limit = np.sqrt(deviance), np.sqrt(CHI_SQUARE)
    ends: list[float | None] = []
    for side in (value <= estimate, value >= estimate):
        v, r = value[side], root[side]
        if v[0] < estimate:  # from the estimate outward
            v, r = v[::-1], r[::-1]
        beyond = np.flatnonzero(r > limit)
        if beyond.size == 0:
            ends.append(None)
            continue
        i = int(beyond[0])
        share = (limit - r[i - 1]) / (r[i] - r[i - 1])
        ends.append(float(v[i - 1] + share * (v[i] - v[i - 1])))
    return ends[0], ends[1]


def identification(
    law: Law, problem: Problem, solution: Solution, profiles: dict[str, Profile]
) -> dict[str, str]:
    """Why each parameter is not identified; an empty text where it is.

    A parameter is not identified where a soft bound holds it, or where the profile finds values
    far from the estimate that fit the data as well.
    """
    out = {}
    natural = problem.natural(solution.theta)
    for j, parameter in enumerate(law.parameters):
        low, high = profiles[parameter.name].interval
        text = ""
        bounds = f"{parameter.low:g} to {parameter.high:g}"
        if parameter.role == "shape":
            estimate = float(natural[j])
            if not parameter.low < solution.theta[j] < parameter.high:
                text = f"it runs into the bound of the search ({bounds})"
            elif low is None or low < estimate / IDENTIFIED_SHAPE:
                text = "two thirds of it fits the data as well"
            elif high is None or high > estimate * IDENTIFIED_SHAPE:
                text = "one and a half times it fits the data as well"
        elif np.isfinite(problem.upper[j]):
            if not problem.lower[j] < solution.theta[j] < problem.upper[j]:
                text = f"it runs into the bound of the search ({bounds})"
            elif low is None or high is None:
                text = f"values {np.exp(WIDEST_LOG):.0f} times as far fit the data as well"
        elif solution.theta[j] < problem.lower[j] + FLOOR_LOG_SHARE - NEGLIGIBLE_LOG_SHARE:
            text = "the fit drives it to zero"
        elif parameter.constant and (low is None or low < IDENTIFIED_LOWEST * np.exp(natural[j])):
            text = "half of it fits the data as well"
        elif parameter.constant and (
            high is None or high > IDENTIFIED_HIGHEST * np.exp(natural[j])
        ):
            text = "one and a half times it fits the data as well"
        elif low is None or high is None:
            text = f"values {np.exp(WIDEST_LOG):.0f} times as far fit the data as well"
        out[parameter.name] = text
    return out
