"""Refusal of a designed isoFLOP grid of which a slice has no minimum inside the sizes trained.

Such a slice says that the grid stands off the optimum, and then the law's optimum is carried by
its form instead of by the runs. Tables that were never designed as a grid are not judged.
"""

from __future__ import annotations

from collections.abc import Sequence
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


@dataclass(frozen=True)
class EdgeMinimum:
    """One refused slice: its compute (FLOP), its rows, why it was refused and what to train."""

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


class EdgeMinimaError(InputError):
    """A designed grid has slices without an interior minimum; `slices` names them."""

    def __init__(self, source: str, slices: Sequence[EdgeMinimum]) -> None:
        self.slices = tuple(slices)
        faults = [Fault(f"at {format_flops(s.flops)} FLOP", s.reason, s.remedy) for s in slices]
        super().__init__(source, faults)

    def lines(self) -> list[str]:
        """Every slice, and how to fit all the same."""
        count = len(self.slices)
        which = "an isoFLOP slice has" if count == 1 else f"{count} isoFLOP slices have"
        return [
            f"{self.source}: {which} no minimum inside the sizes trained",
            *(f"  {fault}" for fault in self.faults),
            "  -> --allow-edge-minima (allow_edge_minima=True) fits all the same and records it",
        ]


def edge_minima(
    params: FloatArray, loss: FloatArray, flops: FloatArray, *, weight: FloatArray | None = None
) -> list[EdgeMinimum]:
    """The slices of a designed grid that have no interior minimum; none of any other table.

    All inputs (n,), positive. A slice is a compute level of at least MIN_SIZES sizes that span
    MIN_SPAN and more, with no other run near its compute. It is refused where its lowest loss lies
    at the smallest or largest size and a parabola has no minimum inside either: one of them alone
    may be noise, or the bias of parabolas over wide grids.
    """
    from llem.scaling import isoflop_levels

    levels = isoflop_levels(params, loss, flops, weight=weight, factor=SLICE_FACTOR)
    log_loss, ordered = np.log(loss), np.sort(flops)
    designed = 0
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
        mean = np.bincount(of, weights=log_loss[rows]) / np.bincount(of)
        lowest = int(np.argmin(mean))
        if level.refusal and lowest in (0, sizes.size - 1):
            side, other = ("smallest", "smaller") if lowest == 0 else ("largest", "larger")
            reason = f"the loss is lowest at the {side} of the {sizes.size} sizes"
            remedy = f"train {other} models at this compute"
            out.append(EdgeMinimum(level.flops, rows.size, reason, remedy))
    return out if designed >= DESIGNED_SHARE * loss.size else []
