"""The tables of a fit as plain rows of text.

Everything here takes the content of fit.json or observations.csv (None and NaN both mean "not
known") and returns text; nothing prints and nothing knows of HTML or terminals. Numbers are spelt
by `llem._numerals`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from llem._numerals import (
    UNKNOWN,
    format_amount,
    format_count,
    format_energy,
    format_flops,
    format_gpu_hours,
    format_interval,
    format_interval_of,
    format_money,
    format_times,
    known,
    number,
    percent,
    significant,
)

# What `llem.scaling` says of a target far beyond the data.
TOO_FAR = "times the largest compute observed"


FORMS: dict[str, Any] = {
    "params": format_count,
    "tokens": format_count,
    "loss": lambda v: significant(number(v), 4),
    "energy_j": format_energy,
    "gpu_hours": format_gpu_hours,
}


def format_target(target: Mapping[str, Any]) -> str:
    """`1e24 FLOP`, `500 kWh`."""
    return format_amount(target.get("value"), str(target.get("unit", "")))


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
        target += f", {format_times(optimum['extrapolation_ratio'])} times beyond the data"
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
        words += f", {part('gpu_hours')}"
    if known(optimum.get("money")):
        interval = format_interval_of(optimum["money"], ci.get("money"), format_money)
        words += f", {format_money(optimum['money'], optimum.get('currency'))}"
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
            "beyond": UNKNOWN if math.isnan(beyond) else f"{format_times(beyond)} x",
            "far": "!" if is_far(optimum) else "",
        }
        for name, form in FORMS.items():
            row[name] = form(optimum[name])
            row[f"{name}_ci"] = _interval(optimum, name)
        row["money"] = format_money(optimum.get("money"), optimum.get("currency"))
        row["money_ci"] = format_interval_of(optimum.get("money"), ci.get("money"), format_money)
        tokens_each = number(optimum["tokens"]) / (number(optimum["params"]) or math.nan)
        row["tokens_per_param"] = significant(tokens_each)
        rows.append(row)
    return rows


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
