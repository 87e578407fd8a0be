"""The end of a campaign: its report, and all that stands between the records and it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llem.errors import Fault, InputError
from llem.pipeline.files import FIT_FILE
from llem.pipeline.fitting import campaign_table, fit_campaign

if TYPE_CHECKING:
    from llem.cluster import CampaignFolder


@dataclass(frozen=True)
class Finished:
    """What a campaign came to: the law (or why there is none) and its report.

    answer: of a study, which deployment takes least energy and what to know of it, as lines; a
    training's answer is in its fit.
    """

    fit: dict[str, Any] | None
    reason: str
    report: Path
    problems: tuple[str, ...]
    answer: tuple[str, ...] = ()


def report_campaign(folder: CampaignFolder, *, fit_reason: str = "") -> Path:
    """Write `results/report.html` and its plots from what lies in `results/`.

    `fit_reason` says why there is no fit.json, where there is none.
    """
    from dataclasses import asdict

    from llem.pipeline.campaigns import is_study
    from llem.pipeline.files import OBSERVATIONS_FILE
    from llem.report import write_report
    from llem.results import read_observations

    plan = folder.plan_values()
    observations = folder.results / OBSERVATIONS_FILE
    if not observations.is_file():
        fault = Fault("", "there is no such file", "run `llem aggregate` first")
        raise InputError(str(observations), [fault])
    fit_file = folder.results / FIT_FILE
    fit = json.loads(fit_file.read_text()) if fit_file.is_file() else None
    if is_study(plan):
        return _report_study(folder, plan, fit, fit_reason)
    return write_report(
        folder.results,
        observations=[asdict(row) for row in read_observations(observations)],
        fit=fit,
        plan=plan,
        title=plan["campaign"]["name"] + (" (REHEARSED)" if plan.get("rehearsal") else ""),
        fit_reason=fit_reason,
    )


def _report_study(
    folder: CampaignFolder, plan: Mapping[str, Any], fit: dict[str, Any] | None, reason: str
) -> Path:
    from llem.pipeline.viewing import load_rows
    from llem.report import write_study_report

    return write_study_report(
        folder.results,
        runs=load_rows(folder).rows,
        deployments=load_rows(folder, "deployments").rows,
        fit=fit,
        plan=plan,
        title=f"{plan['campaign']['name']}: what serving costs",
        fit_reason=reason,
    )


def finish(
    folder: CampaignFolder,
    *,
    slurm: bool = False,
    say: Callable[[str], None] = lambda _: None,
    **options: Any,
) -> Finished:
    """Aggregate, fit and report; where no law can be fitted the report says why.

    With `slurm`, jobs reduce the records (see `aggregate_campaign`). `options` are those of
    `fit_campaign`. No one stands by to override a refusal, so slices without a minimum are warned
    of instead, in the words of the refusal.
    """
    from llem.pipeline.campaigns import aggregate_campaign

    aggregation = aggregate_campaign(folder, slurm=slurm, say=say)
    if aggregation.served:
        return _finish_study(folder, aggregation.problems)
    options.setdefault("allow_edge_minima", True)
    fit: dict[str, Any] | None = None
    reason = ""
    try:
        table = campaign_table(folder, aggregation.observations)
        fit = fit_campaign(folder, table=table, **options)
    except InputError as error:
        reason = str(error)
        # A law of an earlier state of the campaign must not pass for one of this state.
        (folder.results / FIT_FILE).unlink(missing_ok=True)
    return Finished(fit, reason, report_campaign(folder, fit_reason=reason), aggregation.problems)


def _finish_study(folder: CampaignFolder, problems: tuple[str, ...]) -> Finished:
    from llem.pipeline.serving import fit_study
    from llem.pipeline.viewing import load_rows
    from llem.report import study_answer

    fit: dict[str, Any] | None = None
    reason = ""
    try:
        fit = fit_study(folder)
    except InputError as error:
        reason = str(error)
        (folder.results / FIT_FILE).unlink(missing_ok=True)
    runs, deployments = load_rows(folder).rows, load_rows(folder, "deployments").rows
    page = report_campaign(folder, fit_reason=reason)
    return Finished(fit, reason, page, problems, tuple(study_answer(runs, deployments)))
