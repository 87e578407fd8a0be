"""The loss on the held-out data, the same whatever the number of ranks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from llem.training.engine import Engine
from llem.training.task import Task
from llem.training.world import World


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Mean loss over `tokens` held-out tokens, nats per token, and its standard error.

    The standard error takes windows as clusters (losses of tokens in one window are correlated):
    the standard deviation of the windows' mean losses over the root of their number. It is NaN
    for a single window. Of a task on samples the clusters are those of its `held_out`.
    """

    loss: float
    loss_se: float
    tokens: int


def evaluate(engine: Engine, task: Task, world: World) -> Evaluation:
    """Every held-out cluster once, batches dealt to ranks in turn; the result is on all ranks."""
    held_out = task.held_out
    size, count, batches = held_out.per_batch, held_out.clusters, held_out.batches
    rounds = -(-batches // world.world_size)
    own = torch.full((rounds, size), math.nan, dtype=torch.float64)
    with engine.evaluating() as module:
        for i in range(rounds):
            # Ranks without a batch in the last round repeat one: ZeRO-3 needs all in every forward.
            batch = min(i * world.world_size + world.rank, batches - 1)
            first = batch * size
            losses = task.held_out_losses(module, first, min(size, count - first))
            own[i, : len(losses)] = losses
    gathered = torch.stack([part.cpu() for part in world.gather(own.to(world.device))], dim=1)
    means = gathered.reshape(rounds * world.world_size, size)[:batches].flatten()[:count]
    spread = means.std(correction=1).item() if count > 1 else math.nan
    return Evaluation(
        loss=means.mean().item(),
        loss_se=spread / math.sqrt(count),
        tokens=count * held_out.units,
    )
