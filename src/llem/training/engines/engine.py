"""An engine turns a batch into one optimiser step: alone, or over ranks with DDP.

`llem.training.engines.deepspeed` and `llem.training.engines.fsdp2` have the engines that shard.
Each is built for one run and closed after it.
"""

from __future__ import annotations

import gc
import pickle
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from llem.campaign import Run
from llem.errors import LlemError
from llem.training.optimiser import optimisers, set_rate
from llem.training.task import Task
from llem.training.tokens.data import Batch
from llem.training.world import World


class Engine(Protocol):
    """What the loop needs of a model under training. Every method is called by all ranks."""

    # How checkpoints are laid out, and whether a different number of ranks can read them.
    layout: str
    portable: bool

    def step(self, batch: Batch, lr: float) -> tuple[Tensor, Tensor]:
        """One optimiser step: this rank's mean loss (the task's), the global gradient norm.

        Both are scalars on the device, the norm taken before clipping.
        """

    def evaluating(self) -> AbstractContextManager[nn.Module]:
        """The model to evaluate: without gradients, dropout and the like switched off."""

    def save(self, folder: Path) -> None:
        """Write weights and optimiser into `folder`, which exists."""

    def load(self, folder: Path) -> None:
        """Read back what `save` wrote."""

    def close(self) -> None:
        """Free the memory; the engine is of no use afterwards."""


class TorchEngine:
    """Plain torch: one process, or DDP over gloo or NCCL."""

    layout = "torch"
    portable = True

    def __init__(self, run: Run, world: World, task: Task) -> None:
        self._world = world
        self._task = task
        self._clip_norm = run.recipe.clip_norm
        self._model = task.build().to(world.device)
        if run.layout.compile:
            compile_units(self._model)
        self._module: nn.Module = self._model
        if world.grouped:
            self._module = nn.parallel.DistributedDataParallel(
                self._model,
                device_ids=[world.device] if world.device.type == "cuda" else None,
                gradient_as_bucket_view=True,
            )
            self._settle_buckets()
        self._optimisers = optimisers(self._model, run.recipe)
        self._parameters = [p for p in self._model.parameters() if p.requires_grad]

    def _settle_buckets(self) -> None:
        """One backward that teaches nothing.

        After its first backward DDP sorts gradients into buckets anew, and the order in which a
        ring of more than two ranks adds them changes. Done here it is behind us at step 0 and
        after a resume alike, which makes the two the same to the bit.
        """
        self._task.warm_up(self._module).backward()
        self._module.zero_grad(set_to_none=True)

    def step(self, batch: Batch, lr: float) -> tuple[Tensor, Tensor]:
        last = len(batch.micros) - 1
        total: Tensor | None = None
        for i, micro in enumerate(batch.micros):
            # Gradients travel once, with the last micro-batch.
            quiet = self._module.no_sync() if i < last and self._world.grouped else nullcontext()
            with quiet:
                loss = self._task.loss(self._module, micro)
                if last:
                    loss = loss / len(batch.micros)
                loss.backward()
            total = loss.detach() if total is None else total + loss.detach()
        assert total is not None
        norm = nn.utils.clip_grad_norm_(self._parameters, self._clip_norm)
        for optimiser in self._optimisers:
            set_rate(optimiser, lr)
            optimiser.step()
        # Module.zero_grad looks for its parameters anew each time.
        for parameter in self._parameters:
            parameter.grad = None
        return total, norm

    def evaluating(self) -> AbstractContextManager[nn.Module]:
        # Without the DDP wrapper: its collectives would have to match, and nothing is learned.
        return evaluating(self._model)

    def save(self, folder: Path) -> None:
        if self._world.main:
            state = {
                "model": self._model.state_dict(),
                "optimisers": [each.state_dict() for each in self._optimisers],
            }
            torch.save(state, folder / "state.pt")

    def load(self, folder: Path) -> None:
        try:
            state = torch.load(
                folder / "state.pt", map_location=self._world.device, weights_only=True
            )
            self._model.load_state_dict(state["model"])
            for optimiser, values in zip(self._optimisers, state["optimisers"], strict=True):
                optimiser.load_state_dict(values)
        except (OSError, RuntimeError, KeyError, ValueError, pickle.UnpicklingError) as error:
            said = (str(error).splitlines() or [type(error).__name__])[0]
            raise unreadable(folder, said) from error

    def close(self) -> None:
        del self._module, self._model, self._optimisers, self._parameters
        free_memory(self._world)


def unreadable(folder: Path, said: str) -> LlemError:
    """The error of a checkpoint that its engine cannot read."""
    return LlemError(
        f"{folder}: this checkpoint cannot be read: {said}",
        remedy="delete the folder to start the run again",
    )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """The model without gradients, dropout and the like switched off; then in training again."""
    model.eval()
    try:
        with torch.no_grad():
            yield model
    finally:
        model.train()


def units(model: nn.Module) -> list[nn.Module]:
    """What is compiled, and sharded, one by one: the members of the model's outermost lists of
    modules (a decoder's blocks), or the model itself where it has none."""
    found: list[nn.Module] = []
    inside: set[int] = set()
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and id(module) not in inside:
            inside |= {id(below) for below in module.modules()}
            found += module
    return found or [model]


def compile_units(model: nn.Module) -> None:
    """Compile in place, so that names of parameters stay; alike blocks are compiled once.

    Shapes are few: those of a step, and of an evaluation's batches.
    """
    for unit in units(model):
        unit.compile(dynamic=False)


def free_memory(world: World) -> None:
    """Collect what wrappers and their hooks hold in cycles, before the next run is built."""
    gc.collect()
    if world.device.type == "cuda":
        torch.cuda.empty_cache()
