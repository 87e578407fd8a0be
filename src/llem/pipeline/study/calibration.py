"""A study that ran, as a calibration: what its records say of the time of the next one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llem._numerals import number
from llem.campaign import Site
from llem.cluster import CampaignFolder
from llem.errors import Fault, InputError, typed
from llem.pipeline.viewing import load_rows
from llem.planning import accelerator_of
from llem.planning.study.law import WARMUP_ROUNDS, ServingLaw
from llem.planning.study.measured import ServedRun, laws_from_runs
from llem.planning.study.plan import StudyPlan


def laws_of_study(path: str | Path, site: Site) -> dict[str, ServingLaw]:
    """The laws of the backends that the study in the folder `path` served with.

    Its rows are those of its last aggregation, which is made first where there is none. Raises
    InputError where it is no study, ran on other devices, or no run of it was completed.
    """
    folder = CampaignFolder(Path(path))
    plan = folder.load_plan()
    if not isinstance(plan, StudyPlan):
        fault = Fault("", "is of trainings", "a study needs the DIR of a study that ran")
        raise InputError(str(path), [fault])
    if plan.device.name != site.gpu.name:
        text = f"ran on {plan.device.name!r}, the study is planned for {site.gpu.name!r}"
        raise InputError(str(path), [Fault("gpu.name", text)])
    first = {names[0] for array in plan.arrays for names in array.elements}
    runs = [
        _run(plan, row, folder.final_end(str(row["run_id"])) or {}, first)
        for row in load_rows(folder).rows
        if row["status"] == "completed" and row["run_id"] in plan.by_id
    ]
    runs = [run for run in runs if run.span_s > 0]
    if not runs:
        fault = Fault("", "no run of it was completed", f"see `{typed('llem', 'status', path)}`")
        raise InputError(str(path), [fault])
    source = f"{len(runs)} run{'s' if len(runs) > 1 else ''} of {plan.campaign.name}"
    if (plan.site.name, plan.site.executor) != (site.name, site.executor):
        source += f" on site {plan.site.name} ({plan.site.executor})"
    return laws_from_runs(runs, accelerator_of(site), source=source)


def _run(
    plan: StudyPlan, row: Mapping[str, Any], end: Mapping[str, Any], first: set[str]
) -> ServedRun:
    run = plan.by_id[str(row["run_id"])]
    whole, window = _seconds(end, "t0_ns", "t1_ns"), _seconds(end, "window_t0_ns", "window_t1_ns")
    warmup = end.get("warmup") or {}
    # One that was cut short does not say how many rounds it takes.
    rounds = number(warmup.get("rounds"))
    enough = warmup.get("converged") or rounds > WARMUP_ROUNDS
    load = number(end.get("load_s"))
    rest = whole - window - load - number(warmup.get("duration_s"))
    energy = number(row.get("energy_total_j"))
    # Joules of earlier attempts are in the total, and their seconds are in no end record.
    alone = row.get("attempts") == 1
    return ServedRun(
        deployment=run.deployment,
        span_s=number(row.get("span_s")),
        pass_s=number(row.get("itl_p50_s")) if number(row.get("decodes")) > 0 else math.nan,
        pass_rows=number(row.get("batch_mean")),
        pass_context=number(row.get("context_mean")),
        load_s=load,
        rest_s=rest - run.cooldown_s,
        first=run.run_id in first,
        warmup_rounds=rounds if enough else math.nan,
        energy_j=energy if alone else number(row.get("energy_j")),
        device_s=(whole if alone else window) * run.layout.ranks,
        energy_quality=str(row.get("energy_quality") or ""),
        peak_memory_bytes=number(row.get("peak_memory_bytes")),
    )


def _seconds(end: Mapping[str, Any], begin: str, until: str) -> float:
    return (number(end.get(until)) - number(end.get(begin))) / 1e9
