"""The engine for sharded training: accelerate drives DeepSpeed's ZeRO stages 1 to 3.

The configuration is generated from the run; there is no file and no "auto" to keep in step.
"""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llem.campaign import Run
from llem.errors import LlemError
from llem.training.data import Batch, Tokens
from llem.training.engine import adamw, free_memory, to_device, token_loss
from llem.training.model import build_model
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
    return config


def import_deepspeed() -> None:
    """Import accelerate and DeepSpeed, which takes seconds and some 200 MB."""
    import accelerate.utils  # noqa: F401
    import deepspeed  # noqa: F401


class DeepSpeedEngine:
    """ZeRO over all ranks. One at a time in a process: accelerate's state is global."""

    layout = "deepspeed"
    portable = False

    def __init__(self, run: Run, world: World) -> None:
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
        self._accelerator = Accelerator(
            mixed_precision="no",
            gradient_accumulation_steps=run.layout.grad_accum,
            deepspeed_plugin=Plugin(hf_ds_config=deepspeed_config(run)),
        )
        model = build_model(
            run.model,
            seed=run.seed,
            activation_checkpointing=run.layout.activation_checkpointing,
        )
        self._model, self._optimizer = self._accelerator.prepare(model, adamw(model, run.recipe))

    def step(self, batch: Batch, lr: float) -> tuple[Tensor, Tensor]:
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        device = self._world.device
        total = torch.zeros((), device=device)
        for inputs, targets in zip(batch.inputs, batch.targets, strict=True):
            with self._accelerator.accumulate(self._model):
                loss = self._loss(inputs, targets)
                total += loss.detach() / len(batch.inputs)
                # Also steps the optimiser, after the last micro-batch.
                self._accelerator.backward(loss)
        norm = self._model.get_global_grad_norm()
        return total, torch.as_tensor(norm, dtype=torch.float32, device=device)

    def _loss(self, inputs: Tokens, targets: Tokens) -> Tensor:
        # A function of its own, so that the logits are gone before the backward pass.
        device = self._world.device
        return token_loss(self._model(to_device(inputs, device)), to_device(targets, device))

    def logits(self, inputs: Tensor) -> Tensor:
        self._model.eval()
        with torch.no_grad():
            logits: Tensor = self._model(inputs)
        self._model.train()
        return logits

    def save(self, folder: Path) -> None:
        self._model.save_checkpoint(str(folder), tag=_TAG, save_latest=False)

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
    (folder / "deepspeed.json").write_text(json.dumps(deepspeed_config(run), indent=1) + "\n")
