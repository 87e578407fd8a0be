"""The report: one HTML page that needs nothing beside it, and a PNG of each plot for other uses."""

from __future__ import annotations

import base64
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from llem.report import tables
from llem.report.plots import DARK, LIGHT, Plot, make_plots
from llem.report.runs import Runs, gather
from llem.report.tables import UNKNOWN, known, number

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
    runs = gather(observations, (fit or {}).get("excluded") or [])
    plots = make_plots(runs, fit) if can_plot() else []
    wanted = {f"{plot.name}.png" for plot in plots}
    for old in plots_folder.glob("*.png"):
        if old.name not in wanted:
            old.unlink()
    for plot in plots:
        _replace(plots_folder / f"{plot.name}.png", plot.png())
    page = folder / "report.html"
    html = render_page(runs, fit, plan, title=title, plots=plots, fit_reason=fit_reason)
    _replace(page, html.encode())
    return page


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
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("llem.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE).render(
        title=title,
        lead=_together(_lead(fit, fit_reason)),
        further=[_together(text) for text in _further(fit)],
        facts=_facts(runs, fit),
        warnings=_warnings(fit),
        plots=[_embedded(plot) for plot in plots],
        no_plots="" if can_plot() else NO_PLOTS,
        law=_law(fit),
        optima=tables.optimum_rows(fit) if fit else [],
        level=tables.percent(fit["ci"]["level"]) if fit else "",
        judgement=tables.judgement_lines(fit) if fit else [],
        sensitivity=_sensitivity(fit),
        isoflop=_isoflop(fit),
        runs=_run_rows(runs, fit),
        statuses=_statuses(runs),
        energy=_energy(runs, fit),
        provenance=_provenance(fit, plan),
    )


def _lead(fit: Mapping[str, Any] | None, reason: str) -> str:
    if fit is not None:
        return tables.answer(fit)
    return "No law could be fitted" + (f": {reason}" if reason else " to these runs.")


def _together(text: str) -> str:
    """Keeps numbers and units on one line."""
    return re.sub(r"(?<=\d) (?=[A-Za-z%µ])", "\u00a0", text)


def _further(fit: Mapping[str, Any] | None) -> list[str]:
    """The answers at the other targets."""
    if fit is None:
        return []
    level = number(fit["ci"]["level"])
    return [tables.answer_at(o, level=level) for o in (fit.get("optima") or [])[1:3]]


def _facts(runs: Runs, fit: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Three or four figures beside the answer."""
    counted = f"{int(runs.fitted.sum())} of {len(runs.rows)}"
    facts = [("runs in the fit" if fit is not None else "runs with a loss", counted)]
    if fit is not None:
        a, ends = fit["exponents"]["a"], fit["ci"]["exponents"]["a"]
        interval = tables.format_interval(ends)
        value = tables.significant(number(a))
        facts.append(("N* grows as C to the power", f"{value} ({interval})"))
        error = number((fit.get("held_out") or {}).get("mean_abs_relative_error"))
        if np.isfinite(error):
            words = f"{tables.significant(100 * error, 2)} %"
            facts.append(("error on the largest compute, held out", words))
    joules = runs.energy_j[np.isfinite(runs.energy_j)]
    if joules.size:
        estimated = all(
            quality == "model"
            for quality, j in zip(runs.quality, runs.energy_j, strict=True)
            if np.isfinite(j)
        )
        label = "energy, estimated by a model" if estimated else "energy measured"
        if joules.size < len(runs.rows):
            label += f" ({joules.size} of {len(runs.rows)} runs)"
        facts.append((label, tables.format_energy(float(joules.sum()))))
    return facts


def _warnings(fit: Mapping[str, Any] | None) -> list[str]:
    if fit is None:
        return []
    out = list(fit.get("warnings") or [])
    for optimum in fit.get("optima") or []:
        label = tables.format_target(optimum["target"])
        for text in optimum.get("warnings") or []:
            if not any(text in known_text for known_text in out):
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
            f"C = {tables.significant(number(model['coefficient']), 4)} N^"
            f"{tables.significant(number(model['exponent']), 4)} D, fitted to the runs' FLOPs "
            f"(largest error {tables.percent(model['max_error'])})"
        )
    estimator = fit["estimator"]
    delta = f", delta {number(estimator['delta']):g}" if known(estimator.get("delta")) else ""
    ci = fit["ci"]
    return {
        "formula": fit["formula"],
        "source": fit["source"],
        "rows": tables.law_rows(fit),
        "compute": compute,
        "estimator": f"{estimator['loss']}{delta}, on log loss, summed over observations",
        "intervals": f"{ci['method']}, {ci['resamples']} resamples, seed {ci['seed']}",
        "counted": f"{fit['n_observations']} observations of {fit['n_runs']} runs",
    }


def _sensitivity(fit: Mapping[str, Any] | None) -> list[dict[str, str]]:
    rows = []
    for entry in (fit or {}).get("sensitivity") or []:
        row = {"delta": f"{number(entry['delta']):g}"}
        for name, value in {**entry["params"], "a": entry["exponents"]["a"]}.items():
            row[name] = tables.significant(number(value), 4)
        rows.append(row)
    return rows


def _isoflop(fit: Mapping[str, Any] | None) -> dict[str, Any] | None:
    check = (fit or {}).get("isoflop")
    if not check or not check["levels"]:
        return None
    refused = Counter(v["refusal"] for v in check["levels"] if v["refusal"])
    return {
        "minima": check["minima"],
        "levels": len(check["levels"]),
        "exponent": tables.significant(number(check["exponent"])),
        "note": check["note"],
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
        loss, error = tables.significant(runs.loss[i], 4), number(row.get("loss_se"))
        if np.isfinite(error) and np.isfinite(runs.loss[i]):
            loss += f" ± {tables.significant(error, 2)}"
        rows.append(
            {
                "run_id": runs.run_id[i],
                "status": runs.status[i],
                "calm": runs.status[i] in CALM,
                "fitted": bool(runs.fitted[i]) and fit is not None,
                "reason": reason,
                "params": tables.format_count(runs.params[i]),
                "tokens": tables.format_count(runs.tokens[i]),
                "flops": tables.format_flops(runs.flops[i]),
                "seed": UNKNOWN if row.get("seed") is None else str(row["seed"]),
                "loss": loss,
                "energy": tables.format_energy(runs.energy_j[i]),
                "quality": runs.quality[i],
                "energy_reason": str(row.get("energy_reason") or ""),
                "duration": tables.format_duration(row.get("duration_s")),
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
            laws.append(f"No law of {entry['quantity']}: {entry['reason']}.")
            continue
        unit = entry["unit"]
        laws.append(
            f"{entry['quantity']} = {tables.format_si(entry['constant'], unit)} + "
            f"{tables.format_si(entry['per_token'], unit)} per token + "
            f"{tables.significant(number(entry['per_flop']))} {unit} per FLOP "
            f"({entry['rows']} runs, mean error {tables.percent(entry['mean_error'])})"
        )
    return {"qualities": qualities, "laws": laws}


def _provenance(
    fit: Mapping[str, Any] | None, plan: Mapping[str, Any] | None
) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    if plan is not None:
        campaign = plan.get("campaign")
        name = campaign.get("name") if isinstance(campaign, Mapping) else campaign
        rows.append(("campaign", str(name)))
        budget = plan.get("budget") or {}
        if known(budget.get("value")):
            words = f"{tables.significant(number(budget['value']))} {budget.get('unit', '')}"
            rows.append(("budget", words))
        totals = plan.get("totals") or {}
        planned = [f"{totals['runs']} runs"] if "runs" in totals else []
        if known(totals.get("gpu_hours")):
            planned.append(f"{tables.format_hours(totals['gpu_hours'])} of GPU time")
        if known(totals.get("energy_j")):
            planned.append(f"{tables.format_energy(totals['energy_j'])} (predicted)")
        if planned:
            rows.append(("planned", ", ".join(planned)))
    if fit is not None:
        rows += [(str(k), str(v)) for k, v in (fit.get("provenance") or {}).items()]
        rows.append(("schema", str(fit.get("schema"))))
    return rows


def _embedded(plot: Plot) -> dict[str, str]:
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


def _replace(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
