"""The engine for sharded training: accelerate drives DeepSpeed's ZeRO stages 1 to 3.

The configuration is generated from the run, with the user's own settings over it; there is no file
and no "auto" to keep in step.
"""

from __future__ import annotations

import json
import logging
import warnings
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llem.campaign import Run
from llem.campaign.merging import merged
from llem.errors import LlemError
from llem.training.engines.engine import compile_units, evaluating, free_memory
from llem.training.optimiser import adamw, set_rate
from llem.training.task import Task
from llem.training.tokens.data import Batch
from llem.training.world import World

_TAG = "deepspeed"

# DeepSpeed's defaults of 5e8 elements would allocate gigabytes for the smallest model.
_BUCKET_ELEMENTS = 50_000_000


def deepspeed_config(run: Run) -> dict[str, Any]:
    """What DeepSpeed is told: written beside the run's records as `deepspeed.json`."""
    recipe, layout = run.recipe, run.layout
    buckets = min(_BUCKET_ELEMENTS, max(run.params, 1_000_000))
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": layout.micro_batch,
        "gradient_accumulation_steps": layout.grad_accum,
        "gradient_clipping": recipe.clip_norm,
        "zero_optimization": {
            "stage": layout.zero_stage,
            "overlap_comm": False,
            "reduce_bucket_size": buckets,
            "allgather_bucket_size": buckets,
        },
        # torch's AdamW, the same as without DeepSpeed; its own would have to be compiled.
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }
    if recipe.precision == "bf16":
        # Autocast over fp32 weights, as in the other engine; "bf16" would train bf16 weights.
        config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    return merged(config, run.deepspeed)


def accelerate_config(run: Run) -> dict[str, Any]:
    """What accelerate is told besides: written as `accelerate.json`.

    No precision of its own: autocast is DeepSpeed's, over fp32 weights.
    """
    return {"mixed_precision": "no", "gradient_accumulation_steps": run.layout.grad_accum}


def import_deepspeed() -> None:
    """Import accelerate and DeepSpeed, which takes seconds and some 200 MB."""
    import accelerate.utils  # noqa: F401
    import deepspeed  # noqa: F401


class DeepSpeedEngine:
    """ZeRO over all ranks. One at a time in a process: accelerate's state is global."""

    layout = "deepspeed"
    portable = False

    def __init__(self, run: Run, world: World, task: Task) -> None:
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        # DeepSpeed calls torch's older names thousands of times, and each call warns.
        warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
        from accelerate.utils import DeepSpeedPlugin

        class Plugin(DeepSpeedPlugin):  # type: ignore[misc]
            def set_deepspeed_weakref(self) -> None:
                # Imports transformers, only to serve its from_pretrained under ZeRO-3.
                return

        # Of the previous run; the process group under it stays.
        AcceleratorState._reset_state()
        self._world = world
        self._task = task
        self._accelerator = Accelerator(
            **accelerate_config(run),
            deepspeed_plugin=Plugin(hf_ds_config=deepspeed_config(run)),
        )
        model = task.build()
        if run.layout.compile:
            compile_units(model)
        self._model, self._optimizer = self._accelerator.prepare(model, adamw(model, run.recipe))
        # It would copy a script into each checkpoint, and fail rank 0 alone where the disk is full.
        self._model._copy_recovery_script = lambda _folder: None

    def step(self, batch: Batch, lr: float) -> tuple[Tensor, Tensor]:
        set_rate(self._optimizer, lr)
        device = self._world.device
        total = torch.zeros((), device=device)
        for micro in batch.micros:
            with self._accelerator.accumulate(self._model):
                loss = self._task.loss(self._model, micro)
                total += loss.detach() / len(batch.micros)
                # Also steps the optimiser, after the last micro-batch.
                self._accelerator.backward(loss)
        norm = self._model.get_global_grad_norm()
        return total, torch.as_tensor(norm, dtype=torch.float32, device=device)

    def evaluating(self) -> AbstractContextManager[nn.Module]:
        return evaluating(self._model)

    def save(self, folder: Path) -> None:
        # DeepSpeed's ranks meet while they save: one whose disk is full must come to that meeting,
        # or the others would wait for it, and tells of its failure afterwards.
        writer = self._model.checkpoint_engine
        write, faults = writer.save, []

        def guarded(*arguments: Any, **options: Any) -> Any:
            try:
                return write(*arguments, **options)
            except (OSError, RuntimeError) as error:
                faults.append(error)

        writer.save = guarded
        try:
            self._model.save_checkpoint(str(folder), tag=_TAG, save_latest=False)
        finally:
            del writer.save
        if faults:
            raise faults[0]

    def load(self, folder: Path) -> None:
        path, _ = self._model.load_checkpoint(str(folder), tag=_TAG)
        if path is None:
            raise LlemError(
                f"{folder}: DeepSpeed cannot read this checkpoint",
                remedy="delete the folder to start the run again",
            )

    def close(self) -> None:
        self._model.destroy()
        self._accelerator.free_memory()
        del self._model, self._optimizer, self._accelerator
        free_memory(self._world)


def write_config(run: Run, folder: Path) -> None:
    """Leave what both libraries are told beside the run's records."""
    for name, config in (
        ("deepspeed.json", deepspeed_config(run)),
        ("accelerate.json", accelerate_config(run)),
    ):
        (folder / name).write_text(json.dumps(config, indent=1) + "\n")
