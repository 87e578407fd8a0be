"""The loss on the held-out data, the same whatever the number of ranks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from llem.training.engines.engine import Engine
from llem.training.task import Task
from llem.training.world import World


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Mean loss over `tokens` held-out tokens, nats per token, and its standard error.

    The standard error takes windows as clusters (losses of tokens in one window are correlated):
    the standard deviation of the windows' mean losses over the root of their number. It is NaN
    for a single window. Of a mixture the loss is that of its `parts` by their weights in training,
    however much of each is held out. Of a task on samples the clusters are those of its `held_out`.
    """

    loss: float
    loss_se: float
    tokens: int
    parts: tuple[PartLoss, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PartLoss:
    """The loss on one file of a mixture, and its share of the training."""

    name: str
    weight: float
    loss: float
    loss_se: float
    tokens: int

    def __str__(self) -> str:
        return f"{self.name} ({self.weight:.3g}): {self.loss:.5f} +- {self.loss_se:.2g}"


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
    tokens = count * held_out.units
    if not held_out.parts:
        loss, loss_se = _mean(means)
        return Evaluation(loss=loss, loss_se=loss_se, tokens=tokens)
    parts = []
    for part, own_means in zip(
        held_out.parts, means.split([part.clusters for part in held_out.parts]), strict=True
    ):
        loss, loss_se = _mean(own_means)
        parts.append(PartLoss(name=part.name, weight=part.weight, loss=loss, loss_se=loss_se,
                              tokens=part.clusters * held_out.units))  # fmt: skip
    return Evaluation(
        loss=math.fsum(part.weight * part.loss for part in parts),
        loss_se=math.hypot(*(part.weight * part.loss_se for part in parts)),
        tokens=tokens,
        parts=tuple(parts),
    )


def _mean(means: Tensor) -> tuple[float, float]:
    """The mean of clusters' means and its standard error, NaN of a single one."""
    count = len(means)
    spread = means.std(correction=1).item() if count > 1 else math.nan
    return means.mean().item(), spread / math.sqrt(count)
