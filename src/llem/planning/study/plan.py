"""The plan of a study: its deployments in cycles, as elements that keep their order on a node."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from llem._numerals import format_amount, format_duration, format_si, percent
from llem._version import __version__
from llem.campaign import (
    Budget,
    Deployment,
    Predicted,
    Prompts,
    Replicates,
    Runs,
    ServedModel,
    Serving,
    Site,
    Warmup,
)
from llem.campaign.load import campaign_from, campaign_to_dict, site_of
from llem.campaign.study.study import PromptChoice, Study
from llem.campaign.study.sweep import Swept
from llem.errors import Fault, InputError
from llem.planning.anyplan import digest_of
from llem.planning.arrays import TIME_CLASS, ArrayJob, pack_length_s
from llem.planning.hardware import Accelerator, accelerator_of
from llem.planning.limits import ClusterLimits, narrowed
from llem.planning.plan import PLAN_SCHEMA, Plan, site_doubts
from llem.planning.spend import cost_of
from llem.planning.study.cost import predict
from llem.planning.study.deployments import Duplicate, Excluded, Expanded, expand
from llem.planning.study.law import ServingLaw, law_of
from llem.planning.study.orders import ordered

STUDY = "deployments"
# An element may take as long as is expected and so many standard errors more, and a time for what
# has nothing to do with serving: a container that starts slowly, a file system that is busy.
LIMIT_ERRORS, LIMIT_MORE_S = 2.0, 180.0


@dataclass(frozen=True)
class ServingArray(ArrayJob):
    """Elements that serve with one backend, on equal shapes."""

    backend: str = ""


@dataclass(frozen=True)
class StudyPlan:
    """What will be served, where, in which order, and what it is expected to cost.

    `varied` are the keys in which deployments differ. Without a budget in the file `budget` is
    what the plan expects to spend, in GPU-hours.
    """

    campaign: Study
    site: Site
    budget: Budget
    runs: Runs[Serving]
    arrays: tuple[ServingArray, ...]
    excluded: tuple[Excluded, ...]
    duplicates: tuple[Duplicate, ...]
    varied: tuple[str, ...]
    warnings: tuple[str, ...]
    device: Accelerator
    # What serves, by backend.
    laws: Mapping[str, ServingLaw]
    limits: ClusterLimits | None = None
    rehearsal: Mapping[str, Any] | None = None

    @cached_property
    def digest(self) -> str:
        """Names the plan's content: the runs and how they are submitted."""
        return digest_of(self.runs, self.arrays)

    @cached_property
    def by_id(self) -> dict[str, Serving]:
        """Every run by its name."""
        return dict(zip(self.runs.run_ids, self.runs, strict=True))

    @cached_property
    def totals(self) -> dict[str, float]:
        """Deployments, runs, elements, requests and what all of it is expected to cost."""
        return {
            "deployments": len(self.runs.replicates),
            "runs": len(self.runs),
            "elements": sum(len(a.elements) for a in self.arrays),
            "requests": self.runs.total(lambda r: r.deployment.prompts.count),
            "tokens": self.runs.total(lambda r: r.tokens),
            "flops": self.runs.total(lambda r: r.flops),
            "gpu_hours": self.runs.total(lambda r: r.predicted.gpu_hours),
            "energy_j": self.runs.total(lambda r: r.predicted.energy_j),
        }

    @cached_property
    def uncertainty(self) -> dict[str, Any]:
        """How far what is spent may be off: one standard error of each logarithm, and the sources.

        Of several backends the least known counts.
        """
        laws = self.laws.values()
        return {
            "uncertainty": {
                "flops": 0.0,
                "gpu_hours": max(law.time_error for law in laws),
                "energy_j": max(math.hypot(law.time_error, law.power_error) for law in laws),
                "memory": max(law.memory_error for law in laws),
            },
            "source": {
                "time": _by_backend({b: law.source for b, law in self.laws.items()}),
                "power": _by_backend(
                    {
                        b: f"{format_si(law.power_w, 'W')} +- "
                        f"{percent(law.power_error, places=0)} a device: {law.power_source}"
                        for b, law in self.laws.items()
                    }
                ),
            },
        }

    def told(self, run: Serving) -> dict[str, str]:
        """What sets a run's deployment apart, by the short name of each key."""
        return {short(key): said(value_of(run.deployment, key)) for key in self.varied}

    def head(self) -> dict[str, Any]:
        """`plan.json` without its long lists, the arrays and the runs."""
        totals = self.totals
        of_site = campaign_to_dict(self.campaign.model_copy(update={"site": self.site}))["site"]
        return {
            "schema": PLAN_SCHEMA,
            "llem": __version__,
            "workload": self.campaign.workload,
            "digest": self.digest,
            "campaign": campaign_to_dict(self.campaign),
            "site": {**of_site, "device": asdict(self.device)},
            "budget": {
                "value": self.budget.value,
                "unit": self.budget.unit,
                "spent": spent(self.runs, self.budget.unit, self.site),
                "flops": totals["flops"],
                "gpu_hours": totals["gpu_hours"],
                "energy_j": totals["energy_j"],
                **self.uncertainty,
            },
            "laws": {backend: asdict(law) for backend, law in self.laws.items()},
            "totals": dict(totals),
            "design": {
                "kind": STUDY,
                "cycles": self.campaign.cycles,
                "order": self.campaign.order,
                "varied": list(self.varied),
            },
            "limits": asdict(self.limits) if self.limits else None,
            "excluded": [vars(e) for e in self.excluded],
            "duplicates": [vars(d) for d in self.duplicates],
            "warnings": list(self.warnings),
            **({"rehearsal": dict(self.rehearsal)} if self.rehearsal else {}),
        }

    def to_dict(self) -> dict[str, Any]:
        """`plan.json`."""
        return {
            **self.head(),
            "arrays": [dict(vars(a)) for a in self.arrays],
            "runs": [r.to_dict() for r in self.runs],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StudyPlan:
        """Inverse of `to_dict`. Raises InputError where the file was edited."""
        try:
            site = {k: v for k, v in values["site"].items() if k != "device"}
            limits = values.get("limits")
            return cls(
                campaign=_study(values["campaign"]),
                site=site_of(_study({**values["campaign"], "site": site})),
                budget=Budget(values["budget"]["value"], values["budget"]["unit"]),
                runs=Runs.from_dicts(values["runs"]),
                arrays=tuple(
                    ServingArray(**{**a, "elements": tuple(tuple(e) for e in a["elements"])})
                    for a in values["arrays"]
                ),
                excluded=tuple(Excluded(**e) for e in values["excluded"]),
                duplicates=tuple(Duplicate(**d) for d in values["duplicates"]),
                varied=tuple(values["design"]["varied"]),
                warnings=tuple(values["warnings"]),
                device=Accelerator(**values["site"]["device"]),
                laws={b: ServingLaw(**law) for b, law in values["laws"].items()},
                limits=ClusterLimits(**limits) if limits else None,
                rehearsal=values.get("rehearsal"),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError("plan.json", [f"not a plan of a study: {error!r}"]) from None


def _by_backend(told: Mapping[str, str]) -> str:
    """What holds for every backend, or for each."""
    if len(set(told.values())) == 1:
        return next(iter(told.values()))
    return "; ".join(f"{backend}: {text}" for backend, text in told.items())


def value_of(deployment: Deployment, key: str) -> Any:
    """What a deployment says under a dotted key of the file; of options what they become."""
    place, _, name = key.partition(".")
    match place:
        case "model":
            return deployment.model.name
        case "backend":
            return deployment.backend
        case "options":
            asked = deployment.options.get(name)
            return deployment.effective.get(name) if asked is None else asked
        case "layout":
            return getattr(deployment.layout, name)
        case "arrival":
            arrival = deployment.arrival
            return arrival.rate if name else arrival.kind
        case _:
            name = name.removeprefix("synthetic.")
            found = deployment.prompts.path if name in ("jsonl", "dataset") else None
            kind = deployment.prompts.name if name == "builtin" else found
            return kind if kind is not None else getattr(deployment.prompts, name, None)


def short(key: str) -> str:
    """A dotted key without the place that anybody knows it to be at."""
    for prefix in ("options.", "prompts.synthetic.", "prompts.", "layout."):
        key = key.removeprefix(prefix)
    return key


def said(value: Any) -> str:
    """A value as a table or a line shows it."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def named(what: Mapping[str, Any]) -> str:
    """`batch_size=4 precision=fp32`."""
    return " ".join(f"{short(key)}={said(value)}" for key, value in what.items()) or "all"


def plan_from_dict(values: Mapping[str, Any]) -> Plan | StudyPlan:
    """Inverse of `to_dict` of a plan of any workload. Raises InputError."""
    if values.get("schema") == PLAN_SCHEMA and values.get("workload") == "inference":
        return StudyPlan.from_dict(values)
    return Plan.from_dict(values)


def _study(values: Any) -> Study:
    found = campaign_from(values, source="plan.json")
    assert isinstance(found, Study)
    return found


def make_study_plan(
    study: Study,
    swept: Swept,
    *,
    models: Mapping[str, ServedModel],
    prompts: Mapping[PromptChoice, Prompts],
    limits: ClusterLimits | None = None,
    measured: Mapping[str, ServingLaw] | None = None,
) -> StudyPlan:
    """Plan every deployment of a study, `cycles` times each.

    `models` and `prompts` are what those of the file turned out to be; `measured` are the laws of
    backends that have served on the site. Raises InputError where a
    deployment cannot be served on the site, nothing is left to serve, or the budget does not
    suffice.
    """
    site = site_of(study)
    if limits is not None:
        site = narrowed(site, limits)
    device = accelerator_of(site)
    backends = dict.fromkeys(setting.backend for setting in swept.settings)
    laws = {b: (measured or {}).get(b) or law_of(device, b) for b in backends}
    found = expand(
        swept.settings,
        models=models,
        prompts=prompts,
        rules=study.sweep.exclude,
        site=site,
        device=device,
        laws=laws,
    )
    if not found.deployments:
        reasons = dict.fromkeys(e.reason for e in found.excluded)
        text = f"leaves nothing to serve: all {len(found.excluded)} deployments are excluded"
        raise InputError("campaign", [Fault("sweep", text, "; ".join(list(reasons)[:3]))])
    served = {deployment.backend for deployment in found.deployments}
    laws = {backend: law for backend, law in laws.items() if backend in served}
    runs = runs_of(study, found.deployments, site, device, laws)
    arrays = pack_study(runs, study, site, laws)
    expected = runs.total(lambda r: r.predicted.gpu_hours)
    budget = study.budget or Budget(expected, "GPUh")
    plan = StudyPlan(
        campaign=study,
        site=site,
        budget=budget,
        runs=runs,
        arrays=arrays,
        excluded=found.excluded,
        duplicates=found.duplicates,
        varied=found.varied,
        warnings=(),
        device=device,
        laws=laws,
        limits=limits,
    )
    cost = spent(runs, budget.unit, site)
    if study.budget is not None and cost > budget.value:
        text = f"{format_amount(cost, budget.unit)} are expected, and {budget} may be spent"
        hint = "fewer cycles, deployments or prompts; or a larger --budget"
        raise InputError("campaign", [Fault("budget", text, hint)])
    unknown = [backend for backend in laws if measured is not None and backend not in measured]
    told = [f"the calibration has not measured {backend}: times are a prior" for backend in unknown]
    return replace(plan, warnings=(*told, *_warnings(plan, swept, found)))


def runs_of(
    study: Study,
    deployments: Sequence[Deployment],
    site: Site,
    device: Accelerator,
    laws: Mapping[str, ServingLaw],
) -> Runs[Serving]:
    """Every cycle of every deployment, a cell for each deployment."""
    asked = study.warmup
    warmup = Warmup(
        least=asked.least, most=asked.most, window=asked.window, spread=asked.spread,
        floor_s=float(asked.floor or 0),
    )  # fmt: skip
    cooldown = float(study.cooldown or 0)
    length = pack_length_s(site)

    def predicted(deployment: Deployment) -> Predicted:
        law = laws[deployment.backend]
        alone = predict(deployment, device=device, law=law, warmup=warmup, cooldown_s=cooldown)
        # The start of an element is shared by what it holds.
        share = min(1.0, alone.duration_s / length) if length > 0 else 1.0
        start = share * (site.startup_s + law.start_s)
        device_s = (alone.duration_s + start) * deployment.layout.ranks
        return replace(alone, gpu_hours=device_s / 3600, energy_j=device_s * law.power_w)

    cycles = range(study.cycles)
    return Runs(
        Replicates(
            Serving(
                deployment=deployment,
                cycle=0,
                predicted=predicted(deployment),
                warmup=warmup,
                cooldown_s=cooldown,
            ),
            cycles,
        )
        for deployment in deployments
    )


def pack_study(
    runs: Runs[Serving], study: Study, site: Site, laws: Mapping[str, ServingLaw]
) -> tuple[ServingArray, ...]:
    """Blocks of deployments with all their cycles, one to an element, in the study's order.

    Deployments of one block have one backend and shape and follow each other in the file; there
    are `block` of them, or as many as the length of an element allows (`pack_s`), but one at least.
    """
    longest = pack_length_s(site)
    half = 0.5 * site.limits.time
    blocks: dict[tuple[int, int, str], list[list[Replicates[Serving]]]] = defaultdict(list)
    filled: dict[tuple[int, int, str], float] = {}
    for some in runs.replicates:
        layout = some.run.layout
        shape = (layout.nodes, layout.gpus_per_node, some.run.deployment.backend)
        seconds = some.run.predicted.duration_s * len(some)
        used = filled.get(shape, math.inf)
        full = used + seconds > (half if study.block else longest)
        if full or (study.block and len(blocks[shape][-1]) >= study.block):
            blocks[shape].append([])
            used = 0.0
        blocks[shape][-1].append(some)
        filled[shape] = used + seconds
    jobs: list[ServingArray] = []
    number = 0
    for shape in sorted(blocks):
        classes: dict[int, list[tuple[float, tuple[str, ...]]]] = defaultdict(list)
        for block in blocks[shape]:
            seconds = site.startup_s + laws[shape[2]].start_s
            seconds += sum(s.run.predicted.duration_s * len(s) for s in block)
            rank = math.ceil(math.log(max(seconds, 60.0), TIME_CLASS))
            places = ordered(study.order, len(block), study.cycles, seed=study.seed + number)
            names = tuple(block[d].run_ids[c] for d, c in places)
            classes[rank].append((seconds, names))
            number += 1
        for rank in sorted(classes):
            jobs.extend(_arrays(shape, rank, classes[rank], site, laws[shape[2]]))
    return tuple(jobs)


def _arrays(
    shape: tuple[int, int, str],
    time_class: int,
    elements: Sequence[tuple[float, tuple[str, ...]]],
    site: Site,
    law: ServingLaw,
) -> list[ServingArray]:
    nodes, gpus, backend = shape
    longest = max(seconds for seconds, _ in elements)
    limit = math.ceil((math.exp(LIMIT_ERRORS * law.time_error) * longest + LIMIT_MORE_S) / 60) * 60
    size = min(site.limits.array_size, site.limits.submit or site.limits.array_size)
    return [
        ServingArray(
            name=f"serve-{nodes}x{gpus}-{backend}-t{time_class}-{start // size}",
            nodes=nodes,
            gpus_per_node=gpus,
            zero_stage=0,
            # What a rank of a training would compute in; a deployment says its own.
            precision="fp32",
            time_limit_s=min(limit, site.limits.time),
            throttle=site.limits.throttle,
            elements=tuple(names for _, names in elements[start : start + size]),
            backend=backend,
        )
        for start in range(0, len(elements), size)
    ]


def spent(runs: Runs[Serving], unit: str, site: Site) -> float:
    """What the runs are expected to cost, in a budget's unit. Raises InputError without a price."""
    return runs.total(lambda r: cost_of(r.flops, r.predicted, r.layout, unit=unit, site=site))


def _warnings(plan: StudyPlan, swept: Swept, found: Expanded) -> list[str]:
    study, site = plan.campaign, plan.site
    told = [*swept.notes, *found.notes]
    together = max(len(names) // study.cycles for a in plan.arrays for names in a.elements)
    if study.order != "sequential" and together == 1 and len(plan.runs.replicates) > 1:
        told.append(
            f"order {study.order}: each element holds one deployment, so that no two share a node;"
            " `block: K` puts K together"
        )
    idle = [
        some.run.deployment
        for some in plan.runs.replicates
        if int(some.run.deployment.effective.get("batch_size") or 1)
        > math.ceil(some.run.steps / some.run.deployment.replicas)
    ]
    if idle:
        most = max(int(d.effective["batch_size"]) for d in idle)
        told.append(
            f"{len(idle)} deployment{'s have' if len(idle) > 1 else ' has'} a batch_size of up to "
            f"{most}, more than there are prompts to fill a batch"
        )
    if found.tight:
        told.append(
            f"{found.tight} deployment{'s' if found.tight > 1 else ''} may need more memory than a "
            "device has: expected to fit, but by less than the error of what is expected"
        )
    longest = max(r.run.predicted.duration_s for r in plan.runs.replicates) * study.cycles
    if longest > site.limits.time:
        told.append(
            f"the cycles of a deployment take {format_duration(longest)}, longer than a job may "
            f"({format_duration(site.limits.time)}): what is cut off is served in a later try"
        )
    imaged = all(site.image_for(array.backend) for array in plan.arrays)
    told += [
        f"site {site.name}: no `{key}`: {then}"
        for key, then in site.left_open()
        if not (imaged and key == "container.image")
    ]
    told += site_doubts(site)
    elements = sum(len(a.elements) for a in plan.arrays)
    if site.limits.submit is not None and elements > site.limits.submit:
        told.append(
            f"{elements} elements, and the site lets a user submit {site.limits.submit} at a time: "
            "`llem submit` again when some have ended"
        )
    return told
