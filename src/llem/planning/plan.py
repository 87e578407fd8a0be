"""The plan: a campaign resolved to runs and array jobs, within its budget."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

from llem._numerals import (
    format_count,
    format_duration,
    format_gpu_hours,
    format_hours,
    format_times,
    percent,
)
from llem._version import __version__
from llem.campaign import Budget, Run, Runs, SampleData, Site, TokenData
from llem.campaign.campaign import Campaign
from llem.campaign.load import campaign_from, campaign_to_dict, site_of
from llem.errors import Fault, InputError
from llem.planning.anyplan import digest_of
from llem.planning.arrays import ArrayJob, pack
from llem.planning.cells import Bench, Dropped, OwnModel
from llem.planning.fill import fill
from llem.planning.grid import GridShape
from llem.planning.hardware import Accelerator, Measured, accelerator_of, site_as_measured
from llem.planning.limits import ClusterLimits, narrowed
from llem.planning.spend import spend, target_flops, uncertainty
from llem.planning.waves import PROMISED, promise_of, promise_of_waves, wave_share

PLAN_SCHEMA = "llem-plan-1"
# Kinds of waves: the first is a grid, those after it are chosen from what was learnt.
GRID = "isoflop-grid"
# A plan that uses less than this share of its budget says so.
FILL = 0.9
# Runs that share an element pay a part of its start each, as if it were filled: where elements are
# not, and this share of the plan is not counted, it says so.
STARTS = 0.05
# A campaign that keeps the whole site busy for longer than this is hardly meant.
LONG_S = 365 * 86400.0
# So many times the target's compute in one run says that the budget was not chosen for the target.
OVERSHOT = 2.0


@dataclass(frozen=True)
class WavePlan:
    """One part of a plan: `value` of the budget, in its unit, that its runs may cost together.

    `digest` is the plan's when this wave was its last. A later wave was chosen from `observed`
    runs, while `pending` ones were still under way.
    """

    number: int
    kind: str
    value: float
    runs: int
    digest: str
    observed: int = 0
    pending: int = 0


@dataclass(frozen=True)
class Plan:
    """What will run, where, and what it is expected to cost."""

    campaign: Campaign
    site: Site
    budget: Budget
    runs: Runs
    arrays: tuple[ArrayJob, ...]
    dropped: tuple[Dropped, ...]
    warnings: tuple[str, ...]
    device: Accelerator
    shape: GridShape | None = None
    limits: ClusterLimits | None = None
    promise: Mapping[str, Any] = field(default_factory=dict)
    waves: tuple[WavePlan, ...] = ()
    # Of a plan that was rehearsed, and is not to be run: the planted law and the seed.
    rehearsal: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        # Whoever has a list of runs may give that.
        object.__setattr__(self, "runs", Runs.of(self.runs))

    @cached_property
    def digest(self) -> str:
        """Names the plan's content: the runs and how they are submitted."""
        return digest_of(self.runs, self.arrays)

    def run(self, run_id: str) -> Run:
        """The run of that name. Raises KeyError."""
        return self.by_id[run_id]

    @cached_property
    def by_id(self) -> dict[str, Run]:
        """Every run by its name."""
        return dict(zip(self.runs.run_ids, self.runs, strict=True))

    @cached_property
    def totals(self) -> dict[str, float]:
        """Runs, elements and what all of it is expected to cost; `flops_6nd` is 6 N D, summed;
        how many runs read tokens more than once, and how often at most (`epochs_most`)."""
        return {
            "runs": len(self.runs),
            "elements": sum(len(a.elements) for a in self.arrays),
            "flops": self.runs.total(lambda r: r.flops_of_its_own),
            "flops_6nd": self.runs.total(
                lambda r: 6.0 * r.params * (r.steps - r.trunk_steps) * r.recipe.batch_tokens
            ),
            "gpu_hours": self.runs.total(lambda r: r.predicted.gpu_hours),
            "energy_j": self.runs.total(lambda r: r.predicted.energy_j),
            "runs_repeating": self.runs.how_many(lambda r: r.epochs > 1),
            "epochs_most": max(r.run.epochs for r in self.runs.replicates),
        }

    def to_dict(self) -> dict[str, Any]:
        """`plan.json`, as DESIGN's contract has it."""
        return {
            **self.head(),
            "arrays": [dict(vars(a)) for a in self.arrays],
            "runs": [r.to_dict() for r in self.runs],
        }

    def head(self) -> dict[str, Any]:
        """`plan.json` without its long lists, the arrays and the runs."""
        totals = self.totals
        spent = spend(self.runs, self.budget.unit, self.site)
        target = self.campaign.target
        return {
            "schema": PLAN_SCHEMA,
            "llem": __version__,
            "digest": self.digest,
            "campaign": campaign_to_dict(self.campaign),
            "site": {
                **campaign_to_dict(self.campaign.model_copy(update={"site": self.site}))["site"],
                "device": asdict(self.device),
            },
            "budget": {
                "value": self.budget.value,
                "unit": self.budget.unit,
                "spent": spent,
                "flops": totals["flops"],
                "gpu_hours": totals["gpu_hours"],
                "energy_j": totals["energy_j"],
                **uncertainty(self.device),
            },
            "totals": dict(totals),
            "waves": [asdict(w) for w in self.waves],
            "design": {
                "kind": self.waves[-1].kind if self.waves else GRID,
                "grid": asdict(self.shape) if self.shape else None,
                "target": {"value": target.value, "unit": target.unit},
                "target_flops": target_flops(target, self.site, self.device),
                "largest_run_flops": max(r.run.flops for r in self.runs.replicates),
                **self.promise,
            },
            "limits": asdict(self.limits) if self.limits else None,
            "dropped": [asdict(d) for d in self.dropped],
            "warnings": list(self.warnings),
            **({"rehearsal": dict(self.rehearsal)} if self.rehearsal else {}),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Plan:
        """Inverse of `to_dict`. Raises InputError where the file was edited."""
        if values.get("schema") != PLAN_SCHEMA:
            text = f"schema is {values.get('schema')!r}, not {PLAN_SCHEMA}"
            hint = "it is of another llem: use that, or plan the campaign into another folder"
            raise InputError("plan.json", [Fault("", text, hint)])
        try:
            site = {k: v for k, v in values["site"].items() if k != "device"}
            campaign = campaign_from({**values["campaign"], "site": site}, source="plan.json")
            shape = values["design"].get("grid")
            limits = values.get("limits")
            asked = campaign_from(values["campaign"], source="plan.json")
            assert isinstance(asked, Campaign)
            plan = cls(
                campaign=asked,
                site=site_of(campaign),
                budget=Budget(values["budget"]["value"], values["budget"]["unit"]),
                runs=Runs.from_dicts(values["runs"]),
                arrays=tuple(
                    ArrayJob(**{**a, "elements": tuple(tuple(e) for e in a["elements"])})
                    for a in values["arrays"]
                ),
                dropped=tuple(Dropped(**d) for d in values["dropped"]),
                warnings=tuple(values["warnings"]),
                device=Accelerator(**values["site"]["device"]),
                shape=GridShape(**shape) if shape else None,
                limits=ClusterLimits(**limits) if limits else None,
                promise={k: values["design"][k] for k in PROMISED},
                waves=tuple(WavePlan(**w) for w in values["waves"]),
                rehearsal=values.get("rehearsal"),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError("plan.json", [f"not a plan: {error!r}"]) from None
        return plan


def make_plan(
    campaign: Campaign,
    *,
    budget: Budget | None = None,
    data: TokenData | SampleData,
    own: OwnModel | None = None,
    runs: int | None = None,
    limits: ClusterLimits | None = None,
    measured: Sequence[Measured] = (),
) -> Plan:
    """Spend the budget on an isoFLOP grid: all of it but a step of the smallest run, never more.

    Where the campaign asks for several waves the grid is the first, and spends its share alone.
    `budget` overrides the campaign's; `runs` asks for so many runs; `limits` are the cluster's
    own, where it was asked, and `measured` what trainings there have shown. Raises InputError
    where no budget is given or a price is missing, BudgetError where not even the least plan fits.
    """
    budget = budget or campaign.budget
    if budget is None:
        text = "no budget: give `budget:` in the campaign or --budget"
        raise InputError("campaign", [Fault("budget", text)])
    site = site_of(campaign)
    if limits is not None:
        site = narrowed(site, limits)
    site = site_as_measured(site, measured)
    device = accelerator_of(site, measured)
    bench = Bench(campaign=campaign, site=site, device=device, data=data, own=own)
    share = wave_share(1, campaign.waves)
    first = Budget(share * budget.value, budget.unit)
    filled = fill(bench, first, runs=runs)
    made = Runs(some for cell, seeds in filled.cells for some in bench.runs(cell, range(seeds)))
    arrays = pack(made, site)
    target = target_flops(campaign.target, site, device)
    if campaign.waves > 1:
        promise = promise_of_waves(
            bench, made, target_flops=target, budget=budget.value - first.value, unit=budget.unit
        )
    else:
        promise = promise_of(made, target_flops=target)
    plan = Plan(
        campaign=campaign,
        site=site,
        budget=budget,
        runs=made,
        arrays=arrays,
        dropped=filled.dropped,
        warnings=(
            *plan_warnings(made, arrays, campaign, first, site, device, data),
            *_thin_levels(made),
        ),
        device=device,
        shape=filled.shape,
        limits=limits,
        promise=promise,
    )
    wave = WavePlan(number=1, kind=GRID, value=first.value, runs=len(made), digest=plan.digest)
    return replace(plan, waves=(wave,))


def _thin_levels(runs: Runs) -> list[str]:
    """Levels of a grid that cannot show a minimum."""
    sizes: dict[int, set[int]] = {}
    for some in runs.replicates:
        sizes.setdefault(some.run.level, set()).add(some.run.params)
    return [
        f"compute level {level} has only {len(sizes[level])} model size(s)"
        for level in sorted(sizes)
        if len(sizes[level]) < 3
    ]


def site_doubts(site: Site) -> list[str]:
    """What a job of a site will not get as it was meant, each with what to set."""
    return [f"site {site.name}: `{key}`: {text}: {then}" for key, text, then in site.doubts()]


def plan_warnings(
    runs: Runs,
    arrays: Sequence[ArrayJob],
    campaign: Campaign,
    budget: Budget,
    site: Site,
    device: Accelerator,
    data: TokenData | SampleData,
) -> list[str]:
    """What a user should know of the runs of one wave, which may cost `budget` together."""
    found = []
    firsts = [some.run for some in runs.replicates]
    spent = spend(runs, budget.unit, site)
    if spent < FILL * budget.value:
        found.append(
            f"the runs spend only {percent(spent / budget.value, places=0)} of what they may cost"
        )
    most = max(r.epochs for r in firsts)
    unit = f"{data.unit}s" if isinstance(data, SampleData) else "tokens"
    if most > 1:
        over = runs.how_many(lambda r: r.epochs > 1)
        longest = max(r.tokens for r in firsts if r.epochs == most)
        found.append(
            f"{over} run{'s read' if over > 1 else ' reads'} {unit} more than once: up to "
            f"{format_times(most)} epochs, {format_count(longest)} {unit} of which "
            f"{format_count(data.different_tokens(longest))} differ"
        )
    ratio = target_flops(campaign.target, site, device) / max(r.flops for r in firsts)
    if ratio > 10:
        times = format_times(ratio)
        found.append(f"the target lies {times} times beyond the largest run: extrapolated")
    elif ratio < 1 / OVERSHOT:
        found.append(
            f"the largest run has {format_times(1 / ratio)} times the compute of the target: the "
            "answer needs no more than runs around it, and a smaller budget"
        )
    chained = runs.how_many(lambda r: r.segments > 1)
    if chained:
        found.append(
            f"{chained} run{'s' if chained > 1 else ''} take longer than a job may "
            f"({format_duration(site.limits.time)}): up to {max(r.segments for r in firsts)} "
            "jobs one after the other, each from the last one's checkpoint"
        )
    hours = runs.total(lambda r: r.predicted.gpu_hours)
    least_s = max(
        hours * 3600 / (site.nodes * site.gpus_per_node),
        max(r.predicted.duration_s for r in firsts),
    )
    if least_s > LONG_S:
        found.append(
            f"all of it takes {format_times(least_s / LONG_S)} years at least, on the whole site"
        )
    counted_s = runs.total(
        lambda r: 3600 * r.predicted.gpu_hours - r.predicted.duration_s * r.layout.ranks
    )
    starts_s = math.fsum(
        len(a.elements) * a.segments * site.startup_s * a.nodes * a.gpus_per_node for a in arrays
    )
    if starts_s - counted_s > STARTS * 3600 * hours:
        found.append(
            f"the starts of {sum(len(a.elements) for a in arrays)} element(s) take "
            f"{format_gpu_hours(starts_s / 3600)}, of which {format_hours(counted_s / 3600)} are "
            "counted: short runs do not fill them"
        )
    found += [f"site {site.name}: no `{key}`: {then}" for key, then in site.left_open()]
    found += site_doubts(site)
    elements = sum(len(a.elements) * a.segments for a in arrays)
    if site.limits.submit is not None and elements > site.limits.submit:
        found.append(
            f"{elements} elements, and the site lets a user submit {site.limits.submit} at a time: "
            "`llem submit` again when some have ended"
        )
    return found
