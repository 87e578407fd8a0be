"""The rows of observations as the report needs them: columns of numbers, and which were fitted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llem.report.tables import number

FloatArray = NDArray[np.float64]
NUMERIC = ("params", "tokens", "flops", "loss", "loss_se", "energy_j", "duration_s", "gpu_seconds")


@dataclass(frozen=True)
class Runs:
    """Columns (n,) of the observations, NaN where not known; `fitted` marks the law's rows."""

    rows: tuple[Mapping[str, Any], ...]
    run_id: tuple[str, ...]
    status: tuple[str, ...]
    quality: tuple[str, ...]
    fitted: NDArray[np.bool_]
    params: FloatArray
    tokens: FloatArray
    flops: FloatArray
    loss: FloatArray
    energy_j: FloatArray

    @property
    def placed(self) -> NDArray[np.bool_]:
        """Rows that have a place in a plot of loss: N, D, C and loss are known and positive."""
        columns = np.stack([self.params, self.tokens, self.flops, self.loss])
        return np.asarray(np.all(np.isfinite(columns) & (columns > 0), axis=0))


def gather(
    observations: Sequence[Mapping[str, Any]], excluded: Sequence[Mapping[str, Any]] = ()
) -> Runs:
    """Columns of the observations. A row without FLOPs gets 6ND, for its place in the plots."""
    n = len(observations)
    column = {
        name: np.array([number(row.get(name)) for row in observations], dtype=np.float64)
        for name in NUMERIC
    }
    flops = np.where(
        np.isfinite(column["flops"]), column["flops"], 6 * column["params"] * column["tokens"]
    )
    run_id = tuple(str(row.get("run_id", i)) for i, row in enumerate(observations))
    status = tuple(str(row.get("status") or "completed") for row in observations)
    left_out = {str(entry.get("run_id")) for entry in excluded}
    usable = np.isfinite(column["params"]) & np.isfinite(column["tokens"])
    usable &= np.isfinite(column["loss"])
    fitted = np.array(
        [
            bool(usable[i]) and status[i] == "completed" and run_id[i] not in left_out
            for i in range(n)
        ],
        dtype=bool,
    )
    return Runs(
        rows=tuple(observations),
        run_id=run_id,
        status=status,
        quality=tuple(str(row.get("energy_quality") or "none") for row in observations),
        fitted=fitted,
        params=column["params"],
        tokens=column["tokens"],
        flops=flops,
        loss=column["loss"],
        energy_j=column["energy_j"],
    )
