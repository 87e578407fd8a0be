"""The engine of FSDP2: weights, gradients and moments of every parameter divided among all ranks.

`torch.distributed.fsdp.fully_shard` (Zhao et al. 2023, arXiv 2304.11277, in its second form) on
each block and on the rest. Not through accelerate, which takes its FSDP plugin on accelerators
alone: what is tested on a CPU is then what runs on GPUs. The weights are gathered in fp32 and
autocast is that of the other engines, so that they all compute the same.
"""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from llem.campaign import Run
from llem.training.engines.engine import compile_units, evaluating, free_memory, units, unreadable
from llem.training.optimiser import adamw, set_rate
from llem.training.task import Task
from llem.training.tokens.data import Batch
from llem.training.world import World


def fsdp2_config(run: Run) -> dict[str, Any]:
    """What `fully_shard` is told of each unit: written beside the run's records."""
    # Freed after the forward: that is the point of it. Gathered again in the backward pass.
    return {"reshard_after_forward": True}


class ShardedEngine:
    """FSDP2 over all ranks. A checkpoint is of shards, which any number of ranks can read."""

    layout = "fsdp2"
    portable = True

    def __init__(self, run: Run, world: World, task: Task) -> None:
        self._world = world
        self._task = task
        self._clip_norm = run.recipe.clip_norm
        self._model = task.build()
        if run.layout.compile:
            compile_units(self._model)
        mesh = dist.init_device_mesh(world.device.type, (world.world_size,))
        for unit in units(self._model):
            if unit is not self._model:
                fully_shard(unit, mesh=mesh, **fsdp2_config(run))
        fully_shard(self._model, mesh=mesh, **fsdp2_config(run))
        if world.device.type == "cpu":
            # gloo sums and does not average.
            self._model.set_force_sum_reduction_for_comms(True)
        self._optimiser = adamw(self._model, run.recipe)
        self._parameters = [p for p in self._model.parameters() if p.requires_grad]

    def step(self, batch: Batch, lr: float) -> tuple[Tensor, Tensor]:
        parts = len(batch.micros)
        total = torch.zeros((), device=self._world.device)
        for micro in batch.micros:
            # Gradients travel with each micro-batch: kept whole they would take what is saved.
            loss = self._task.loss(self._model, micro) / parts
            loss.backward()
            total += loss.detach()
        norm = nn.utils.clip_grad_norm_(self._parameters, self._clip_norm).full_tensor()
        set_rate(self._optimiser, lr)
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        return total, norm

    def evaluating(self) -> AbstractContextManager[nn.Module]:
        return evaluating(self._model)

    def save(self, folder: Path) -> None:
        import torch.distributed.checkpoint as dcp
        from torch.distributed.checkpoint.api import CheckpointException

        try:
            dcp.save(self._state(), checkpoint_id=str(folder))
        except CheckpointException as error:
            # It is no Exception of Python's; all ranks have it where one has failed.
            raise OSError(_told(error)) from error

    def load(self, folder: Path) -> None:
        import torch.distributed.checkpoint as dcp
        from torch.distributed.checkpoint.api import CheckpointException
        from torch.distributed.checkpoint.state_dict import set_state_dict

        state = self._state()
        try:
            dcp.load(state, checkpoint_id=str(folder))
        except (CheckpointException, OSError, RuntimeError, ValueError) as error:
            raise unreadable(folder, _told(error)) from error
        set_state_dict(
            self._model,
            self._optimiser,
            model_state_dict=state["model"],
            optim_state_dict=state["optimiser"],
        )

    def _state(self) -> dict[str, Any]:
        from torch.distributed.checkpoint.state_dict import get_state_dict

        model, optimiser = get_state_dict(self._model, self._optimiser)
        return {"model": model, "optimiser": optimiser}

    def close(self) -> None:
        del self._model, self._optimiser, self._parameters
        free_memory(self._world)


def _told(error: BaseException) -> str:
    failures = getattr(error, "failures", None)
    if failures:
        rank, (cause, _) = next(iter(failures.items()))
        return f"rank {rank}: {type(cause).__name__}: {cause}"
    return (str(error).splitlines() or [type(error).__name__])[0]


def write_config(run: Run, folder: Path) -> None:
    """Leave what FSDP2 is told beside the run's records."""
    (folder / "fsdp2.json").write_text(json.dumps(fsdp2_config(run), indent=1) + "\n")
