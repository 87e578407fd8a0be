"""Numbers as a person reads them, and the tables of a fit as plain rows of text.

Everything here takes the content of fit.json or observations.csv (None and NaN both mean "not
known") and returns text; nothing prints and nothing knows of HTML or terminals.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

UNKNOWN = "–"
JOULES_PER_WH = 3600.0
SI = ((1e24, "Y"), (1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"))
SI_SMALL = ((1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n"), (1e-12, "p"))
COUNTS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K"), (1.0, ""))
# An end of an interval this many times away from its value bounds nothing.
NO_BOUND = 1e4
# What `llem.scaling` says of a target far beyond the data.
TOO_FAR = "times the largest compute observed"


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


def format_days(seconds: Any) -> str:
    """A long duration from s: as `format_duration` up to four days, `15.7 d` beyond."""
    days = number(seconds) / 86400
    return format_duration(seconds) if not days >= 4 else f"{_grouped(days)} d"


def _grouped(value: float) -> str:
    text = significant(value)
    return f"{float(text):,.0f}".replace(",", "\u202f") if value >= 1000 else text


def percent(share: Any) -> str:
    """`95 %` from .95."""
    text = significant(100 * number(share))
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text} %"


def far_apart(interval: Sequence[Any] | None, value: Any) -> tuple[bool, bool]:
    """Whether the low and the high end lie more than `NO_BOUND` times away from a positive value:
    so far out an end is where the resamples went astray, and no bound."""
    middle = number(value)
    low, high = (number(end) for end in interval or (math.nan, math.nan))
    if not middle > 0:
        return False, False
    return low < middle / NO_BOUND, high > middle * NO_BOUND


def format_interval_of(value: Any, interval: Sequence[Any] | None, form: Any = None) -> str:
    """`format_interval` of a positive value, in words where it has no bound that says anything."""
    below, above = far_apart(interval, value)
    if not (below or above):
        return format_interval(interval, form)
    if interval is None or not all(known(end) for end in interval):
        return UNKNOWN
    write = significant if form is None else form
    low, high = (write(number(end)) for end in interval)
    if below and above:
        return "no bound"
    return f"up to {high}, no lower bound" if below else f"{low} or more, no upper bound"


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


def format_money(value: Any) -> str:
    """`5 000`: an amount of money, without its currency."""
    v = number(value)
    if not math.isfinite(v):
        return UNKNOWN
    return significant(v) if abs(v) >= 1e7 else _grouped(v) if v >= 1 else significant(v, 2)


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
    return answer_at(optima[0], level=number(fit["ci"]["level"]), energy=energy_word(fit))


def energy_word(fit: Mapping[str, Any]) -> str:
    """`energy`, or what stands in its place where a model told all or some of it."""
    qualities = fit.get("energy_quality") or {}
    estimated = int(qualities.get("model") or 0)
    # Runs without any energy took no part in its law.
    rows = sum(int(count) for name, count in qualities.items() if name != "none")
    if not estimated:
        return "energy"
    of = "" if estimated == rows else f" in {estimated} of {rows} runs"
    return f"energy (estimated by a model{of}, not measured)"


def answer_at(optimum: Mapping[str, Any], *, level: float, energy: str = "energy") -> str:
    """One optimum in a sentence; `energy` names what its joules are."""
    target = format_target(optimum["target"])
    if is_far(optimum):
        target += f", {ratio(optimum['extrapolation_ratio'])} times beyond the data"
    ci = optimum.get("ci") or {}
    reasons = [text for text in optimum.get("warnings") or [] if TOO_FAR not in text]
    why = "; ".join(reasons) or "not known"
    said = False

    def part(name: str, what: str = "") -> str:
        nonlocal said
        text = f"{FORMS[name](optimum[name])}{what}"
        interval = _interval(optimum, name)
        if interval == UNKNOWN:
            return text
        # The level is said once; the other brackets follow it.
        head = "" if said else f"{percent(level)}: "
        said = True
        return f"{text} ({head}{interval})"

    if not known(optimum["params"]):
        if known(optimum["loss"]):
            return f"For {target}: expected loss {part('loss')}. {_sentence(why)}"
        return f"For {target} there is no answer: {why}."
    words = (
        f"For {target}: {part('params', ' parameters')} on {part('tokens', ' tokens')}, "
        f"expected loss {part('loss')}"
    )
    words += (
        f", {energy} {part('energy_j')}"
        if known(optimum["energy_j"])
        else ", energy not known (not measured)"
    )
    if known(optimum["gpu_hours"]):
        words += f", {part('gpu_hours', ' of GPU time')}"
    if known(optimum.get("money")):
        interval = format_interval_of(optimum["money"], ci.get("money"), format_money)
        words += f", {format_money(optimum['money'])} {optimum.get('currency') or ''}".rstrip()
        words += "" if interval == UNKNOWN else f" ({interval})"
    return words + "."


def _interval(optimum: Mapping[str, Any], name: str) -> str:
    """The interval of one of `FORMS`; a loss cannot lie below zero, whatever is allowed for."""
    interval = (optimum.get("ci") or {}).get(name)
    if name == "loss":
        interval = [max(0.0, number(end)) if known(end) else end for end in interval or ()] or None
        return format_interval(interval, FORMS[name])
    return format_interval_of(optimum.get(name), interval, FORMS[name])


def is_far(optimum: Mapping[str, Any]) -> bool:
    """Whether the target lies so far beyond the data that its figures are no evidence."""
    return any(TOO_FAR in text for text in optimum.get("warnings") or [])


def far_lines(optimum: Mapping[str, Any], *, level: float) -> list[str]:
    """Of a target far beyond the data: both intervals, and what the wider one allows for."""
    allowance = optimum.get("allowance")
    if not allowance:
        return []
    lines = []
    for words, key in (
        ("from the parameters alone", "ci_parameters"),
        ("allowing for the law's own error", "ci"),
    ):
        ci = optimum.get(key) or {}
        parts = [
            f"{symbol} {interval}"
            for symbol, name in (("N*", "params"), ("D*", "tokens"), ("loss", "loss"))
            if (interval := _interval({**optimum, "ci": ci}, name)) != UNKNOWN
        ]
        if parts:
            lines.append(f"{words}, {percent(level)}: {', '.join(parts)}")
    return lines


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def law_rows(fit: Mapping[str, Any]) -> list[tuple[str, str, str, str, str]]:
    """(name, value, interval, standard error, note) of each parameter and exponent of the law."""
    rows = []
    why = fit.get("identification") or {}
    identified = fit.get("identified") or {}
    errors = (fit.get("standard_errors") or {}).get("sandwich") or {}
    for name, value in fit["params"].items():
        note = "" if identified.get(name, True) else f"not identified: {why.get(name, '')}"
        interval = format_interval((fit["ci"].get("params") or {}).get(name))
        error = significant(number(errors.get(name)), 2)
        rows.append((name, significant(number(value), 4), interval, error, note.rstrip(": ")))
    meaning = {"a": "N* grows as C^a", "b": "D* grows as C^b"}
    for name, value in (fit.get("exponents") or {}).items():
        interval = format_interval((fit["ci"].get("exponents") or {}).get(name))
        rows.append((name, significant(number(value), 4), interval, "", meaning.get(name, "")))
    return rows


def optimum_rows(fit: Mapping[str, Any]) -> list[dict[str, str]]:
    """One row for each target: text of value and interval for every quantity.

    `far` is "!" where the target lies so far beyond the data that no figure is evidence.
    """
    rows = []
    for optimum in fit.get("optima") or []:
        ci = optimum.get("ci") or {}
        beyond = number(optimum["extrapolation_ratio"])
        row = {
            "target": format_target(optimum["target"]),
            "flops": format_flops(optimum["flops"]),
            "beyond": UNKNOWN if math.isnan(beyond) else f"{ratio(beyond)} x",
            "far": "!" if is_far(optimum) else "",
        }
        for name, form in FORMS.items():
            row[name] = form(optimum[name])
            row[f"{name}_ci"] = _interval(optimum, name)
        row["money"] = format_money(optimum.get("money"))
        if row["money"] != UNKNOWN:
            row["money"] = f"{row['money']} {optimum.get('currency') or ''}".rstrip()
        row["money_ci"] = format_interval_of(optimum.get("money"), ci.get("money"), format_money)
        tokens_each = number(optimum["tokens"]) / (number(optimum["params"]) or math.nan)
        row["tokens_per_param"] = significant(tokens_each)
        rows.append(row)
    return rows


def ratio(value: Any) -> str:
    """A ratio to the data: `77.2`, `2.5e6`."""
    v = number(value)
    return significant(v) if v < 1e4 else format_flops(v)


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
