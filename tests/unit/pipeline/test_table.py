"""A table of observations: what it reads, and how it names what it cannot."""

import re

import numpy as np
import pytest

from llem.errors import InputError
from llem.pipeline import Table, TableError, read_table
from llem.pipeline import table as table_module


def read(tmp_path, text):
    path = tmp_path / "x.csv"
    path.write_text(text)
    return read_table(path)


def faults(error):
    return [str(fault) for fault in error.value.faults]


def checked(table):
    table.check(np.ones(table.rows, dtype=bool))
    return table


@pytest.mark.parametrize(
    "header", ["N,D,L", "params,tokens,loss", "loss;D;N", "N\tloss\tD", "\ufeffN, D , L,note"]
)
def test_columns_have_two_names_and_come_in_any_order_and_delimiter(tmp_path, header):
    mark = next((m for m in ";\t" if m in header), ",")
    cells = {"N": "1e6", "params": "1e6", "D": "2e7", "tokens": "2e7", "L": "3", "loss": "3"}
    row = mark.join(cells.get(name.strip(" \ufeff"), "free text") for name in header.split(mark))
    table = checked(read(tmp_path, f"{header}\n{row}\n"))
    found = {name: float(table.number(name)[0]) for name in ("params", "tokens", "loss")}
    assert found == {"params": 1e6, "tokens": 2e7, "loss": 3.0}


def test_every_fault_is_named_by_line_and_column_at_once(tmp_path):
    table = read(tmp_path, "N,D,loss\n1e6,2e7,3.1\n\n1e6,x,-2\n,3e7,nan\n1e6,inf,2\n")
    with pytest.raises(TableError) as error:
        checked(table)
    assert faults(error) == [
        "line 4, loss: must be a finite number above 0 (found -2)",
        "line 4, D: 'x' is not a number",
        "line 5, loss: must be a finite number above 0 (the cell is empty or NaN)",
        "line 5, N: must be a finite number above 0 (the cell is empty or NaN)",
        "line 6, D: must be a finite number above 0 (found inf)",
    ]


def test_only_the_first_faults_are_shown_and_the_others_counted(tmp_path):
    table = read(tmp_path, "N,D,L\n" + "1e6,2e7,-1\n" * 1000)
    with pytest.raises(TableError) as error:
        checked(table)
    lines = error.value.lines()
    assert lines[0].endswith("1000 faults")
    assert len(lines) == 22
    assert lines[-1] == "  and 980 more"


def test_rows_that_are_not_used_have_no_faults(tmp_path):
    table = read(tmp_path, "N,D,L\n1e6,2e7,x\n1e6,2e7,3\n")
    table.check(np.array([False, True]))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "the file is empty"),
        ("N,D,L\n", "no row below the header"),
        ("N,D,L\n1,2,3\n1,2\n", "line 3: has 2 cells, the header has 3"),
        ("N,D\n1,2\n", "loss: column is missing (it may also be called L)"),
        ("N,params,D,L\n1,1,2,3\n", "params: stands in the header twice"),
        ("N,D,los\n1,2,3\n", "did you mean 'los'?"),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path, text, says):
    with pytest.raises(InputError, match=re.escape(says)):
        read(tmp_path, text)


def test_a_decimal_comma_is_told_apart_from_text(tmp_path):
    table = read(tmp_path, "N;D;L\n1e6;2e7;3,1\n1e6;2e7;high\n")
    with pytest.raises(TableError) as error:
        checked(table)
    assert faults(error)[0] == "line 2, L: '3,1' is not a number (write a decimal point)"
    assert faults(error)[1] == "line 3, L: 'high' is not a number"


def test_optional_columns_may_be_empty_but_not_negative(tmp_path):
    table = read(tmp_path, "N,D,L,C,energy_j\n1e6,2e7,3,,\n1e6,2e7,3,-1,-5\n")
    with pytest.raises(TableError) as error:
        checked(table)
    assert len(error.value.faults) == 2
    assert np.isnan(table.number("flops")[0])


def test_chunks_join_without_a_seam(tmp_path, monkeypatch):
    monkeypatch.setattr(table_module, "CHUNK_ROWS", 7)
    rows = "".join(f"{i + 1},{i + 2},{i + 3},r{i}\n" for i in range(50))
    table = checked(read(tmp_path, "N,D,L,run_id\n" + rows))
    assert table.rows == 50
    assert table.number("loss").tolist() == [i + 3.0 for i in range(50)]
    assert table.name(49) == "r49"
    assert table.place(49) == "line 51"


@pytest.mark.parametrize(
    ("rows", "at_once"),
    [
        ("1e6,2e7,3.5,\n" * 3, False),
        ("1e6,2e7,3.5,1\n" * 3, True),
        ("1e6,2e7,3.5,1\n" * 2 + "1e6,2e7,3.5,1", True),
        ("1e6,2e7,3.5,1\n\n1e6,2e7,x,1\n", False),
        ("1e6,2e7,3.5,1\n\n1e6,2e7,3.5,1\n", False),
    ],
)
def test_a_great_table_of_numbers_is_read_at_once_and_alike(tmp_path, monkeypatch, rows, at_once):
    small = read(tmp_path, "N,D,L,C\n" + rows)
    monkeypatch.setattr(table_module, "GREAT_BYTES", 0)
    if at_once:
        monkeypatch.setattr(table_module, "_read", None)
    great = read(tmp_path, "N,D,L,C\n" + rows)
    for name in ("params", "tokens", "loss", "flops"):
        np.testing.assert_array_equal(great.number(name), small.number(name))
    assert great.lines.tolist() == small.lines.tolist()
    assert great.unread == small.unread


def test_a_great_table_with_a_cell_too_many_is_refused_like_a_small_one(tmp_path, monkeypatch):
    monkeypatch.setattr(table_module, "GREAT_BYTES", 0)
    with pytest.raises(TableError, match="line 3: has 4 cells, the header has 3"):
        read(tmp_path, "N,D,L\n1,2,3\n1,2,3,1\n")


def test_mappings_and_files_give_the_same_columns(tmp_path):
    rows = [
        {"run_id": "a", "params": 1e6, "tokens": 2e7, "loss": 3.0, "energy_j": None},
        {"run_id": "b", "params": 2e6, "tokens": 2e7, "loss": 2.9, "energy_j": 7.0},
    ]
    table = Table.of(rows)
    text = "run_id,N,D,L,energy_j\na,1e6,2e7,3.0,\nb,2e6,2e7,2.9,7.0\n"
    other = read(tmp_path, text)
    for name in ("params", "tokens", "loss", "energy_j"):
        np.testing.assert_array_equal(table.number(name), other.number(name))
    assert table.text("run_id").tolist() == other.text("run_id").tolist()
    assert Table.of(table) is table
