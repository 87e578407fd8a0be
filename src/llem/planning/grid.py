"""The first wave: an isoFLOP grid, several models at each of several compute levels."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace

from llem._numerals import format_count
from llem.campaign.architecture import Architecture
from llem.campaign.campaign import Campaign
from llem.planning.cells import Bench, Cell, Dropped

# What a grid is where the campaign leaves it open: more levels and sizes as the budget allows.
LEVELS = (3, 6)
SIZES = (5, 7)
# A grid of a number of runs that was asked for: beyond this many cells, seeds make up the number.
MOST_LEVELS = 9
MOST_SIZES = 31
# A parabola through the sizes of a level needs three.
ENOUGH_SIZES = 3
# How far a grid of one size may look for a shape, and the step of looking, in log N.
LONE_SIZE_RATIO = 2.0
GAP_STEP = 0.06
# Where a size lies between what the site's memory holds and what it does not, within this ratio.
CEILING_RATIO = 1.03


@dataclass(frozen=True)
class GridShape:
    """A grid as it is made: nothing left open. `runs` is a number asked for, if one was.

    `span` is in decades of N to either side of the prior optimum, `tokens_per_param` D/N there.
    """

    levels: int
    sizes: int
    ratio: float
    span: float
    tokens_per_param: float
    seeds: int
    runs: int | None = None

    def level_flops(self, level: int, largest_flops: float) -> float:
        return float(largest_flops / self.ratio ** (self.levels - 1 - level))


@dataclass(frozen=True)
class Wave:
    """The cells of a grid with the number of seeds of each, and the cells left out."""

    cells: tuple[tuple[Cell, int], ...]
    dropped: tuple[Dropped, ...]

    @property
    def sizes(self) -> list[int]:
        """How many models each level has, the levels without any left out."""
        return sorted(Counter(cell.level for cell, _ in self.cells).values())


def is_complete(wave: Wave, shape: GridShape) -> bool:
    """Whether every level has models enough to show a minimum, and none was too small to train."""
    enough = min(ENOUGH_SIZES, shape.sizes)
    return (
        len(wave.sizes) == shape.levels
        and wave.sizes[0] >= enough
        and not any(d.too_small for d in wave.dropped)
    )


def grid_shapes(
    campaign: Campaign, *, budget_flops: float, least_flops: float, runs: int | None = None
) -> list[GridShape]:
    """The grids to try, the one that tells most first.

    What the campaign fixes stays. Open levels and sizes grow with the decades between the
    smallest run and the budget; for a number of runs, about evenly, and seeds fill it up.
    """
    grid = campaign.grid
    runs = runs or grid.runs
    if runs:
        levels = grid.levels or min(MOST_LEVELS, max(1, round(runs ** (1 / 3))))
        sizes = grid.sizes or max(1, min(MOST_SIZES, runs // levels))
        if levels * sizes > runs:
            levels, sizes = max(1, runs // sizes), min(sizes, runs)
        tries = [(levels, sizes)]
    else:
        decades = math.log10(max(1.0, budget_flops / max(least_flops, 1.0)))
        # A level and half of what lies between the smallest run and the largest is a margin.
        affordable = math.floor(0.5 * decades / math.log10(grid.ratio))
        most = min(max(affordable, LEVELS[0]), LEVELS[1])
        tries = [(n, SIZES[0] + (n - LEVELS[0]) // 2) for n in range(most, LEVELS[0] - 1, -1)]
        tries += [(2, 5), (2, 3), (1, 3), (1, 1)]
        tries = [(grid.levels or n, grid.sizes or m) for n, m in tries]
    return [
        GridShape(
            levels=n, sizes=m, ratio=grid.ratio, span=grid.span,
            tokens_per_param=grid.tokens_per_param, seeds=campaign.seeds, runs=runs,
        )
        for n, m in dict.fromkeys(tries)
    ]  # fmt: skip


def isoflop_wave(bench: Bench, shape: GridShape, *, largest_flops: float) -> Wave:
    """The grid whose largest compute level is `largest_flops` FLOPs a run.

    Every run of a level costs at most the level's FLOPs, and less than that by at most one batch.
    """
    cells: list[Cell] = []
    dropped: list[Dropped] = []
    for level in range(shape.levels):
        made, lost = _level(bench, shape, level, shape.level_flops(level, largest_flops))
        cells += made
        dropped += lost
    return Wave(_with_seeds(cells, shape), tuple(dropped))


def grid_sizes(
    shape: GridShape, flops: float, *, floor: float, ceiling: float = math.inf
) -> list[float]:
    """Parameter counts of one level, evenly spaced in log N around the prior optimum.

    The prior optimum is N = sqrt(C / (6 D/N)); where the family has no model that small (`floor`)
    or the site's memory none that large (`ceiling`), that end moves and the spacing narrows.
    """
    centre = math.sqrt(flops / (6 * shape.tokens_per_param))
    wide = 10**shape.span
    low = max(floor, min(centre / wide, ceiling / wide))
    high = min(ceiling, max(centre * wide, low * wide))
    low = min(low, high)
    if shape.sizes == 1:
        return [min(max(centre, low), high)]
    ratio = (high / low) ** (1 / (shape.sizes - 1))
    return [low * ratio**i for i in range(shape.sizes)]


def _level(
    bench: Bench, shape: GridShape, level: int, flops: float
) -> tuple[list[Cell], list[Dropped]]:
    if bench.own is not None:
        made = [bench.cell(level, bench.own_model(v), flops) for v in bench.campaign.model.values]
        return _apart(made)
    smallest = bench.smallest
    if smallest is None:
        return [], [Dropped(level, 0.0, "the family has no model", too_small=True)]
    floor = float(smallest.params)

    def cells(ceiling: float) -> list[Cell | Dropped]:
        found: list[Cell | Dropped] = []
        seen: set[Architecture] = set()
        sizes = grid_sizes(shape, flops, floor=floor, ceiling=ceiling)
        apart = math.sqrt(sizes[1] / sizes[0]) if len(sizes) > 1 else LONE_SIZE_RATIO
        for params in sizes:
            model = _near(bench, params, apart, ceiling)
            if model is None:
                reason = f"no shape near {format_count(params)} parameters"
                found.append(Dropped(level, params, reason))
            elif model not in seen:
                seen.add(model)
                found.append(bench.cell(level, model, flops))
        return found

    made = cells(math.inf)
    if isinstance(made[-1], Dropped) and not made[-1].too_small:
        ceiling = _ceiling(bench, level, flops, floor, made[-1].params)
        if ceiling is not None:
            narrowed = cells(ceiling)
            if sum(isinstance(c, Cell) for c in narrowed) >= sum(isinstance(c, Cell) for c in made):
                lost = replace(made[-1], reason=f"{made[-1].reason}; sizes end below it")
                made = [*narrowed, lost]
    return _apart(made)


def _near(bench: Bench, params: float, apart: float, ceiling: float) -> Architecture | None:
    """The model nearest to a size of the grid, no further than half way to the next size.

    A large vocabulary leaves gaps between the small shapes: there the grid takes what there is.
    """
    steps = math.floor(math.log(max(apart, 1.0)) / GAP_STEP)
    for step in range(steps + 1):
        for factor in (math.exp(step * GAP_STEP), math.exp(-step * GAP_STEP))[: 1 + (step > 0)]:
            model = bench.decoder(params * factor) if params * factor <= ceiling else None
            if model is not None:
                return model
    return None


def _ceiling(
    bench: Bench, level: int, flops: float, floor: float, too_large: float
) -> float | None:
    """The largest N that the site holds at this level, below `too_large`; None without any."""

    def holds(params: float) -> bool:
        model = bench.decoder(params)
        if model is None:
            return False
        made = bench.cell(level, model, flops)
        return isinstance(made, Cell) or made.too_small

    low, high = math.log(floor), math.log(too_large)
    if not holds(math.exp(low)):
        return None
    while high - low > math.log(CEILING_RATIO):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if holds(math.exp(middle)) else (low, middle)
    return math.exp(low)


def _with_seeds(cells: list[Cell], shape: GridShape) -> tuple[tuple[Cell, int], ...]:
    """Each cell's number of seeds: the campaign's, or what makes up the number of runs.

    What does not divide goes to the sizes in the middle of each level, where the optimum lies.
    """
    if shape.runs is None or not cells:
        return tuple((cell, shape.seeds) for cell in cells)
    count, left = divmod(shape.runs, len(cells))
    centre = {
        level: math.log(sorted(c.model.params for c in cells if c.level == level)[
            sum(c.level == level for c in cells) // 2])
        for level in {c.level for c in cells}
    }  # fmt: skip
    order = sorted(
        range(len(cells)),
        key=lambda i: (
            abs(math.log(cells[i].model.params) - centre[cells[i].level]), -cells[i].level
        ),
    )  # fmt: skip
    more = set(order[:left])
    return tuple((c, count + (i in more)) for i, c in enumerate(cells) if count + (i in more))


def _apart(made: list[Cell | Dropped]) -> tuple[list[Cell], list[Dropped]]:
    return [c for c in made if isinstance(c, Cell)], [c for c in made if isinstance(c, Dropped)]
