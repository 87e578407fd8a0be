"""The keywords of `find_optimal` but `plan_only`, for the types of what it returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Required, TypedDict

from llem.campaign import Budget, Site


class Arguments(TypedDict, total=False):
    """What a call may give; what it must is `Required`. Meanings: `find_optimal`."""

    model: Required[Any]
    size: Required[str]
    dataset: Required[Any]
    budget: Required[str | float | Budget]
    loss_fn: Any
    target: str | float | Budget | None
    sizes: Sequence[int] | None
    data_per_parameter: float | None
    model_kwargs: Mapping[str, Any] | None
    evaluation: Any
    context: int | None
    batch: int | None
    learning_rate: float | None
    schedule: Literal["wsd", "cosine", "constant"]
    warmup_fraction: float | None
    weight_decay: float
    clip_norm: float
    precision: Literal["fp32", "bf16"]
    micro_batch: int | None
    seeds: int
    waves: int
    levels: int
    ratio: float
    law: str
    executor: Literal["local", "slurm"]
    site: str | Site | Mapping[str, Any] | None
    code: str | Path | None
    max_samples: int
    name: str
    out: str | Path
    progress: bool
