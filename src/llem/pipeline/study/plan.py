"""A study from its file to elements that can be submitted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from llem.campaign import Budget, Prompts, ServedModel, site_of
from llem.campaign.study.promptset import prompts_of
from llem.campaign.study.served import model_from_config, model_from_folder
from llem.campaign.study.study import PromptChoice, ServedChoice, Study
from llem.campaign.study.sweep import sweep
from llem.cluster import CampaignFolder, render_files
from llem.errors import Fault, InputError
from llem.pipeline.campaigns import digest_of_image, image_digest, limits_of
from llem.planning import StudyPlan, make_study_plan
from llem.report.plan import Timeline, render_study_page, times_of_study


@dataclass(frozen=True)
class PlannedStudy:
    """A plan and where it was written; `changed` is False where it stood there already."""

    plan: StudyPlan
    folder: CampaignFolder
    changed: bool
    # How its jobs follow each other, where that was worked out for its page.
    times: Timeline | None = None


def plan_study(
    study: Study,
    *,
    out: str | Path,
    base: str | Path = ".",
    budget: Budget | None = None,
    ask_cluster: bool = False,
    replace_old: bool = False,
    write: bool = True,
    calibration: str | Path | None = None,
) -> PlannedStudy:
    """Plan `study` into the folder `out`; a second identical call changes nothing.

    `base` is the folder that relative paths of models and prompts start from, `budget` overrides
    the file's; with `ask_cluster` the scheduler here is asked for its limits. With `write=False`
    nothing is written. `calibration` is the folder of a study that ran on the site, in place of the
    file's: what is expected rests on it. Raises InputError with every fault.
    """
    plan = study_plan(
        study, base=base, budget=budget, ask_cluster=ask_cluster, calibration=calibration
    )
    if not write:
        return PlannedStudy(plan, CampaignFolder(Path(out)), changed=False)
    return write_study(plan, out=out, replace_old=replace_old)


def study_plan(
    study: Study,
    *,
    base: str | Path = ".",
    budget: Budget | None = None,
    ask_cluster: bool = False,
    calibration: str | Path | None = None,
) -> StudyPlan:
    """The plan alone; arguments and errors as of `plan_study`."""
    if budget is not None:
        study = study.model_copy(update={"budget": budget})
    place = Path(base).resolve()
    models, faults = _models(study, place)
    try:
        swept = sweep(study)
    except InputError as error:
        raise InputError("campaign", [*error.faults, *faults]) from None
    prompts, more = _prompts((s.prompts for s in swept.settings), place)
    if faults or more:
        raise InputError("campaign", [*faults, *more])
    site = site_of(study)
    limits = limits_of(site) if ask_cluster else None
    if calibration is None and study.calibration is not None:
        calibration = place / Path(study.calibration).expanduser()
    measured = None
    if calibration is not None:
        from llem.pipeline.study.calibration import laws_of_study

        measured = laws_of_study(calibration, site)
    return make_study_plan(
        study, swept, models=models, prompts=prompts, limits=limits, measured=measured
    )


def write_study(plan: StudyPlan, *, out: str | Path, replace_old: bool = False) -> PlannedStudy:
    """Write a plan and all that its jobs need into the folder `out`. Raises InputError where
    another one is there, unless `replace_old`."""
    folder = CampaignFolder(Path(out))
    files = render_files(
        plan,
        image_digest=image_digest(plan),
        image_digests={
            backend: digest_of_image(plan.site.image_for(backend))
            for backend in dict.fromkeys(a.backend for a in plan.arrays)
            if plan.site.image_for(backend) != plan.site.image
        },
    )
    paths = {folder.jobs / name: text for name, text in files.items()}
    paths[folder.plan_page], times = draw_study(plan)
    changed = folder.write_plan(plan, paths, replace=replace_old)
    return PlannedStudy(plan, folder, changed, times)


def draw_study(plan: StudyPlan) -> tuple[str, Timeline | None]:
    """The plan's page, and the timeline in it."""
    cells = [
        {
            "run_ids": some.run_ids,
            "level": some.run.level,
            "deployment_id": some.run.deployment.deployment_id,
            "told": plan.told(some.run),
            "predicted": vars(some.run.predicted),
            "layout": vars(some.run.layout),
            "params": some.run.params,
            "tokens": some.run.tokens,
            "backend": some.run.deployment.backend,
        }
        for some in plan.runs.replicates
    ]
    values = {**plan.head(), "arrays": [vars(array) for array in plan.arrays], "cells": cells}
    times = times_of_study(values)
    return render_study_page(values, times=times), times


def _models(study: Study, base: Path) -> tuple[dict[str, ServedModel], list[Fault]]:
    """Every model of the file by its name, and what is wrong with any of them."""
    found, faults = {}, []
    for name, choice in study.models.items():
        try:
            found[name] = _model(name, choice, base)
        except InputError as error:
            faults += list(error.faults)
    return found, faults


def _model(name: str, choice: ServedChoice, base: Path) -> ServedModel:
    if choice.config is not None:
        path = f"models.{name}.config"
        return model_from_config(name, choice.config, seed=choice.seed, path=path)
    assert choice.path is not None
    folder = (base / Path(choice.path).expanduser()).resolve()
    return model_from_folder(name, folder, path=f"models.{name}.path")


def _prompts(
    choices: Iterable[PromptChoice], base: Path
) -> tuple[dict[PromptChoice, Prompts], list[Fault]]:
    """What each different choice of prompts turns out to be, and what is wrong with any."""
    found: dict[PromptChoice, Prompts] = {}
    faults: list[Fault] = []
    known: dict[int, PromptChoice] = {}
    for choice in choices:
        # Thousands of settings share a few objects, which are cheap to tell apart.
        if known.setdefault(id(choice), choice) in found:
            continue
        try:
            found[choice] = prompts_of(choice, base=base)
        except InputError as error:
            faults += [f for f in error.faults if f not in faults]
    return found, faults
