"""Numbers as text: one spelling of every amount, in all that llem says."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import llem
from llem import _numerals as numerals
from llem._numerals import (
    brief,
    format_amount,
    format_count,
    format_duration,
    format_energy,
    format_flops,
    format_gpu_hours,
    format_hours,
    format_interval,
    format_interval_of,
    format_money,
    format_si,
    format_times,
    percent,
    significant,
)
from llem.campaign import parse_budget


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1.8172181, "1.82"),
        (2143.4, "2143"),
        (999.6, "1000"),
        (0.0123456, "0.0123"),
        (1.5e-7, "1.5e-7"),
        (12345678.0, "1.23e7"),
        (math.nan, "–"),
    ],
)
def test_three_significant_digits(value: float, text: str) -> None:
    assert significant(value) == text


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (1.234e6, "J", "1.23 MJ"),
        (999.9e3, "J", "1.00 MJ"),
        (0.0042, "J", "4.2 mJ"),
        (0, "J", "0 J"),
        (-2e3, "W", "-2 kW"),
        (3.12e14, "FLOP/s", "312 TFLOP/s"),
        (None, "J", "–"),
    ],
)
def test_si_prefixes(value: float | None, unit: str, text: str) -> None:
    assert format_si(value, unit) == text


@pytest.mark.parametrize(
    ("form", "value", "text"),
    [
        (format_count, 1.23e10, "12.3 G"),
        (format_count, 2.402e12, "2.40 T"),
        (format_count, 10_000_000, "10 M"),
        (format_count, 9_999, "10.0 k"),
        (format_count, 999_999, "1.00 M"),
        (format_count, 512, "512"),
        (format_count, 6, "6"),
        (format_count, 3.25e17, "3.25e17"),
        (format_flops, 1e24, "1e24"),
        (format_flops, 2.5e20, "2.5e20"),
        (format_energy, 2010, "2.01 kJ"),
        (format_energy, 3.5004e6, "3.50 MJ"),
        (format_energy, 3.5999e6, "1.00 kWh"),
        (format_energy, 3.6e6, "1 kWh"),
        (format_energy, 7.2e12, "2 GWh"),
        (format_gpu_hours, 1.5, "1.5 GPUh"),
        (format_gpu_hours, 0.0816, "0.0816 GPUh"),
        (format_gpu_hours, 12345.0, "12,345 GPUh"),
        (format_hours, 12345.0, "12,345"),
        (format_duration, 0.02, "20 ms"),
        (format_duration, 1, "1 s"),
        (format_duration, 48.04, "48 s"),
        (format_duration, 750, "12.5 min"),
        (format_duration, 12345, "3 h 26 min"),
        (format_duration, 187_200, "2 d 4 h"),
        (format_duration, 15.7 * 86400, "15.7 d"),
        (format_times, 1.4512, "1.45"),
        (format_times, 641.2, "641"),
        (format_times, 3930.0, "3,930"),
        (format_times, 2.5e6, "2.5e6"),
        (format_money, 5000, "5,000"),
        (format_money, 0.123, "0.12"),
        (percent, 0.95, "95 %"),
        (percent, 0.999, "99.9 %"),
        (percent, 1.0, "100 %"),
        (percent, 0.5, "50 %"),
        (brief, 0.1, "0.1"),
        (brief, 128, "128"),
    ],
)
def test_units_of_people(form: Callable[[Any], str], value: float, text: str) -> None:
    assert form(value) == text


def test_shares_of_a_column_have_as_many_places_and_a_sign_where_one_is_asked_for() -> None:
    assert [percent(v, places=1) for v in (0.5, 0.0123)] == ["50.0 %", "1.2 %"]
    assert [percent(v, places=0, signed=True) for v in (-0.25, 0.4)] == ["-25 %", "+40 %"]


@pytest.mark.parametrize(
    "form",
    [format_si, format_count, format_flops, format_energy, format_gpu_hours, format_hours,
     format_duration, format_money, percent],
)  # fmt: skip
def test_what_is_not_known_is_a_dash_whoever_tells_it(form: Callable[[Any], str]) -> None:
    assert form(None) == form(math.nan) == "–"


def test_money_names_its_currency() -> None:
    assert format_money(1234.5, "EUR") == "1,234 EUR"
    assert format_money(None, "EUR") == "–"


@given(
    st.floats(1e-3, 1e30).map(lambda v: float(f"{v:.3e}")),
    st.sampled_from(["FLOP", "GPUh", "node-h", "kWh", "EUR"]),
)
def test_a_budget_that_is_told_can_be_typed_again(value: float, unit: str) -> None:
    again = parse_budget(format_amount(value, unit))
    assert again.unit == unit and again.value == pytest.approx(value, rel=1e-9)


@given(st.floats(1e-12, 1e24))
def test_the_text_of_a_number_is_the_number_to_three_digits(value: float) -> None:
    factors = {p: f for f, p in (*numerals.SI, *numerals.SI_SMALL)}
    mantissa, _, prefix = format_si(value).partition(" ")
    assert float(mantissa) * factors[prefix] == pytest.approx(value, rel=5.1e-3)


def test_an_interval_says_its_unit_once() -> None:
    assert format_interval([1.204e9, 3.4e9], format_count) == "1.20 to 3.4 G"
    assert format_interval([9e8, 3.4e9], format_count) == "900 M to 3.4 G"
    assert format_interval([None, 3.4e9], format_count) == "–"


def test_an_end_that_bounds_nothing_is_told_in_words() -> None:
    """A resample that went astray may put it at 1e-86 parameters, or at 1e20 hours."""
    ends = [3.1e-86, 1.5e5]
    assert format_interval_of(7600, ends, format_count) == "up to 150 k, no lower bound"
    assert format_interval_of(11e6, [8.8e5, 1e83], format_count) == "880 k or more, no upper bound"
    assert format_interval_of(11e6, [1e-9, 1e83], format_count) == "no bound"
    assert format_interval_of(7600, [5e3, 9e3], format_count) == "5 to 9 k"
    assert format_interval_of(7600, [None, 9e3], format_count) == "–"


# What a sentence may not be written with, since this module has a spelling for it.
OTHERS = {
    "a share: percent": r"\.\d%\}",
    "FLOP with Python's exponent: format_flops": r"\.\dg\} FLOP",
    "times with Python's exponent: format_times": r"\.\dg\} times",
    "GPU-hours behind a number: format_gpu_hours": r"\} (GPU-hours|GPU-h|device-hours|GPU hours)\b",
    "energy that may be great: format_energy": r"format_si\([^()/]*energy_j, ['\"]J",
    "a billion: format_count": r"/ 1e9:[^}]*\} (B|G|GB)\b",
}


def test_no_other_module_spells_a_number_in_its_own_way() -> None:
    found = [
        f"{path}:{number}: {what}"
        for path in sorted(Path(llem.__file__).parent.rglob("*.py"))
        if path.name != "_numerals.py"
        for number, line in enumerate(path.read_text().splitlines(), 1)
        for what, wrong in OTHERS.items()
        if re.search(wrong, line)
    ]
    assert not found, "\n".join(found)
