"""Learning-rate schedules: a linear warm-up, then `wsd`, `cosine` or `constant`."""

from __future__ import annotations

import math

from llem.campaign import Recipe
from llem.records import Phase

# A cosine ends here (Hoffmann et al. 2022, arXiv 2203.15556: a tenfold decay).
COSINE_FLOOR = 0.1


def learning_rate(recipe: Recipe, *, step: int, steps: int) -> float:
    """The learning rate of `step` (0 .. steps-1).

    Warm-up reaches the peak in its last step. `wsd` (warm-up, stable, decay: arXiv 2404.06395)
    falls linearly to zero, which it would reach at `steps`: no step is spent at rate zero.
    """
    peak = recipe.learning_rate
    if step < recipe.warmup_steps:
        return peak * (step + 1) / recipe.warmup_steps
    if recipe.schedule == "constant":
        return peak
    if recipe.schedule == "cosine":
        done = (step - recipe.warmup_steps) / max(1, steps - recipe.warmup_steps)
        return peak * (COSINE_FLOOR + (1 - COSINE_FLOOR) * 0.5 * (1 + math.cos(math.pi * done)))
    if recipe.schedule == "wsd":
        start = recipe.decay_start(steps)
        return peak if step < start else peak * (steps - step) / (steps - start + 1)
    raise ValueError(f"schedule {recipe.schedule!r} is none of wsd, cosine, constant")


def phase(recipe: Recipe, *, step: int, steps: int) -> Phase:
    """What `step` counts as in the records. A cosine has no decay phase of its own: TRAIN."""
    if step < recipe.warmup_steps:
        return Phase.WARMUP
    return Phase.DECAY if step >= recipe.decay_start(steps) else Phase.TRAIN
