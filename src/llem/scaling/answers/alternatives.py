"""Trainings of an estimate and of its resamples: their figures, and two ways to be optimal."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llem.scaling.answers.answer import FIGURES, Interval
from llem.scaling.answers.spending import Buyer, Spending, absurd, at_edge, log_flops
from llem.scaling.answers.targets import MONEY, Target

FloatArray = NDArray[np.float64]
# (samples, estimate, level) -> (low, high)
IntervalRule = Callable[[FloatArray, float, float], Interval]

SECONDS_PER_HOUR = 3600.0
CLOUD_POINTS = 400
CLOUD_FIGURES = ("params", "tokens", "loss")
NAN = float("nan")


@dataclass(frozen=True)
class Side:
    """The estimate, with shape (), or the resamples, with shape (k,), and what each pays."""

    buyer: Buyer
    energy: Spending
    time: Spending
    money: Spending
    pue: float

    def spending(self, quantity: str) -> Spending:
        """What a target limits."""
        if quantity == "energy_j":  # at the meter of the site
            return Spending(self.energy.lines.times(self.pue), self.energy.model)
        return {"gpu_seconds": self.time, MONEY: self.money}[quantity]

    def figures(self, log_n: FloatArray, log_d: FloatArray) -> dict[str, FloatArray]:
        """Logs of FIGURES and of flops of trainings."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return {
                "flops": log_flops(self.buyer.model, log_n, log_d),
                "params": log_n,
                "tokens": log_d,
                "loss": np.log(self.buyer.loss(log_n, log_d)),
                "energy_j": np.log(self.energy.total(log_n, log_d)),
                "gpu_hours": np.log(self.time.total(log_n, log_d) / SECONDS_PER_HOUR),
                "money": np.log(self.money.total(log_n, log_d)),
            }


@dataclass(frozen=True)
class Point:
    """Trainings at log N and log D, of shape () or (k,)."""

    side: Side
    log_n: FloatArray
    log_d: FloatArray

    def figures(self) -> dict[str, FloatArray]:
        """Logs of FIGURES and of flops."""
        return self.side.figures(self.log_n, self.log_d)


@dataclass(frozen=True)
class Intervals:
    """A rule at a level, for resamples of which some may have no value."""

    rule: IntervalRule
    level: float

    def plain(self, samples: FloatArray, estimate: FloatArray | float) -> Interval:
        """Interval from resamples (k,); NaN without any, or without an estimate."""
        finite = samples[np.isfinite(samples)]
        if finite.size == 0 or not math.isfinite(estimate):
            return (NAN, NAN)
        low, high = self.rule(finite, float(estimate), self.level)
        return float(low), float(high)

    def positive(self, logs: FloatArray, estimate: FloatArray | float) -> Interval:
        """Interval of a positive figure from logs of its resamples and of its estimate."""
        low, high = self.plain(logs, estimate)
        return exp(low), exp(high)


def flop_optimal(
    estimate: Point, drawn: Point, target: Target, intervals: Intervals
) -> dict[str, Any]:
    """The FLOP-optimal training that costs as much as the optimum of a budget.

    loss_difference: its loss less that of the optimum, never negative; params_ratio: its N over
    that of the optimum. Both are paired over the resamples.
    """

    def other(best: Point) -> Point:
        spending = best.side.spending(target.quantity)
        left = spending.log_left(target.value * target.factor)
        return Point(best.side, *best.side.buyer.along_flops(spending, left))

    def given_away(best: Point, point: Point) -> FloatArray:
        buyer = best.side.buyer
        less = buyer.loss(best.log_n, best.log_d)
        return np.asarray(np.maximum(buyer.loss(point.log_n, point.log_d) - less, 0.0))

    points = other(estimate), other(drawn)
    loss, sample_loss = given_away(estimate, points[0]), given_away(drawn, points[1])
    out = _told(estimate, drawn, points, ("params", "tokens", "loss"), intervals)
    out["loss_difference"] = float(loss)
    out["ci"]["loss_difference"] = list(intervals.plain(sample_loss, loss))
    return out


def equal_loss(estimate: Point, drawn: Point, intervals: Intervals) -> dict[str, Any] | None:
    """The training of least energy that has the loss of the FLOP-optimal one.

    None where the energy law sets no limit to the size.

    energy_saving: the share of the energy that it saves; params_ratio: its N over that of the
    FLOP-optimal training. Both are paired over the resamples.
    """

    def other(best: Point) -> Point:
        side = best.side
        return Point(side, *side.buyer.least(side.energy, best.log_n, best.log_d))

    def saved(best: Point, point: Point) -> FloatArray:
        energy = best.side.energy
        share = energy.total(point.log_n, point.log_d) / energy.total(best.log_n, best.log_d)
        return np.asarray(np.maximum(1.0 - share, 0.0))

    points = other(estimate), other(drawn)
    if not np.isfinite(points[0].log_n) or at_edge(points[0].log_n):
        return None
    saving, sample_saving = saved(estimate, points[0]), saved(drawn, points[1])
    out = _told(estimate, drawn, points, ("params", "tokens", "energy_j"), intervals)
    out["energy_saving"] = float(saving)
    out["ci"]["energy_saving"] = list(intervals.plain(sample_saving, saving))
    return out


def _told(
    estimate: Point,
    drawn: Point,
    points: tuple[Point, Point],
    names: tuple[str, ...],
    intervals: Intervals,
) -> dict[str, Any]:
    logs, sample_logs = points[0].figures(), points[1].figures()
    ratio, sample_ratio = points[0].log_n - estimate.log_n, points[1].log_n - drawn.log_n
    out: dict[str, Any] = {name: exp(logs[name]) for name in ("flops", *FIGURES)}
    out["params_ratio"] = exp(ratio)
    out["ci"] = {n: list(intervals.positive(sample_logs[n], logs[n])) for n in names}
    out["ci"]["params_ratio"] = list(intervals.positive(sample_ratio, ratio))
    return out


def cloud(logs: dict[str, FloatArray]) -> dict[str, list[float]]:
    """At most CLOUD_POINTS resamples, evenly taken, to five digits.

    Sizes that no model can have are left out: they have no place in a picture, and `Optimum`
    warns of them.
    """
    solved = np.isfinite(logs["params"]) & np.isfinite(logs["loss"]) & ~absurd(logs["params"])
    stride = max(1, -(-int(np.count_nonzero(solved)) // CLOUD_POINTS))
    return {
        name: [float(f"{v:.5g}") for v in np.exp(logs[name][solved][::stride])]
        for name in CLOUD_FIGURES
    }


def exp(value: FloatArray | float) -> float:
    """exp of one log, NaN for NaN, at most the largest double."""
    return float(np.exp(np.minimum(value, 700.0)))
