"""The rows of observations as the report needs them: columns of numbers, and which were fitted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llem._numerals import number

FloatArray = NDArray[np.float64]
NUMERIC = ("params", "tokens", "flops", "loss", "energy_j", "unique_tokens")


@dataclass(frozen=True)
class Runs:
    """Columns (n,) of the observations, NaN where not known; `fitted` marks the law's rows."""

    rows: Sequence[Mapping[str, Any]]
    run_id: Sequence[str]
    status: Sequence[str]
    quality: Sequence[str]
    fitted: NDArray[np.bool_]
    params: FloatArray
    tokens: FloatArray
    flops: FloatArray
    loss: FloatArray
    energy_j: FloatArray
    unique_tokens: FloatArray

    @property
    def placed(self) -> NDArray[np.bool_]:
        """Rows that have a place in a plot of loss: N, D, C and loss are known and positive."""
        columns = np.stack([self.params, self.tokens, self.flops, self.loss])
        return np.asarray(np.all(np.isfinite(columns) & (columns > 0), axis=0))


def gather(observations: Sequence[Mapping[str, Any]], fit: Mapping[str, Any] | None = None) -> Runs:
    """Columns of observations that are mappings. A row without FLOPs gets 6ND, for its place."""
    numbers = {
        name: np.array([number(row.get(name)) for row in observations], dtype=np.float64)
        for name in NUMERIC
    }
    texts = {
        "run_id": [str(row.get("run_id", i)) for i, row in enumerate(observations)],
        "status": [str(row.get("status") or "completed") for row in observations],
        "energy_quality": [str(row.get("energy_quality") or "none") for row in observations],
    }
    return gather_columns(numbers, texts, fit, rows=observations)


def gather_columns(
    numbers: Mapping[str, FloatArray],
    texts: Mapping[str, Any],
    fit: Mapping[str, Any] | None = None,
    *,
    rows: Sequence[Mapping[str, Any]] = (),
) -> Runs:
    """The same of columns (n,) by name; those that are missing are not known."""
    n = len(numbers["params"])
    column = {name: np.asarray(numbers.get(name, np.full(n, np.nan))) for name in NUMERIC}
    flops = np.where(
        np.isfinite(column["flops"]), column["flops"], 6 * column["params"] * column["tokens"]
    )
    run_id = [str(v) for v in texts.get("run_id", range(n))]
    status = [str(v) or "completed" for v in texts.get("status", ["completed"] * n)]
    left_out = {str(entry.get("run_id")) for entry in (fit or {}).get("excluded") or []}
    fitted = np.isfinite(column["params"]) & np.isfinite(column["tokens"])
    fitted &= np.isfinite(column["loss"])
    fitted &= np.array([s == "completed" for s in status], dtype=bool)
    if left_out:
        fitted &= np.array([name not in left_out for name in run_id], dtype=bool)
    for entry in ((fit or {}).get("checkpoints") or {}).get("dropped") or []:
        fitted[entry["row"]] = False
    return Runs(
        rows=rows,
        run_id=run_id,
        status=status,
        quality=[str(v) or "none" for v in texts.get("energy_quality", ["none"] * n)],
        fitted=fitted,
        params=column["params"],
        tokens=column["tokens"],
        flops=flops,
        loss=column["loss"],
        energy_j=column["energy_j"],
        unique_tokens=column["unique_tokens"],
    )
