"""Rows for other programs: CSV, JSON, Parquet, HDF5, and tables of pandas and Arrow in memory.

What is not known is empty in CSV, null in JSON, Parquet and Arrow, NaN in HDF5 and pandas.
Names carry their units (`energy_j`), in every format.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llem.errors import InputError, UnavailableError
from llem.results.tables.where import is_known

if TYPE_CHECKING:
    import pandas
    import pyarrow

Row = Mapping[str, Any]

INSTALL = "pip install 'llem[export]'"


def to_arrow(rows: Sequence[Row], kinds: Mapping[str, str]) -> pyarrow.Table:
    """An Arrow table; `kinds` are the columns: int, float or str. Raises UnavailableError."""
    try:
        import pyarrow
    except ImportError:
        raise UnavailableError("pyarrow is not installed", remedy=INSTALL) from None
    types = {"int": pyarrow.int64(), "float": pyarrow.float64(), "str": pyarrow.string()}
    return pyarrow.table(
        {
            name: pyarrow.array([_or_none(row[name]) for row in rows], type=types[kind])
            for name, kind in kinds.items()
        }
    )


def to_pandas(rows: Sequence[Row], kinds: Mapping[str, str]) -> pandas.DataFrame:
    """A data frame; integers not all known are pandas' `Int64`. Raises UnavailableError."""
    try:
        import pandas
    except ImportError:
        raise UnavailableError("pandas is not installed", remedy=INSTALL) from None
    types = {"int": "Int64", "float": "float64", "str": "object"}
    columns = {}
    for name, kind in kinds.items():
        values = [row[name] if is_known(row[name]) else None for row in rows]
        whole = kind == "int" and None not in values
        if kind == "str":
            values = [value or "" for value in values]
        columns[name] = pandas.Series(values, dtype="int64" if whole else types[kind])
    return pandas.DataFrame(columns)


def export_rows(
    rows: Sequence[Row], kinds: Mapping[str, str], path: str | Path, *, format: str
) -> None:
    """Write rows, whole or not at all. Raises InputError for another format, UnavailableError."""
    if format not in FORMATS:
        raise InputError("format", [f"{format!r} is none of {', '.join(FORMATS)}"])
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        FORMATS[format](rows, kinds, unfinished)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def csv_text(rows: Sequence[Row], kinds: Mapping[str, str]) -> str:
    """Rows as CSV with a header."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(kinds)
    for row in rows:
        writer.writerow(["" if (v := _or_none(row[name])) is None else v for name in kinds])
    return text.getvalue()


def json_text(rows: Sequence[Row], kinds: Mapping[str, str]) -> str:
    """Rows as a list of objects."""
    found = [{name: _finite(row[name]) for name in kinds} for row in rows]
    return json.dumps(found, indent=1, allow_nan=False) + "\n"


def _write_csv(rows: Sequence[Row], kinds: Mapping[str, str], path: Path) -> None:
    path.write_text(csv_text(rows, kinds), encoding="utf-8", newline="")


def _write_json(rows: Sequence[Row], kinds: Mapping[str, str], path: Path) -> None:
    path.write_text(json_text(rows, kinds), encoding="utf-8")


def _write_parquet(rows: Sequence[Row], kinds: Mapping[str, str], path: Path) -> None:
    table = to_arrow(rows, kinds)
    from pyarrow import parquet

    parquet.write_table(table, path)


def _write_hdf5(rows: Sequence[Row], kinds: Mapping[str, str], path: Path) -> None:
    """One dataset for each column; integers that are not all known are floats."""
    import h5py
    import numpy as np

    with h5py.File(path, "w", locking=False) as file:
        file.attrs["columns"] = list(kinds)
        for name, kind in kinds.items():
            values = [_or_none(row[name]) for row in rows]
            if kind == "str":
                texts = [value or "" for value in values]
                file.create_dataset(name, data=texts, dtype=h5py.string_dtype(), shape=len(rows))
            elif kind == "int" and None not in values:
                file[name] = np.array(values, dtype=np.int64)
            else:
                file[name] = np.array([np.nan if v is None else v for v in values], dtype=float)


def _or_none(value: Any) -> Any:
    return value if is_known(value) else None


def _finite(value: Any) -> Any:
    """JSON has no infinity."""
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return None
    return value if is_known(value) or value == "" else None


FORMATS: Mapping[str, Callable[[Sequence[Row], Mapping[str, str], Path], None]] = {
    "csv": _write_csv,
    "json": _write_json,
    "parquet": _write_parquet,
    "hdf5": _write_hdf5,
}
