"""Minima and roots of functions of one variable, thousands of them at once.

A function maps points of `shape` to values of `shape`: one point and one value for each problem.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
Function = Callable[[FloatArray], FloatArray]

GRID_POINTS = 49
# Points about a guess, and how far from it the outer ones lie.
NEAR_POINTS = 5
NEAR_WIDTH = 0.5
# Half widths of the successive parabolas, as shares of the grid's step: each vertex is wrong by
# about (half width)^2 x third derivative, and rounding is felt below the last.
PARABOLAS = (0.25, 0.03, 3e-3, 1e-3)
# The last vertex of a smooth valley moves by a smaller share of the last half width.
SETTLED = 0.02
GOLDEN = (np.sqrt(5.0) - 1.0) / 2.0
# A golden section gains no more: near a minimum a function is flat to half the digits.
RELATIVE_WIDTH = 1e-8
# A value so close to another is the same but for rounding.
ROUNDING = 1e-13
ROOT_STEPS = 100
ROOT_TOLERANCE = 1e-12


def argmin(
    function: Function,
    low: FloatArray | float,
    high: FloatArray | float,
    *,
    shape: tuple[int, ...],
    near: FloatArray | None = None,
) -> FloatArray:
    """Where `function` is least between `low` and `high`, for each of `shape` problems.

    A grid finds the valley (the function need not be convex, and may be inf or NaN in places),
    parabolas its bottom to about 1e-7 of the grid's step; where they do not settle (a kink, an
    edge) a golden section does. near (shape): guesses, which replace the grid where the minimum
    lies within NEAR_WIDTH of them; of several valleys that is the nearest, not the lowest. A
    function without a finite value has no minimum: NaN.
    """
    low = np.broadcast_to(np.asarray(low, dtype=np.float64), shape)
    high = np.broadcast_to(np.asarray(high, dtype=np.float64), shape)
    if np.prod(shape, dtype=np.int64) == 0:
        return np.empty(shape)
    if near is None:
        return _from_grid(function, low, high, low, high, GRID_POINTS)
    left, right = np.maximum(near - NEAR_WIDTH, low), np.minimum(near + NEAR_WIDTH, high)
    x = _from_grid(function, left, right, low, high, NEAR_POINTS)
    # An end of the neighbourhood is no minimum, unless it is an end of the range as well.
    margin = 1e-3 * NEAR_WIDTH
    away = (x < left + margin) & (left > low) | (x > right - margin) & (right < high) | np.isnan(x)
    if np.any(away):
        x = np.where(away, _from_grid(function, low, high, low, high, GRID_POINTS), x)
    return x


def _from_grid(
    function: Function,
    left: FloatArray,
    right: FloatArray,
    low: FloatArray,
    high: FloatArray,
    points: int,
) -> FloatArray:
    step = (right - left) / (points - 1)
    best, at = np.full(left.shape, np.inf), np.full(left.shape, np.nan)
    with np.errstate(all="ignore"):
        for i in range(points):
            x = left + i * step
            value = function(x)
            better = value < best
            best, at = np.where(better, value, best), np.where(better, x, at)
        x, settled = _parabolas(function, at, step, best, low, high)
        if not np.all(settled | np.isnan(at)):
            ends = np.maximum(at - step, left), np.minimum(at + step, right)
            x = np.where(settled, x, _golden(function, *ends))
    return np.where(np.isnan(at), np.nan, x)


def _parabolas(
    function: Function,
    start: FloatArray,
    step: FloatArray,
    best: FloatArray,
    low: FloatArray,
    high: FloatArray,
) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Vertices of ever narrower parabolas, and which of them can be trusted."""
    x, move, half = start, np.zeros_like(start), step
    for share in (1.0, *PARABOLAS):
        half = share * step
        middle = best if share == 1.0 else function(x)
        below, above = function(x - half), function(x + half)
        bend = below - 2.0 * middle + above
        downhill = np.where(below < above, -half, half)
        move = np.where(bend > 0, 0.5 * half * (below - above) / bend, downhill)
        # The next parabola is about an eighth as wide; it need not be centred exactly.
        move = np.clip(move, -2.0 * half, 2.0 * half)
        x = x + move
    settled = (np.abs(move) < SETTLED * half) & (x > low) & (x < high) & (np.abs(x - start) <= step)
    settled &= function(x) <= best + ROUNDING * np.abs(best)
    return x, settled


def _golden(function: Function, left: FloatArray, right: FloatArray) -> FloatArray:
    a, b = right - GOLDEN * (right - left), left + GOLDEN * (right - left)
    fa, fb = function(a), function(b)
    for _ in range(int(np.ceil(np.log(RELATIVE_WIDTH) / np.log(GOLDEN)))):
        lower = fa <= fb
        left, right = np.where(lower, left, a), np.where(lower, b, right)
        new = np.where(lower, right - GOLDEN * (right - left), left + GOLDEN * (right - left))
        value = function(new)
        a, b = np.where(lower, new, b), np.where(lower, a, new)
        fa, fb = np.where(lower, value, fb), np.where(lower, fa, value)
    return 0.5 * (left + right)


def root(
    function: Function,
    low: FloatArray | float,
    high: FloatArray | float,
    *,
    shape: tuple[int, ...],
    tolerance: float = ROOT_TOLERANCE,
) -> FloatArray:
    """Where an increasing `function` is zero between `low` and `high`, for each of `shape`.

    Regula falsi with the weights of Anderson and Bjorck, halving where it lags. NaN where the ends
    have the same sign or a value is NaN. tolerance: of the place, and of the value.
    """
    a = np.broadcast_to(np.asarray(low, dtype=np.float64), shape).copy()
    b = np.broadcast_to(np.asarray(high, dtype=np.float64), shape).copy()
    if a.size == 0:
        return a
    with np.errstate(all="ignore"):
        fa, fb = function(a), function(b)
        bracketed = (fa <= 0) & (fb >= 0)
        x = np.where(fa == 0, a, b)
        done = ~bracketed | (fa == 0) | (fb == 0)
        width = b - a
        for turn in range(ROOT_STEPS):
            if np.all(done):
                break
            secant = b - fb * (b - a) / (fb - fa)
            halve = (turn % 3 == 2) & (b - a > 0.5 * width)
            if turn % 3 == 2:
                width = b - a
            inside = (secant > a) & (secant < b) & ~halve
            new = np.where(inside, secant, 0.5 * (a + b))
            x = np.where(done, x, new)
            value = function(x)
            up = value >= 0
            # The end that stays gets a smaller weight, or it would stay for ever.
            keep = 1.0 - value / np.where(up, fb, fa)
            keep = np.where(keep > 0, keep, 0.5)
            fa, fb = np.where(up, fa * keep, value), np.where(up, value, fb * keep)
            a, b = np.where(up, a, x), np.where(up, x, b)
            done = done | (np.abs(value) <= tolerance) | (b - a <= tolerance * np.abs(x))
            done |= np.isnan(value)
        return np.where(bracketed & np.isfinite(function(x)), x, np.nan)
