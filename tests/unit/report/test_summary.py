"""A fit told in the terminal."""

from __future__ import annotations

from typing import Any

import pytest

from llem.report.summary import (
    comparison_lines,
    definitions_line,
    energy_lines,
    quality_line,
    summary_lines,
)

from .campaigns import fit_json


def told(fit: dict[str, Any]) -> str:
    return "\n".join(summary_lines(fit))


def words(fit: dict[str, Any]) -> str:
    return " ".join(told(fit).split())


def test_it_says_the_answer_then_its_quality_then_warnings_then_the_law(
    fit: dict[str, Any],
) -> None:
    places = [
        words(fit).index(s)
        for s in (
            "For 1e18 FLOP",
            "held out, within",
            "warning: at 1e24",
            "L(N, D) =",
            "certificate",
        )
    ]
    assert places == sorted(places)


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_lines_are_as_wide_as_the_terminal_and_say_the_same(
    fit: dict[str, Any], width: int
) -> None:
    lines = summary_lines(fit, width=width)
    assert width - 20 < max(map(len, lines)) <= width
    said, plain = (set(" ".join(found).split()) for found in (lines, summary_lines(fit)))
    # A table that has no room becomes a paragraph for each row: colons and commas are new there.
    bare = ({word.rstrip(",:") for word in found} for found in (said, plain))
    assert next(bare) ^ next(bare) <= {"target", ""}


def test_what_goes_to_a_file_or_a_pipe_is_not_folded(fit: dict[str, Any]) -> None:
    lines = summary_lines(fit)
    assert max(map(len, lines)) > 160
    assert sum(line.startswith("warning: ") for line in lines) == len(
        [line for line in lines if "warning: " in line]
    )


def test_a_target_far_beyond_the_data_has_a_warning_and_both_intervals(
    fit: dict[str, Any],
) -> None:
    text = words(fit)
    assert text.count("a law fitted to small runs is not evidence") == 2
    assert "from the parameters alone, 95 %: N* " in text
    assert "allowing for the law's own error, 95 %: N* " in text
    row = next(line for line in summary_lines(fit) if line.startswith("1e24 FLOP"))
    assert row.count("!") == 6


def test_it_certifies_the_minimum(fit: dict[str, Any]) -> None:
    starts = fit["starts"]
    assert f"{starts['agreeing']} of {starts['tried']} starts end here" in words(fit)
    assert f"objective {fit['objective']:.10g}" in words(fit)


def test_the_headline_of_quality_is_what_was_held_out_and_left_out(fit: dict[str, Any]) -> None:
    assert quality_line(fit).startswith("The law predicts the 6 rows of the largest compute, held")
    assert "each budget, left out in turn, within" in quality_line(fit)
    fit["leave_one_out"]["mean_abs_relative_error"] = None
    fit["held_out"] = {"mean_abs_relative_error": None, "reason": "too few runs remain"}
    assert quality_line(fit) == "Nothing could be held out: too few runs remain."


def test_other_choices_are_told_as_the_range_of_what_they_answer(fit: dict[str, Any]) -> None:
    assert "choices a from 0.4" in words(fit)
    assert "N* at 1e18 FLOP from 7" in words(fit)


def test_parameters_that_the_data_do_not_tell_are_named_once_with_the_reason(
    fit: dict[str, Any],
) -> None:
    fit["identified"]["B"] = False
    fit["identification"]["B"] = "half of it fits as well"
    fit["warnings"].append("B is not identified: half of it fits as well")
    assert words(fit).count("half of it fits as well") == 1
    assert "warning: not identified: B (half of it fits as well)" in words(fit)


def test_ways_to_count_are_told_only_where_they_change_the_answer(fit: dict[str, Any]) -> None:
    assert definitions_line(fit) == ""
    fit["definitions"][1]["optimum"]["params"] *= 1.5
    assert "total N with C as 6ND: a = " in definitions_line(fit)


def test_the_energy_optimum_stands_beside_the_flop_optimal_one(fit: dict[str, Any]) -> None:
    assert energy_lines(fit) == [
        "for 1e18 FLOP, 1e24 FLOP, 5 kWh the FLOP-optimal model is also that of least energy"
    ]
    fit["optima"][0]["equal_loss"] |= {"params_ratio": 0.7, "energy_saving": 0.034}
    fit["optima"][2]["flop_optimal"] |= {"params_ratio": 1.3, "loss_difference": 0.0021}
    least, budget, same = energy_lines(fit)
    assert "0.700 times the size, takes least energy" in least
    assert "less by 3.4 %" in least
    assert "1.30 times the size, and a loss higher by 0.0021" in budget
    assert same == "for 1e24 FLOP the FLOP-optimal model is also that of least energy"


def test_what_was_left_out_is_named(fit: dict[str, Any]) -> None:
    assert "left out run-03, run-11, run-17" in words(fit)


def test_a_fit_without_intervals_or_energy_still_reads_well(rows: list[dict[str, Any]]) -> None:
    fit = fit_json(rows, bootstrap=0)
    for optimum in fit["optima"]:
        optimum["energy_j"] = optimum["gpu_hours"] = None
    text = words(fit)
    assert "energy not known (not measured)" in text
    assert "nan" not in text.lower()
    assert "None" not in text


def test_laws_are_compared_best_first() -> None:
    entry = {"leave_one_out": 0.01, "objective": 1e-3, "parameters": 5, "exponents": None}
    found = {
        "laws": [
            {"law": "worse", "held_out": 0.03, **entry},
            {"law": "better", "held_out": 0.02, **entry, "exponents": {"a": 0.5}},
            {"law": "not judged", "held_out": None, **entry, "identified": {"E": False}},
        ],
        "best": "better",
        "note": "chance",
    }
    lines = comparison_lines(found)
    assert [line.split("  ")[0] for line in lines[1:4]] == ["better", "worse", "not judged"]
    assert "5 (1 not identified)" in lines[3]
    assert lines[5].startswith("better predicts the largest compute best.")
