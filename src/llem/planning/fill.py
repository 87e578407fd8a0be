"""Filling a budget: the largest grid that fits, then its runs lengthened until all is spent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from llem._numerals import format_amount, format_count
from llem.campaign import Budget
from llem.errors import LlemError
from llem.planning.cells import Bench, Cell, Dropped
from llem.planning.grid import (
    ENOUGH_SIZES,
    GridShape,
    Wave,
    grid_shapes,
    is_complete,
    isoflop_wave,
)
from llem.planning.spend import target_flops

# A grid that spends this share of the budget is near enough: lengthening its runs does the rest.
NEAR = 0.9
# Sums of many runs round: never a hair above the budget.
ALL = 1 - 1e-9
ROUNDS = 60


class BudgetError(LlemError):
    """No plan fits the budget; the message says what the least one would cost."""


@dataclass(frozen=True)
class Filled:
    """The grid that was chosen, and its cells with the seeds of each."""

    shape: GridShape
    cells: tuple[tuple[Cell, int], ...]
    dropped: tuple[Dropped, ...]


def fill(bench: Bench, budget: Budget, *, runs: int | None = None) -> Filled:
    """Spend the budget on a grid, as nearly as one step of its smallest run allows.

    Raises BudgetError where not even the smallest grid fits.
    """
    least = bench.least()
    shapes = grid_shapes(
        bench.campaign,
        budget_flops=target_flops(budget, bench.site, bench.device),
        least_flops=least.flops if isinstance(least, Cell) else 1.0,
        runs=runs,
    )
    fallback: tuple[GridShape, Wave] | None = None
    for shape in shapes:
        wave = _search(bench, shape, budget)
        if wave is None:
            continue
        if is_complete(wave, shape):
            return Filled(shape, _lengthen(bench, wave.cells, budget), wave.dropped)
        if fallback is None or _tells(wave) > _tells(fallback[1]):
            fallback = (shape, wave)
    if fallback is None:
        raise _nothing_fits(bench, shapes[-1], budget, least)
    shape, wave = fallback
    return Filled(shape, _lengthen(bench, wave.cells, budget), wave.dropped)


def _nothing_fits(
    bench: Bench, shape: GridShape, budget: Budget, least: Cell | Dropped
) -> BudgetError:
    runs = shape.runs or shape.seeds
    text = f"no plan fits {budget}"
    if isinstance(least, Dropped):
        return BudgetError(f"{text}: {least.reason}", remedy="change the layout, or the model")
    cost = runs * bench.cost(least, budget.unit)
    smallest = (
        f"{runs} run{'s' if runs > 1 else ''} of {format_count(least.model.params)} parameters, "
        f"{least.steps} steps"
    )
    if cost <= budget.value:
        return BudgetError(
            f"{text} with {shape.levels} levels x {shape.sizes} sizes, though its smallest part "
            f"would cost {format_amount(cost, budget.unit)} ({smallest})",
            remedy="raise the budget, or ask for fewer levels, sizes or seeds",
        )
    return BudgetError(
        f"{text}; the least one costs {format_amount(cost, budget.unit)}: {smallest}",
        remedy="raise the budget, or ask for fewer runs or seeds",
    )


def _search(bench: Bench, shape: GridShape, budget: Budget) -> Wave | None:
    """The grid that spends most within the budget, by its largest level; None where none fits.

    Cost grows about linearly with the level, but in steps (batches, shapes of models, layouts):
    proportion first, and halving on a logarithmic scale where proportion leads outside.
    """
    cells = shape.runs or shape.levels * shape.sizes * shape.seeds
    weight = sum(shape.ratio**-level for level in range(shape.levels)) / shape.levels
    flops = target_flops(budget, bench.site, bench.device) / (cells * weight)
    best: Wave | None = None
    best_cost = 0.0
    below, above = 0.0, math.inf
    for _ in range(ROUNDS):
        wave = isoflop_wave(bench, shape, largest_flops=flops)
        cost = total(bench, wave.cells, budget.unit)
        if wave.cells and best_cost < cost <= ALL * budget.value:
            best, best_cost = wave, cost
            if cost >= NEAR * budget.value:
                break
        if cost > ALL * budget.value or not (wave.cells or _all_too_small(wave)):
            above = min(above, flops)
        else:
            below = max(below, flops)
        factor = 0.97 * budget.value / cost if cost > 0 else (4.0 if above > flops else 0.1)
        flops *= min(max(factor, 0.01), 100.0)
        if not below < flops < above:
            if below > 0 and above < math.inf:
                if above / below < 1.001:
                    break
                flops = math.sqrt(below * above)
            else:
                flops = below * 4 if above == math.inf else above / 4
    return best


def _tells(wave: Wave) -> tuple[int, int]:
    """What a wave with gaps is worth: levels that show a minimum, then models in all."""
    return sum(n >= ENOUGH_SIZES for n in wave.sizes), sum(wave.sizes)


def _all_too_small(wave: Wave) -> bool:
    return all(d.too_small for d in wave.dropped)


def total(bench: Bench, cells: Sequence[tuple[Cell, int]], unit: str) -> float:
    """What all runs of the cells cost."""
    return math.fsum(seeds * bench.cost(cell, unit) for cell, seeds in cells)


def _lengthen(
    bench: Bench, cells: tuple[tuple[Cell, int], ...], budget: Budget
) -> tuple[tuple[Cell, int], ...]:
    """Spend what the grid left over: all runs longer by one factor, then single steps.

    Batch and layout stay as they are, so that the cost of a cell is linear in its steps, and the
    runs of a level stay within a step of each other.
    """
    unit, limit = budget.unit, ALL * budget.value

    def cost(steps: Sequence[int]) -> float:
        return math.fsum(
            n * bench.cost(cell, unit, steps=count)
            for (cell, n), count in zip(cells, steps, strict=True)
        )

    base = [cell.steps for cell, _ in cells]
    spent = cost(base)
    low, high = 1.0, 1.1 * limit / spent
    while cost([math.floor(high * s) for s in base]) < limit:
        high *= 1.5
    for _ in range(50):
        if high - low < 1e-3 / max(base):
            break
        middle = 0.5 * (low + high)
        fits = cost([math.floor(middle * s) for s in base]) <= limit
        low, high = (middle, high) if fits else (low, middle)
    steps = [math.floor(low * s) for s in base]
    left = limit - cost(steps)
    # One more step of each cell where there is room for it, the dearest first.
    prices = [
        (n * (bench.cost(cell, unit, steps=s + 1) - bench.cost(cell, unit, steps=s)), i)
        for i, ((cell, n), s) in enumerate(zip(cells, steps, strict=True))
    ]
    for price, index in sorted(prices, reverse=True):
        if price <= left:
            steps[index] += 1
            left -= price
    return tuple((bench.with_steps(cell, s), n) for (cell, n), s in zip(cells, steps, strict=True))
