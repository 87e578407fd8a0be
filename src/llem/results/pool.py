"""Raw samples of a time, pooled exactly: each value that was seen, and how often.

Percentiles over several runs are those of all their samples together; a percentile of percentiles
is of nothing. So what is kept of a run is not its percentiles but its samples: of the gaps between
tokens each decoding forward gives one value, as often as it gave tokens, which is one pair of
numbers a forward whatever the batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
NONE: Integers = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, kw_only=True, eq=False)
class Pool:
    """A multiset of durations: distinct values in ns, sorted, and how often each was seen."""

    ns: Integers = field(default_factory=lambda: NONE)
    count: Integers = field(default_factory=lambda: NONE)

    @classmethod
    def of(cls, ns: Integers, count: Integers | None = None) -> Pool:
        """Of samples in any order, each once or `count` times."""
        values, place = np.unique(ns, return_inverse=True)
        many = np.zeros(len(values), dtype=np.int64)
        np.add.at(many, place, 1 if count is None else count)
        seen = many > 0
        return cls(ns=values[seen].astype(np.int64), count=many[seen])

    def __len__(self) -> int:
        """The number of samples."""
        return int(self.count.sum())

    @property
    def mean_s(self) -> float:
        """Seconds; NaN of none."""
        samples = len(self)
        return float(self.ns @ self.count.astype(float)) / samples / 1e9 if samples else math.nan

    def percentile_s(self, percent: float) -> float:
        """In seconds, interpolated linearly between samples as numpy's default does; NaN of none.

        Hyndman and Fan, Sample quantiles in statistical packages, 1996: definition 7.
        """
        n = len(self)
        if not n:
            return math.nan
        place = (n - 1) * percent / 100
        first = math.floor(place)
        ends = np.cumsum(self.count)
        low, high = (
            int(self.ns[np.searchsorted(ends, min(k, n - 1), side="right")])
            for k in (first, first + 1)
        )
        return (low + (high - low) * (place - first)) / 1e9


def pooled(pools: Iterable[Pool]) -> Pool:
    """All samples together."""
    parts = [pool for pool in pools if len(pool.ns)]
    if not parts:
        return Pool()
    return Pool.of(
        np.concatenate([pool.ns for pool in parts]), np.concatenate([pool.count for pool in parts])
    )
