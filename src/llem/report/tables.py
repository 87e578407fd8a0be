"""Numbers as a person reads them, and the tables of a fit as plain rows of text.

Everything here takes the content of fit.json or observations.csv (None and NaN both mean "not
known") and returns text; nothing prints and nothing knows of HTML or terminals.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

UNKNOWN = "–"
JOULES_PER_WH = 3600.0
SI = ((1e24, "Y"), (1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"))
SI_SMALL = ((1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n"), (1e-12, "p"))
COUNTS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K"), (1.0, ""))
TERMINAL_WIDTH = 88


def number(value: Any) -> float:
    """A float, NaN for None and for what is not a number."""
    if value is None:
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def known(value: Any) -> bool:
    """Whether a value is a finite number."""
    return math.isfinite(number(value))


def significant(value: float, digits: int = 3) -> str:
    """`digits` significant digits without an exponent from 1e-4 to 1e7, with one beyond."""
    if not math.isfinite(value):
        return UNKNOWN
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(float(f"{value:.{digits - 1}e}"))))
    if not -4 <= size < 7:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        return f"{mantissa}e{int(exponent)}"
    return f"{value:.{max(digits - 1 - size, 0)}f}"


def _scaled(value: float, steps: Sequence[tuple[float, str]], digits: int) -> tuple[str, str]:
    """Mantissa and prefix of a finite value; rounding up to 1000 takes the next prefix."""
    if value == 0:
        return "0", ""
    for factor, prefix in steps:
        if abs(value) >= factor * (1 - 0.5 * 10**-digits):
            return significant(value / factor, digits), prefix
    factor, prefix = steps[-1]
    return significant(value / factor, digits), prefix


def format_si(value: Any, unit: str = "", *, digits: int = 3) -> str:
    """`1.23 MJ`: an SI prefix and `digits` significant digits; a dash when not known."""
    v = number(value)
    if not math.isfinite(v):
        return UNKNOWN
    mantissa, prefix = _scaled(v, (*SI, *SI_SMALL), digits)
    return f"{mantissa} {prefix}{unit}".strip()


def format_count(value: Any, *, digits: int = 3) -> str:
    """`12.3 B` for parameters and tokens (K, M, B = 1e9, T = 1e12)."""
    v = number(value)
    if not math.isfinite(v):
        return UNKNOWN
    if abs(v) >= 1e16:
        return significant(v, digits)
    mantissa, prefix = _scaled(v, COUNTS, digits)
    return f"{mantissa} {prefix}".strip()


def format_flops(value: Any) -> str:
    """`1e24` or `2.5e20`: FLOP in scientific form."""
    v = number(value)
    if not math.isfinite(v):
        return UNKNOWN
    mantissa, exponent = f"{v:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def format_energy(joules: Any) -> str:
    """`4.56 kWh` from J; below a kilowatt-hour `2.01 kJ`, which is what small runs are told in."""
    j = number(joules)
    return format_si(j, "J") if j < 1e3 * JOULES_PER_WH else format_si(j / JOULES_PER_WH, "Wh")


def format_hours(hours: Any) -> str:
    """GPU hours: `1 230 h`, below one hour in minutes or seconds."""
    v = number(hours)
    if not math.isfinite(v):
        return UNKNOWN
    if v >= 1e7:
        return f"{significant(v)} h"
    if v >= 1:
        return f"{_grouped(v)} h"
    if v * 60 >= 1:
        return f"{significant(v * 60)} min"
    return f"{significant(v * 3600)} s"


def format_duration(seconds: Any) -> str:
    """A duration from s."""
    return format_hours(number(seconds) / 3600)


def _grouped(value: float) -> str:
    text = significant(value)
    return f"{float(text):,.0f}".replace(",", "\u202f") if value >= 1000 else text


def percent(share: Any) -> str:
    """`95 %` from .95."""
    text = significant(100 * number(share))
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text} %"


def format_interval(interval: Sequence[Any] | None, form: Any = None) -> str:
    """`1.2 to 3.4 B`; a dash where an end is not known."""
    if interval is None or not all(known(v) for v in interval):
        return UNKNOWN
    write = significant if form is None else form
    low, high = (write(number(v)) for v in interval)
    # "1.2 to 3.4 B": the unit once, where both ends have the same.
    number_low, _, unit_low = low.partition(" ")
    if unit_low and high.endswith(f" {unit_low}"):
        low = number_low
    return f"{low} to {high}"


FORMS: dict[str, Any] = {
    "params": format_count,
    "tokens": format_count,
    "loss": lambda v: significant(number(v), 4),
    "energy_j": format_energy,
    "gpu_hours": format_hours,
}


def format_target(target: Mapping[str, Any]) -> str:
    """`1e24 FLOP`, `500 kWh`."""
    value, unit = number(target.get("value")), str(target.get("unit", ""))
    text = format_flops(value) if unit == "FLOP" else significant(value)
    return f"{text} {unit}".strip()


def answer(fit: Mapping[str, Any]) -> str:
    """The answer in a sentence, with its intervals: the first target of the fit."""
    optima = fit.get("optima") or []
    if not optima:
        return "The law is fitted; no target was given, so there is no optimum to name."
    return answer_at(optima[0], level=number(fit["ci"]["level"]))


def answer_at(optimum: Mapping[str, Any], *, level: float) -> str:
    """One optimum in a sentence."""
    target = format_target(optimum["target"])
    if not known(optimum["params"]):
        why = "; ".join(optimum.get("warnings") or []) or "not known"
        return f"For {target} there is no answer: {why}."
    ci = optimum.get("ci") or {}

    def part(name: str, what: str = "") -> str:
        text = f"{FORMS[name](optimum[name])}{what}"
        interval = format_interval(ci.get(name), FORMS[name])
        if interval == UNKNOWN:
            return text
        # The level is said once; the other brackets follow it.
        said = f"{percent(level)}: " if name == "params" else ""
        return f"{text} ({said}{interval})"

    words = (
        f"For {target}: {part('params', ' parameters')} on {part('tokens', ' tokens')}, "
        f"expected loss {part('loss')}"
    )
    words += (
        f", energy {part('energy_j')}"
        if known(optimum["energy_j"])
        else ", energy not known (not measured)"
    )
    if known(optimum["gpu_hours"]):
        words += f", {part('gpu_hours', ' of GPU time')}"
    return words + "."


def law_rows(fit: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """(name, value, interval, note) of each parameter and exponent of the law."""
    rows = []
    why = fit.get("identification") or {}
    identified = fit.get("identified") or {}
    for name, value in fit["params"].items():
        note = "" if identified.get(name, True) else f"not identified: {why.get(name, '')}"
        interval = format_interval(fit["ci"]["params"].get(name))
        rows.append((name, significant(number(value), 4), interval, note.rstrip(": ")))
    meaning = {"a": "N* grows as C^a", "b": "D* grows as C^b"}
    for name, value in fit["exponents"].items():
        interval = format_interval(fit["ci"]["exponents"].get(name))
        rows.append((name, significant(number(value), 4), interval, meaning.get(name, "")))
    return rows


def optimum_rows(fit: Mapping[str, Any]) -> list[dict[str, str]]:
    """One row for each target: text of value and interval for every quantity."""
    rows = []
    for optimum in fit.get("optima") or []:
        ci = optimum.get("ci") or {}
        beyond = number(optimum["extrapolation_ratio"])
        row = {
            "target": format_target(optimum["target"]),
            "flops": format_flops(optimum["flops"]),
            "beyond": UNKNOWN if math.isnan(beyond) else f"{_ratio(beyond)} x",
        }
        for name, form in FORMS.items():
            row[name] = form(optimum[name])
            row[f"{name}_ci"] = format_interval(ci.get(name), form)
        ratio = number(optimum["tokens"]) / (number(optimum["params"]) or math.nan)
        row["tokens_per_param"] = significant(ratio)
        rows.append(row)
    return rows


def _ratio(value: float) -> str:
    return significant(value) if value < 1e4 else format_flops(value)


def aligned(rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> list[str]:
    """Lines of a table in columns; those in `right` are aligned to the right."""
    if not rows:
        return []
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def summary_lines(fit: Mapping[str, Any]) -> list[str]:
    """A fit for the terminal: the answer, warnings, the law, the optima, the judgement."""
    lines = textwrap.wrap(answer(fit), TERMINAL_WIDTH)
    warnings = list(fit.get("warnings") or [])
    if warnings:
        lines.append("")
        for text in warnings:
            lines += textwrap.wrap(
                text, TERMINAL_WIDTH, initial_indent="warning: ", subsequent_indent="  "
            )
    estimator = fit["estimator"]
    judged = estimator["loss"]
    if known(estimator.get("delta")):
        judged += f" {number(estimator['delta']):g}"
    counted = f"{fit['n_observations']} observations of {fit['n_runs']} runs"
    level = percent(fit["ci"]["level"])
    lines += [
        "",
        f"{fit['formula']}   ({judged} on log loss, sum; {counted})",
        *aligned([("", "value", level, ""), *law_rows(fit)], right=(1,)),
    ]
    rows = optimum_rows(fit)
    if len(rows) > 1:
        head = ("target", "parameters", "tokens", "loss", "energy", "GPU time", "beyond data")
        keys = ("target", "params", "tokens", "loss", "energy_j", "gpu_hours", "beyond")
        lines += [
            "",
            *aligned([head, *(tuple(r[k] for k in keys) for r in rows)], right=range(1, 7)),
        ]
    lines += ["", *judgement_lines(fit)]
    return lines


def judgement_lines(fit: Mapping[str, Any]) -> list[str]:
    """How good the fit is, in plain sentences."""
    lines = []
    held_out = fit.get("held_out") or {}
    error = number(held_out.get("mean_abs_relative_error"))
    if math.isfinite(error):
        rows = held_out["rows"]
        which = "the row" if rows == 1 else f"the {rows} rows"
        lines.append(
            f"held out: {which} of the largest compute, predicted from the rest, "
            f"off by {significant(100 * error, 2)} % on average"
        )
    elif held_out.get("reason"):
        lines.append(f"held out: not possible ({held_out['reason']})")
    residuals = fit.get("residuals") or {}
    if known(residuals.get("median_abs")):
        lines.append(
            f"residuals of log loss: median {significant(number(residuals['median_abs']), 2)}, "
            f"largest {significant(number(residuals['max_abs']), 2)}"
        )
    starts = fit.get("starts") or {}
    if starts:
        lines.append(f"{starts['agreeing']} of {starts['tried']} starts found this minimum")
    excluded = fit.get("excluded") or []
    if excluded:
        names = ", ".join(str(e.get("run_id")) for e in excluded[:8])
        more = f" and {len(excluded) - 8} more" if len(excluded) > 8 else ""
        lines.append(f"left out: {names}{more}")
    return lines
