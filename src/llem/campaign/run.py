"""One run's specification: all that a rank needs to train it, and the hash that names it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any, Self

from llem.campaign.architecture import Architecture, architecture_from_dict
from llem.campaign.data.sampledata import SampleData
from llem.campaign.data.tokendata import TokenData
from llem.campaign.deepspeed import changing_results

RUN_SCHEMA = "llem-run-1"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The hyperparameters of a run. AdamW with decoupled weight decay on matrices only.

    `batch_tokens` is the global batch; `warmup_steps` a linear warm-up from zero;
    `decay_fraction` the share of steps in which `wsd` decays linearly to zero (`cosine` decays
    from the end of the warm-up to a tenth of the peak). `optimiser` is adamw or muon,
    `parametrisation` standard or mup, which scales what is set at `base_width` to other widths;
    `z_loss` weighs the square of log Z in the training loss.
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
    optimiser: str = "adamw"
    z_loss: float = 0.0
    parametrisation: str = "standard"
    base_width: int = 0

    def decay_start(self, steps: int) -> int:
        """The first step of the `wsd` decay of a run of `steps` (`steps` for other schedules)."""
        if self.schedule != "wsd":
            return steps
        return max(self.warmup_steps, steps - round(self.decay_fraction * steps))


# Fields that came after runs had been named: at their defaults they are no part of a name.
_ADDED = {
    name: Recipe.__dataclass_fields__[name].default
    for name in ("optimiser", "z_loss", "parametrisation", "base_width")
}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where a run's ranks are and how the global batch is divided among them.

    With `activation_checkpointing` a block keeps its input alone and computes the rest again in
    the backward pass: less memory, a third more work of the forward kind, the same result.
    `sharding` is `zero` (DeepSpeed at `zero_stage`, plain data parallelism at 0) or `fsdp2`;
    with `compile` torch compiles each block.
    """

    nodes: int = 1
    gpus_per_node: int = 1
    zero_stage: int = 0
    micro_batch: int = 1
    grad_accum: int = 1
    activation_checkpointing: bool = False
    sharding: str = "zero"
    compile: bool = False

    @property
    def ranks(self) -> int:
        return self.nodes * self.gpus_per_node


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """What the planner expects of a run; NaN where it cannot say.

    `duration_s` is the training alone; GPU-hours and energy also count the run's share of what
    starting its element takes, since that is paid for as well. `memory_bytes` is the peak of one
    rank's own tensors, what its end record tells as `peak_memory_bytes`.
    """

    duration_s: float
    gpu_hours: float
    energy_j: float
    memory_bytes: float


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the recipe's rule gave before it was rounded to whole sequences or capped."""

    batch_tokens: float
    learning_rate: float


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training: a model, its data, a recipe, a seed and a layout.

    `tokens` is always `steps * batch_tokens`. `checkpoint_steps` is how often a checkpoint is
    written (0: only when asked to stop). `segments` is how many jobs, one after the other, it is
    given to end in: each resumes from the last one's checkpoint.

    After each of the steps `evaluate_at` the held-out loss is recorded. At each of `branch_at` a
    run of so many steps ends, the same but for its length (`branch`): this one leaves it a
    checkpoint where the two part, so that `trunk_steps` of its steps need not be trained again.
    `deepspeed` are the user's own settings, merged into the configuration of DeepSpeed.
    """

    model: Architecture
    tokens: int
    steps: int
    seed: int
    recipe: Recipe
    data: TokenData | SampleData
    layout: Layout
    predicted: Predicted
    level: int = 0
    checkpoint_steps: int = 0
    segments: int = 1
    asked: Asked | None = None
    workload: str = "training"
    evaluate_at: tuple[int, ...] = ()
    branch_at: tuple[int, ...] = ()
    trunk_steps: int = 0
    deepspeed: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def params(self) -> int:
        return self.model.params

    @property
    def params_nonembedding(self) -> int:
        return self.model.params_nonembedding

    @property
    def paths(self) -> tuple[str, ...]:
        """What ranks read outside the campaign folder."""
        return tuple(self.data.paths)

    @property
    def flops(self) -> float:
        """Training FLOPs of the whole run."""
        return float(self.model.flops_per_token) * self.tokens

    @property
    def epochs(self) -> float:
        """Tokens read over different tokens among them: 1 where none is read twice."""
        return self.data.epochs(self.tokens)

    @property
    def flops_of_its_own(self) -> float:
        """The same without the steps that its trunk is to have trained."""
        own_steps = self.steps - self.trunk_steps
        return float(self.model.flops_per_token) * own_steps * self.recipe.batch_tokens

    @cached_property
    def run_id(self) -> str:
        """Twelve hex digits of a hash over all that changes the run's result.

        Layout and paths are left out: they change where and how fast, not what. A run that was
        trained elsewhere, with the same data, is the same run.
        """
        return self.names((self.seed,))[0]

    def names(self, seeds: Iterable[int]) -> tuple[str, ...]:
        """`run_id` of the runs that differ from this one in their seed alone."""
        return names_of(self, seeds)

    def with_seed(self, seed: int) -> Self:
        return self if seed == self.seed else replace(self, seed=seed)

    def with_layout(self, layout: Layout) -> Run:
        return replace(self, layout=layout)

    def branch(self, steps: int) -> Run:
        """The run of `steps` that is this one up to where it begins to decay.

        Model, recipe, seed and order of the data are the same, and so is every bit of the state
        at that step: what begins there from this run's state is what would have come of its own.
        """
        return replace(
            self,
            steps=steps,
            tokens=steps * self.recipe.batch_tokens,
            trunk_steps=self.recipe.decay_start(steps),
            evaluate_at=(),
            branch_at=(),
            segments=1,
        )

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
            "recipe": dict(vars(self.recipe)),
            "data": self.data.to_dict(),
            "layout": dict(vars(self.layout)),
            "predicted": dict(vars(self.predicted)),
            "epochs": self.epochs,
            "checkpoint_steps": self.checkpoint_steps,
            "segments": self.segments,
            "asked": dict(vars(self.asked)) if self.asked else None,
            "workload": self.workload,
            "evaluate_at": list(self.evaluate_at),
            "branch_at": list(self.branch_at),
            "trunk_steps": self.trunk_steps,
            "deepspeed": dict(self.deepspeed),
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
            data=_data_from(values["data"]),
            layout=Layout(**values["layout"]),
            predicted=Predicted(**values["predicted"]),
            level=values["level"],
            checkpoint_steps=values["checkpoint_steps"],
            segments=values.get("segments", 1),
            asked=Asked(**values["asked"]) if values.get("asked") else None,
            workload=values["workload"],
            evaluate_at=tuple(values.get("evaluate_at", ())),
            branch_at=tuple(values.get("branch_at", ())),
            trunk_steps=values.get("trunk_steps", 0),
            deepspeed=values.get("deepspeed", {}),
        )
        if run.run_id != values["run_id"]:
            raise edited(values["run_id"], run.run_id)
        return run


def _data_from(values: Mapping[str, Any]) -> TokenData | SampleData:
    return SampleData.from_dict(values) if "samples" in values else TokenData.from_dict(values)


def edited(named: str, known: str) -> ValueError:
    """The error of a run under a name that its values do not hash to."""
    return ValueError(
        f"run {named}: its values hash to {known}: the plan was edited or written by another "
        "version of llem"
    )


def names_of(run: Run, seeds: Iterable[int]) -> tuple[str, ...]:
    """`run_id` of the runs that differ from `run` in their seed alone: the rest is hashed once."""
    changed = changing_results(run.deepspeed)
    of = (run.model, run.recipe, run.data, _canonical(changed) if changed else "")
    try:
        shared = _identity(*of)
    except TypeError:  # A user's class has a mapping of arguments, which no cache can hold.
        shared = _identity.__wrapped__(*of)
    # Canonical JSON of the whole, keys sorted: the seed's comes after those of `_identity`.
    begun = hashlib.blake2b(f'{shared[:-1]},"seed":'.encode(), digest_size=6)
    rest = _canonical({"tokens": run.tokens, "workload": run.workload})
    names = []
    for seed in seeds:
        named = begun.copy()
        named.update(f"{seed:d},{rest[1:]}".encode())
        names.append(named.hexdigest())
    return tuple(names)


def _canonical(values: Mapping[str, Any]) -> str:
    return json.dumps(values, sort_keys=True, separators=(",", ":"))


@lru_cache(maxsize=4096)
def _identity(
    model: Architecture, recipe: Recipe, data: TokenData | SampleData, deepspeed: str
) -> str:
    """The part of a run's identity that all its seeds share, as canonical JSON."""
    # The rule is how the numbers were found, not what they are.
    numbers = {
        k: v for k, v in vars(recipe).items() if k != "rule" and (k not in _ADDED or v != _ADDED[k])
    }
    more = {"deepspeed": json.loads(deepspeed)} if deepspeed else {}
    shape = model.identity()
    if isinstance(data, SampleData):
        # `source` is of class and loss themselves, wherever they are imported from.
        shape["class_path"] = shape["class_path"].rpartition(":")[2]
        shape.pop("loss", None)
    return _canonical(
        {
            "data": data.identity(),
            "model": shape,
            "recipe": numbers,
            "schema": RUN_SCHEMA,
            **more,
        }
    )
