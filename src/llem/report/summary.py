"""A fit told in the terminal, and the sentences on its quality that the page shares."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llem._numerals import (
    UNKNOWN,
    format_count,
    format_flops,
    format_interval,
    known,
    number,
    percent,
    significant,
)
from llem.report.folding import folded
from llem.report.promise import kept_line
from llem.report.tables import (
    FORMS,
    TOO_FAR,
    aligned,
    answer,
    answer_at,
    energy_word,
    far_lines,
    format_target,
    is_far,
    law_rows,
    optimum_rows,
)

LABEL_WIDTH = 13
NAMES_SHOWN = 8
# Ways to count that move N* by less are told nowhere but in fit.json.
SAME_SIZE = 0.01


def _rehearsed(fit: Mapping[str, Any]) -> list[str]:
    law = ((fit.get("provenance") or {}).get("rehearsal") or {}).get("law")
    return [f"REHEARSED: of the planted law {law}; nothing was trained or measured"] if law else []


def summary_lines(fit: Mapping[str, Any], *, width: int = 0) -> list[str]:
    """A fit for the terminal: the answer, its quality, warnings, the law, what else was found.

    Folded to `width` columns; 0: not folded, for a file or a pipe.
    """
    told = [*_rehearsed(fit), answer(fit), *filter(None, [quality_line(fit)])]
    lines = [line for text in told for line in folded(text, width)]
    lines += _warning_lines(fit, width)
    lines += ["", *_law_lines(fit, width)]
    rows = optimum_rows(fit)
    if len(rows) > 1:
        lines += ["", *_optimum_lines(rows, width)]
    lines.append("")
    for label, text in detail_lines(fit):
        first, rest = label.ljust(LABEL_WIDTH), " " * LABEL_WIDTH
        lines += folded(text, width, first=first, rest=rest)
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
    if text := kept_line(fit):
        yield "promise", text
    residuals = fit.get("residuals") or {}
    if known(residuals.get("median_abs")):
        worst = residuals.get("worst") or []
        name = f" ({worst[0]['run_id']})" if worst else ""
        told = _per_cent if _in_log(fit) else _nats
        median, largest = (told(number(residuals[k])) for k in ("median_abs", "max_abs"))
        yield "residuals", f"median {median}, largest {largest}{name}"
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
        counted = f"{account['kept']} of {account['rows']} rows are fitted"
        yield "checkpoints", f"{counted}; each {account['weights']} has the same weight"
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
    """The answer under other ways to count N and C; empty where they do not differ."""
    entries = fit.get("definitions") or []
    sizes = [number(e["optimum"]["params"]) for e in entries]
    if len(entries) < 2 or max(sizes) < min(sizes) * (1 + SAME_SIZE):
        return ""
    parts = [
        f"{e['params']} N with C {'as 6ND' if e['flops'] == '6ND' else 'as given'}: "
        f"a = {significant(number(e['exponents']['a']))}, N* {format_count(size)}"
        for e, size in zip(entries, sizes, strict=True)
    ]
    return f"{'; '.join(parts)} (at {format_flops(entries[0]['at_flops'])} FLOP)"


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
    lines, same = [], []
    for optimum in fit.get("optima") or []:
        target = format_target(optimum["target"])
        budget, least = optimum.get("flop_optimal"), optimum.get("equal_loss")
        other = budget or least or {}
        if not known(other.get("params_ratio")):
            continue
        if abs(math.log(number(other["params_ratio"]))) < SAME_SIZE:
            same.append(target)
        elif budget:
            lost = _with_interval(budget, "loss_difference", lambda v: significant(v, 2))
            lines.append(
                f"for {target} the FLOP-optimal model has {format_count(budget['params'])} "
                f"parameters, {_times(budget['params_ratio'])} the size, and a loss higher "
                f"by {lost}"
            )
        elif least:
            saved = _with_interval(least, "energy_saving", percent)
            lines.append(
                f"at the loss of {target} a model of {format_count(least['params'])} parameters, "
                f"{_times(least['params_ratio'])} the size, takes least energy: "
                f"{FORMS['energy_j'](least['energy_j'])}, less by {saved}"
            )
    if same:
        lines.append(f"for {', '.join(same)} the FLOP-optimal model is also that of least energy")
    return lines


def _with_interval(entry: Mapping[str, Any], name: str, form: Any) -> str:
    interval = format_interval((entry.get("ci") or {}).get(name), form)
    value: str = form(number(entry[name]))
    return value if interval == UNKNOWN else f"{value} ({interval})"


def comparison_lines(found: Mapping[str, Any], *, width: int = 0) -> list[str]:
    """Laws that were compared, best first; folded as by `summary_lines`."""
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
    lines = _table(head, rows, right=(1, 2, 3, 5), width=width)
    told = f"{best} predicts the largest compute best." if best else "No law could be judged here."
    return [
        *lines,
        "",
        *folded(
            f"{told} held out: mean error of the loss at the largest compute, predicted from the "
            f"rest; left out: the same for each budget in turn. {_capital(str(found['note']))}.",
            width,
        ),
    ]


def _law_lines(fit: Mapping[str, Any], width: int) -> list[str]:
    estimator = fit["estimator"]
    judged = estimator["loss"]
    if known(estimator.get("delta")):
        judged += f" {number(estimator['delta']):g}"
    count, runs = fit["n_observations"], fit["n_runs"]
    counted = f"{runs} runs" if count == runs else f"{count} observations of {runs} runs"
    head = ("", "value", percent(fit["ci"]["level"]), "SE", "")
    rows = [(*row[:4], row[4].partition(":")[0]) for row in law_rows(fit)]
    table = aligned([head, *rows], right=(1, 3))
    judged += " on log loss" if _in_log(fit) else " on the loss"
    return [
        *folded(f"{fit['formula']}  ({judged}, sum; {counted})", width),
        *table,
    ]


def _optimum_lines(rows: Sequence[Mapping[str, str]], width: int) -> list[str]:
    columns = [
        ("target", "target"),
        ("parameters", "params"),
        ("tokens", "tokens"),
        ("loss", "loss"),
        ("energy", "energy_j"),
        ("device time", "gpu_hours"),
        ("money", "money"),
        ("beyond data", "beyond"),
    ]
    used = [(h, k) for h, k in columns if any(r[k] != UNKNOWN for r in rows)]
    body = [
        tuple(r[k] if k == "target" or r[k] == UNKNOWN else f"{r[k]} {r['far']}" for _, k in used)
        for r in rows
    ]
    heads = [h for h, _ in used]
    lines = _table(heads, body, right=range(1, len(used)), width=width)
    if any(r["far"] for r in rows):
        told = "! far beyond the data: a law fitted to small runs is not evidence there"
        lines += folded(told, width, rest="  ")
    return lines


def _warning_lines(fit: Mapping[str, Any], width: int) -> list[str]:
    level = number(fit["ci"]["level"])
    lines: list[str] = []
    for i, optimum in enumerate(fit.get("optima") or []):
        target = format_target(optimum["target"])
        if is_far(optimum):
            text = next(t for t in optimum["warnings"] if TOO_FAR in t)
            lines += _warned(f"at {target}: {text}", width)
            for line in far_lines(optimum, level=level):
                lines += folded(line, width, first="  ", rest="    ")
        elif i and not known(optimum["params"]):
            # The first target's is the answer itself.
            lines += _warned(answer_at(optimum, level=level, energy=energy_word(fit)), width)
    why = {name: text for name, text in (fit.get("identification") or {}).items() if text}
    if why:
        told = "; ".join(f"{name} ({text})" for name, text in why.items())
        lines += _warned(f"not identified: {told}", width)
    for text in fit.get("warnings") or []:
        if TOO_FAR not in text and "is not identified: " not in text:
            lines += _warned(text, width)
    return ["", *lines] if lines else []


def _warned(text: str, width: int) -> list[str]:
    return folded(text, width, first="warning: ", rest="  ")


def _table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int], width: int
) -> list[str]:
    """A table where `width` has room for it, else a paragraph for each row."""
    lines = aligned([heads, *rows], right=right)
    if not width or max(map(len, lines)) <= width:
        return lines
    lines = []
    for first, *others in rows:
        told = [f"{head} {cell}" for head, cell in zip(heads[1:], others, strict=True)]
        lines += folded(f"{first}: {', '.join(told)}", width, rest="  ")
    return lines


def _per_cent(share: float) -> str:
    return f"{percent(share, digits=2)}" if math.isfinite(share) else UNKNOWN


def _in_log(fit: Mapping[str, Any]) -> bool:
    return str(fit["estimator"].get("space", "log")) == "log"


def _nats(value: float) -> str:
    return f"{significant(value, 2)} nats"


def _times(value: Any) -> str:
    return f"{significant(number(value))} times"


def _capital(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}"
