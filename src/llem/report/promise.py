"""What a plan promises of N* and the loss at the target, and whether it was kept, in words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from llem._numerals import known, number, percent, significant

# 95 % of a normal distribution lie within so many standard errors.
STANDARD_ERRORS_95 = 1.96
THIS = "this budget"
# A factor beyond this promises nothing, whatever it is.
MOST_TOLD = 1000
# Of a plan's design: the expected error of log N*, from noise and from the law's own error.
PARTS = ("predicted_se_log_params", "law_error_log_params")


def log_factor(told: Mapping[str, Any], degrees: Any = None) -> float:
    """Log of the factor within which N* is promised at 95 %.

    degrees: of freedom by which the runs' scatter is known (`noise_degrees` of a plan; the normal
    quantile where there is none): while that is a guess, what comes of it may be larger too.
    """
    from llem.scaling.fitting.bootstrap import student_ratio

    noise, law = number(told.get(PARTS[0])), told.get(PARTS[1])
    if known(degrees):
        noise *= student_ratio(number(degrees), STANDARD_ERRORS_95)
    return STANDARD_ERRORS_95 * math.hypot(noise, number(law) if known(law) else 0.0)


def both(told: Mapping[str, Any], quantity: str = "log_params") -> float:
    """Standard error of `log_params` or `loss`: from noise and from the law's own error."""
    noise = number(told.get(f"predicted_se_{quantity}"))
    law = told.get(f"law_error_{quantity}")
    return math.hypot(noise, number(law) if known(law) else 0.0)


def factor(design: Mapping[str, Any]) -> float:
    """N* lies within this factor at 95 %, as a plan's `design` promises."""
    return math.exp(min(log_factor(design, design.get("noise_degrees")), 700.0))


def factor_text(log: float, *, digits: int = 3) -> str:
    """Of the log of a factor: `1.49`, or with two digits `1.5` but `1.13`; a dash where it is not
    known."""
    found = math.exp(min(log, 700.0))
    if found > MOST_TOLD:
        return f"more than {MOST_TOLD:.0f}"
    return significant(found, max(digits, 3) if found < 1.2 else digits)


def rows_of(design: Mapping[str, Any]) -> list[dict[str, str]]:
    """Half the budget, this plan, twice the budget; none where the plan promises nothing."""
    if not known(design.get(PARTS[0])):
        return []
    others = design.get("for_budget") or {}
    shares = sorted({1.0, *(float(share) for share in others)})
    rows = []
    for share in shares:
        told = design if share == 1.0 else others[f"{share:g}"]
        error = both(told)
        rows.append(
            {
                "budget": _share(share),
                "noise": significant(number(told[PARTS[0]]), 2),
                "law": significant(number(told.get(PARTS[1])), 2),
                "both": significant(error, 2),
                "factor": factor_text(log_factor(told, design.get("noise_degrees"))),
                "loss": significant(both(told, "loss"), 2),
            }
        )
    return rows


def kept_line(fit: Mapping[str, Any]) -> str:
    """Whether a fit knows N* at the target as well as the plan promised; empty where it did not."""
    promise, optima = fit.get("promise") or {}, fit.get("optima") or []
    if not optima or not known(promise.get(PARTS[0])):
        return ""
    params = number(optima[0]["params"])
    low, high = map(number, ((optima[0].get("ci") or {}).get("params") or (None, None)))
    within = log_factor(promise, promise.get("noise_degrees"))
    words = f"the plan expected N* within x/ {factor_text(within)}"
    if not (math.isfinite(params) and 0 < low <= high < math.inf):
        return f"{words}; the fit gives it no bounds"
    below, above = (significant(f, 3) for f in (params / low, high / params))
    side = factor_text(0.5 * math.log(high / low))
    words += f"; its interval is x/ {side} to a side: {below} times down and {above} times up"
    off = number((fit.get("residuals") or {}).get("median_abs"))
    noise = number(promise.get("noise"))
    in_log = (fit.get("estimator") or {}).get("space", "log") == "log"
    if in_log and math.isfinite(off) and math.isfinite(noise):
        # The median of |x| is .6745 standard deviations of a normal x.
        words += (
            f"; runs lie {percent(off / 0.6745, places=2)} off the law, "
            f"{percent(noise, places=2)} was assumed"
        )
    return words


def _share(share: float) -> str:
    return {0.5: "half the budget", 1.0: THIS, 2.0: "twice the budget"}.get(
        share, f"{share:g} times the budget"
    )
