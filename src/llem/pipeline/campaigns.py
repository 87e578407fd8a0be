"""The stages of a campaign up to its observations: plan, run, aggregate."""

from __future__ import annotations

import hashlib
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llem.campaign import Budget, SampleData, Site, TokenData, site_of
from llem.cluster import (
    CampaignFolder,
    CampaignState,
    LocalOutcome,
    ask_limits,
    render_files,
    run_locally,
    submit_and_wait,
)
from llem.errors import InputError, LlemError, typed
from llem.pipeline.datasets import resolve_data
from llem.pipeline.files import DEPLOYMENTS_FILE, OBSERVATIONS_FILE, SAMPLES_FILE
from llem.planning import (
    AnyPlan,
    Calibration,
    ClusterLimits,
    OwnModel,
    Plan,
    load_calibration,
    make_plan,
)
from llem.report.plan import Timeline, render_plan_page, times_of

if TYPE_CHECKING:
    from llem.campaign import Campaign
    from llem.pipeline.foreign import Foreign
    from llem.results import Aggregation


@dataclass(frozen=True)
class Planned:
    """A plan and where it was written; `changed` is False where it stood there already."""

    plan: Plan
    folder: CampaignFolder
    changed: bool
    # How its jobs follow each other, where that was worked out for its page.
    times: Timeline | None = None


def plan_campaign(
    campaign: Campaign,
    *,
    out: str | Path,
    base: str | Path = ".",
    budget: Budget | None = None,
    runs: int | None = None,
    ask_cluster: bool = False,
    replace_old: bool = False,
    write: bool = True,
    calibration: str | Path | None = None,
    change: Callable[[Plan], Plan] | None = None,
    foreign: Foreign | None = None,
) -> Planned:
    """Plan `campaign` into the folder `out`; a second identical call changes nothing.

    `base` is the folder that a relative `data.path` starts from. `runs` asks for so many runs;
    with `ask_cluster` the scheduler here is asked for its limits, which the plan keeps. With
    `write=False` nothing is written. `calibration` is the folder or file of `llem calibrate` that
    the figures rest on, in place of the campaign's. `change` makes another plan of it before it is
    written. `foreign` is a model and data set of samples that were looked at already. Raises
    InputError, BudgetError.
    """
    folder = CampaignFolder(Path(out))
    own: OwnModel | None = None
    data: TokenData | SampleData
    code: Mapping[str, str] = {}
    if campaign.data.dataset and foreign is None:
        from llem.pipeline.foreign import foreign_of

        campaign, foreign = foreign_of(campaign, base=Path(base).resolve())
    if foreign is not None:
        data, own, code = foreign.data, foreign.own, foreign.code
    else:
        with tempfile.TemporaryDirectory(prefix="llem-plan-") as scratch:
            place = folder.root if write else Path(scratch)
            data, campaign = resolve_data(campaign, place, base=Path(base))
        if campaign.model.family == "custom":
            own, code = own_model(campaign, Path(base).resolve())
    for tracker in campaign.trackers or ():
        if tracker.class_path:
            from llem.pipeline.foreign import shipped_code

            code = {**code, **shipped_code(tracker.class_path, Path(base).resolve())}
    site = site_of(campaign)
    limits = limits_of(site) if ask_cluster else None
    found = calibration_of(campaign, site, base=Path(base), given=calibration)
    measured = [found.measured(site)] if found is not None else []
    plan = make_plan(
        campaign, budget=budget, data=data, own=own, runs=runs, limits=limits, measured=measured
    )
    if found is not None:
        plan = replace(plan, warnings=(*plan.warnings, *found.warnings(site, plan.runs)))
    if change is not None:
        plan = change(plan)
    if write and not replace_old and (grown := _grown(folder, plan)) is not None:
        return Planned(grown, folder, changed=False)
    files = render_files(plan, image_digest=image_digest(plan))
    changed, times = False, None
    if write:
        paths = {folder.jobs / name: text for name, text in files.items()}
        paths |= {folder.root / name: text for name, text in code.items()}
        paths[folder.plan_page], times = draw_page(plan)
        changed = folder.write_plan(plan, paths, replace=replace_old)
    return Planned(plan, folder, changed, times)


def _grown(folder: CampaignFolder, plan: Plan) -> Plan | None:
    """The plan in the folder, where it is this one with later waves."""
    if not folder.plan_file.is_file():
        return None
    waves = folder.plan_values().get("waves") or []
    if len(waves) > 1 and waves[0].get("digest") == plan.digest:
        return folder.load_trainings()
    return None


def calibration_of(
    campaign: Campaign, site: Site, *, base: Path, given: str | Path | None = None
) -> Calibration | None:
    """The calibration that was given, else the campaign's (relative to `base`), if there is one.

    Raises InputError where it cannot be read, or is another device's or precision's.
    """
    if given is None and campaign.calibration is not None:
        given = base / Path(campaign.calibration).expanduser()
    if given is None:
        return None
    found = load_calibration(given)
    found.check(site, campaign.training.precision, source=str(given))
    return found


def limits_of(site: Site) -> ClusterLimits | None:
    """What the scheduler here allows on the site's partition; None where there is no scheduler."""
    return ask_limits(site.partition) if site.executor == "slurm" else None


def draw_page(plan: Plan) -> tuple[str, Timeline | None]:
    """The plan's page, and the timeline in it."""
    values = by_cell(plan)
    times = times_of(values)
    return render_plan_page(values, times=times), times


def by_cell(plan: Plan) -> dict[str, Any]:
    """plan.json with `cells` for its runs: one run of each cell, and the `run_ids` of all seeds."""
    cells = [{**some.run.to_dict(), "run_ids": some.run_ids} for some in plan.runs.replicates]
    return {**plan.head(), "arrays": [vars(array) for array in plan.arrays], "cells": cells}


def image_digest(plan: AnyPlan) -> str:
    """`sha256:...` of the site's image file where it can be read here, else empty."""
    return digest_of_image(plan.site.image)


def digest_of_image(image: str | None) -> str:
    """The same of any image file; empty where there is none."""
    if image is None or not Path(image).is_file():
        return ""
    from llem.cluster.image import digest

    return f"sha256:{digest(Path(image))}"


def own_model(campaign: Campaign, base: Path) -> tuple[OwnModel, dict[str, str]]:
    """The user's own class: how to count it, and its code as files below `code/`.

    A module or package beside the campaign file is shipped with the campaign, so that ranks on
    other nodes and in containers find the very code that was planned; an installed package is
    theirs to have. Counting builds the class on torch's meta device, which takes no memory.
    """
    choice = campaign.model
    assert choice.class_path and choice.size
    class_path, size = choice.class_path, choice.size
    top = class_path.partition(":")[0].partition(".")[0]
    found = [base / f"{top}.py"] if (base / f"{top}.py").is_file() else []
    if (base / top).is_dir():
        found = sorted((base / top).rglob("*.py"))
    files = {f"code/{path.relative_to(base)}": path.read_text("utf-8") for path in found}

    def count(value: int) -> int:
        try:
            import torch
        except ImportError:
            raise LlemError(
                "counting the parameters of a model class needs torch, which is not installed",
                remedy="plan inside the image, or install llem[train]",
            ) from None
        from llem.training import count_params, load_class

        if files and str(base) not in sys.path:
            sys.path.insert(0, str(base))
        with torch.device("meta"):
            model = load_class(class_path)(**{size: value}, **choice.arguments)
        return int(count_params(model))

    source = ""
    if files:
        content = "\0".join(text for item in sorted(files.items()) for text in item)
        source = hashlib.blake2b(content.encode(), digest_size=16).hexdigest()
    # A search for the budget asks for the same sizes many times.
    return OwnModel(lru_cache(count), source), files


def run_campaign(
    folder: CampaignFolder,
    plan: AnyPlan,
    *,
    watch: Callable[[CampaignState], None] | None = None,
) -> LocalOutcome | CampaignState:
    """Run all that is not settled, here or through SLURM, and return when nothing works any more.

    Safe to call again after an interruption: it goes on from what the files say. Ctrl-C leaves
    jobs of SLURM as they are, and the KeyboardInterrupt says what to do about them.
    """
    if plan.site.executor == "local":
        return run_locally(folder, plan, watch=watch)
    try:
        return submit_and_wait(folder, plan, watch=watch)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            "stopped waiting; what was submitted goes on: the same call waits for it again, "
            f"`{typed('llem', 'cancel', folder.root)}` ends it"
        ) from None


def aggregate_campaign(
    folder: CampaignFolder,
    *,
    pue: float | None = None,
    carbon: float | str | Path | None = None,
    price_per_kwh: float | None = None,
    price_per_gpu_hour: float | None = None,
    idle_power_w: float | None = None,
    slurm_energy: bool = False,
    workers: int | None = None,
    cached: bool = True,
    slurm: bool = False,
    elements: int | None = None,
    say: Callable[[str], None] = lambda _: None,
    write: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Aggregation:
    """Raw records → observations, written to `results/observations.csv` unless `write` is False,
    with `phases.csv`, `devices.csv`, `ranks.csv` and `cells.csv` beside it; of a study
    `deployments.csv` and `latencies.h5` in the place of cells.

    `workers` processes read records, by default as many as there are processors and work for. Runs
    whose files have not changed since the last call are not read again, unless `cached` is False;
    `progress` is told how many of all runs are done. The result is the same to the byte.

    With `slurm`, an array of jobs (of so many `elements`) reduces the runs first, which takes the
    cache; what it did not reduce is reduced here, and the problems say why. `say` is told of it.

    What is left None is taken from the site (or, idle power, from the records); nothing runs again
    when it changes. `carbon` is g per kWh, or a CSV of a series in time. `slurm_energy`: SLURM is
    asked what it measured, and what disagrees is a problem. Raises InputError where the CSV cannot
    be read.
    """
    from llem.results import (
        CellRatio,
        DeviceRow,
        PhaseEnergy,
        RankRow,
        aggregate,
        ratios_by_cell,
        read_carbon,
        write_observations,
        write_rows,
    )

    site = folder.plan_values()["site"]
    prices = site.get("prices", {})

    def late(given: Any, default: Any) -> Any:
        return default if given is None else given

    problems: tuple[str, ...] = ()
    intensity = late(carbon, site.get("carbon_g_per_kwh"))
    if isinstance(intensity, (str, Path)):
        try:
            intensity = read_carbon(intensity)
        except InputError as error:
            if carbon is not None:
                raise
            # The site's own series may come later, or from another machine: no result waits for it.
            intensity, problems = None, tuple(f"no carbon: {line}" for line in error.lines())
    cache = folder.reductions_file if cached and write else None
    if slurm:
        from llem.cluster.reducing import reduce_by_jobs
        from llem.results import CarbonSeries

        assert cache is not None, "jobs reduce into the cache"
        series = intensity if isinstance(intensity, CarbonSeries) else None
        problems += tuple(
            reduce_by_jobs(folder, folder.load_plan(), cache=cache, carbon=series,
                           elements=elements, say=say, progress=progress)
        )  # fmt: skip
    aggregation = aggregate(
        folder.root,
        pue=late(pue, site.get("pue", 1.0)),
        carbon_g_per_kwh=intensity,
        idle_power_w=idle_power_w,
        price_per_kwh=late(price_per_kwh, prices.get("per_kwh")),
        price_per_gpu_hour=late(price_per_gpu_hour, prices.get("per_gpu_hour")),
        peak_flops_per_gpu=site["device"]["peak_flops"],
        workers=workers,
        cache=cache,
        progress=progress,
    )
    if slurm and cache is not None:
        from llem.cluster.reducing import tidy

        tidy(cache)
    if slurm_energy:
        from llem.pipeline.slurm_energy import check_against_slurm

        problems += check_against_slurm(folder, aggregation.devices)
    if problems:
        aggregation = replace(aggregation, problems=(*aggregation.problems, *problems))
    if write and aggregation.served:
        write_served(folder, aggregation)
    elif write:
        write_observations(aggregation.observations, folder.results / OBSERVATIONS_FILE)
        cells = ratios_by_cell(aggregation.observations)
        write_rows(CellRatio, cells, folder.results / "cells.csv")
    if write:
        write_rows(PhaseEnergy, aggregation.phases, folder.results / "phases.csv")
        write_rows(DeviceRow, aggregation.devices, folder.results / "devices.csv")
        write_rows(RankRow, aggregation.ranks, folder.results / "ranks.csv")
    return aggregation


def write_served(folder: CampaignFolder, aggregation: Aggregation) -> None:
    """The tables that a study alone has."""
    from llem.results.ranks.pool import write_pools
    from llem.results.rows.served import pools_of
    from llem.results.study.deployments import deployment_table
    from llem.results.study.table import study_table
    from llem.results.tables.export import export_rows

    kinds, rows = study_table(aggregation.served)
    export_rows(rows, kinds, folder.results / OBSERVATIONS_FILE, format="csv")
    both = zip(aggregation.served, aggregation.samples, strict=True)
    pools = {row.run_id: pools_of(samples) for row, samples in both}
    write_pools(folder.results / SAMPLES_FILE, pools)
    kinds, rows = deployment_table(kinds, rows, pools)
    export_rows(rows, kinds, folder.results / DEPLOYMENTS_FILE, format="csv")


def is_study(plan: Mapping[str, Any]) -> bool:
    """Whether a plan's runs serve models and train none."""
    runs = plan.get("runs") or [{}]
    return "inference" in (plan.get("workload"), runs[0].get("workload"))
