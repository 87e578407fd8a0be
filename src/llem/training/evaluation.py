"""The loss on the held-out windows, the same whatever the number of ranks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from llem.training.data import Windows
from llem.training.engine import Engine, to_device
from llem.training.world import World

# Tokens of one forward. Fixed, so that every window is computed in the same batch, and to the
# same bits, on any number of ranks.
BATCH_TOKENS = 4096


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Mean loss over `tokens` held-out tokens, nats per token, and its standard error.

    The standard error takes windows as clusters (losses of tokens in one window are correlated):
    the standard deviation of the windows' mean losses over the root of their number. It is NaN
    for a single window.
    """

    loss: float
    loss_se: float
    tokens: int


def evaluate(engine: Engine, windows: Windows, world: World) -> Evaluation:
    """Every held-out window once, batches dealt to ranks in turn; the result is on all ranks."""
    size = max(1, BATCH_TOKENS // windows.context)
    count = windows.evaluation_windows
    batches = -(-count // size)
    rounds = -(-batches // world.world_size)
    own = torch.full((rounds, size), math.nan, dtype=torch.float64)
    for i in range(rounds):
        # Ranks without a batch in the last round repeat one: ZeRO-3 needs all in every forward.
        batch = min(i * world.world_size + world.rank, batches - 1)
        first = batch * size
        inputs, targets = windows.evaluation(first, min(size, count - first))
        logits = engine.logits(to_device(inputs, world.device))
        losses = F.cross_entropy(
            logits.flatten(0, 1).float(),
            to_device(targets, world.device).flatten(),
            reduction="none",
        )
        own[i, : len(inputs)] = losses.view(len(inputs), -1).double().mean(1).cpu()
    gathered = torch.stack([part.cpu() for part in world.gather(own.to(world.device))], dim=1)
    means = gathered.reshape(rounds * world.world_size, size)[:batches].flatten()[:count]
    spread = means.std(correction=1).item() if count > 1 else math.nan
    return Evaluation(
        loss=means.mean().item(),
        loss_se=spread / math.sqrt(count),
        tokens=count * windows.context,
    )
