"""The next wave of a campaign: from its records so far to the runs that tell most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llem.cluster import PATIENCE_S, render_files
from llem.pipeline.campaigns import (
    Planned,
    aggregate_campaign,
    draw_page,
    image_digest,
    limits_of,
    own_model,
)
from llem.planning import measured_from_observations, refine_plan

if TYPE_CHECKING:
    from llem.campaign import Budget, Campaign
    from llem.cluster import CampaignFolder
    from llem.pipeline.foreign import Foreign
    from llem.planning import OwnModel, Plan


def refine_campaign(
    folder: CampaignFolder,
    *,
    budget: Budget | None = None,
    runs: int | None = None,
    ask_cluster: bool = False,
    write: bool = True,
    after: int | None = None,
    foreign: Foreign | None = None,
) -> Planned:
    """Plan one more wave of the campaign in `folder` from the records so far.

    `budget` is a new total; `runs` asks for so many runs. The files of earlier waves stay as they
    are; with `write=False` all do. What trainings took so far tells the device's utilisation and
    power. With `after`, the wave behind the caller, another call that holds the campaign is waited
    for, and where it has planned the next wave that plan is taken. `foreign` is
    what the campaign was planned with. Raises InputError, BudgetError.
    """
    # Before the lock, which makes a folder: where there is no campaign nothing is made.
    folder.plan_values()
    patience_s = 0.0 if after is None else PATIENCE_S
    with folder.locked("`llem plan --refine`", patience_s=patience_s):
        plan = folder.load_trainings()
        if after is not None and len(plan.waves) > after:
            return Planned(plan, folder, changed=False)
        rows = [asdict(row) for row in aggregate_campaign(folder, write=write).observations]
        own = foreign.own if foreign is not None else own_of(plan.campaign, folder.root / "code")
        grown = grow_plan(plan, rows, budget=budget, runs=runs, own=own, ask_cluster=ask_cluster)
        times = None
        if write:
            wave = grown.waves[-1].number
            files = render_files(grown, image_digest=image_digest(grown), wave=wave)
            paths = {folder.jobs / name: text for name, text in files.items()}
            paths[folder.plan_page], times = draw_page(grown)
            folder.write_plan(grown, paths, replace=True)
    return Planned(grown, folder, changed=write, times=times)


def grow_plan(
    plan: Plan,
    rows: Sequence[Mapping[str, Any]],
    *,
    budget: Budget | None = None,
    runs: int | None = None,
    own: OwnModel | None = None,
    ask_cluster: bool = False,
) -> Plan:
    """The plan with one more wave, chosen from the observations `rows` so far.

    What trainings took tells the device's utilisation and power. Raises InputError, BudgetError.
    """
    completed = [row for row in rows if row["status"] == "completed"]
    seen = measured_from_observations(completed, peak_flops=plan.device.peak_flops)
    return refine_plan(
        plan, rows, budget=budget, runs=runs, own=own,
        limits=limits_of(plan.site) if ask_cluster else None,
        measured=[seen] if seen else [],
    )  # fmt: skip


def own_of(campaign: Campaign, code: Path) -> OwnModel | None:
    """How to count a user's own model, whose code is in the folder `code`; None for a family."""
    if campaign.data.dataset:
        from llem.pipeline.foreign import foreign_of

        return foreign_of(campaign, base=code.resolve())[1].own
    if campaign.model.family == "custom":
        return own_model(campaign, code.resolve())[0]
    return None


def wave_is_due(plan: Plan) -> bool:
    """Whether the campaign asks for more waves than were planned."""
    return len(plan.waves) < plan.campaign.waves
