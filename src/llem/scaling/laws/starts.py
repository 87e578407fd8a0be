"""Points at which a search starts: a grid over few parameters, a sequence over many."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from llem.scaling.laws.law import Parameter

FloatArray = NDArray[np.float64]

# Sides of full grids over one, two and three parameters.
GRID_SIDES = {1: 96, 2: 24, 3: 9}
SEQUENCE_POINTS = 1024
# Within the bounds of an exponent, where its starts lie: published ones are between .1 and .8.
EXPONENT_RANGE = (0.04, 2.0)
# Smallest share of the typical loss that a term starts from, as minus its log.
SEED_LOG_SHARE = 7.0


def start_grid(ranges: Sequence[tuple[float, float, Parameter]]) -> tuple[FloatArray, FloatArray]:
    """Points of the unit cube (g, d), and of the coordinates (g, d), within (low, high) of each.

    A shape that is positive is sampled geometrically, closer together where it is small.
    """
    d = len(ranges)
    if d == 0:
        return np.zeros((1, 0)), np.zeros((1, 0))
    if d in GRID_SIDES:
        line = np.linspace(0.0, 1.0, GRID_SIDES[d])
        unit = np.stack(np.meshgrid(*[line] * d, indexing="ij"), axis=-1).reshape(-1, d)
    else:
        unit = _sequence(SEQUENCE_POINTS, d)
    points = np.empty_like(unit)
    for i, (low, high, parameter) in enumerate(ranges):
        if parameter.role == "shape" and low > 0:
            inner = max(low, min(EXPONENT_RANGE[0], high)), min(high, max(EXPONENT_RANGE[1], low))
            if inner[0] >= inner[1]:
                inner = (low, high)
            points[:, i] = inner[0] * (inner[1] / inner[0]) ** unit[:, i]
        else:
            points[:, i] = low + (high - low) * unit[:, i]
    return unit, points


def _sequence(count: int, dimension: int) -> FloatArray:
    """An additive recurrence in the unit cube: even in every direction, the same every time.

    The steps are powers of 1/g, g the positive root of g^(d+1) = g + 1 (the golden ratio for d=1).
    """
    g = 2.0
    for _ in range(60):
        g = (1.0 + g) ** (1.0 / (dimension + 1))
    steps = g ** -np.arange(1.0, dimension + 1)
    return np.asarray((0.5 + np.arange(1, count + 1)[:, None] * steps) % 1.0)


def spread(value: FloatArray, unit: FloatArray, count: int) -> NDArray[np.intp]:
    """Indices of `count` points, best first: half of them local minima, half the best of all.

    value (g,), inf where refused; unit (g, d): where the points lie. A local minimum has no better
    point among its neighbours, about as many as a grid would give it.
    """
    g, d = unit.shape
    order = np.argsort(value, kind="stable")
    if g <= count:
        return order
    side = GRID_SIDES.get(d)
    reach = 1.01 / (side - 1) if side else 0.5 * (min(3**d, 33) / g) ** (1.0 / d)
    valleys: list[int] = []
    for i in order:
        if len(valleys) == count // 2 or not np.isfinite(value[i]):
            break
        near = np.max(np.abs(unit - unit[i]), axis=1) <= reach
        if value[i] <= value[near].min():
            valleys.append(int(i))
    taken = set(valleys)
    # Every second of the ranked points: close neighbours lead to the same place.
    rest = [int(i) for i in order[::2] if int(i) not in taken]
    chosen = [*valleys, *rest[: count - len(valleys)]]
    return np.array(sorted(chosen, key=lambda i: float(value[i])), dtype=np.intp)
