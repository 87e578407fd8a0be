"""When a run has diverged: decided on the loss of all ranks, so that all decide alike."""

from __future__ import annotations

import math
from collections.abc import Mapping

from llem.campaign import Recipe

# The smoothed loss remembers about ten steps; a lone spike does not end a run.
SMOOTHING = 0.9

# A model that learns nothing stays at its initial loss, give or take: that is no divergence.
MARGIN = 0.01


class DivergenceWatch:
    """Fed the global training loss of each step in order, it says when to give up, and why.

    Diverged is: a loss that is not finite, or after the warm-up a smoothed loss (exponential,
    bias-corrected) above the loss of the first step.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._patience = recipe.warmup_steps + round(1 / (1 - SMOOTHING))
        self._initial = math.nan
        self._smoothed = 0.0
        self._weight = 0.0

    def check(self, step: int, loss: float) -> str | None:
        """The reason to stop after `step`, or None."""
        if not math.isfinite(loss):
            return f"the training loss of step {step} is {loss}"
        if math.isnan(self._initial):
            self._initial = loss
        self._smoothed = SMOOTHING * self._smoothed + (1 - SMOOTHING) * loss
        self._weight = SMOOTHING * self._weight + (1 - SMOOTHING)
        smoothed = self._smoothed / self._weight
        if step >= self._patience and smoothed > self._initial * (1 + MARGIN):
            return (
                f"the smoothed training loss of step {step} is {smoothed:.4g}, "
                f"above the initial {self._initial:.4g}"
            )
        return None

    def state(self) -> dict[str, float]:
        return {"initial": self._initial, "smoothed": self._smoothed, "weight": self._weight}

    def restore(self, state: Mapping[str, float]) -> None:
        self._initial = state["initial"]
        self._smoothed = state["smoothed"]
        self._weight = state["weight"]
