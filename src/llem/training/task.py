"""A task: what is trained. The loop, the engines and the evaluation know models through it alone.

`TokenTask` is a language model on windows of a token file; `llem.training.samples.samples` has the
task of any model on any dataset. A task is made on every rank, for one run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llem.campaign import CustomModel, Run
from llem.training.model import build_model
from llem.training.tokens.data import Batch, Share, Tokens, Windows, verify_content
from llem.training.world import World

# Tokens of one forward of the evaluation. Fixed, so that every window is computed in the same
# batch, and to the same bits, on any number of ranks.
BATCH_TOKENS = 4096

# Logits whose loss a CPU computes at once: what the second-level cache of a core has room for.
CACHE_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """What an evaluation goes through: `clusters` of `units` tokens (or samples) each.

    Losses within a cluster may be correlated, those of two clusters are taken as independent. A
    forward is of `per_batch` clusters, the last one of fewer. Of a mixture `parts` tell which
    clusters, one part after the other, are of which file.
    """

    clusters: int
    per_batch: int
    units: int
    parts: tuple[HeldOutPart, ...] = ()

    @property
    def batches(self) -> int:
        return -(-self.clusters // self.per_batch)


@dataclass(frozen=True, kw_only=True)
class HeldOutPart:
    """So many of the clusters, and the share of the training that is on their kind."""

    name: str
    clusters: int
    weight: float


class Task(Protocol):
    """What the loop needs to know of what it trains; one per run and rank.

    `draws`: whether batches or the forward draw random numbers, for which the loop then sets the
    generators anew before each step. A module that is handed to `loss`, `warm_up` or
    `held_out_losses` is the engine's: the model, perhaps wrapped.
    """

    draws: bool

    def verify(self) -> None:
        """Raise InputError unless the data are those that were planned; called on rank 0 alone."""

    def open(self) -> None:
        """Open the data; called on every rank, after `verify` and before all else."""

    def build(self) -> nn.Module:
        """The model on the CPU in fp32, its weights drawn by the run's seed alone."""

    def batch(self, step: int, share: Share) -> Batch:
        """What the rank of `share` reads in `step`: any step can be asked for at once."""

    def loss(self, module: nn.Module, micro: Any) -> Tensor:
        """Mean loss of a micro-batch over its tokens (or samples): a scalar on the device.

        Its value is what is told, its gradient what is followed: a penalty may be in it alone.
        """

    def warm_up(self, module: nn.Module) -> Tensor:
        """A scalar that depends on every parameter that `loss` does, of the least work."""

    @property
    def held_out(self) -> HeldOut:
        """What an evaluation goes through."""

    def held_out_losses(self, module: nn.Module, first: int, count: int) -> Tensor:
        """Mean losses of the held-out clusters first .. first+count-1: float64 (count,), CPU."""


class TokenTask:
    """Next-token cross-entropy on the windows of a token file. A micro-batch is (inputs, targets).

    The loss is in nats per token, computed in fp32.
    """

    def __init__(self, run: Run, world: World) -> None:
        self.run = run
        self.world = world
        # The reference model draws no random numbers; a user's model may (dropout).
        self.draws = isinstance(run.model, CustomModel)

    def verify(self) -> None:
        verify_content(self.run)

    def open(self) -> None:
        self.windows = Windows(self.run)

    def build(self) -> nn.Module:
        run = self.run
        return build_model(
            run.model,
            seed=run.seed,
            activation_checkpointing=run.layout.activation_checkpointing,
            base_width=run.recipe.base_width,
        )

    def batch(self, step: int, share: Share) -> Batch:
        return self.windows.batch(step, share)

    def loss(self, module: nn.Module, micro: tuple[Tokens, Tokens]) -> Tensor:
        inputs, targets = micro
        device = self.world.device
        with self.world.autocast():
            logits = module(to_device(inputs, device))
        return token_loss(logits, to_device(targets, device), z_loss=self.run.recipe.z_loss)

    def warm_up(self, module: nn.Module) -> Tensor:
        nothing = torch.zeros(
            (1, self.run.model.context), dtype=torch.long, device=self.world.device
        )
        with self.world.autocast():
            total: Tensor = module(nothing).sum()
        return total

    @property
    def held_out(self) -> HeldOut:
        windows = self.windows
        parts = [
            HeldOutPart(name=file.path.name, clusters=file.evaluation_windows, weight=weight)
            for file, weight in zip(windows.files, windows.weights, strict=True)
        ]
        return HeldOut(
            clusters=windows.evaluation_windows,
            per_batch=max(1, BATCH_TOKENS // windows.context),
            units=windows.context,
            parts=tuple(parts) if len(parts) > 1 else (),
        )

    def held_out_losses(self, module: nn.Module, first: int, count: int) -> Tensor:
        inputs, targets = self.windows.evaluation(first, count)
        device = self.world.device
        with self.world.autocast():
            logits = module(to_device(inputs, device))
        losses = F.cross_entropy(
            logits.flatten(0, 1).float(), to_device(targets, device).flatten(), reduction="none"
        )
        return losses.view(len(inputs), -1).double().mean(1).cpu()


def token_loss(logits: Tensor, targets: Tensor, *, z_loss: float = 0.0) -> Tensor:
    """Mean cross-entropy in nats per token, computed in fp32.

    With `z_loss` its gradient is that of cross-entropy + z_loss * log^2 Z, which keeps the logits
    from drifting (PaLM, arXiv 2204.02311, section 5: 1e-4), its value that of cross-entropy alone.
    """
    logits, targets = logits.flatten(0, 1), targets.flatten()
    rows = len(logits)
    if logits.device.type == "cpu":
        # What its passes go over then stays in a core's cache: 4 % of a step of 15 M parameters.
        rows = max(1, CACHE_BYTES // (4 * logits.shape[1]))
    total = torch.zeros((), device=logits.device)
    for part, asked in zip(logits.split(rows), targets.split(rows), strict=True):
        part = part.float()
        total = total + F.cross_entropy(part, asked, reduction="sum")
        if z_loss:
            penalty = z_loss * part.logsumexp(-1).square().sum()
            total = total + (penalty - penalty.detach())
    return total / len(targets)


def to_device(tokens: Tokens, device: torch.device) -> Tensor:
    found = torch.from_numpy(tokens)
    if device.type == "cuda":
        return found.pin_memory().to(device, non_blocking=True)
    return found
