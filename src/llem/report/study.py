"""The report of a study: which deployment serves a model for the fewest joules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llem._numerals import (
    UNKNOWN,
    format_duration,
    format_energy,
    format_si,
    known,
    number,
    percent,
    significant,
)
from llem.report.page import (
    CALM,
    NO_PLOTS,
    can_plot,
    check_plots,
    embedded,
    provenance_of,
    save_plots,
    together,
)
from llem.report.plots import Plot, pareto, serving_law
from llem.report.serving import LETTERS, law_name, law_words, term_rows
from llem.report.templates import render
from llem.report.whole import write_whole

Row = Mapping[str, Any]

TEMPLATE = "study.html.j2"
# What tells deployments apart, beside what was swept.
NAMED = ("model", "backend")
KINDS = ("options.", "prompts.", "arrival.", "layout.")


def draw_study(out_dir: str | Path, groups: Sequence[Row], by: Sequence[str]) -> list[Path]:
    """Draw groups of runs (`llem.results.study.deployments.group_served`) as PNG and SVG under
    `out_dir`; returns the files. Raises UnavailableError without matplotlib."""
    check_plots()
    plot = pareto.plot(groups, by)
    return save_plots(out_dir, [plot] if plot is not None else [])


def write_study_report(
    out_dir: str | Path,
    *,
    runs: Sequence[Row],
    deployments: Sequence[Row],
    fit: Mapping[str, Any] | None,
    plan: Mapping[str, Any],
    title: str,
    fit_reason: str = "",
) -> Path:
    """Write `report.html` and `plots/*.png` under `out_dir`; returns the path of the page.

    runs: rows of observations.csv; deployments: of deployments.csv. fit: the study's fit.json, or
    None with `fit_reason`.
    """
    folder = Path(out_dir)
    plots_folder = folder / "plots"
    plots_folder.mkdir(parents=True, exist_ok=True)
    varied, same = _settings(deployments)
    deployments = sorted(deployments, key=lambda row: [_place(row[name]) for name in varied])
    plots = (
        [
            p
            for p in (pareto.plot(deployments, varied or NAMED[:1]), *_law_plots(fit, deployments))
            if p is not None
        ]
        if can_plot()
        else []
    )
    for old in plots_folder.glob("*.png"):
        old.unlink()
    for plot in plots:
        write_whole(plots_folder / f"{plot.name}.png", plot.png())
    page = folder / "report.html"
    html = render(
        TEMPLATE,
        title=title,
        lead=together(_lead(deployments, varied)),
        warnings=[together(text) for text in _warnings(runs)],
        letters=LETTERS,
        facts=_facts(runs, deployments),
        tables=[_table(deployments, varied, columns) for columns in (ENERGY, SPEED)],
        settings=len(varied),
        same=", ".join(f"{name} {value}" for name, value in same.items()),
        no_plots="" if can_plot() else NO_PLOTS,
        plots=[embedded(plot) for plot in plots],
        law_reason=fit_reason,
        variants=[_variant(variant) for variant in (fit or {}).get("variants", ())],
        statuses=", ".join(f"{n} {s}" for s, n in Counter(r["status"] for r in runs).most_common()),
        runs=[_run(row) for row in runs],
        provenance=provenance_of(None, plan),
    )
    write_whole(page, html.encode())
    return page


def study_answer(runs: Sequence[Row], deployments: Sequence[Row]) -> list[str]:
    """What the page says first, as lines: the deployment of least energy, then the warnings."""
    varied, _ = _settings(deployments)
    return [_lead(deployments, varied), *(f"warning: {text}" for text in _warnings(runs))]


def _with_interval(name: str, form: Any, end: str = "") -> Any:
    def of(row: Row) -> tuple[str, str]:
        low, high = (number(row[f"{name}_{side}{end}"]) for side in ("low", "high"))
        told, ends = form(number(row[f"{name}{end}"])), (form(low), form(high))
        return told, " to ".join(ends) if known(low) and ends != (told, told) else ""

    return of


def _joules(value: float) -> str:
    return format_si(value, "J") if known(value) else UNKNOWN


def _seconds(value: float) -> str:
    return format_si(value, "s") if known(value) else UNKNOWN


# The head of a column, and (text, what stands below it) of a row. Two tables, as one of them all is
# wider than a page.
ENERGY = (
    ("J / token", _with_interval("j_per_token", _joules)),
    ("Prefill", _with_interval("prefill_j_per_token", _joules)),
    ("Decode", _with_interval("decode_j_per_token", _joules)),
    ("Tokens / s", _with_interval("tokens_per_s", significant)),
    ("Cycles", lambda row: (str(row["cycles"]), "")),
)  # fmt: skip
SPEED = (
    ("TTFT p50", _with_interval("ttft_p50", _seconds, "_s")),
    ("p99", lambda row: (_seconds(number(row["ttft_p99_s"])), "")),
    ("ITL p50", _with_interval("itl_p50", _seconds, "_s")),
    ("p99", lambda row: (_seconds(number(row["itl_p99_s"])), "")),
    ("Memory", lambda row: (format_si(row["peak_memory_window_bytes"], "B"), "")),
    ("MFU", lambda row: (percent(row["mfu"]) if known(row["mfu"]) else UNKNOWN, "")),
)  # fmt: skip


def _table(rows: Sequence[Row], varied: Sequence[str], columns: Sequence[Any]) -> dict[str, Any]:
    """Deployments by what was varied: heads, and cells of rows."""
    return {
        "heads": [*(name.rpartition(".")[2] for name in varied), *(head for head, _ in columns)],
        "rows": [
            [*((_setting(row[name]), "") for name in varied), *(of(row) for _, of in columns)]
            for row in rows
        ],
    }


def _settings(rows: Sequence[Row]) -> tuple[list[str], dict[str, str]]:
    """The settings that differ between deployments, and those that all have in common."""
    names = [name for name in (rows[0] if rows else ()) if name in NAMED or name.startswith(KINDS)]
    varied, same = [], {}
    for name in names:
        values = {_setting(row[name]) for row in rows}
        if len(values) > 1:
            varied.append(name)
        elif (value := values.pop()) != "default":
            same[name] = value
    return varied, same


def _setting(value: Any) -> str:
    return "default" if value is None or value == "" or value != value else str(value)


def _place(value: Any) -> tuple[bool, float, str]:
    """Numbers by their size, before texts."""
    told = number(value)
    return told != told, told if told == told else 0.0, _setting(value)


def _told(row: Row, names: Sequence[str]) -> str:
    return ", ".join(f"{name.rpartition('.')[2]} {_setting(row[name])}" for name in names)


def _lead(rows: Sequence[Row], varied: Sequence[str]) -> str:
    measured = [row for row in rows if number(row["j_per_token"]) > 0]
    if not measured:
        return "No deployment's energy is known."
    parts = []
    models = list(dict.fromkeys(str(row["model"]) for row in measured))
    for model in models:
        own = [row for row in measured if row["model"] == model]
        best = min(own, key=lambda row: number(row["j_per_token"]))
        worst = max(own, key=lambda row: number(row["j_per_token"]))
        told = _told(best, [name for name in varied if name != "model"])
        text = f"{_joules(best['j_per_token'])} a token" + (f" with {told}" if told else "")
        if len(own) > 1:
            times = significant(worst["j_per_token"] / best["j_per_token"], 2)
            text += f", {times} times less than the most costly of {len(own)} deployments"
        parts.append(f"{model}: {text}" if len(models) > 1 else f"At best {text}")
    return ". ".join(parts) + "."


def _facts(runs: Sequence[Row], rows: Sequence[Row]) -> list[tuple[str, str]]:
    done = [row for row in runs if row["status"] == "completed"]
    joules = [row["energy_j"] for row in done if known(row["energy_j"])]
    whole = [row["energy_total_j"] for row in runs if known(row["energy_total_j"])]
    return [
        ("runs completed", f"{len(done)} of {len(runs)}"),
        ("deployments", str(len(rows))),
        ("energy of measured windows", format_energy(sum(joules)) if joules else UNKNOWN),
        ("with loading, warm-up and failures", format_energy(sum(whole)) if whole else UNKNOWN),
    ]


def _warnings(runs: Sequence[Row]) -> list[str]:
    found = []
    told = Counter(str(row["split_reason"]) for row in runs if row["split_reason"])
    if told:
        text, _ = told.most_common(1)[0]
        found.append(f"{sum(told.values())} of {len(runs)} runs: {text}")
    # Of such a run a few requests may have had the server for themselves, or none its whole text.
    failed = sum(
        row["status"] == "completed" and row["requests_done"] < row["expected_requests"]
        for row in runs
    )
    if failed:
        found.append(
            f"{failed} of {len(runs)} runs: requests failed, and figures are of those that did not"
        )
    qualities = Counter(str(row["energy_quality"]) for row in runs)
    if set(qualities) == {"model"}:
        found.append("the energy of every run is estimated by a model, not measured")
    elif set(qualities) - {"counter"}:
        words = ", ".join(f"{count} {name}" for name, count in qualities.most_common())
        found.append(f"quality of the energy of runs: {words}")
    return found


def _law_plots(fit: Mapping[str, Any] | None, deployments: Sequence[Row]) -> list[Plot | None]:
    """Of each variant with a law of joules."""
    found = []
    for place, variant in enumerate((fit or {}).get("variants", ())):
        law = variant["laws"].get("energy_j")
        if law is not None:
            own = [
                row
                for row in deployments
                if all(row.get(name) in (value, None) for name, value in variant["common"].items())
            ]
            found.append(serving_law.plot(variant["name"], law, own, place))
    return found


def _variant(variant: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **{name: variant[name] for name in ("name", "runs", "reason")},
        "laws": [
            {
                "name": law_name(law),
                "parts": [
                    {
                        "formula": f"{part['phase']} = {part['formula']}",
                        "rows": term_rows(law, part),
                    }
                    for part in law["parts"]
                ],
                "lines": list(law_words(law)),
            }
            for law in variant["laws"].values()
        ],
    }


def _run(row: Row) -> dict[str, Any]:
    why = [str(row["reason"])] if row["reason"] else []
    if row["energy_reason"]:
        why.append(f"energy: {row['energy_reason']}")
    return {
        "run_id": row["run_id"],
        "deployment_id": row["deployment_id"],
        "cycle": row["cycle"],
        "requests": f"{row['requests_done']} of {row['expected_requests']}",
        "energy": format_energy(row["energy_j"]),
        "prefill": format_energy(row["prefill_j"]),
        "decode": format_energy(row["decode_j"]),
        "host": format_energy(row["host_j"]),
        "idle": format_energy(row["idle_j"]),
        "window": format_duration(row["duration_s"]),
        "coverage": percent(row["coverage"]) if known(row["coverage"]) else UNKNOWN,
        "status": row["status"],
        "calm": row["status"] in CALM,
        "why": "; ".join(why),
    }
