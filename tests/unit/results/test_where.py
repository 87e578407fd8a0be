"""What `--where` understands, and that it is never run as code."""

from __future__ import annotations

import contextlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llem.errors import InputError
from llem.results.tables.where import parse_where

KINDS = {"run_id": "str", "status": "str", "params": "int", "loss": "float", "reason": "str"}
ROWS = [
    {"run_id": "a", "status": "completed", "params": 1_000_000, "loss": 2.5, "reason": ""},
    {"run_id": "b", "status": "completed", "params": 20_000_000, "loss": 2.1, "reason": ""},
    {"run_id": "c", "status": "diverged", "params": 20_000_000, "loss": math.nan,
     "reason": "loss is NaN at step 7"},
    {"run_id": "d", "status": "missing", "params": None, "loss": math.nan, "reason": "none"},
]  # fmt: skip


def those(text: str) -> str:
    test = parse_where(text, KINDS, words={"status": ("completed", "diverged", "missing")})
    return "".join(row["run_id"] for row in ROWS if test(row))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("params>1e6", "bc"),
        ("params >= 1M and status = completed", "ab"),
        ("params=20000000 and not status=completed", "c"),
        ("status=missing or loss<2.2", "bd"),
        ("loss<3 and params>5M or status=missing", "bd"),
        ("loss<3 and (params>5M or status=missing)", "b"),
        ("NOT (params=20M)", "ad"),
        ("loss=unknown", "cd"),
        ("loss != unknown", "ab"),
        ("loss!=2.5", "b"),  # an unknown loss differs from nothing
        ("reason~'step 7'", "c"),
        ('reason = "loss is NaN at step 7"', "c"),
        ("run_id!=a", "bcd"),
        ("loss>-1", "ab"),
        ("params==.001G", "a"),
    ],
)
def test_expressions(text, wanted):
    assert those(text) == wanted


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected a field"),
        ("parms>1", "did you mean 'params'?"),
        ("status=complete", "did you mean 'completed'?"),
        ("loss<low", "'low' is none"),
        ("loss~2", "has no ~"),
        ("status<completed", "use =, != or ~"),
        ("loss", "after 'loss'"),
        ("loss<", "expected a value"),
        ("(loss<3", "a bracket is not closed"),
        ("loss<3 params>1", "expected `and` or `or`"),
        ("loss<3)", "expected `and` or `or`"),
        ("__import__('os').system('true')", "expected ="),
        ("loss<3 and 'quoted'=2", "expected a field"),
        ("reason='open", "is not understood"),
        ("(" * 200 + "loss<3" + ")" * 200, "brackets in one another"),
        ("not " * 300 + "loss<3", "brackets in one another"),
    ],
)
def test_what_is_not_understood_is_told(text, said):
    with pytest.raises(InputError) as caught:
        those(text)
    assert said in str(caught.value)


def test_all_wrong_fields_are_told_at_once():
    with pytest.raises(InputError) as caught:
        those("parms>1 and los<2 or seed=1")
    assert len(caught.value.faults) == 3


@given(st.text(alphabet="lospramtu<>=!~()'\" 1e6.andornt_", max_size=40))
def test_any_text_is_a_test_or_an_input_error(text):
    with contextlib.suppress(InputError):
        those(text)
