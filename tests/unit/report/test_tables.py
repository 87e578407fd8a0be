"""Numbers and tables as text."""

from __future__ import annotations

from typing import Any

import pytest

from llem._numerals import (
    format_energy,
    significant,
)
from llem.report.tables import answer, answer_at, far_lines, law_rows, optimum_rows


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
    assert text.endswith(" GPUh (13.9 to 13.9 GPUh).")


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
    assert "1,234 EUR" in answer_at(optimum, level=0.95)
    fit["optima"] = [optimum]
    assert optimum_rows(fit)[0]["money"] == "1,234 EUR"


def test_tables_have_a_row_for_each_parameter_and_target(fit: dict[str, Any]) -> None:
    assert [row[0] for row in law_rows(fit)] == ["E", "A", "B", "alpha", "beta", "a", "b"]
    assert [row["target"] for row in optimum_rows(fit)] == ["1e18 FLOP", "1e24 FLOP", "5 kWh"]
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
