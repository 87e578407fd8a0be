"""When a run has diverged, and when its first batch was only a lucky one."""

from __future__ import annotations

import math
import random

from llem.campaign import Recipe
from llem.training.divergence import DivergenceWatch

RECIPE = Recipe(batch_tokens=32, learning_rate=1e-3, warmup_steps=5)


def told(losses: list[float]) -> str | None:
    watch = DivergenceWatch(RECIPE)
    return next((said for i, loss in enumerate(losses) if (said := watch.check(i, loss))), None)


def test_a_model_that_learns_nothing_from_small_batches_has_not_diverged():
    draw = random.Random(0)
    # The first batch is two deviations below the rest: one batch in forty is.
    assert told([1.386 - 0.2, *(draw.gauss(1.386, 0.1) for _ in range(500))]) is None


def test_a_loss_that_rises_above_the_first_is_told():
    draw = random.Random(0)
    fall = [5.5 - 0.02 * i + draw.gauss(0, 0.02) for i in range(60)]
    assert told([*fall, *(fall[-1] + 0.05 * i for i in range(100))])
    assert told([*fall, math.nan])


def test_a_collapse_to_just_above_the_first_loss_is_told_where_steps_have_little_noise():
    fall = [5.5 - 0.05 * i for i in range(60)]
    assert told([*fall, *[5.7] * 60])


def test_it_goes_on_after_a_checkpoint_as_if_there_were_none():
    draw = random.Random(1)
    losses = [draw.gauss(2.0, 0.1) + 0.01 * i for i in range(200)]
    watch = DivergenceWatch(RECIPE)
    for i, loss in enumerate(losses[:9]):
        assert watch.check(i, loss) is None
    resumed = DivergenceWatch(RECIPE)
    resumed.restore(watch.state())
    for i, loss in enumerate(losses[9:], start=9):
        assert resumed.check(i, loss) == watch.check(i, loss)
