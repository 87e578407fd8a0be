"""A cell: one model on a number of tokens, with its recipe, its place and what it will cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from llem.campaign import Layout, Predicted, Replicates, Run, SampleData, Site, TokenData
from llem.campaign.architecture import Architecture
from llem.campaign.campaign import Campaign
from llem.campaign.run import Recipe
from llem.planning.arrays import pack_length_s
from llem.planning.hardware import Accelerator
from llem.planning.ladder import nearest_decoder, smallest_params
from llem.planning.layout import choose_layout, computed_flops, duration_s
from llem.planning.memory import memory_of
from llem.planning.recipe import MIN_STEPS, asked_of, recipe_for
from llem.planning.segments import checkpoint_steps_of, segments_of
from llem.planning.spend import cost_of

LEAST_STEPS = MIN_STEPS // 2
# A time limit that nothing reaches: what is left to keep a run from a layout is memory.
FOREVER_S = 10**15


@dataclass(frozen=True)
class Dropped:
    """A cell of the grid that has no run, and why."""

    level: int
    params: float
    reason: str
    too_small: bool = False


@dataclass(frozen=True)
class OwnModel:
    """A user's own class: parameters by the value of its size, and a hash of its code.

    `flops`: training FLOPs of one token (or sample) by that value, where they are counted.
    """

    count: Callable[[int], int]
    source: str = ""
    flops: Callable[[int], float] | None = None


@dataclass(frozen=True)
class Cell:
    """What all seeds of a cell share: everything of a run but its seed."""

    level: int
    model: Architecture
    recipe: Recipe
    steps: int
    layout: Layout
    predicted: Predicted

    @property
    def tokens(self) -> int:
        return self.steps * self.recipe.batch_tokens

    @property
    def flops(self) -> float:
        return float(self.model.flops_per_token) * self.tokens


def steps_at(places: Sequence[float], cell: Cell) -> tuple[int, ...]:
    """Places in a cell's runs (parts below 1, or tokens) as steps before their end, in order."""
    batch = cell.recipe.batch_tokens
    steps = {round(p * cell.steps) if p < 1 else math.ceil(p / batch) for p in places}
    return tuple(sorted(n for n in steps if 0 < n < cell.steps))


@dataclass(frozen=True)
class Bench:
    """Where cells are made: the campaign's choices, the site, its device, the data."""

    campaign: Campaign
    site: Site
    device: Accelerator
    data: TokenData | SampleData
    own: OwnModel | None = None

    def cell(self, level: int, model: Architecture, flops: float) -> Cell | Dropped:
        """The cell of at most `flops` FLOPs and less by at most one batch, or why there is none."""
        tokens = flops / model.flops_per_token
        recipe = recipe_for(model, tokens, self.campaign.training)
        steps = int(tokens // recipe.batch_tokens)
        if steps < LEAST_STEPS:
            reason = f"only {steps} steps of {recipe.batch_tokens} tokens"
            return Dropped(level, model.params, reason, too_small=True)
        layout = self._layout(model, recipe, steps * recipe.batch_tokens)
        if isinstance(layout, str):
            return Dropped(level, model.params, layout)
        memory = memory_of(model, recipe, layout, cpu=self.device.cpu).of_run
        return Cell(level, model, recipe, steps, layout, self._predicted(model, layout, steps,
                    recipe.batch_tokens, memory))  # fmt: skip

    def with_steps(self, cell: Cell, steps: int) -> Cell:
        """The same cell with other steps: of the same batch, in the same place."""
        batch = cell.recipe.batch_tokens
        return replace(
            cell,
            steps=steps,
            recipe=recipe_for(cell.model, steps * batch, self.campaign.training,
                              batch_tokens=batch),
            predicted=self._predicted(cell.model, cell.layout, steps, batch,
                                      cell.predicted.memory_bytes),
        )  # fmt: skip

    def cost(self, cell: Cell, unit: str, *, steps: int | None = None) -> float:
        """What one run of the cell costs in a budget's unit, with other steps where given."""
        if self.campaign.training.branch_at:
            whole = cell if steps in (None, cell.steps) else self.with_steps(cell, steps or 0)
            own = [n - whole.recipe.decay_start(n) for n in self._branch_at(whole)]
            return sum(
                (self._cost(cell, unit, n) for n in own), self._cost(cell, unit, whole.steps)
            )
        return self._cost(cell, unit, steps or cell.steps)

    def _cost(self, cell: Cell, unit: str, steps: int) -> float:
        if steps == cell.steps:
            return cost_of(cell.flops, cell.predicted, cell.layout, unit=unit, site=self.site)
        batch = cell.recipe.batch_tokens
        flops = float(cell.model.flops_per_token) * (steps * batch)
        if unit == "FLOP":
            return flops
        predicted = self._predicted(cell.model, cell.layout, steps, batch, math.nan)
        return cost_of(flops, predicted, cell.layout, unit=unit, site=self.site)

    def _branch_at(self, cell: Cell) -> tuple[int, ...]:
        """Where branches of a cell's runs end: each parts from its trunk in the stable phase."""
        places = steps_at(self.campaign.training.branch_at, cell)
        return tuple(n for n in places if cell.recipe.decay_start(n) > cell.recipe.warmup_steps)

    def runs(self, cell: Cell, seeds: Sequence[int]) -> list[Replicates]:
        """The cell's runs, one for each of the seeds, and those that branch off them."""
        training = self.campaign.training
        asked = asked_of(cell.model, cell.tokens, training, batch_tokens=cell.recipe.batch_tokens)
        checkpoints = checkpoint_steps_of(
            cell.predicted.duration_s, cell.steps, training.checkpoint_every, self.site
        )
        first = Run(
            model=cell.model, tokens=cell.tokens, steps=cell.steps, seed=seeds[0],
            recipe=cell.recipe, data=self.data, layout=cell.layout, predicted=cell.predicted,
            level=cell.level, checkpoint_steps=checkpoints, asked=asked,
            evaluate_at=steps_at(training.evaluate_at, cell), branch_at=self._branch_at(cell),
            deepspeed=training.deepspeed if cell.layout.zero_stage else {},
        )  # fmt: skip
        made = []
        for steps in first.branch_at:
            branch = first.branch(steps)
            predicted = self._predicted(
                cell.model, cell.layout, steps - branch.trunk_steps, cell.recipe.batch_tokens,
                cell.predicted.memory_bytes,
            )  # fmt: skip
            made.append(Replicates(replace(branch, predicted=predicted), seeds))
        # Branches follow their trunk in its jobs.
        seconds = math.fsum(run.predicted.duration_s for run in (first, *(r.run for r in made)))
        first = replace(first, segments=segments_of(seconds, self.site))
        return [Replicates(first, seeds), *made]

    def least(self) -> Cell | Dropped:
        """The smallest run there is: the smallest model, for as few steps as a schedule needs."""
        choice = self.campaign.model
        model = self.smallest
        if model is None:
            return Dropped(0, 0.0, "the family has no model", too_small=True)
        batch = self.campaign.training.batch_tokens or choice.context
        batch = max(1, round(batch / choice.context)) * choice.context
        return self.cell(0, model, float(model.flops_per_token) * LEAST_STEPS * batch)

    @cached_property
    def smallest(self) -> Architecture | None:
        """The smallest model that the ladder makes, or that the user's class was given to try."""
        choice = self.campaign.model
        if self.own is not None:
            return self.own_model(min(choice.values, key=self.own.count))
        least = smallest_params(
            vocabulary=choice.vocabulary, context=choice.context,
            tied_embeddings=choice.tied_embeddings,
        )  # fmt: skip
        # Heads of a size that the user fixed make the smallest widths impossible.
        tries = (self.decoder(least * math.exp(0.05 * power)) for power in range(400))
        return next((found for found in tries if found), None)

    def decoder(self, params: float) -> Architecture | None:
        """The reference family's model of that size, as the campaign's file shapes it."""
        choice = self.campaign.model
        return nearest_decoder(
            params, vocabulary=choice.vocabulary, context=choice.context,
            tied_embeddings=choice.tied_embeddings, head_size=choice.head_size,
        )  # fmt: skip

    def own_model(self, value: int) -> Architecture:
        """The user's own class at one value of its size."""
        from llem.campaign.architecture import CustomModel

        choice = self.campaign.model
        assert self.own is not None and choice.class_path and choice.size
        return CustomModel(
            class_path=choice.class_path, size=choice.size, value=value,
            params=self.own.count(value), vocabulary=choice.vocabulary, context=choice.context,
            arguments=dict(choice.arguments), source=self.own.source, loss=choice.loss or "",
            flops_each=self.own.flops(value) if self.own.flops else 0.0,
        )  # fmt: skip

    def _layout(self, model: Architecture, recipe: Recipe, tokens: int) -> Layout | str:
        """In one job's time where that can be, else in as few jobs as the site's nodes allow."""

        def choose(time_s: int) -> Layout | str:
            site = self.site
            if time_s != site.limits.time:
                limits = site.limits.model_copy(update={"time": time_s})
                site = site.model_copy(update={"limits": limits})
            return choose_layout(
                model, recipe, tokens, site=site, device=self.device, fixed=self.campaign.layout
            )

        time_s = self.site.limits.time
        found = choose(time_s)
        if isinstance(found, Layout):
            return found
        anyhow = choose(FOREVER_S)
        if isinstance(anyhow, str):
            return anyhow
        while not isinstance(found, Layout):
            time_s *= 2
            if time_s >= FOREVER_S:
                return anyhow
            found = choose(time_s)
        return found

    def _predicted(
        self, model: Architecture, layout: Layout, steps: int, batch: int, memory: float
    ) -> Predicted:
        # A run ends with a forward of all held-out tokens: a third of what training on them takes.
        evaluations = 1 + len(self.campaign.training.evaluate_at)
        tokens = steps * batch + evaluations * self.data.evaluation_tokens / 3
        flops = computed_flops(model, layout) * tokens
        seconds = duration_s(flops, steps, layout, self.device)
        # A short run shares the start of its element with those that are packed with it.
        length = pack_length_s(self.site)
        share = min(1.0, seconds / length) if length > 0 else 1.0
        starts = share * segments_of(seconds, self.site)
        device_s = (seconds + starts * self.site.startup_s) * layout.ranks
        return Predicted(
            duration_s=seconds,
            gpu_hours=device_s / 3600,
            energy_j=device_s * self.device.power_w,
            memory_bytes=memory,
        )
