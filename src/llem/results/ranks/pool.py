"""Raw samples of a time, pooled exactly: each value that was seen, and how often.

Percentiles over several runs are those of all their samples together; a percentile of percentiles
is of nothing. So what is kept of a run is not its percentiles but its samples: of the gaps between
tokens each decoding forward gives one value, as often as it gave tokens, which is one pair of
numbers a forward whatever the batch.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llem.errors import InputError

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


# Pools of runs on disk, a row for each distinct value; `pool` counts in the order of `names`.
SAMPLES_DTYPE = np.dtype([("run", "<i4"), ("pool", "<u1"), ("ns", "<i8"), ("count", "<i8")])


def write_pools(path: str | Path, runs: Mapping[str, Mapping[str, Pool]]) -> None:
    """Write the named pools of runs, whole or not at all."""
    import h5py

    path = Path(path)
    names = sorted({name for pools in runs.values() for name in pools})
    parts = []
    for run, pools in enumerate(runs.values()):
        for name, pool in pools.items():
            rows = np.zeros(len(pool.ns), SAMPLES_DTYPE)
            rows["run"], rows["pool"] = run, names.index(name)
            rows["ns"], rows["count"] = pool.ns, pool.count
            parts.append(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with h5py.File(unfinished, "w", locking=False) as file:
            every = np.concatenate(parts) if parts else np.zeros(0, SAMPLES_DTYPE)
            file.create_dataset("samples", data=every, compression="gzip", chunks=(4096,),
                                maxshape=(None,))  # fmt: skip
            text = h5py.string_dtype()
            file.create_dataset("runs", data=list(runs), dtype=text, shape=len(runs))
            file.create_dataset("names", data=names, dtype=text, shape=len(names))
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def read_pools(path: str | Path) -> dict[str, dict[str, Pool]]:
    """Inverse of `write_pools`. Raises InputError where the file cannot be read."""
    import h5py

    try:
        with h5py.File(path, "r", locking=False) as file:
            every = file["samples"][()]
            runs = [text.decode() for text in file["runs"][()]]
            names = [text.decode() for text in file["names"][()]]
    except (OSError, KeyError, RuntimeError) as error:
        raise InputError(str(path), [f"cannot be read: {error}"]) from None
    found: dict[str, dict[str, Pool]] = {run: {name: Pool() for name in names} for run in runs}
    edge = np.flatnonzero(np.diff(every["run"]) | np.diff(every["pool"])) + 1
    for rows in np.split(every, edge) if len(every) else ():
        run, name = runs[rows["run"][0]], names[rows["pool"][0]]
        found[run][name] = Pool(ns=rows["ns"].copy(), count=rows["count"].copy())
    return found
