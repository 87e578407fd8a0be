"""The learning rate at each step, as a table."""

from __future__ import annotations

import pytest

from llem.campaign import Recipe
from llem.records import Phase
from llem.training.schedule import learning_rate, phase


def recipe(schedule: str, *, warmup: int = 2, decay: float = 0.4) -> Recipe:
    return Recipe(
        batch_tokens=1, learning_rate=1.0, warmup_steps=warmup, schedule=schedule,
        decay_fraction=decay,
    )  # fmt: skip


TABLE = {
    "constant": [0.5, 1, 1, 1, 1, 1, 1, 1, 1, 1],
    "wsd": [0.5, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2],
    "cosine": [0.5, 1, 1.0, 0.9657, 0.8682, 0.7222, 0.55, 0.3778, 0.2318, 0.1343],
}


@pytest.mark.parametrize("schedule", TABLE)
def test_the_schedule_is_the_table(schedule: str) -> None:
    rates = [learning_rate(recipe(schedule), step=step, steps=10) for step in range(10)]
    assert rates == pytest.approx(TABLE[schedule], abs=1e-4)


@pytest.mark.parametrize("schedule", TABLE)
@pytest.mark.parametrize(
    ("warmup", "decay", "steps"), [(0, 0.2, 1), (1, 1.0, 1), (5, 1.0, 6), (9, 0.0, 5)]
)
def test_no_step_has_a_rate_of_zero_or_above_the_peak(
    schedule: str, warmup: int, decay: float, steps: int
) -> None:
    chosen = recipe(schedule, warmup=warmup, decay=decay)
    for step in range(steps):
        assert 0 < learning_rate(chosen, step=step, steps=steps) <= 1


def test_phases_follow_the_schedule() -> None:
    def names(schedule: str) -> str:
        phases = [phase(recipe(schedule), step=step, steps=10) for step in range(10)]
        return "".join({Phase.WARMUP: "w", Phase.TRAIN: "t", Phase.DECAY: "d"}[p] for p in phases)

    assert names("wsd") == "wwttttdddd"
    assert names("cosine") == names("constant") == "wwtttttttt"


def test_an_unknown_schedule_is_named() -> None:
    with pytest.raises(ValueError, match="linear"):
        learning_rate(recipe("linear"), step=5, steps=10)
