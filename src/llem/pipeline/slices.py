"""Refusal of a designed isoFLOP grid of which slices have no minimum inside the sizes trained.

Such a slice brackets nothing: the grid stands off the optimum there, and the law's optimum is
carried by its form instead of by the runs. Tables that were never designed as a grid are not
judged. How much that matters is told by grids of four slices of a truth whose form is not the law's
(docs/fitting.md): of one in four the interval allows for what its form adds; of two it does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llem._numerals import format_flops
from llem.errors import Fault, InputError

FloatArray = NDArray[np.float64]

# Runs of one slice have the same compute to within this factor.
SLICE_FACTOR = 1.02
# Nothing else lies within this factor of a slice: scattered runs fill the space between.
APART = 1.1
MIN_SIZES = 4
MIN_SPAN = 3.0
# A table is a designed grid where at least this share of its rows lies in slices.
DESIGNED_SHARE = 2.0 / 3.0
# Where more slices bracket nothing, an interval does not hold what the law's form adds.
HELD_SHARE = 1.0 / 4.0


@dataclass(frozen=True)
class EdgeMinimum:
    """A slice without a minimum inside: its compute (FLOP), its rows, where its loss is lowest and
    what to train."""

    flops: float
    rows: int
    reason: str
    remedy: str

    def to_dict(self) -> dict[str, Any]:
        """One entry of `refusals.slices` in fit.json."""
        return {
            "flops": self.flops,
            "rows": self.rows,
            "reason": self.reason,
            "remedy": self.remedy,
        }


@dataclass(frozen=True)
class Grid:
    """A designed grid: how many `slices` it has, and which have no interior minimum."""

    slices: int = 0
    edges: tuple[EdgeMinimum, ...] = ()

    @property
    def refused(self) -> bool:
        """Whether a slice brackets nothing: no law is fitted but by whoever allows it."""
        return bool(self.edges)

    def warnings(self) -> list[str]:
        """Of each slice without one, what is to be known beside every figure."""
        found = [
            f"the slice at {format_flops(edge.flops)} FLOP has no minimum inside the sizes "
            f"trained: {edge.reason}; {edge.remedy}"
            for edge in self.edges
        ]
        if len(self.edges) > HELD_SHARE * self.slices:
            found.append(
                f"{len(self.edges)} of {self.slices} isoFLOP slices bracket no optimum: where it "
                "lies is told by the law's form and not by runs, and the interval does not allow "
                "for that; train what these slices lack first"
            )
        return found

    def to_dict(self, *, allowed: bool) -> dict[str, Any]:
        """`refusals` in fit.json; `allowed`: by whoever called, whatever would be refused."""
        return {
            "slices": [edge.to_dict() for edge in self.edges],
            "judged": self.slices,
            "refused": self.refused,
            "allowed": allowed,
        }


class EdgeMinimaError(InputError):
    """Slices of a designed grid have no interior minimum; `slices` names them."""

    def __init__(self, source: str, grid: Grid) -> None:
        self.slices = grid.edges
        self.judged = grid.slices
        slices = grid.edges
        faults = [Fault(f"at {format_flops(s.flops)} FLOP", s.reason, s.remedy) for s in slices]
        super().__init__(source, faults)

    def lines(self) -> list[str]:
        """Every slice, and how to fit all the same."""
        count = len(self.slices)
        which = f"{count} of {self.judged} isoFLOP slices {'has' if count == 1 else 'have'}"
        return [
            f"{self.source}: {which} no minimum inside the sizes trained",
            *(f"  {fault}" for fault in self.faults),
            "  -> --allow-edge-minima (allow_edge_minima=True) fits all the same and records it",
        ]


def edge_minima(
    params: FloatArray, loss: FloatArray, flops: FloatArray, *, weight: FloatArray | None = None
) -> Grid:
    """A designed grid, with the slices that have no interior minimum; nothing of any other table.

    All inputs (n,), positive. A slice is a compute level of at least MIN_SIZES sizes that span
    MIN_SPAN and more, with no other run near its compute. It has none where its lowest loss lies
    at the smallest or largest size and a parabola has no minimum inside either: one of them alone
    may be noise, or the bias of parabolas over wide grids.
    """
    from llem.scaling import isoflop_levels

    levels = isoflop_levels(params, loss, flops, weight=weight, factor=SLICE_FACTOR)
    log_loss, ordered = np.log(loss), np.sort(flops)
    designed = judged = 0
    out = []
    for level in levels:
        rows = np.array(level.rows)
        sizes, of = np.unique(params[rows], return_inverse=True)
        if sizes.size < MIN_SIZES or sizes[-1] < MIN_SPAN * sizes[0]:
            continue
        low, high = np.searchsorted(ordered, [level.flops / APART, level.flops * APART])
        if high - low > rows.size:
            continue
        designed += rows.size
        judged += 1
        mean = np.bincount(of, weights=log_loss[rows]) / np.bincount(of)
        lowest = int(np.argmin(mean))
        if level.refusal and lowest in (0, sizes.size - 1):
            side, other = ("smallest", "smaller") if lowest == 0 else ("largest", "larger")
            reason = f"the loss is lowest at the {side} of the {sizes.size} sizes"
            remedy = f"train {other} models at this compute"
            out.append(EdgeMinimum(level.flops, rows.size, reason, remedy))
    return Grid(judged, tuple(out)) if designed >= DESIGNED_SHARE * loss.size else Grid()
