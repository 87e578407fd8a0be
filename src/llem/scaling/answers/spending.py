"""The best training that a budget buys, whatever the budget is of.

A cost is linear in tokens for a given size (`Lines`), so the tokens that a budget affords have a
closed form, and one unknown is left: log N. Every function takes one set of parameters (p,) with
costs of shape (), or resamples (k, p) with costs of shape (k,).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llem.scaling.answers.cost import Lines
from llem.scaling.answers.search import argmin, root
from llem.scaling.flops import FlopsModel
from llem.scaling.laws.law import LOG_PARAMS_RANGE, Law

FloatArray = NDArray[np.float64]

# log C of one FLOP and of 1e100.
LOG_FLOPS_RANGE = (0.0, 230.0)
# Least share exp(-6) of the cost of the FLOP-optimal point that is looked at for the same loss.
LOG_LEAST_SHARE = 6.0
# The outer search asks the inner one for log N to about 1e-7, which the loss feels squared.
LOSS_TOLERANCE = 1e-11
# So near to an end of the range a best log N is no optimum: nothing held the search.
EDGE = 0.1


def at_edge(log_n: FloatArray) -> bool:
    """Whether a search for one log N ran into an end of its range."""
    low, high = LOG_PARAMS_RANGE
    return bool(log_n < low + EDGE or log_n > high - EDGE)


def absurd(log_n: FloatArray) -> NDArray[np.bool_]:
    """Which solved sizes no model can have: below one parameter, or past the range's upper end.

    A closed form has no range: where a resample's law hardly tells size from tokens, its
    exponents go to zero and its log N* to infinity.
    """
    low, high = LOG_PARAMS_RANGE
    return np.isfinite(log_n) & ((log_n < low) | (log_n > high))


@dataclass(frozen=True)
class Spending:
    """What N and D cost: `lines` with the FLOPs that `model` gives them."""

    lines: Lines
    model: FlopsModel

    def log_per_token(self, log_n: FloatArray) -> FloatArray:
        """log of the cost of one more token."""
        lines, model = self.lines, self.model
        with np.errstate(over="ignore", divide="ignore"):
            flops = model.coefficient * np.exp(model.exponent * log_n)
            cost = lines.per_token + lines.per_flop * flops
            if np.any(lines.per_param):
                cost = cost + lines.per_param * np.exp(log_n)
            return np.asarray(np.log(cost))

    def total(self, log_n: FloatArray, log_d: FloatArray) -> FloatArray:
        """Cost of a training."""
        with np.errstate(over="ignore"):
            return np.asarray(self.lines.fixed + np.exp(self.log_per_token(log_n) + log_d))

    def log_left(self, budget: float) -> FloatArray:
        """log of what the fixed cost leaves; NaN where it leaves nothing."""
        left = np.asarray(budget - self.lines.fixed, dtype=np.float64)
        return np.log(np.where(left > 0, left, np.nan))


def log_flops(model: FlopsModel, log_n: FloatArray, log_d: FloatArray) -> FloatArray:
    """log C of a training."""
    return np.asarray(np.log(model.coefficient) + model.exponent * log_n + log_d)


@dataclass(frozen=True)
class Buyer:
    """A law with parameters (p,) or resamples of them (k, p), and what is the same for all."""

    law: Law
    natural: FloatArray
    model: FlopsModel
    log_unique: float | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """() or (k,)."""
        return self.natural.shape[:-1]

    def loss(self, log_n: FloatArray, log_d: FloatArray) -> FloatArray:
        """Loss of a training."""
        return self.law.loss(
            self.natural,
            log_n,
            log_d,
            log_flops=log_flops(self.model, log_n, log_d),
            log_unique=self.log_unique,
        )

    def at_flops(self, flops: FloatArray | float) -> tuple[FloatArray, FloatArray]:
        """log N* and log D* at a compute."""
        return self.law.optimum(self.natural, flops, self.model, log_unique=self.log_unique)

    def under(
        self, spending: Spending, log_left: FloatArray, *, near: FloatArray | None = None
    ) -> tuple[FloatArray, FloatArray]:
        """log N and log D of least loss among those that cost exp(log_left) beside the fixed cost.

        For a Chinchilla law the loss along the budget is convex in log N: log D is minus the log
        of a sum of exponentials of log N, hence concave, and exp(-beta log D) convex. So the
        minimum is the only one, and `near` finds the same as the grid does.
        """

        def along(log_n: FloatArray) -> FloatArray:
            log_d = log_left - spending.log_per_token(log_n)
            # Tokens that cost nothing are no training that anyone can buy.
            return np.where(np.isposinf(log_d), np.nan, self.loss(log_n, log_d))

        log_n = argmin(along, *LOG_PARAMS_RANGE, shape=self.shape, near=near)
        return log_n, log_left - spending.log_per_token(log_n)

    def along_flops(
        self, spending: Spending, log_left: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """log N and log D of the FLOP-optimal training that costs the same."""

        def over(log_c: FloatArray) -> FloatArray:
            log_n, log_d = self.at_flops(np.exp(log_c))
            return np.asarray(spending.log_per_token(log_n) + log_d - log_left)

        return self.at_flops(np.exp(root(over, *LOG_FLOPS_RANGE, shape=self.shape)))

    def least(
        self, spending: Spending, log_n: FloatArray, log_d: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """log N and log D of least cost among those with the loss of a training at log N, log D.

        The least cost of a loss is the budget whose best loss that is.
        """
        wanted = np.log(self.loss(log_n, log_d))
        spent = spending.log_per_token(log_n) + log_d
        last = log_n

        def short(log_left: FloatArray) -> FloatArray:
            nonlocal last
            # Where a step of the search goes astray the last good place stays the guess.
            n, d = self.under(spending, log_left, near=last)
            last = np.where(np.isfinite(n), n, last)
            return np.asarray(wanted - np.log(self.loss(n, d)))

        low, high = spent - LOG_LEAST_SHARE, spent + 1e-9
        least = root(short, low, high, shape=self.shape, tolerance=LOSS_TOLERANCE)
        return self.under(spending, least, near=last)
