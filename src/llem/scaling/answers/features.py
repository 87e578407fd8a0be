"""What a run's cost is made of: terms of N, D, C and the layout.

The features are those of a data-parallel training, summed over its ranks: every rank pays a start
(compilation, loading), every token something whatever the model (data, launches, traffic of
activations, which is why small models cost more per FLOP), every FLOP the arithmetic, every step
of every rank a latency, and every step of several ranks an all-reduce of the gradients: each of R
ranks sends and receives 2 (R-1)/R times N values, hence N (R-1) in all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
NAN = float("nan")


@dataclass(frozen=True)
class Layouts:
    """How each run was laid out: columns (n,) or one number for all.

    ranks (devices), nodes, steps (of the optimiser). Not given: one rank, one node, and steps in
    proportion to tokens.
    """

    ranks: FloatArray | float | None = None
    nodes: FloatArray | float | None = None
    steps: FloatArray | float | None = None


@dataclass(frozen=True)
class Layout:
    """The layout that a prediction assumes. batch_tokens: tokens of a step, None where unknown."""

    ranks: float = 1.0
    nodes: float = 1.0
    batch_tokens: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """As in fit.json."""
        return {"ranks": self.ranks, "nodes": self.nodes, "batch_tokens": self.batch_tokens}

    @classmethod
    def from_dict(cls, data: dict[str, Any] | None) -> Layout:
        """The inverse of `to_dict`."""
        if not data:
            return cls()
        batch = data["batch_tokens"]
        return cls(
            float(data["ranks"]), float(data["nodes"]), None if batch is None else float(batch)
        )


@dataclass(frozen=True)
class Columns:
    """All columns of runs (n,): without a layout, one rank, one node, steps as many as tokens."""

    tokens: FloatArray
    flops: FloatArray
    params: FloatArray
    ranks: FloatArray
    nodes: FloatArray
    steps: FloatArray


@dataclass(frozen=True)
class Feature:
    """One term of the cost: its name, its formula in the columns of runs, and its values.

    `fixed` is paid once a run; all others grow in proportion to its tokens.
    """

    name: str
    formula: str
    of: Callable[[Columns], FloatArray]
    fixed: bool = False


FEATURES: dict[str, Feature] = {
    f.name: f
    for f in (
        Feature("start", "ranks", lambda c: c.ranks, fixed=True),
        Feature("per_token", "tokens", lambda c: c.tokens),
        Feature("per_flop", "flops", lambda c: c.flops),
        Feature("step", "steps x ranks", lambda c: c.steps * c.ranks),
        Feature(
            "all_reduce",
            "params x steps x (ranks - 1)",
            lambda c: c.params * c.steps * (c.ranks - 1.0),
        ),
        Feature(
            "between_nodes",
            "params x steps x (ranks - 1), where nodes > 1",
            lambda c: c.params * c.steps * (c.ranks - 1.0) * (c.nodes > 1),
        ),
    )
}
CORE = ("start", "per_token", "per_flop")
# Which feature stays where two cannot be told apart: the earlier one.
ORDER = ("per_flop", "per_token", "start", "step", "all_reduce", "between_nodes")


def known_columns(
    params: FloatArray | None, layouts: Layouts, usable: NDArray[np.bool_]
) -> tuple[tuple[FloatArray | float, Layouts], dict[str, str]]:
    """(params, layouts) as known in every usable row, and why the other columns are not used."""
    given = {
        "params": params,
        "ranks": layouts.ranks,
        "nodes": layouts.nodes,
        "steps": layouts.steps,
    }
    absent: dict[str, str] = {}
    kept: dict[str, FloatArray | float | None] = {}
    for name, column in given.items():
        kept[name] = column
        if column is None:
            absent[name] = f"{name} was not given"
            continue
        values = np.broadcast_to(np.asarray(column, dtype=np.float64), usable.shape)
        fine = np.isfinite(values) & (values > 0)
        if not np.all(fine[usable]):
            known = np.count_nonzero(fine & usable)
            absent[name] = f"{name} is known in {known} of {np.count_nonzero(usable)} rows"
            kept[name] = None
    size = kept.pop("params")
    return (NAN if size is None else size, Layouts(**kept)), absent


def fill(
    tokens: FloatArray,
    flops: FloatArray,
    params: FloatArray | float,
    layouts: Layouts,
) -> Columns:
    """The columns broadcast together, with what was not given filled in."""
    given = (params, layouts.ranks, layouts.nodes, layouts.steps)
    defaults = (NAN, 1.0, 1.0, tokens)
    filled = [
        np.asarray(d if v is None else v, dtype=np.float64)
        for v, d in zip(given, defaults, strict=True)
    ]
    return Columns(*np.broadcast_arrays(tokens, flops, *filled))
