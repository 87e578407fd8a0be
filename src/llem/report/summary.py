"""A fit told in the terminal, and the sentences on its quality that the page shares."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llem.report.tables import (
    FORMS,
    TOO_FAR,
    UNKNOWN,
    aligned,
    answer,
    far_lines,
    format_count,
    format_flops,
    format_interval,
    format_target,
    is_far,
    known,
    law_rows,
    number,
    optimum_rows,
    percent,
    significant,
)

TERMINAL_WIDTH = 96
LABEL_WIDTH = 13
NAMES_SHOWN = 8


def summary_lines(fit: Mapping[str, Any]) -> list[str]:
    """A fit for the terminal: the answer, its quality, warnings, the law, what else was found."""
    lines = _wrapped(answer(fit))
    quality = quality_line(fit)
    if quality:
        lines += _wrapped(quality)
    lines += _warning_lines(fit)
    lines += ["", *_law_lines(fit)]
    rows = optimum_rows(fit)
    if len(rows) > 1:
        lines += ["", *_optimum_lines(rows)]
    lines.append("")
    for label, text in detail_lines(fit):
        lines += textwrap.wrap(
            text,
            TERMINAL_WIDTH,
            initial_indent=label.ljust(LABEL_WIDTH),
            subsequent_indent=" " * LABEL_WIDTH,
        )
    return lines


def quality_line(fit: Mapping[str, Any]) -> str:
    """The headline of quality: what the law predicts of runs that it was not fitted to."""
    held_out, left_out = fit.get("held_out") or {}, fit.get("leave_one_out") or {}
    parts = []
    error = number(held_out.get("mean_abs_relative_error"))
    if math.isfinite(error):
        rows = held_out["rows"]
        which = "the row" if rows == 1 else f"the {rows} rows"
        parts.append(f"{which} of the largest compute, held out, within {_per_cent(error)}")
    error = number(left_out.get("mean_abs_relative_error"))
    if math.isfinite(error):
        parts.append(f"each budget, left out in turn, within {_per_cent(error)}")
    if parts:
        return f"The law predicts {' and '.join(parts)} on average."
    reason = held_out.get("reason")
    return f"Nothing could be held out: {reason}." if reason else ""


def detail_lines(fit: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(label, sentence) of all that stands behind the answer."""
    yield "certificate", certificate_line(fit)
    residuals = fit.get("residuals") or {}
    if known(residuals.get("median_abs")):
        worst = residuals.get("worst") or []
        name = f" ({worst[0]['run_id']})" if worst else ""
        yield (
            "residuals",
            f"median {_per_cent(number(residuals['median_abs']))}, "
            f"largest {_per_cent(number(residuals['max_abs']))}{name}",
        )
    for label, text in (
        ("choices", choices_line(fit)),
        ("definitions", definitions_line(fit)),
        ("isoFLOP", isoflop_line(fit)),
    ):
        if text:
            yield label, text
    for text in energy_lines(fit):
        yield "energy", text
    account = fit.get("checkpoints")
    if account:
        yield (
            "checkpoints",
            f"{account['kept']} of {account['rows']} rows are fitted; each "
            f"{account.get('weights', 'run')} has the same weight",
        )
    excluded = fit.get("excluded") or []
    if excluded:
        names = ", ".join(str(e.get("run_id")) for e in excluded[:NAMES_SHOWN])
        more = f" and {len(excluded) - NAMES_SHOWN} more" if len(excluded) > NAMES_SHOWN else ""
        yield "left out", f"{names}{more}"


def certificate_line(fit: Mapping[str, Any]) -> str:
    """What shows that the minimiser reached the minimum."""
    starts = fit.get("starts") or {}
    words = (
        f"objective {number(fit['objective']):.10g}, gradient {number(fit['gradient_norm']):.1e}, "
        f"smallest eigenvalue {significant(number(fit['smallest_eigenvalue']), 2)}"
    )
    if starts:
        words += f", {starts['agreeing']} of {starts['tried']} starts end here"
    return words


def choices_line(fit: Mapping[str, Any]) -> str:
    """How far other choices move the exponent and the optimal size; empty where none is known."""
    from llem.report.choices import choices, reference_flops

    others = [c for c in choices(fit) if math.isfinite(c.a)]
    if len(others) < 2:
        return ""
    a = [c.a for c in others]
    words = f"a from {significant(min(a))} to {significant(max(a))}"
    sizes = [c.params for c in others if math.isfinite(c.params)]
    if sizes:
        interval = format_interval([min(sizes), max(sizes)], format_count)
        words += f", N* at {format_flops(reference_flops(fit))} FLOP from {interval}"
    return f"{words}, over {len(others) - 1} other choices of loss function and rows"


def definitions_line(fit: Mapping[str, Any]) -> str:
    """The answer under other ways to count N and C; empty where there is only one."""
    entries = fit.get("definitions") or []
    if len(entries) < 2:
        return ""
    parts = [
        f"{definition_name(e)} a = {significant(number(e['exponents']['a']))}, "
        f"N* {format_count(e['optimum']['params'])}"
        for e in entries
    ]
    return f"{'; '.join(parts)} at {format_flops(entries[0]['at_flops'])} FLOP"


def definition_name(entry: Mapping[str, Any]) -> str:
    """`total N, 6ND` of one entry of `definitions`."""
    counted = "6ND" if entry["flops"] == "6ND" else "C as given"
    return f"{entry['params']} N, {counted}:"


def isoflop_line(fit: Mapping[str, Any]) -> str:
    """The answer that uses no law; empty where no level has a minimum."""
    check = fit.get("isoflop") or {}
    if not check.get("minima") or not known(check.get("exponent")):
        return ""
    interval = format_interval((check.get("ci") or {}).get("exponent"))
    told = "" if interval == UNKNOWN else f" ({interval})"
    return (
        f"a = {significant(number(check['exponent']))}{told} from the minima of {check['minima']} "
        f"of {len(check['levels'])} compute levels: a cross-check, biased by its parabolas"
    )


def energy_lines(fit: Mapping[str, Any]) -> list[str]:
    """The optimum of a budget beside the FLOP-optimal one, and the least energy at one loss."""
    lines = []
    for optimum in fit.get("optima") or []:
        target = format_target(optimum["target"])
        other = optimum.get("flop_optimal")
        if other and known(other.get("params")):
            ci = other.get("ci") or {}
            lost = format_interval(ci.get("loss_difference"), lambda v: significant(v, 2))
            lines.append(
                f"for {target} the FLOP-optimal model has "
                f"{format_count(other['params'])} parameters, "
                f"{_times(other['params_ratio'])} the size, and a loss higher by "
                f"{significant(number(other['loss_difference']), 2)}"
                + ("" if lost == UNKNOWN else f" ({lost})")
            )
        other = optimum.get("equal_loss")
        if other and known(other.get("energy_saving")):
            saved = format_interval((other.get("ci") or {}).get("energy_saving"), percent)
            lines.append(
                f"at the loss of {target}, {format_count(other['params'])} parameters "
                f"({_times(other['params_ratio'])} the size) take least energy: "
                f"{FORMS['energy_j'](other['energy_j'])}, "
                f"{percent(other['energy_saving'])} less"
                + ("" if saved == UNKNOWN else f" ({saved})")
            )
    return lines


def comparison_lines(found: Mapping[str, Any]) -> list[str]:
    """Laws that were compared, best first."""
    head = ("law", "held out", "left out", "objective", "parameters", "a")

    def rank(row: Mapping[str, Any]) -> tuple[float, float]:
        errors = (number(row["held_out"]), number(row["leave_one_out"]))
        first, second = (e if math.isfinite(e) else math.inf for e in errors)
        return first, second

    rows = []
    for row in sorted(found["laws"], key=rank):
        loose = sum(not good for good in (row.get("identified") or {}).values())
        rows.append(
            (
                str(row["law"]),
                _per_cent(number(row["held_out"])),
                _per_cent(number(row["leave_one_out"])),
                f"{number(row['objective']):.6g}",
                f"{row['parameters']}" + (f" ({loose} not identified)" if loose else ""),
                significant(number((row.get("exponents") or {}).get("a"))),
            )
        )
    best = found.get("best")
    lines = aligned([head, *rows], right=(1, 2, 3, 5))
    told = f"{best} predicts the largest compute best." if best else "No law could be judged here."
    return [
        *lines,
        "",
        *_wrapped(
            f"{told} held out: mean error of the loss at the largest compute, predicted from the "
            f"rest; left out: the same for each budget in turn. {_capital(str(found['note']))}."
        ),
    ]


def _law_lines(fit: Mapping[str, Any]) -> list[str]:
    estimator = fit["estimator"]
    judged = estimator["loss"]
    if known(estimator.get("delta")):
        judged += f" {number(estimator['delta']):g}"
    rows, runs = fit["n_observations"], fit["n_runs"]
    counted = f"{rows} runs" if rows == runs else f"{rows} observations of {runs} runs"
    head = ("", "value", percent(fit["ci"]["level"]), "SE", "")
    notes = max(len(row[4]) for row in law_rows(fit))
    table = aligned([head, *law_rows(fit)], right=(1, 3))
    if notes > 40:
        # A long reason would double the width of the table.
        table = aligned([head[:4], *(row[:4] for row in law_rows(fit))], right=(1, 3))
        for row in law_rows(fit):
            if row[4]:
                table += _wrapped(f"{row[0]}: {row[4]}", indent="  ")
    return [*_wrapped(f"{fit['formula']}  ({judged} on log loss, sum; {counted})"), *table]


def _optimum_lines(rows: Sequence[Mapping[str, str]]) -> list[str]:
    columns = [
        ("target", "target"),
        ("parameters", "params"),
        ("tokens", "tokens"),
        ("loss", "loss"),
        ("energy", "energy_j"),
        ("GPU time", "gpu_hours"),
        ("money", "money"),
        ("beyond data", "beyond"),
    ]
    used = [(h, k) for h, k in columns if any(r[k] != UNKNOWN for r in rows)]
    body = [
        tuple(r[k] if k == "target" or r[k] == UNKNOWN else f"{r[k]} {r['far']}" for _, k in used)
        for r in rows
    ]
    lines = aligned([tuple(h for h, _ in used), *body], right=range(1, len(used)))
    if any(r["far"] for r in rows):
        lines.append("! far beyond the data: a law fitted to small runs is not evidence there")
    return lines


def _warning_lines(fit: Mapping[str, Any]) -> list[str]:
    level = number(fit["ci"]["level"])
    lines: list[str] = []
    for optimum in fit.get("optima") or []:
        if is_far(optimum):
            text = next(t for t in optimum["warnings"] if TOO_FAR in t)
            lines += _warned(f"at {format_target(optimum['target'])}: {text}")
            for line in far_lines(optimum, level=level):
                lines += _wrapped(line, indent="  ")
    for text in fit.get("warnings") or []:
        if TOO_FAR not in text:
            lines += _warned(text)
    return ["", *lines] if lines else []


def _warned(text: str) -> list[str]:
    return textwrap.wrap(text, TERMINAL_WIDTH, initial_indent="warning: ", subsequent_indent="  ")


def _wrapped(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(
        text, TERMINAL_WIDTH, initial_indent=indent, subsequent_indent=indent + "  " * bool(indent)
    )


def _per_cent(share: float) -> str:
    return f"{significant(100 * share, 2)} %" if math.isfinite(share) else UNKNOWN


def _times(value: Any) -> str:
    return f"{significant(number(value))} times"


def _capital(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}"
