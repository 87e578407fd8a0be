"""The data of a fit, checked: every fault is found before anything is computed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llem.scaling.bootstrap import MIN_POINTS, run_index
from llem.scaling.errors import DataFault, ScalingDataError
from llem.scaling.flops import FlopsModel, fit_flops_model

FloatArray = NDArray[np.float64]

MIN_SIZES = 2


@dataclass(frozen=True)
class Observations:
    """Columns of equal length n.

    params, tokens (counts), loss (nats per token), weight (counts of equal rows, 1 where none were
    given); run: number of the run of each row; run_names: name of each run; flops (FLOP of the
    run up to the row; where not measured, by `flops_model`); energy_j, duration_s, gpu_seconds:
    None where not given, NaN in rows where not measured.
    """

    params: FloatArray
    tokens: FloatArray
    loss: FloatArray
    weight: FloatArray
    run: NDArray[np.intp]
    run_names: tuple[str, ...]
    flops: FloatArray
    flops_model: FlopsModel
    energy_j: FloatArray | None = None
    duration_s: FloatArray | None = None
    gpu_seconds: FloatArray | None = None

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
        names = np.array(self.run_names)[self.run[keep]]
        index = run_index(names, int(keep.sum()))
        first = np.unique(index, return_index=True)[1]

        def part(column: FloatArray | None) -> FloatArray | None:
            return None if column is None else column[keep]

        return replace(
            self,
            params=self.params[keep],
            tokens=self.tokens[keep],
            loss=self.loss[keep],
            weight=self.weight[keep],
            run=index,
            run_names=tuple(str(v) for v in names[first]),
            flops=self.flops[keep],
            energy_j=part(self.energy_j),
            duration_s=part(self.duration_s),
            gpu_seconds=part(self.gpu_seconds),
        )

    def shortage(self) -> list[DataFault]:
        """Why these rows cannot determine a law of five parameters; empty when they can."""
        faults = []
        used = self.weight > 0
        sizes = np.unique(self.params[used]).size
        counts = np.unique(self.tokens[used]).size
        pairs = np.stack([self.params[used], self.tokens[used]], axis=1)
        points = np.unique(pairs, axis=0).shape[0] if used.any() else 0
        for column, found, least, what in (
            ("params", sizes, MIN_SIZES, "distinct model sizes"),
            ("tokens", counts, MIN_SIZES, "distinct token counts"),
            ("params, tokens", points, MIN_POINTS, "distinct points (N, D)"),
        ):
            if found < least:
                faults.append(
                    DataFault.of(column, f"at least {least} {what} are needed, found {found}")
                )
        return faults

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
    energy_j: ArrayLike | None = None,
    duration_s: ArrayLike | None = None,
    gpu_seconds: ArrayLike | None = None,
) -> Observations:
    """Check and gather the columns, or raise ScalingDataError with every fault.

    params, tokens and loss must be finite and positive, weights finite and not negative. flops,
    energy_j, duration_s and gpu_seconds may be NaN (not measured), never negative or infinite.
    """
    faults: list[DataFault] = []
    columns: dict[str, FloatArray | None] = {}
    given = {
        "params": params,
        "tokens": tokens,
        "loss": loss,
        "weight": weight,
        "flops": flops,
        "energy_j": energy_j,
        "duration_s": duration_s,
        "gpu_seconds": gpu_seconds,
    }
    for name, value in given.items():
        columns[name] = None if value is None else _column(name, value, faults)
    n = np.shape(columns["params"])[0] if columns["params"] is not None else 0
    for name, column in columns.items():
        if column is not None and column.size != n:
            faults.append(DataFault.of(name, f"has {column.size} rows, params has {n}"))
    names = None
    if run_id is not None:
        names = np.asarray(run_id).astype(str)
        if names.shape != (n,):
            faults.append(DataFault.of("run_id", f"has shape {names.shape}, expected ({n},)"))
    for name in ("params", "tokens", "loss"):
        faults += _out_of_range(name, columns[name], "must be a finite number above 0")
    if columns["weight"] is not None:
        faults += _out_of_range(
            "weight", columns["weight"], "must be finite and not negative", zero=True
        )
    faults += _out_of_range(
        "flops", columns["flops"], "must be above 0, or NaN where not known", nan=True
    )
    for name in ("energy_j", "duration_s", "gpu_seconds"):
        faults += _out_of_range(
            name,
            columns[name],
            "must be finite and not negative, or NaN where not measured",
            zero=True,
            nan=True,
        )
    if faults:
        raise ScalingDataError(faults)

    size, token, value = columns["params"], columns["tokens"], columns["loss"]
    assert size is not None and token is not None and value is not None
    w = columns["weight"] if columns["weight"] is not None else np.ones(n)
    model = fit_flops_model(size, token, columns["flops"], weight=w)
    known = columns["flops"]
    by_model = model.flops(size, token)
    observations = Observations(
        params=size,
        tokens=token,
        loss=value,
        weight=w,
        run=run_index(names, n),
        run_names=_run_names(names, n),
        flops=by_model if known is None else np.where(np.isfinite(known), known, by_model),
        flops_model=model,
        energy_j=columns["energy_j"],
        duration_s=columns["duration_s"],
        gpu_seconds=columns["gpu_seconds"],
    )
    shortage = observations.shortage()
    if shortage:
        raise ScalingDataError(shortage)
    return observations


def _run_names(names: NDArray[np.str_] | None, rows: int) -> tuple[str, ...]:
    if names is None:
        return tuple(f"row {i}" for i in range(rows))
    first = np.sort(np.unique(names, return_index=True)[1])
    return tuple(str(v) for v in names[first])


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
