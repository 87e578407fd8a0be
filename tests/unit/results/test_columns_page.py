"""docs/columns.md names every column of every table."""

import re
from dataclasses import fields
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from llem.results import Observation
from llem.results.ratio import CellRatio
from llem.results.rows.phases import DeviceRow, PhaseEnergy
from llem.results.rows.served import ServedRow
from llem.results.stragglers import RankRow
from llem.results.study.deployments import MOST, RATIOS, SUMS

PAGE = Path(__file__).parents[3] / "docs" / "columns.md"
ASIDE = re.compile(r"_(se|low|high)(?=_s$|$)")


def documented():
    cells = re.findall(r"^\| (`[^|]*) \|", PAGE.read_text(), re.MULTILINE)
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


@pytest.mark.parametrize(
    "kind", [Observation, ServedRow, PhaseEnergy, DeviceRow, RankRow, CellRatio]
)
def test_every_column_of_a_table_is_on_the_page(kind):
    names = documented()
    # `settings` is written as columns of their own, one for each key.
    columns = [ASIDE.sub("", f.name) for f in fields(kind) if f.name != "settings"]
    assert [c for c in columns if not any(fnmatchcase(c, name) for name in names)] == []


def test_every_figure_of_deployments_is_on_the_page():
    names = documented()
    assert [c for c in (*RATIOS, *SUMS, *MOST) if c not in names] == []


def test_the_page_names_no_column_that_no_table_has():
    # Of these the rows are made without a class of their own.
    made = {"runs", "completed", "cycles", "mean_w", "without_energy", "time", "ns", "count"}
    kinds = (Observation, ServedRow, PhaseEnergy, DeviceRow, RankRow, CellRatio)
    known = {f.name for kind in kinds for f in fields(kind)} | made
    prefixes = ("options.", "prompts.", "arrival.", "layout.", "effective.")
    for name in documented():
        assert name.startswith(prefixes) or any(fnmatchcase(k, name) for k in known), name
