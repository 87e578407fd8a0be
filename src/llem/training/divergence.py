"""When a run has diverged: decided on the loss of all ranks, so that all decide alike."""

from __future__ import annotations

import math
from collections.abc import Mapping

from llem.campaign import Recipe

# The smoothed loss remembers about ten steps; a lone spike does not end a run.
SMOOTHING = 0.9

# A model that learns nothing stays at its initial loss, give or take: that is no divergence. The
# initial loss is of one batch, whose noise is told by how the first steps differ from each other.
MARGIN = 0.01
DEVIATIONS = 3.0


class DivergenceWatch:
    """Fed the global training loss of each step in order, it says when to give up, and why.

    Diverged is: a loss that is not finite, or after the warm-up a smoothed loss (exponential,
    bias-corrected) above the loss of the first step, by MARGIN and by DEVIATIONS of its noise.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._patience = recipe.warmup_steps + round(1 / (1 - SMOOTHING))
        self._initial = math.nan
        self._smoothed = 0.0
        self._weight = 0.0
        self._before = math.nan
        self._squares = 0.0
        self._differences = 0

    def check(self, step: int, loss: float) -> str | None:
        """The reason to stop after `step`, or None."""
        if not math.isfinite(loss):
            return f"the training loss of step {step} is {loss}"
        if math.isnan(self._initial):
            self._initial = loss
        elif self._differences < self._patience:
            self._squares += (loss - self._before) ** 2
            self._differences += 1
        self._before = loss
        self._smoothed = SMOOTHING * self._smoothed + (1 - SMOOTHING) * loss
        self._weight = SMOOTHING * self._weight + (1 - SMOOTHING)
        smoothed = self._smoothed / self._weight
        # Of independent steps a difference has twice the variance of one.
        noise = math.sqrt(0.5 * self._squares / max(1, self._differences))
        margin = max(MARGIN * abs(self._initial), DEVIATIONS * noise)
        if step >= self._patience and smoothed > self._initial + margin:
            return (
                f"the smoothed training loss of step {step} is {smoothed:.4g}, "
                f"above the initial {self._initial:.4g}"
            )
        return None

    def state(self) -> dict[str, float]:
        return {
            "initial": self._initial,
            "smoothed": self._smoothed,
            "weight": self._weight,
            "before": self._before,
            "squares": self._squares,
            "differences": self._differences,
        }

    def restore(self, state: Mapping[str, float]) -> None:
        self._initial = state["initial"]
        self._smoothed = state["smoothed"]
        self._weight = state["weight"]
        self._before = state["before"]
        self._squares = state["squares"]
        self._differences = int(state["differences"])
