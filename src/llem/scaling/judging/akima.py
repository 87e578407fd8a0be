"""Akima's interpolation (J. ACM 17, 589, 1970) for many curves over one grid, and its minimum."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

# Below this share of a curve's largest change of slope, two neighbouring changes count as none.
FLAT = 1e-9


def akima_slopes(x: FloatArray, y: FloatArray) -> FloatArray:
    """First derivatives at the knots, (b, n), of the interpolants of y (b, n) over x (n,), n >= 3.

    x ascends strictly. Beyond the ends the secants go on linearly, as Akima has it.
    """
    secant = np.diff(y) / np.diff(x)
    first, last = secant[:, :2], secant[:, -2:]
    before = 2 * first[:, 0] - first[:, 1]
    after = 2 * last[:, 1] - last[:, 0]
    m = np.concatenate(
        [
            (2 * before - first[:, 0])[:, None],
            before[:, None],
            secant,
            after[:, None],
            (2 * after - last[:, 1])[:, None],
        ],
        axis=1,
    )
    change = np.abs(np.diff(m))
    right, left = change[:, 2:], change[:, :-2]
    total = right + left
    bent = total > FLAT * np.max(total, axis=1, keepdims=True)
    weighted = right * m[:, 1:-2] + left * m[:, 2:-1]
    plain = (m[:, 3:] + m[:, :-3]) / 2
    return np.asarray(np.where(bent, weighted / np.where(bent, total, 1.0), plain))


def akima_minimum(x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Place and value, each (b,), of the smallest value of each interpolant on [x[0], x[-1]].

    Exact: the knots are compared with the minimum of every cubic piece.
    """
    slope = akima_slopes(x, y)
    h, rise = np.diff(x), np.diff(y)
    # On u = (x - x_i) / h in (0, 1): y_i + c u + b u^2 + a u^3.
    c = h * slope[:, :-1]
    end = h * slope[:, 1:]
    b = 3 * rise - 2 * c - end
    a = c + end - 2 * rise
    with np.errstate(divide="ignore", invalid="ignore"):
        root = np.sqrt(b * b - 3 * a * c)
        # The two forms of the root with positive curvature, each where it does not cancel.
        u = np.where(b > 0, -c / (b + root), (root - b) / (3 * a))
    inside = (u > 0) & (u < 1)
    u = np.where(inside, u, 0.0)
    valley = y[:, :-1] + u * (c + u * (b + u * a))
    value = np.concatenate([y, valley], axis=1)
    place = np.concatenate([np.broadcast_to(x, y.shape), x[:-1] + u * h], axis=1)
    best = np.argmin(value, axis=1)[:, None]
    return (
        np.take_along_axis(place, best, axis=1)[:, 0],
        np.take_along_axis(value, best, axis=1)[:, 0],
    )
