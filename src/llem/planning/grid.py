"""The first wave: an isoFLOP grid, several models at each of several compute levels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from llem.campaign import Predicted, Run, Site, TokenData, format_si
from llem.campaign.architecture import Architecture, CustomModel
from llem.campaign.campaign import Campaign
from llem.planning.hardware import Accelerator
from llem.planning.ladder import nearest_decoder, smallest_params
from llem.planning.layout import choose_layout, duration_s, memory_bytes
from llem.planning.recipe import MIN_STEPS, recipe_for


@dataclass(frozen=True)
class Dropped:
    """A cell of the grid that has no run, and why."""

    level: int
    params: float
    reason: str
    too_small: bool = False


@dataclass(frozen=True)
class OwnModel:
    """A user's own class: parameters by the value of its size, and a hash of its code."""

    count: Callable[[int], int]
    source: str = ""


@dataclass(frozen=True)
class Wave:
    """The runs of a grid whose largest level is `flops`, and the cells left out."""

    flops: float
    runs: tuple[Run, ...]
    dropped: tuple[Dropped, ...]


def isoflop_wave(
    campaign: Campaign,
    *,
    largest_flops: float,
    site: Site,
    device: Accelerator,
    data: TokenData,
    own: OwnModel | None = None,
) -> Wave:
    """The grid of the campaign whose largest compute level is `largest_flops` FLOPs a run.

    `own` is what the planner cannot know of a user's own class. Every run of a level costs at
    most the level's FLOPs, and less than that by at most one batch.
    """
    runs: dict[str, Run] = {}
    dropped: list[Dropped] = []
    grid = campaign.grid
    for level in range(grid.levels):
        level_flops = largest_flops / grid.ratio ** (grid.levels - 1 - level)
        for model in _models(campaign, level, level_flops, dropped, own):
            made = _run(campaign, level, level_flops, model, site, device, data)
            if isinstance(made, Dropped):
                dropped.append(made)
                continue
            for seed in range(campaign.seeds):
                run = made(seed)
                runs.setdefault(run.run_id, run)
    return Wave(largest_flops, tuple(runs.values()), tuple(dropped))


def _models(
    campaign: Campaign,
    level: int,
    flops: float,
    dropped: list[Dropped],
    own: OwnModel | None,
) -> Iterator[Architecture]:
    choice = campaign.model
    if choice.family == "custom":
        assert own is not None and choice.class_path and choice.size
        for value in choice.values:
            yield CustomModel(
                class_path=choice.class_path, size=choice.size, value=value,
                params=own.count(value), vocabulary=choice.vocabulary, context=choice.context,
                arguments=dict(choice.arguments), source=own.source,
            )  # fmt: skip
        return
    shape = {
        "vocabulary": choice.vocabulary,
        "context": choice.context,
        "tied_embeddings": choice.tied_embeddings,
    }
    seen = set()
    for params in grid_sizes(campaign, flops):
        model = nearest_decoder(params, head_size=choice.head_size, **shape)  # type: ignore[arg-type]
        if model is None:
            reason = f"no shape within 5 % of {format_si(params)} parameters"
            dropped.append(Dropped(level, params, reason, too_small=params < 1e6))
        elif model not in seen:
            seen.add(model)
            yield model


def grid_sizes(campaign: Campaign, flops: float) -> list[float]:
    """Parameter counts of one level, evenly spaced in log N around the prior optimum.

    The prior optimum is N = sqrt(C / (6 D/N)); where the family has no model that small, the
    low end moves up and the spacing narrows.
    """
    choice, grid = campaign.model, campaign.grid
    centre = math.sqrt(flops / (6 * grid.tokens_per_param))
    floor = 1.1 * smallest_params(
        vocabulary=choice.vocabulary,
        context=choice.context,
        tied_embeddings=choice.tied_embeddings,
    )
    high = centre * 10**grid.span
    low = max(centre / 10**grid.span, min(floor, high))
    if grid.sizes == 1:
        return [max(centre, low)]
    ratio = (high / low) ** (1 / (grid.sizes - 1))
    return [low * ratio**i for i in range(grid.sizes)]


def _run(
    campaign: Campaign,
    level: int,
    flops: float,
    model: Architecture,
    site: Site,
    device: Accelerator,
    data: TokenData,
) -> Callable[[int], Run] | Dropped:
    """A maker of the cell's run for each seed, or why there is none."""
    tokens = flops / model.flops_per_token
    recipe = recipe_for(model, tokens, campaign.training)
    steps = int(tokens // recipe.batch_tokens)
    if steps < MIN_STEPS // 2:
        reason = f"only {steps} steps of {recipe.batch_tokens} tokens"
        return Dropped(level, model.params, reason, too_small=True)
    tokens = steps * recipe.batch_tokens
    layout = choose_layout(
        model, recipe, tokens, site=site, device=device, fixed=campaign.layout
    )  # fmt: skip
    if isinstance(layout, str):
        return Dropped(level, model.params, layout)
    total = float(model.flops_per_token) * tokens
    seconds = duration_s(total, steps, layout, device)
    predicted = Predicted(
        duration_s=seconds,
        gpu_hours=seconds * layout.ranks / 3600,
        energy_j=seconds * layout.ranks * device.power_w,
        memory_bytes=memory_bytes(model, recipe, layout),
    )

    def make(seed: int) -> Run:
        return Run(
            model=model, tokens=tokens, steps=steps, seed=seed, recipe=recipe, data=data,
            layout=layout, predicted=predicted, level=level,
            checkpoint_steps=campaign.training.checkpoint_every or 0,
        )  # fmt: skip

    return make
