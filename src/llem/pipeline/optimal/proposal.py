"""The campaign that a call of `find_optimal` becomes: its sizes, its site and its plan."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llem._numerals import format_count
from llem.campaign import Budget, Campaign, Site
from llem.errors import Fault, InputError
from llem.pipeline.campaigns import Planned, plan_campaign
from llem.pipeline.foreign import Foreign, Looked, name_of, shipped_code
from llem.pipeline.optimal.asked import SOURCE, Asked
from llem.pipeline.optimal.sizes import (
    SIZES,
    Ladder,
    data_per_parameter,
    find_ladder,
    ladder_of,
)

if TYPE_CHECKING:
    from llem.planning import Plan

# A batch where neither the user nor a DataLoader says one: samples, or about so many tokens.
BATCH_SAMPLES = 64
BATCH_TOKENS = 1024
# Of a model without embeddings to count apart, rates by this rule (see `llem.planning.recipe`).
RULE = "small"


@dataclass(frozen=True)
class Proposal:
    """What is asked of a model and data that were looked at, for so many ranks."""

    asked: Asked
    looked: Looked
    ranks: int

    def plan(self) -> tuple[Planned, Ladder]:
        """The plan, written unless it is only asked for, and the sizes. Raises InputError."""
        asked, looked, ranks = self.asked, self.looked, self.ranks
        from llem.campaign import campaign_from

        units = looked.data.units
        batch = self._batch()
        budget = asked.budget_of(asked.budget)
        values = self._values()
        ladder = self._ladder(batch * units, budget, values)
        if ranks > 1 and ladder.rungs[-1].unused:
            names = ", ".join(ladder.rungs[-1].unused[:3])
            text = f"the loss does not depend on all parameters ({names}), which {ranks} ranks need"
            raise InputError(SOURCE, [Fault("model", text, "remove them, or train on one rank")])
        model_name = name_of(asked.model)
        loss_name = "" if asked.loss_fn is None else name_of(asked.loss_fn)
        model = {
            "class": model_name, "size": asked.size, "values": [p.value for p in ladder.rungs],
            "arguments": asked.arguments, "context": units, "vocabulary": 1,
            **({"loss": loss_name} if loss_name else {}),
        }  # fmt: skip
        data = {"dataset": looked.data.dataset}
        if looked.data.evaluation:
            data["evaluation"] = looked.data.evaluation
        training = {
            "rule": RULE, "batch_tokens": batch * units, "schedule": asked.schedule,
            "weight_decay": asked.weight_decay, "clip_norm": asked.clip_norm,
            "precision": asked.precision,
            **({"learning_rate": asked.learning_rate} if asked.learning_rate else {}),
            **({"warmup_fraction": asked.warmup_fraction}
               if asked.warmup_fraction is not None else {}),
        }  # fmt: skip
        campaign = campaign_from(
            {
                "name": asked.name, "target": asked.budget_of(asked.target or asked.budget),
                "budget": budget, "model": model, "data": data, "seeds": asked.seeds,
                "waves": asked.waves, "law": asked.law,
                "grid": {
                    "levels": asked.levels, "sizes": len(ladder.rungs), "ratio": asked.ratio,
                    # Of a user's own model no D/N is known to be best: where the ladder stands.
                    "tokens_per_param": asked.data_per_parameter or data_per_parameter(
                        ladder.rungs, math.sqrt(math.prod(self._levels(budget, values)))
                    ),
                },
                "training": training, **values,
            },
            source=SOURCE,
        )  # fmt: skip
        assert isinstance(campaign, Campaign)
        code: dict[str, str] = {}
        base = asked.code_folder()
        if asked.executor == "slurm" and base is not None:
            for named in (model_name, loss_name, looked.data.dataset, looked.data.evaluation):
                code |= shipped_code(named, base)
        planned = plan_campaign(
            campaign, out=asked.root, base=base or Path.cwd(), replace_old=True,
            write=not asked.plan_only, foreign=Foreign(looked.data, looked.own, code),
        )  # fmt: skip
        self._enough(planned.plan)
        return planned, ladder

    def _values(self) -> dict[str, Any]:
        """What a campaign says of where it runs."""
        if self.asked.executor == "slurm":
            site = self.asked.site
            found = {"site": site if isinstance(site, (str, Site)) else dict(site)}
            micro_batch = self.asked.micro_batch
            return {**found, **({"layout": {"micro_batch": micro_batch}} if micro_batch else {})}
        import os

        local = int(os.environ.get("LOCAL_WORLD_SIZE") or self.ranks)
        nodes = max(1, self.ranks // local)
        site = {
            "name": "here", "executor": "local", "gpu_request": "none", "nodes": nodes,
            "gpus_per_node": local, "gpu": _device_here(), "startup_s": 0, "pack_s": 40,
            "limits": {"time": "24h"},
        }  # fmt: skip
        if (own := self.asked.site) is not None:
            site = own if isinstance(own, (str, Site)) else {**site, **own}
        micro = {"micro_batch": self.asked.micro_batch} if self.asked.micro_batch else {}
        return {"site": site, "layout": {"nodes": nodes, "gpus_per_node": local, **micro}}

    def _batch(self) -> int:
        """Samples of a step."""
        hint = self.looked.objects.train.batch_size
        units = self.looked.data.units
        default = BATCH_SAMPLES if units == 1 else max(1, BATCH_TOKENS // units)
        batch = self.asked.batch or hint or default
        if batch % self.ranks:
            text = f"{batch} samples do not divide among {self.ranks} ranks"
            raise InputError(SOURCE, [Fault("batch", text)])
        if batch > (there := self.looked.data.samples):
            text = f"{batch} samples are more than the {there} there are to train on"
            raise InputError(SOURCE, [Fault("batch", text)])
        return int(batch)

    def _ladder(self, batch: int, budget: Budget, values: Mapping[str, Any]) -> Ladder:
        if self.asked.sizes:
            return ladder_of(list(self.asked.sizes), self.looked.look)
        smallest, largest = self._levels(budget, values)
        return find_ladder(
            self.looked.look, largest_flops=largest, smallest_flops=smallest, batch=batch,
            budget=self._first_flops(budget, values), centre=self.asked.data_per_parameter,
        )  # fmt: skip

    def _levels(self, budget: Budget, values: Mapping[str, Any]) -> tuple[float, float]:
        """FLOPs of a run at the lowest and the highest compute level."""
        weight = sum(self.asked.ratio**-level for level in range(self.asked.levels))
        sizes = len(self.asked.sizes or ()) or SIZES
        largest = self._first_flops(budget, values) / (sizes * self.asked.seeds * weight)
        return largest / self.asked.ratio ** (self.asked.levels - 1), largest

    def _first_flops(self, budget: Budget, values: Mapping[str, Any]) -> float:
        """What the first wave may cost."""
        flops = _flops_of(budget, values["site"])
        if self.asked.waves > 1:
            from llem.planning.waves import wave_share

            flops *= wave_share(1, self.asked.waves)
        return flops

    def _enough(self, plan: Plan) -> None:
        """Raise InputError where the runs cannot carry the law, before any is trained."""
        from llem.scaling import get_law

        cells = {(some.run.params, some.run.tokens) for some in plan.runs.replicates}
        needed = len(get_law(self.asked.law).parameters) + 1
        models = {some.run.params for some in plan.runs.replicates}
        if len(cells) >= needed and len(models) >= 3:
            return
        dropped = "; ".join(
            dict.fromkeys(f"{format_count(d.params)}: {d.reason}" for d in plan.dropped)
        )
        text = (
            f"{plan.budget} buys {len(cells)} trainings of {len(models)} sizes, and the law "
            f"{self.asked.law} needs {needed} of at least 3" + (f" ({dropped})" if dropped else "")
        )
        raise InputError(SOURCE, [Fault("budget", text, "raise it, or give smaller `sizes`")])


def _device_here() -> dict[str, Any]:
    """The accelerator of this process, as a site tells of one."""
    import torch

    from llem.planning import ACCELERATORS

    if not torch.cuda.is_available():
        return {"name": "cpu"}
    told = torch.cuda.get_device_name()
    known = next((n for n in sorted(ACCELERATORS, key=len, reverse=True) if n in told), None)
    memory = int(torch.cuda.get_device_properties(0).total_memory)
    if known is not None:
        return {"name": known, "memory": memory}
    # A name that the table does not have: a prior, told as such by the plan's errors.
    return {"name": told, "peak_flops": 1e14, "memory": memory, "power_w": 300.0}


def _flops_of(budget: Budget, site: Any) -> float:
    from llem.campaign import load_site, validated
    from llem.planning import accelerator_of, target_flops

    if isinstance(site, str):
        found = load_site(site)
    else:
        found = site if isinstance(site, Site) else validated(Site, site, SOURCE)
    return target_flops(budget, found, accelerator_of(found))
