"""The report: one HTML page that needs nothing beside it, and a PNG of each plot for other uses."""

from __future__ import annotations

import base64
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from llem._numerals import (
    UNKNOWN,
    format_amount,
    format_count,
    format_duration,
    format_energy,
    format_flops,
    format_gpu_hours,
    format_interval,
    format_si,
    known,
    number,
    percent,
    significant,
)
from llem.errors import UnavailableError
from llem.report import summary, tables
from llem.report.plots import DARK, LIGHT, Plot, make_plots
from llem.report.runs import FloatArray, Runs, gather, gather_columns
from llem.report.templates import render
from llem.report.whole import write_whole
from llem.scaling.answers.cost import in_words

TEMPLATE = "report.html.j2"
QUALITIES = {
    "counter": "read from an energy counter of the device",
    "integral": "integrated from samples of power",
    "model": "estimated from a model, not measured",
    "none": "not measured",
}
NO_PLOTS = (
    "The plots are missing: matplotlib is not installed here. "
    "With `pip install 'llem[plot]'`, `llem report` draws them from the same results."
)
COST_PARTS = (
    ("constant", ""),
    ("per_token", " per token"),
    ("per_flop", " per FLOP"),
    ("per_param_token", " per parameter and token"),
)
NOT_KNOWN = "not known: "
# Statuses that need no second look; every other one is set apart in the table.
CALM = ("completed",)


def write_report(
    out_dir: str | Path,
    *,
    observations: Sequence[Mapping[str, Any]],
    fit: Mapping[str, Any] | None,
    plan: Mapping[str, Any] | None = None,
    title: str = "Scaling campaign",
    fit_reason: str = "",
) -> Path:
    """Write `report.html` and `plots/*.png` under `out_dir`; returns the path of the page.

    observations: rows with the columns of observations.csv (numbers may be NaN or None).
    fit: the content of fit.json, or None with `fit_reason` where no law could be fitted.
    plan: the content of plan.json, or None. Plots of an earlier report that no longer apply are
    removed. The page is put in place whole.
    """
    folder = Path(out_dir)
    plots_folder = folder / "plots"
    plots_folder.mkdir(parents=True, exist_ok=True)
    runs = gather(observations, fit)
    plots = make_plots(runs, fit) if can_plot() else []
    wanted = {f"{plot.name}.png" for plot in plots}
    for old in plots_folder.glob("*.png"):
        if old.name not in wanted:
            old.unlink()
    for plot in plots:
        write_whole(plots_folder / f"{plot.name}.png", plot.png())
    page = folder / "report.html"
    html = render_page(runs, fit, plan, title=title, plots=plots, fit_reason=fit_reason)
    write_whole(page, html.encode())
    return page


def draw_fit(
    out_dir: str | Path,
    *,
    numbers: Mapping[str, FloatArray],
    texts: Mapping[str, Any],
    fit: Mapping[str, Any],
) -> list[Path]:
    """Write every plot of a fit as PNG and SVG under `out_dir`; returns the files.

    numbers and texts: columns (n,) by the names of observations.csv. UnavailableError without
    matplotlib.
    """
    check_plots()
    return save_plots(out_dir, make_plots(gather_columns(numbers, texts, fit), fit))


def check_plots() -> None:
    """Raises UnavailableError without matplotlib."""
    if not can_plot():
        raise UnavailableError(
            "plots need matplotlib, which is not installed here",
            remedy="pip install 'llem[plot]'",
        )


def save_plots(out_dir: str | Path, plots: Sequence[Plot]) -> list[Path]:
    """Write plots as PNG and SVG under `out_dir`; returns the files."""
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for plot in plots:
        for ending, content in (("png", plot.png()), ("svg", plot.svg(LIGHT))):
            files.append(folder / f"{plot.name}.{ending}")
            write_whole(files[-1], content)
    return files


def can_plot() -> bool:
    """Whether matplotlib is here; a login node may do without, and then the page says so."""
    return find_spec("matplotlib") is not None


def render_page(
    runs: Runs,
    fit: Mapping[str, Any] | None,
    plan: Mapping[str, Any] | None,
    *,
    title: str,
    plots: Sequence[Plot],
    fit_reason: str = "",
) -> str:
    """The page as text. Everything that came from a user is escaped by the template engine."""
    optima = tables.optimum_rows(fit) if fit else []
    return render(
        TEMPLATE,
        title=title,
        lead=together(_lead(fit, fit_reason)),
        further=[together(text) for text in _further(fit)],
        facts=_facts(runs, fit),
        warnings=_warnings(fit),
        plots=[embedded(plot) for plot in plots],
        no_plots="" if can_plot() else NO_PLOTS,
        law=_law(fit),
        optima=optima,
        priced=any(row["money"] != UNKNOWN for row in optima),
        unknown=UNKNOWN,
        level=percent(fit["ci"]["level"]) if fit else "",
        far=_far(fit),
        details=list(summary.detail_lines(fit)) if fit else [],
        quality=summary.quality_line(fit) if fit else "",
        sensitivity=_sensitivity(fit),
        definitions=_definitions(fit),
        isoflop=_isoflop(fit),
        checklist=_checklist(fit),
        runs=_run_rows(runs, fit),
        statuses=_statuses(runs),
        energy=_energy(runs, fit),
        provenance=provenance_of(fit, plan),
    )


def _lead(fit: Mapping[str, Any] | None, reason: str) -> str:
    if fit is not None:
        return tables.answer(fit)
    return "No law could be fitted" + (f": {reason}" if reason else " to these runs.")


def together(text: str) -> str:
    """Keeps numbers and units on one line."""
    return re.sub(r"(?<=\d) (?=[A-Za-z%µ])", "\u00a0", text)


def _further(fit: Mapping[str, Any] | None) -> list[str]:
    """The answers at the other targets."""
    if fit is None:
        return []
    level, energy = number(fit["ci"]["level"]), tables.energy_word(fit)
    optima = (fit.get("optima") or [])[1:3]
    return [tables.answer_at(o, level=level, energy=energy) for o in optima]


def _far(fit: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Both intervals of each target that lies far beyond the data."""
    if fit is None:
        return []
    level = number(fit["ci"]["level"])
    return [
        {
            "target": tables.format_target(o["target"]),
            "lines": [together(line) for line in tables.far_lines(o, level=level)],
            "allowance": (o.get("allowance") or {}).get("text") or "",
        }
        for o in fit.get("optima") or []
        if tables.is_far(o) and o.get("allowance")
    ]


def _facts(runs: Runs, fit: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Three or four figures beside the answer."""
    counted = f"{int(runs.fitted.sum())} of {len(runs.run_id)}"
    facts = [("runs in the fit" if fit is not None else "runs with a loss", counted)]
    if fit is not None:
        if fit.get("exponents"):
            value = significant(number(fit["exponents"]["a"]))
            interval = format_interval((fit["ci"].get("exponents") or {}).get("a"))
            told = f"{value} ({interval})" if interval != UNKNOWN else value
            facts.append(("N* grows as C to the power", told))
        for key, words in (
            ("held_out", "error on the largest compute, held out"),
            ("leave_one_out", "error on a budget left out"),
        ):
            error = number((fit.get(key) or {}).get("mean_abs_relative_error"))
            if np.isfinite(error):
                facts.append((words, percent(error, digits=2)))
    joules = runs.energy_j[np.isfinite(runs.energy_j)]
    if joules.size:
        estimated = all(
            quality == "model"
            for quality, j in zip(runs.quality, runs.energy_j, strict=True)
            if np.isfinite(j)
        )
        label = "energy, estimated by a model" if estimated else "energy measured"
        if joules.size < len(runs.run_id):
            label += f" ({joules.size} of {len(runs.run_id)} runs)"
        facts.append((label, format_energy(float(joules.sum()))))
    return facts


def _warnings(fit: Mapping[str, Any] | None) -> list[str]:
    if fit is None:
        return []
    out = list(fit.get("warnings") or [])
    # That there is no law of a cost is told where costs are.
    told = {str(law.get("reason") or "") for law in (fit.get("costs") or {}).values()}
    for optimum in fit.get("optima") or []:
        label = tables.format_target(optimum["target"])
        for text in optimum.get("warnings") or []:
            if text not in told and not any(text in known_text for known_text in out):
                out.append(f"at {label}: {text}")
    return out


def _law(fit: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if fit is None:
        return None
    model = fit["flops_model"]
    if model["source"] == "6ND":
        compute = "C = 6 N D (no exact FLOPs were given)"
    else:
        compute = (
            f"C = {significant(number(model['coefficient']), 4)} N^"
            f"{significant(number(model['exponent']), 4)} D, fitted to the runs' FLOPs "
            f"(largest error {percent(model['max_error'])})"
        )
    estimator = fit["estimator"]
    delta = f", delta {number(estimator['delta']):g}" if known(estimator.get("delta")) else ""
    space = "the loss" if estimator.get("space") == "loss" else "log loss"
    ci = fit["ci"]
    return {
        "formula": fit["formula"],
        "source": fit["source"],
        "rows": tables.law_rows(fit),
        "compute": compute,
        "estimator": f"{estimator['loss']}{delta}, on {space}, summed over observations",
        "intervals": f"{ci['method']}, {ci['resamples']} resamples, seed {ci['seed']}",
        "counted": f"{fit['n_observations']} observations of {fit['n_runs']} runs",
    }


def _sensitivity(fit: Mapping[str, Any] | None) -> list[dict[str, str]]:
    """What each other choice gives; empty where there is none."""
    rows = []
    for entry in (fit or {}).get("sensitivity") or []:
        row = {"choice": str(entry["choice"]), "rows": str(entry["rows"])}
        values = entry["params"] or {}
        for name in (fit or {})["params"]:
            row[name] = significant(number(values.get(name)), 4)
        if (fit or {}).get("exponents"):
            row["a"] = significant(number((entry.get("exponents") or {}).get("a")), 4)
        rows.append(row)
    return rows


def _definitions(fit: Mapping[str, Any] | None) -> list[dict[str, str]]:
    """The answer under each way to count, where there is more than one."""
    entries = (fit or {}).get("definitions") or []
    if len(entries) < 2:
        return []
    return [
        {
            "params": str(entry["params"]),
            "flops": "6ND" if entry["flops"] == "6ND" else "as given",
            "a": significant(number(entry["exponents"]["a"])),
            "b": significant(number(entry["exponents"]["b"])),
            "best_params": format_count(entry["optimum"]["params"]),
            "best_tokens": format_count(entry["optimum"]["tokens"]),
            "at": format_flops(entry["at_flops"]),
        }
        for entry in entries
    ]


def _checklist(fit: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The reporting checklist: sections of (item, answer, whether it is open)."""
    answers = (fit or {}).get("checklist")
    if not answers:
        return None
    sections = {
        section: [
            (name.replace("_", " "), text, text.startswith(NOT_KNOWN))
            for name, text in items.items()
        ]
        for section, items in answers.items()
    }
    every = [open_ for items in sections.values() for _, _, open_ in items]
    return {"sections": sections, "open": sum(every), "count": len(every)}


def _isoflop(fit: Mapping[str, Any] | None) -> dict[str, Any] | None:
    check = (fit or {}).get("isoflop")
    if not check or not check["levels"] or check["minima"] == len(check["levels"]):
        return None
    refused = Counter(v["refusal"] for v in check["levels"] if v["refusal"])
    return {
        "minima": check["minima"],
        "levels": len(check["levels"]),
        "refused": [f"{count} x {reason}" for reason, count in refused.most_common()],
    }


def _run_rows(runs: Runs, fit: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Every run, largest compute last, none left out."""
    why = {
        str(e.get("run_id")): str(e.get("reason", "")) for e in (fit or {}).get("excluded") or []
    }
    rows = []
    order = np.argsort(np.where(np.isfinite(runs.flops), runs.flops, np.inf), kind="stable")
    for i in order:
        row = runs.rows[i]
        reason = str(row.get("reason") or "") or why.get(runs.run_id[i], "")
        loss, error = significant(runs.loss[i], 4), number(row.get("loss_se"))
        if np.isfinite(error) and np.isfinite(runs.loss[i]):
            loss += f" ± {significant(error, 2)}"
        rows.append(
            {
                "run_id": runs.run_id[i],
                "status": runs.status[i],
                "calm": runs.status[i] in CALM,
                "fitted": bool(runs.fitted[i]) and fit is not None,
                "reason": reason,
                "params": format_count(runs.params[i]),
                "tokens": format_count(runs.tokens[i]),
                "flops": format_flops(runs.flops[i]),
                "seed": UNKNOWN if row.get("seed") is None else str(row["seed"]),
                "loss": loss,
                "energy": format_energy(runs.energy_j[i]),
                "quality": runs.quality[i],
                "energy_reason": str(row.get("energy_reason") or ""),
                "duration": format_duration(row.get("duration_s")),
                "mfu": f"{100 * number(row.get('mfu')):.1f} %"
                if known(row.get("mfu"))
                else UNKNOWN,
                "coverage": f"{100 * number(row.get('coverage')):.0f} %"
                if known(row.get("coverage"))
                else UNKNOWN,
            }
        )
    return rows


def _statuses(runs: Runs) -> str:
    counted = Counter(runs.status)
    return ", ".join(f"{count} {status}" for status, count in counted.most_common())


def _energy(runs: Runs, fit: Mapping[str, Any] | None) -> dict[str, Any]:
    """How energy was measured: runs by quality, and the cost law."""
    counted = Counter(
        quality if np.isfinite(joules) else "none"
        for quality, joules in zip(runs.quality, runs.energy_j, strict=True)
    )
    qualities = [
        (label, QUALITIES.get(label, "as labelled by the records"), count)
        for label, count in counted.most_common()
    ]
    laws = []
    for entry in ((fit or {}).get("costs") or {}).values():
        if entry["reason"]:
            laws.append(f"No law of {in_words(entry['quantity'])}: {entry['reason']}.")
            continue
        unit = entry["unit"]
        parts = [
            f"{format_si(entry[key], unit)}{words}"
            for key, words in COST_PARTS
            if number(entry.get(key)) > 0
        ]
        text = (
            f"{in_words(entry['quantity'])} = {' + '.join(parts) or '0'} "
            f"({entry['rows']} runs, mean error {percent(entry['mean_error'])}"
        )
        error = number((entry.get("held_out") or {}).get("mean_abs_relative_error"))
        if np.isfinite(error):
            text += f", {percent(error)} on the largest, held out"
        laws.append(f"{text})")
    return {"qualities": qualities, "laws": laws}


def provenance_of(
    fit: Mapping[str, Any] | None, plan: Mapping[str, Any] | None
) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    if plan is not None:
        campaign = plan.get("campaign")
        name = campaign.get("name") if isinstance(campaign, Mapping) else campaign
        rows.append(("campaign", str(name)))
        budget = plan.get("budget") or {}
        if known(budget.get("value")):
            words = format_amount(budget["value"], str(budget.get("unit", "")))
            rows.append(("budget", words))
        totals = plan.get("totals") or {}
        planned = [f"{totals['runs']} runs"] if "runs" in totals else []
        if known(totals.get("gpu_hours")):
            planned.append(format_gpu_hours(totals["gpu_hours"]))
        if known(totals.get("energy_j")):
            planned.append(f"{format_energy(totals['energy_j'])} (predicted)")
        if planned:
            rows.append(("planned", ", ".join(planned)))
    if fit is not None:
        told = {name for name, _ in rows}
        found = (fit.get("provenance") or {}).items()
        rows += [(str(k), str(v)) for k, v in found if k not in told]
        rows.append(("schema", str(fit.get("schema"))))
    return rows


def embedded(plot: Plot) -> dict[str, str]:
    return {
        "name": plot.name,
        "title": plot.title,
        "caption": plot.caption,
        "alt": plot.alt,
        "light": _data_uri(plot.svg(LIGHT)),
        "dark": _data_uri(plot.svg(DARK)),
    }


def _data_uri(svg: bytes) -> str:
    """SVG as base64, without the comments and metadata that matplotlib adds."""
    lean = re.sub(rb"<metadata>.*?</metadata>|<!--.*?-->", b"", svg, flags=re.DOTALL)
    return "data:image/svg+xml;base64," + base64.b64encode(lean).decode("ascii")
