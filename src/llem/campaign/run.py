"""One run's specification: all that a rank needs to train it, and the hash that names it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from llem.campaign.architecture import Architecture, architecture_from_dict

RUN_SCHEMA = "llem-run-1"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The hyperparameters of a run. AdamW with decoupled weight decay on matrices only.

    `batch_tokens` is the global batch; `warmup_steps` a linear warm-up from zero;
    `decay_fraction` the share of steps in which `wsd` decays linearly to zero (`cosine` decays
    from the end of the warm-up to a tenth of the peak).
    """

    batch_tokens: int
    learning_rate: float
    warmup_steps: int
    schedule: str = "wsd"
    decay_fraction: float = 0.3
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    precision: str = "fp32"
    rule: str = "user"


@dataclass(frozen=True, kw_only=True)
class TokenData:
    """A memory-mapped file of token ids and which part of it is held out.

    `fingerprint` identifies the content (the path does not). The last `evaluation_tokens` of the
    file are held out for evaluation; all before them can be trained on.
    """

    path: str
    dtype: str
    tokens: int
    evaluation_tokens: int
    fingerprint: str

    @property
    def training_tokens(self) -> int:
        return self.tokens - self.evaluation_tokens


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where a run's ranks are and how the global batch is divided among them."""

    nodes: int = 1
    gpus_per_node: int = 1
    zero_stage: int = 0
    micro_batch: int = 1
    grad_accum: int = 1

    @property
    def ranks(self) -> int:
        return self.nodes * self.gpus_per_node


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """What the planner expects of a run; NaN where it cannot say."""

    duration_s: float
    gpu_hours: float
    energy_j: float
    memory_bytes: float


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training: a model, its data, a recipe, a seed and a layout.

    `tokens` is always `steps * batch_tokens`. `checkpoint_steps` is how often a checkpoint is
    written (0: only when asked to stop).
    """

    model: Architecture
    tokens: int
    steps: int
    seed: int
    recipe: Recipe
    data: TokenData
    layout: Layout
    predicted: Predicted
    level: int = 0
    checkpoint_steps: int = 0
    workload: str = "training"

    @property
    def params(self) -> int:
        return self.model.params

    @property
    def params_nonembedding(self) -> int:
        return self.model.params_nonembedding

    @property
    def flops(self) -> float:
        """Training FLOPs of the whole run."""
        return float(self.model.flops_per_token) * self.tokens

    @property
    def run_id(self) -> str:
        """Twelve hex digits of a hash over all that changes the run's result.

        Layout and paths are left out: they change where and how fast, not what. A run that was
        trained elsewhere, with the same data, is the same run.
        """
        data = asdict(self.data)
        del data["path"]
        # The rule is how the numbers were found, not what they are.
        recipe = {k: v for k, v in asdict(self.recipe).items() if k != "rule"}
        identity = {
            "schema": RUN_SCHEMA,
            "workload": self.workload,
            "model": self.model.to_dict(),
            "tokens": self.tokens,
            "seed": self.seed,
            "recipe": recipe,
            "data": data,
        }
        canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"))
        return hashlib.blake2b(canonical.encode(), digest_size=6).hexdigest()

    def with_layout(self, layout: Layout) -> Run:
        return replace(self, layout=layout)

    def to_dict(self) -> dict[str, Any]:
        """The run as `plan.json` and the manifests hold it; derived values come first."""
        return {
            "run_id": self.run_id,
            "params": self.params,
            "params_nonembedding": self.params_nonembedding,
            "tokens": self.tokens,
            "flops": self.flops,
            "seed": self.seed,
            "level": self.level,
            "model": self.model.to_dict(),
            "batch_tokens": self.recipe.batch_tokens,
            "steps": self.steps,
            "learning_rate": self.recipe.learning_rate,
            "recipe": asdict(self.recipe),
            "data": asdict(self.data),
            "layout": asdict(self.layout),
            "predicted": asdict(self.predicted),
            "checkpoint_steps": self.checkpoint_steps,
            "workload": self.workload,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Run:
        """Inverse of `to_dict`; derived values are computed again, and the name must agree."""
        run = cls(
            model=architecture_from_dict(values["model"]),
            tokens=values["tokens"],
            steps=values["steps"],
            seed=values["seed"],
            recipe=Recipe(**values["recipe"]),
            data=TokenData(**values["data"]),
            layout=Layout(**values["layout"]),
            predicted=Predicted(**values["predicted"]),
            level=values["level"],
            checkpoint_steps=values["checkpoint_steps"],
            workload=values["workload"],
        )
        if run.run_id != values["run_id"]:
            raise ValueError(
                f"run {values['run_id']}: its values hash to {run.run_id}: the plan was edited "
                "or written by another version of llem"
            )
        return run
