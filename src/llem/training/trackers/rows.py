"""The names under which trackers show what a training tells."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

# Field of `Progress` -> what trackers call it.
STEP_NAMES = {
    "loss": "train/loss",
    "learning_rate": "train/learning_rate",
    "grad_norm": "train/grad_norm",
    "tokens": "train/tokens",
    "tokens_per_s": "speed/tokens_per_s",
    "mfu": "speed/mfu",
    "energy_j": "energy/rank0_device_j",
}
EVALUATION_NAMES = {"loss": "eval/loss", "loss_se": "eval/loss_se"}


def scalars(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, float]:
    """What is known of `values`, by the trackers' names."""
    return {
        name: float(values[key])
        for key, name in names.items()
        if values.get(key) is not None and math.isfinite(values[key])
    }


def hyperparameters(run: Mapping[str, Any]) -> dict[str, str | int | float | bool | None]:
    """A run's specification, flat: `model.width`, `recipe.learning_rate`, ..."""
    found: dict[str, Any] = {}
    for key, value in run.items():
        if isinstance(value, Mapping):
            found.update({f"{key}.{k}": v for k, v in hyperparameters(value).items()})
        elif value is None or isinstance(value, (str, int, float, bool)):
            found[key] = value
        else:
            found[key] = str(value)
    return found
