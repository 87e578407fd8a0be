"""Where the published data lie, and how each set is cut; tests skip where they are absent."""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
CHECKOUT = Path(__file__).resolve().parents[3]


def shared_table(name: str) -> list[dict[str, str]]:
    """Rows of a published CSV, or a skip that says where it was looked for."""
    root = os.environ.get("LLEM_SHARED_DATA")
    base = Path(root) if root else CHECKOUT.parent / "shared" / "data"
    path = base / name
    if not path.is_file():
        pytest.skip(f"{name} is not here: set LLEM_SHARED_DATA to the folder of published data")
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@dataclass(frozen=True)
class DataSet:
    """Columns N, D, loss of one published protocol."""

    params: FloatArray
    tokens: FloatArray
    loss: FloatArray


def columns(rows: list[dict[str, str]], params: str, tokens: str, loss: str) -> DataSet:
    """Three columns of a table by their names."""
    n, d, value = (np.array([float(r[c]) for r in rows]) for c in (params, tokens, loss))
    return DataSet(n, d, value)


def load(name: str) -> DataSet:
    """A set by name: epoch, kyo, or one training set of gadre."""
    if name == "epoch":
        rows = shared_table("epoch_chinchilla/data.csv")
        # The five highest losses are left out, as published.
        limit = sorted(float(r["loss"]) for r in rows)[-5]
        return columns([r for r in rows if float(r["loss"]) < limit], "N", "D", "loss")
    if name == "kyo":
        return columns(shared_table("kyo_llm/data.csv"), "N", "D", "loss")
    rows = [r for r in shared_table("gadre_overtrain/data.csv") if r["dataset"] == name]
    return columns(rows, "N", "D", "loss_c4_val")
