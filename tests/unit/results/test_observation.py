"""The table on disk: what is written is what is read."""

from __future__ import annotations

import math
import stat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llem.errors import InputError
from llem.results import COLUMNS, Observation, read_observations, write_observations


def same(a: Observation, b: Observation) -> bool:
    pairs = [(getattr(a, name), getattr(b, name)) for name in COLUMNS]
    return all(x == y or (x != x and y != y) for x, y in pairs)


def test_rows_survive_the_round_trip_to_the_last_bit(tmp_path):
    rows = [
        Observation(run_id="a", attempt=1, params=10**15, loss=0.1 + 0.2, energy_j=1e-300,
                    reason='a "quoted", comma; and more'),
        Observation(run_id="b"),
    ]  # fmt: skip
    path = tmp_path / "new" / "observations.csv"
    write_observations(rows, path)
    assert all(same(a, b) for a, b in zip(rows, read_observations(path), strict=True))


@settings(deadline=None)
@given(st.floats(), st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"])))
def test_any_float_and_any_text_survive(tmp_path_factory, number, text):
    path = tmp_path_factory.mktemp("csv") / "o.csv"
    row = Observation(run_id="a", loss=number, reason=" ".join(text.split()))
    write_observations([row], path)
    assert same(row, read_observations(path)[0])


def test_what_is_unknown_is_an_empty_field(tmp_path):
    path = tmp_path / "o.csv"
    write_observations([Observation(run_id="a")], path)
    header, line = path.read_text().splitlines()
    assert header == ",".join(COLUMNS)
    assert dict(zip(header.split(","), line.split(","), strict=True))["energy_j"] == ""
    assert math.isnan(read_observations(path)[0].energy_j)


def test_a_reason_of_several_lines_stays_in_one_line(tmp_path):
    path = tmp_path / "o.csv"
    write_observations([Observation(run_id="a", reason="one\n  two\r\nthree")], path)
    assert len(path.read_text().splitlines()) == 2
    assert read_observations(path)[0].reason == "one two three"


def test_a_write_that_fails_leaves_the_old_table_and_no_rest(tmp_path):
    path = tmp_path / "o.csv"
    write_observations([Observation(run_id="a")], path)
    before = path.read_text()
    with pytest.raises(AttributeError):
        write_observations([None], path)  # type: ignore[list-item]
    assert path.read_text() == before and list(tmp_path.iterdir()) == [path]
    assert stat.S_IMODE(path.stat().st_mode) & 0o444


def test_every_bad_field_is_named_with_its_line(tmp_path):
    path = tmp_path / "o.csv"
    path.write_text("run_id,loss,seed,other\na,3.0,1,x\nb,three,1.5,y\n")
    with pytest.raises(InputError) as error:
        read_observations(path)
    assert [fault.path for fault in error.value.faults] == ["line 3, seed", "line 3, loss"]


def test_a_table_of_something_else_is_refused(tmp_path):
    path = tmp_path / "o.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="no column run_id"):
        read_observations(path)
