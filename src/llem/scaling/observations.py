"""The data of a fit, checked: every fault is found before anything is computed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llem.scaling.errors import DataFault, ScalingDataError
from llem.scaling.flops import FlopsModel, fit_flops_model

FloatArray = NDArray[np.float64]

# What a law needs to see of each of its variables, and what they are called.
MIN_DISTINCT = 2
FIRST_ROWS = 1000
VARIABLES = {
    "N": ("params", "distinct model sizes"),
    "D": ("tokens", "distinct token counts"),
    "C": ("flops", "distinct amounts of compute"),
}

POSITIVE = "must be a finite number above 0"
NOT_MEASURED = "must be finite and not negative, or NaN where not measured"
NOT_KNOWN = "must be above 0, or NaN where not known"
# Column -> whether NaN and 0 are allowed, and what to say where a value is not.
ALLOWED = {
    "params": (False, False, POSITIVE),
    "tokens": (False, False, POSITIVE),
    "loss": (False, False, POSITIVE),
    "weight": (False, True, "must be finite and not negative"),
    "flops": (True, False, NOT_KNOWN),
    "params_nonembedding": (True, False, NOT_KNOWN),
    "unique_tokens": (True, False, NOT_KNOWN),
    "ranks": (True, False, NOT_KNOWN),
    "nodes": (True, False, NOT_KNOWN),
    "steps": (True, False, NOT_KNOWN),
}


@dataclass(frozen=True)
class Observations:
    """Columns of equal length n.

    params, tokens (counts), loss (nats per token), weight (counts of equal rows, 1 where none were
    given); run: number of the run of each row; run_names: name of each run; flops (FLOP of the
    run up to the row; where not measured, by `flops_model`). The others are None where not given,
    NaN in rows where not known: params_nonembedding (count), unique_tokens (count of different
    tokens in the run's data), energy_j, duration_s, gpu_seconds, ranks (devices of the run),
    nodes, steps (of the optimiser).
    """

    params: FloatArray
    tokens: FloatArray
    loss: FloatArray
    weight: FloatArray
    run: NDArray[np.intp]
    run_names: tuple[str, ...]
    flops: FloatArray
    flops_model: FlopsModel
    params_nonembedding: FloatArray | None = None
    unique_tokens: FloatArray | None = None
    energy_j: FloatArray | None = None
    duration_s: FloatArray | None = None
    gpu_seconds: FloatArray | None = None
    ranks: FloatArray | None = None
    nodes: FloatArray | None = None
    steps: FloatArray | None = None

    @property
    def rows(self) -> int:
        """Number of observations."""
        return int(self.loss.size)

    @property
    def runs(self) -> int:
        """Number of runs."""
        return len(self.run_names)

    def name_of(self, row: int) -> str:
        """Name of the run of a row."""
        return self.run_names[int(self.run[row])]

    def only(self, keep: NDArray[np.bool_]) -> Observations:
        """The rows marked in `keep` (n,). Runs are numbered anew."""
        kept, index = np.unique(self.run[keep], return_inverse=True)
        parts: dict[str, Any] = {
            f.name: value[keep]
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), np.ndarray)
        }
        parts["run"] = index
        return replace(self, **parts, run_names=tuple(self.run_names[i] for i in kept))

    def duplicates(self) -> int:
        """Rows that repeat another in run, size, tokens and loss (unless weights say so)."""
        if np.unique(self.loss).size == self.rows:
            return 0
        table = np.stack([self.params, self.tokens, self.loss], axis=1)
        if len(self.run_names) < self.rows:
            table = np.column_stack([table, self.run])
        return int(self.rows - np.unique(table, axis=0).shape[0])

    def digest(self) -> str:
        """SHA-256 over what is fitted, for provenance."""
        data = hashlib.sha256()
        for column in (self.params, self.tokens, self.loss, self.weight, self.flops):
            data.update(np.ascontiguousarray(column, dtype="<f8").tobytes())
        data.update("\0".join(self.run_names[i] for i in self.run).encode())
        return data.hexdigest()


def check_observations(
    params: ArrayLike,
    tokens: ArrayLike,
    loss: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    run_id: Sequence[str] | ArrayLike | None = None,
    flops: ArrayLike | None = None,
    **others: ArrayLike | None,
) -> Observations:
    """Check and gather the columns, or raise ScalingDataError with every fault.

    params, tokens and loss must be finite and positive, weights finite and not negative. The
    others (flops, params_nonembedding, unique_tokens, energy_j, duration_s, gpu_seconds, ranks,
    nodes, steps) may be NaN (not known), never negative or infinite.
    """
    faults: list[DataFault] = []
    given = {"params": params, "tokens": tokens, "loss": loss, "weight": weight, "flops": flops}
    given |= others
    columns: dict[str, FloatArray | None] = {
        name: None if value is None else _column(name, value, faults)
        for name, value in given.items()
    }
    n = np.shape(columns["params"])[0] if columns["params"] is not None else 0
    for name, column in columns.items():
        if column is not None and column.size != n:
            faults.append(DataFault.of(name, f"has {column.size} rows, params has {n}"))
    names = None
    if run_id is not None:
        names = np.asarray(run_id).astype(str)
        if names.shape != (n,):
            faults.append(DataFault.of("run_id", f"has shape {names.shape}, expected ({n},)"))
    for name, column in columns.items():
        nan, zero, message = ALLOWED.get(name, (True, True, NOT_MEASURED))
        faults += _out_of_range(name, column, message, zero=zero, nan=nan)
    if faults:
        raise ScalingDataError(faults)

    size, token, value = columns["params"], columns["tokens"], columns["loss"]
    assert size is not None and token is not None and value is not None
    w = columns["weight"] if columns["weight"] is not None else np.ones(n)
    model = fit_flops_model(size, token, columns["flops"], weight=w)
    known = columns["flops"]
    by_model = model.flops(size, token)
    run, run_names = _runs(names, n)
    return Observations(
        params=size,
        tokens=token,
        loss=value,
        weight=w,
        run=run,
        run_names=run_names,
        flops=by_model if known is None else np.where(np.isfinite(known), known, by_model),
        flops_model=model,
        **{name: columns[name] for name in others},
    )


def _runs(names: NDArray[np.str_] | None, rows: int) -> tuple[NDArray[np.intp], tuple[str, ...]]:
    """Number of the run of each row (n,), and their names, runs in the order of their first row."""
    if names is None:
        return np.arange(rows), tuple(f"row {i}" for i in range(rows))
    found, first, inverse = np.unique(names, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty(first.size, dtype=np.intp)
    rank[order] = np.arange(first.size)
    return rank[inverse], tuple(str(v) for v in found[order])


def _column(name: str, value: ArrayLike, faults: list[DataFault]) -> FloatArray | None:
    try:
        column = np.array(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        faults.append(DataFault.of(name, f"is not a column of numbers: {error}"))
        return None
    if column.ndim != 1:
        faults.append(DataFault.of(name, f"has shape {column.shape}, expected one dimension"))
        return None
    return column


def _out_of_range(
    name: str, column: FloatArray | None, message: str, *, zero: bool = False, nan: bool = False
) -> list[DataFault]:
    if column is None:
        return []
    good = np.isfinite(column) & ((column >= 0) if zero else (column > 0))
    if nan:
        good |= np.isnan(column)
    return [
        DataFault.of(name, message, row=int(i), value=float(column[i]))
        for i in np.flatnonzero(~good)
    ]
