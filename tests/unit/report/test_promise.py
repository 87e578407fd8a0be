"""What a plan promised of N*, beside what the fit found."""

import math

import pytest

from llem.report.promise import factor, kept_line
from llem.report.summary import detail_lines

PROMISE = {"predicted_se_log_params": math.log(1.2) / 1.96, "law_error_log_params": None,
           "noise": 0.005}  # fmt: skip


def found(*, ci=(100.0, 400.0), promise=PROMISE, space="log"):
    return {
        "promise": promise, "estimator": {"space": space},
        "optima": [{"params": 200.0, "ci": {"params": ci}}],
        "residuals": {"median_abs": 0.006745, "max_abs": 0.02},
    }  # fmt: skip


def test_a_promise_stands_beside_what_was_found():
    assert kept_line(found()) == (
        "the plan expected N* within x/ 1.20; its interval is x/ 2.00 to a side: 2.00 times down "
        "and 2.00 times up; runs lie 1.00 % off the law, 0.50 % was assumed"
    )
    # An interval to one side alone is as wide as one to both.
    assert "x/ 2.00 to a side: 1.00 times down and 4.00 times up" in kept_line(found(ci=(200, 800)))


def test_the_law_s_own_error_is_part_of_the_promise():
    error = {**PROMISE, "law_error_log_params": 0.3}
    both = math.exp(1.96 * math.hypot(math.log(1.2) / 1.96, 0.3))
    assert kept_line(found(promise=error)).startswith(f"the plan expected N* within x/ {both:.2f};")


def test_a_scatter_that_is_a_guess_is_allowed_to_be_larger():
    # Student's quantile for four degrees of freedom is 2.776; the law's own error has none.
    few = {**PROMISE, "noise_degrees": 4}
    assert kept_line(found(promise=few)).startswith(
        f"the plan expected N* within x/ {1.2 ** (2.776 / 1.96):.2f};"
    )
    both = {**few, "law_error_log_params": 0.3}
    within = math.exp(math.hypot(2.776 / 1.96 * math.log(1.2), 1.96 * 0.3))
    assert kept_line(found(promise=both)).startswith(
        f"the plan expected N* within x/ {within:.2f};"
    )
    assert factor({**both, "noise_degrees": 1e6}) < factor(both)


@pytest.mark.parametrize("ci", [None, (None, None), (0.0, 400.0), (100.0, math.inf)])
def test_an_answer_without_bounds_keeps_no_promise(ci):
    assert kept_line(found(ci=ci)).endswith("; the fit gives it no bounds")


def test_residuals_that_are_no_shares_are_not_compared():
    assert "off the law" not in kept_line(found(space="nats"))


@pytest.mark.parametrize("promise", [None, {"predicted_se_log_params": None}])
def test_where_nothing_was_promised_nothing_is_told(promise):
    assert kept_line(found(promise=promise)) == ""


def test_the_terminal_tells_it(fit):
    assert "promise" not in dict(detail_lines(fit))
    assert dict(detail_lines({**fit, "promise": PROMISE}))["promise"].startswith(
        "the plan expected"
    )
