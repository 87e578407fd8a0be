"""What a rank does: build the model, read its share of the data, train, evaluate, record.

Public: `start_world`, `World` (world), `train` (loop), `Outcome`, `Progress`, `Evaluated`
(outcome), `Callback` (callbacks),
`build_model`, `count_params`, `load_class` (model), `find_checkpoint`,
`delete_checkpoints` (checkpoint),
`learning_rate` (schedule), `WindowOrder` (order). Only what is asked for is imported: torch comes
with the first name that needs it.
"""

from typing import TYPE_CHECKING

from llem._lazy import lazy
from llem.training.outcome import Evaluated, Outcome, Progress, ShouldStop

if TYPE_CHECKING:
    from llem.training.callbacks import Callback
    from llem.training.checkpoint import delete_checkpoints, find_checkpoint
    from llem.training.loop import train
    from llem.training.model import build_model, count_params, load_class
    from llem.training.schedule import learning_rate
    from llem.training.tokens.order import WindowOrder
    from llem.training.world import World, start_world

__all__ = [
    "Callback",
    "Evaluated",
    "Outcome",
    "Progress",
    "ShouldStop",
    "WindowOrder",
    "World",
    "build_model",
    "count_params",
    "delete_checkpoints",
    "find_checkpoint",
    "learning_rate",
    "load_class",
    "start_world",
    "train",
]

_LAZY = {
    "Callback": "callbacks",
    "WindowOrder": "tokens.order",
    "World": "world",
    "build_model": "model",
    "count_params": "model",
    "delete_checkpoints": "checkpoint",
    "find_checkpoint": "checkpoint",
    "learning_rate": "schedule",
    "load_class": "model",
    "start_world": "world",
    "train": "loop",
}

__getattr__ = lazy(__name__, _LAZY)
