"""Rows for other programs: the same values in every format, and nothing half written."""

from __future__ import annotations

import csv
import json
import math
import sys

import h5py
import pytest

from llem.errors import InputError, UnavailableError
from llem.results.tables.export import export_rows, to_arrow, to_pandas
from llem.results.tables.grouping import group_rows

KINDS = {"run_id": "str", "seed": "int", "attempt": "int", "loss": "float", "reason": "str"}
ROWS = [
    {"run_id": "a", "seed": 1, "attempt": 0, "loss": 0.1 + 0.2, "reason": "", "extra": 1},
    {"run_id": "b", "seed": 2, "attempt": None, "loss": math.nan, "reason": "grün, \"so\"\n"},
]  # fmt: skip


def test_csv_and_json_keep_every_digit_and_tell_what_is_not_known(tmp_path):
    export_rows(ROWS, KINDS, tmp_path / "t.csv", format="csv")
    with (tmp_path / "t.csv").open(newline="") as file:
        a, b = csv.DictReader(file)
    assert (float(a["loss"]), b["loss"], b["attempt"]) == (0.1 + 0.2, "", "")
    assert b["reason"] == ROWS[1]["reason"] and list(a) == list(KINDS)
    export_rows(ROWS, KINDS, tmp_path / "t.json", format="json")
    a, b = json.loads((tmp_path / "t.json").read_text())
    assert a == {"run_id": "a", "seed": 1, "attempt": 0, "loss": 0.1 + 0.2, "reason": ""}
    assert b["loss"] is None and b["attempt"] is None


def test_hdf5_holds_a_dataset_for_each_column(tmp_path):
    export_rows(ROWS, KINDS, tmp_path / "t.h5", format="hdf5")
    with h5py.File(tmp_path / "t.h5") as file:
        assert list(file.attrs["columns"]) == list(KINDS)
        assert file["seed"][()].tolist() == [1, 2] and file["seed"].dtype.kind == "i"
        assert math.isnan(file["attempt"][1]) and file["loss"][0] == 0.1 + 0.2
        assert file["reason"].asstr()[1] == ROWS[1]["reason"]


@pytest.mark.parametrize("format", ["csv", "json", "hdf5"])
def test_no_rows_are_a_table_as_well(tmp_path, format):
    export_rows([], KINDS, tmp_path / "t", format=format)
    assert (tmp_path / "t").stat().st_size > 0


def test_parquet_arrow_and_pandas_hold_the_same(tmp_path):
    pytest.importorskip("pyarrow")
    pytest.importorskip("pandas")
    from pyarrow import parquet

    export_rows(ROWS, KINDS, tmp_path / "t.parquet", format="parquet")
    table = parquet.read_table(tmp_path / "t.parquet")
    assert table.equals(to_arrow(ROWS, KINDS))
    assert table["attempt"].to_pylist() == [0, None] and table["loss"].null_count == 1
    frame = to_pandas(ROWS, KINDS)
    assert str(frame.dtypes["seed"]) == "int64" and str(frame.dtypes["attempt"]) == "Int64"
    assert frame["loss"][0] == 0.1 + 0.2 and frame["loss"].isna()[1]


def test_what_is_not_installed_is_named_with_the_command_and_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UnavailableError, match="pyarrow") as caught:
        export_rows(ROWS, KINDS, tmp_path / "t.parquet", format="parquet")
    assert "llem[export]" in caught.value.remedy and not list(tmp_path.iterdir())
    with pytest.raises(UnavailableError, match="pandas"):
        to_pandas(ROWS, KINDS)
    with pytest.raises(InputError, match="xlsx"):
        export_rows(ROWS, KINDS, tmp_path / "t", format="xlsx")


def test_groups_are_sums_of_what_is_known_and_say_what_they_lack():
    def row(params, loss, energy_j, tokens=100.0):
        return {"params": params, "status": "completed" if loss == loss else "failed",
                "loss": loss, "tokens": tokens, "flops": 1.0, "energy_j": energy_j,
                "gpu_seconds": 1.0, "cost": math.nan, "carbon_g": math.nan}  # fmt: skip

    nan = math.nan
    rows = [row(5, 2.0, 10.0), row(None, 1.0, 1.0), row(5, 3.0, nan), row(2, nan, 4.0, 50.0)]
    two, five, unknown = group_rows(rows, ["params"])
    assert (two["params"], five["params"], unknown["params"]) == (2, 5, None)
    assert (five["runs"], five["completed"], five["loss"]) == (2, 2, 2.5)
    assert five["loss_sd"] == pytest.approx(math.sqrt(0.5))
    # 10 J over the 100 tokens that they belong to, not over 200
    assert (five["energy_j"], five["joules_per_token"], five["without_energy"]) == (10.0, 0.1, 1)
    assert (two["without_loss"], two["tokens"]) == (1, 50.0) and math.isnan(two["loss"])
    assert math.isnan(five["cost"])
