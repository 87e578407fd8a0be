"""Numbers and tables as text."""

from __future__ import annotations

import math
from typing import Any

import pytest

from llem._numerals import (
    format_count,
    format_energy,
    format_flops,
    format_hours,
    format_interval,
    format_interval_of,
    format_si,
    percent,
    significant,
)
from llem.report.tables import answer, answer_at, far_lines, law_rows, optimum_rows


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
        (0.0042, "J", "4.20 mJ"),
        (0, "J", "0 J"),
        (-2e3, "W", "-2.00 kW"),
        (None, "J", "–"),
    ],
)
def test_si_prefixes(value: float | None, unit: str, text: str) -> None:
    assert format_si(value, unit) == text


@pytest.mark.parametrize(
    ("form", "value", "text"),
    [
        (format_count, 1.23e10, "12.3 B"),
        (format_count, 2.4e12, "2.40 T"),
        (format_count, 999_999, "1.00 M"),
        (format_flops, 1e24, "1e24"),
        (format_flops, 2.5e20, "2.5e20"),
        (format_energy, 3.6e6, "1.00 kWh"),
        (format_energy, 7.2e12, "2.00 GWh"),
        (format_hours, 1.5, "1.50 h"),
        (format_hours, 0.5, "30.0 min"),
        (format_hours, 1 / 3600, "1.00 s"),
        (format_hours, 12345.0, "12\u202f345 h"),
        (percent, 0.95, "95 %"),
        (percent, 0.999, "99.9 %"),
        (percent, 1.0, "100 %"),
        (percent, 0.5, "50 %"),
    ],
)
def test_units_of_people(form: object, value: float, text: str) -> None:
    assert form(value) == text  # type: ignore[operator]


def test_an_interval_says_its_unit_once() -> None:
    assert format_interval([1.2e9, 3.4e9], format_count) == "1.20 to 3.40 B"
    assert format_interval([9e8, 3.4e9], format_count) == "900 M to 3.40 B"
    assert format_interval([None, 3.4e9], format_count) == "–"


def test_an_end_that_bounds_nothing_is_told_in_words() -> None:
    """A resample that went astray may put it at 1e-86 parameters, or at 1e20 hours."""
    ends = [3.1e-86, 1.5e5]
    assert format_interval_of(7600, ends, format_count) == "up to 150 K, no lower bound"
    assert format_interval_of(11e6, [8.8e5, 1e83], format_count) == "880 K or more, no upper bound"
    assert format_interval_of(11e6, [1e-9, 1e83], format_count) == "no bound"
    assert format_interval_of(7600, [5e3, 9e3], format_count) == "5.00 to 9.00 K"
    assert format_interval_of(7600, [None, 9e3], format_count) == "–"


def test_no_loss_is_expected_below_zero(fit: dict[str, Any]) -> None:
    optimum = fit["optima"][0]
    optimum["ci"]["loss"] = [-0.1, 4.0]
    assert f"expected loss {significant(optimum['loss'], 4)} (0 to 4.000)" in answer(fit)


@pytest.mark.parametrize(
    ("qualities", "words"),
    [
        ({}, "energy"),
        ({"counter": 20}, "energy"),
        ({"model": 20}, "energy (estimated by a model, not measured)"),
        ({"model": 20, "none": 2}, "energy (estimated by a model, not measured)"),
        (
            {"counter": 15, "model": 5},
            "energy (estimated by a model in 5 of 20 runs, not measured)",
        ),
    ],
)
def test_joules_that_nobody_measured_are_told_to_be_estimated(
    fit: dict[str, Any], qualities: dict[str, int], words: str
) -> None:
    fit["energy_quality"] = qualities
    joules = format_energy(fit["optima"][0]["energy_j"])
    assert f", {words} {joules}" in answer(fit)


def test_the_answer_names_size_tokens_loss_energy_and_interval(fit: dict[str, Any]) -> None:
    text = answer(fit)
    assert text.startswith("For 1e18 FLOP: ")
    assert " parameters (95 %: " in text
    assert " tokens (" in text
    assert "expected loss 3." in text
    assert "kWh" in text
    assert text.endswith("of GPU time (13.9 to 13.9 h).")


def test_an_answer_far_beyond_the_data_says_so_in_its_first_words(fit: dict[str, Any]) -> None:
    text = answer_at(fit["optima"][1], level=0.95)
    assert text.startswith("For 1e24 FLOP, 3.33e6 times beyond the data: ")
    lines = far_lines(fit["optima"][1], level=0.95)
    assert lines[0].startswith("from the parameters alone, 95 %: N* ")
    assert lines[1].startswith("allowing for the law's own error, 95 %: N* ")
    assert far_lines(fit["optima"][0], level=0.95) == []


def test_a_target_without_an_optimum_is_answered_with_the_loss_or_the_reason(
    fit: dict[str, Any],
) -> None:
    optimum = fit["optima"][0] | {"params": None, "tokens": None, "warnings": ["no trade"]}
    assert answer_at(optimum, level=0.95).endswith("No trade.")
    optimum["loss"] = None
    assert answer_at(optimum, level=0.95) == "For 1e18 FLOP there is no answer: no trade."


def test_money_is_told_in_its_currency(fit: dict[str, Any]) -> None:
    money = {"money": 1234.5, "currency": "EUR"}
    optimum = fit["optima"][0] | money
    assert "1\u202f234 EUR" in answer_at(optimum, level=0.95)
    fit["optima"] = [optimum]
    assert optimum_rows(fit)[0]["money"] == "1\u202f234 EUR"


def test_tables_have_a_row_for_each_parameter_and_target(fit: dict[str, Any]) -> None:
    assert [row[0] for row in law_rows(fit)] == ["E", "A", "B", "alpha", "beta", "a", "b"]
    assert [row["target"] for row in optimum_rows(fit)] == ["1e18 FLOP", "1e24 FLOP", "5.00 kWh"]
    assert [row["far"] for row in optimum_rows(fit)] == ["", "!", ""]


def test_each_parameter_has_its_sandwich_error_and_why_it_is_not_identified(
    fit: dict[str, Any],
) -> None:
    fit["identified"]["B"] = False
    fit["identification"]["B"] = "half of it fits as well"
    rows = {row[0]: row for row in law_rows(fit)}
    assert rows["B"][4] == "not identified: half of it fits as well"
    assert rows["E"][3] == significant(fit["standard_errors"]["sandwich"]["E"], 2)
    assert rows["a"][3] == ""
