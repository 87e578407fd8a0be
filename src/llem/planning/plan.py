"""The plan: a campaign resolved to runs and array jobs, within its budget."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from llem._version import __version__
from llem.campaign import MONEY, Budget, Run, Site, TokenData, format_si
from llem.campaign.campaign import Campaign
from llem.campaign.load import campaign_from, campaign_to_dict, site_of
from llem.errors import Fault, InputError, LlemError
from llem.planning.arrays import ArrayJob, pack
from llem.planning.grid import Dropped, OwnModel, Wave, isoflop_wave
from llem.planning.hardware import Accelerator, accelerator_of

PLAN_SCHEMA = "llem-plan-1"
# A plan that uses less than this share of its budget says so.
FILL = 0.9


class BudgetError(LlemError):
    """No plan fits the budget; the message says what the least one would cost."""


@dataclass(frozen=True)
class Plan:
    """What will run, where, and what it is expected to cost."""

    campaign: Campaign
    site: Site
    budget: Budget
    runs: tuple[Run, ...]
    arrays: tuple[ArrayJob, ...]
    dropped: tuple[Dropped, ...]
    warnings: tuple[str, ...]
    device: Accelerator

    @property
    def digest(self) -> str:
        """Names the plan's content: the runs and how they are submitted."""
        text = json.dumps([[r.run_id for r in self.runs], [asdict(a) for a in self.arrays]])
        return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()

    def run(self, run_id: str) -> Run:
        """The run of that name. Raises KeyError."""
        return {r.run_id: r for r in self.runs}[run_id]

    def to_dict(self) -> dict[str, Any]:
        """`plan.json`, as DESIGN's contract has it."""
        flops = sum(r.flops for r in self.runs)
        gpu_hours = sum(r.predicted.gpu_hours for r in self.runs)
        energy = sum(r.predicted.energy_j for r in self.runs)
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
                "flops": flops,
                "gpu_hours": gpu_hours,
                "energy_j": energy,
            },
            "runs": [r.to_dict() for r in self.runs],
            "arrays": [asdict(a) for a in self.arrays],
            "totals": {
                "runs": len(self.runs),
                "elements": sum(len(a.elements) for a in self.arrays),
                "flops": flops,
                "gpu_hours": gpu_hours,
                "energy_j": energy,
            },
            "design": {
                "kind": "isoflop-grid",
                "target": {"value": target.value, "unit": target.unit},
                "target_flops": target_flops(target, self.site, self.device),
                "largest_run_flops": max(r.flops for r in self.runs),
                # Stated before spending by a later planner; null says that nothing is promised.
                "predicted_se_log_params": None,
            },
            "dropped": [asdict(d) for d in self.dropped],
            "warnings": list(self.warnings),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Plan:
        """Inverse of `to_dict`. Raises InputError where the file was edited."""
        if values.get("schema") != PLAN_SCHEMA:
            raise InputError(
                "plan.json", [f"schema is {values.get('schema')!r}, not {PLAN_SCHEMA}"]
            )
        try:
            site = {k: v for k, v in values["site"].items() if k != "device"}
            campaign = campaign_from({**values["campaign"], "site": site}, source="plan.json")
            plan = cls(
                campaign=campaign_from(values["campaign"], source="plan.json"),
                site=site_of(campaign),
                budget=Budget(values["budget"]["value"], values["budget"]["unit"]),
                runs=tuple(Run.from_dict(r) for r in values["runs"]),
                arrays=tuple(
                    ArrayJob(**{**a, "elements": tuple(tuple(e) for e in a["elements"])})
                    for a in values["arrays"]
                ),
                dropped=tuple(Dropped(**d) for d in values["dropped"]),
                warnings=tuple(values["warnings"]),
                device=Accelerator(**values["site"]["device"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError("plan.json", [f"not a plan: {error!r}"]) from None
        return plan


def make_plan(
    campaign: Campaign,
    *,
    budget: Budget | None = None,
    data: TokenData,
    own: OwnModel | None = None,
) -> Plan:
    """Spend the budget on an isoFLOP grid as nearly as whole batches allow, never above it.

    `budget` overrides the campaign's. Raises InputError where none is given or a price is
    missing, BudgetError where not even the smallest grid fits.
    """
    budget = budget or campaign.budget
    if budget is None:
        text = "no budget: give `budget:` in the campaign or --budget"
        raise InputError("campaign", [Fault("budget", text)])
    site = site_of(campaign)
    device = accelerator_of(site)

    def wave(flops: float) -> Wave:
        return isoflop_wave(
            campaign, largest_flops=flops, site=site, device=device, data=data,
            own=own,
        )  # fmt: skip

    chosen = _fill(wave, budget, campaign, site, device)
    warnings = _warnings(chosen, campaign, budget, site, data)
    return Plan(
        campaign=campaign,
        site=site,
        budget=budget,
        runs=chosen.runs,
        arrays=pack(chosen.runs, site),
        dropped=chosen.dropped,
        warnings=tuple(warnings),
        device=device,
    )


def spend(runs: tuple[Run, ...], unit: str, site: Site) -> float:
    """What the runs are expected to cost, in a budget's unit. Raises InputError without a price."""
    if unit == "FLOP":
        return sum(r.flops for r in runs)
    gpu_hours = sum(r.predicted.gpu_hours for r in runs)
    if unit == "GPUh":
        return gpu_hours
    if unit == "node-h":
        return sum(r.predicted.duration_s * r.layout.nodes for r in runs) / 3600
    kwh = sum(r.predicted.energy_j for r in runs) * site.pue / 3.6e6
    if unit == "kWh":
        return kwh
    return _money_rate(unit, site, gpu_hours=gpu_hours, kwh=kwh)


def target_flops(target: Budget, site: Site, device: Accelerator) -> float:
    """The target in FLOPs, through the device's stated utilisation, power and prices."""
    rate = device.peak_flops * device.utilisation * 3600
    kwh_per_gpu_hour = device.power_w * site.pue / 1e3
    match target.unit:
        case "FLOP":
            return target.value
        case "GPUh":
            return target.value * rate
        case "node-h":
            return target.value * site.gpus_per_node * rate
        case "kWh":
            return target.value / kwh_per_gpu_hour * rate
    return target.value / _money_rate(target.unit, site, gpu_hours=1.0, kwh=kwh_per_gpu_hour) * rate


def _money_rate(unit: str, site: Site, *, gpu_hours: float, kwh: float) -> float:
    assert unit in MONEY
    prices = site.prices
    faults = []
    if prices.currency != unit:
        faults.append(Fault("prices.currency", f"is {prices.currency}, the budget is in {unit}"))
    if prices.per_gpu_hour is None and prices.per_kwh is None:
        text = "money needs a price: per_gpu_hour or per_kwh"
        faults.append(Fault("prices", text))
    if faults:
        raise InputError(f"site {site.name}", faults)
    if prices.per_gpu_hour is not None:
        return gpu_hours * prices.per_gpu_hour
    return kwh * (prices.per_kwh or math.nan)


def _fill(
    wave: Callable[[float], Wave],
    budget: Budget,
    campaign: Campaign,
    site: Site,
    device: Accelerator,
) -> Wave:
    """The largest grid within the budget, by fixed-point steps on the largest level's FLOPs.

    Cost grows about linearly with the level, but in steps (whole batches, shapes of models):
    a few proportional corrections come within a per cent where the steps are fine.
    """
    grid = campaign.grid
    share = campaign.seeds * grid.sizes * sum(grid.ratio**-i for i in range(grid.levels))
    flops = target_flops(budget, site, device) / share
    best: Wave | None = None
    best_spent = 0.0
    least = math.inf
    below, above = 0.0, math.inf
    for _ in range(24):
        candidate = wave(flops)
        spent = spend(candidate.runs, budget.unit, site)
        if candidate.runs:
            least = min(least, spent)
        if candidate.runs and best_spent < spent <= budget.value:
            best, best_spent = candidate, spent
        if best is not None and best_spent >= 0.98 * budget.value:
            break
        # Aim a little below the budget: landing above it is of no use. Where shapes of models
        # come and go between two levels, proportion misleads, and halving takes over.
        if spent > 0:
            factor = 0.995 * budget.value / spent
        else:
            factor = 4.0 if all(d.too_small for d in candidate.dropped) else 0.1
        if spent > budget.value or (spent == 0 and factor < 1):
            above = min(above, flops)
        else:
            below = max(below, flops)
        flops *= min(max(factor, 0.1), 10.0)
        if not below < flops < above:
            flops = math.sqrt(below * above)
    if best is None:
        reasons = sorted({d.reason for d in candidate.dropped})
        text = f"no grid of {grid.levels} levels x {grid.sizes} sizes fits {budget}"
        if math.isfinite(least):
            text += f"; the least one costs {least:.3g} {budget.unit}"
        if reasons:
            text += f": {'; '.join(reasons[:3])}"
        raise BudgetError(text, remedy="raise the budget, or ask for fewer levels, sizes or seeds")
    return best


def _warnings(
    wave: Wave, campaign: Campaign, budget: Budget, site: Site, data: TokenData
) -> list[str]:
    found = []
    spent = spend(wave.runs, budget.unit, site)
    if spent < FILL * budget.value:
        found.append(f"the plan spends only {spent / budget.value:.0%} of the budget")
    longest = max(r.tokens for r in wave.runs)
    if longest > data.training_tokens:
        over = sum(r.tokens > data.training_tokens for r in wave.runs)
        found.append(
            f"{over} run{'s' if over > 1 else ''} would see tokens more than once: up to "
            f"{format_si(longest)} of {format_si(data.training_tokens)} unique tokens"
        )
    levels = {r.level for r in wave.runs}
    for level in sorted(levels):
        sizes = {r.params for r in wave.runs if r.level == level}
        if len(sizes) < 3:
            found.append(f"compute level {level} has only {len(sizes)} model size(s)")
    target = target_flops(campaign.target, site, accelerator_of(site))
    ratio = target / max(r.flops for r in wave.runs)
    if ratio > 10:
        found.append(f"the target lies {ratio:.3g} times beyond the largest run: extrapolated")
    return found
