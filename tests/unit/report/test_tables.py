"""Numbers and tables as text."""

from __future__ import annotations

import math

import pytest

from llem.report.tables import (
    answer,
    format_count,
    format_energy,
    format_flops,
    format_hours,
    format_interval,
    format_si,
    law_rows,
    optimum_rows,
    percent,
    significant,
    summary_lines,
)

from .campaigns import fit_json, observations


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


def test_the_answer_names_size_tokens_loss_energy_and_interval() -> None:
    text = answer(fit_json(observations()))
    assert text.startswith("For 1e18 FLOP: ")
    assert " parameters (95 %: " in text
    assert " tokens (" in text
    assert "expected loss 3." in text
    assert "kWh" in text
    assert text.endswith("of GPU time (13.9 to 13.9 h).")


def test_tables_have_a_row_for_each_parameter_and_target() -> None:
    fit = fit_json(observations())
    assert [row[0] for row in law_rows(fit)] == ["E", "A", "B", "alpha", "beta", "a", "b"]
    assert [row["target"] for row in optimum_rows(fit)] == ["1e18 FLOP", "1e24 FLOP", "5.00 kWh"]


def test_the_summary_says_warnings_law_optima_and_what_was_left_out() -> None:
    text = "\n".join(summary_lines(fit_json(observations())))
    assert "warning: at 1e24 FLOP" in text
    assert "L(N, D) = E + A/N^alpha + B/D^beta" in text
    assert "held out" in text
    assert "left out: run-03, run-11, run-17" in text
    assert max(len(line) for line in text.splitlines()) < 120


def test_a_fit_without_intervals_or_energy_still_reads_well() -> None:
    fit = fit_json(observations(), bootstrap=0)
    for optimum in fit["optima"]:
        optimum["energy_j"] = optimum["gpu_hours"] = None
    text = " ".join(summary_lines(fit))
    assert "energy not known (not measured)" in text
    assert "nan" not in text.lower()
    assert "None" not in text
