"""What a call of `find_optimal` asks for, and what can be told of it without model or data."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llem.campaign import Budget, parse_budget
from llem.errors import Fault, InputError, did_you_mean
from llem.pipeline.foreign import folder_of_module

SOURCE = "find_optimal"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The arguments of one call."""

    model: Any
    size: str
    dataset: Any
    budget: Any
    loss_fn: Any
    target: Any
    sizes: Sequence[int] | None
    data_per_parameter: float | None
    model_kwargs: Mapping[str, Any] | None
    evaluation: Any
    context: int | None
    batch: int | None
    learning_rate: float | None
    schedule: str
    warmup_fraction: float | None
    weight_decay: float
    clip_norm: float
    precision: str
    micro_batch: int | None
    seeds: int
    waves: int
    levels: int
    ratio: float
    law: str
    executor: str
    site: Any
    code: str | Path | None
    max_samples: int
    name: str
    out: str | Path
    plan_only: bool
    progress: bool

    @property
    def root(self) -> Path:
        return Path(self.out)

    @property
    def arguments(self) -> dict[str, Any]:
        return dict(self.model_kwargs or {})

    def check(self) -> None:
        """What can be told without the model or the data. Raises InputError."""
        faults: list[Fault] = []
        for key in ("budget", "target"):
            value = getattr(self, key)
            if (value is not None or key == "budget") and not isinstance(value, Budget):
                try:
                    parse_budget(value)
                except ValueError as error:
                    faults.append(Fault(key, str(error)))
        for key in ("batch", "context", "micro_batch", "seeds", "waves", "levels", "max_samples"):
            value = getattr(self, key)
            whole = isinstance(value, int) and not isinstance(value, bool)
            if value is not None and not (whole and value >= 1):
                faults.append(Fault(key, f"{value!r} is no whole number above 0"))
        for key, choices in (("executor", ("local", "slurm")), ("precision", ("fp32", "bf16"))):
            value = getattr(self, key)
            if value not in choices:
                hint = did_you_mean(str(value), choices)
                faults.append(Fault(key, f"{value!r} is none of {', '.join(choices)}", hint))
        if not str(self.size).isidentifier():
            faults.append(Fault("size", f"{self.size!r} is no name of a parameter"))
        for value in self.sizes or ():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                faults.append(Fault("sizes", f"{value!r} is no whole number above 0"))
        each = self.data_per_parameter
        if each is not None:
            number = isinstance(each, (int, float)) and not isinstance(each, bool)
            if not (number and 0 < each < math.inf):
                faults.append(Fault("data_per_parameter", f"{each!r} is no number above 0"))
            elif self.sizes:
                text = "centres a ladder that is looked for: `sizes` are given"
                faults.append(Fault("data_per_parameter", text, "leave one of them out"))
        share = self.evaluation
        if isinstance(share, (int, float)) and not 0 < share < 1:
            faults.append(Fault("evaluation", f"{share!r} is no share between 0 and 1"))
        try:
            json.dumps(self.arguments)
        except (TypeError, ValueError) as error:
            hint = "write a function that builds the model from numbers and texts"
            faults.append(Fault("model_kwargs", f"{error}", hint))
        if self.executor == "slurm" and self.site is None:
            faults.append(Fault("site", "SLURM needs one", "a shipped site's name, or a mapping"))
        if faults:
            raise InputError(SOURCE, faults)

    def code_folder(self) -> Path | None:
        """The folder whose modules are shipped with the campaign."""
        if self.code is not None:
            return Path(self.code).resolve()
        return None if isinstance(self.model, str) else folder_of_module(self.model)

    @staticmethod
    def budget_of(value: Any) -> Budget:
        """A budget or target, read where it is text."""
        return value if isinstance(value, Budget) else parse_budget(value)
