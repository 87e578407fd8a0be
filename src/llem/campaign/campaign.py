"""The campaign: the user's question, as `campaign.yaml` asks it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    PositiveFloat,
    PositiveInt,
    Tag,
    model_validator,
)

from llem.campaign.guards import DataText, Name
from llem.campaign.quantities import Budget, parse_budget, parse_count, parse_interval
from llem.campaign.site import Notify, Seconds, Site, Strict
from llem.campaign.trackers import TrackerChoice

Amount = Annotated[
    Budget, BeforeValidator(lambda v: v if isinstance(v, Budget) else parse_budget(v))
]
Count = Annotated[int, BeforeValidator(parse_count), Field(ge=1)]


def _place(value: Any) -> float | int:
    """A place in a run: a part of it below 1, or a count of tokens."""
    if isinstance(value, float) and 0 < value < 1:
        return value
    return parse_count(value)


Place = Annotated[float | int, BeforeValidator(_place), Field(gt=0)]

# Told apart by what the user wrote, so that a fault in one is not also told of the other.
SiteChoice = Annotated[
    Annotated[Name, Tag("name")] | Annotated[Site, Tag("Site")],
    Discriminator(lambda value: "name" if isinstance(value, str) else "Site"),
]


# The meters of `llem.energy`, which this floor does not know; auto is all of them by priority.
MeterName = Literal[
    "auto", "nvml", "zeus", "rapl", "pm_counters", "hwmon", "ipmi", "cpu-model", "codecarbon"
]

# Each wave waits for the one before it to end.
MOST_WAVES = 10


class ModelChoice(Strict):
    """The model family, or the user's own class with the parameter that sets its size."""

    family: Literal["llama", "custom"] = "llama"
    vocabulary: Count = 256
    context: Count = 128
    tied_embeddings: bool = True
    head_size: PositiveInt | None = None
    class_path: DataText | None = Field(None, alias="class")
    size: DataText | None = None
    values: tuple[PositiveInt, ...] = ()
    arguments: dict[DataText, Any] = Field(default_factory=dict)
    loss: DataText | None = Field(
        None, description="module:function of (output, target) or (model, batch)"
    )

    @model_validator(mode="before")
    @classmethod
    def _a_class_means_custom(cls, values: Any) -> Any:
        if isinstance(values, dict) and "class" in values and "family" not in values:
            return {**values, "family": "custom"}
        return values

    @model_validator(mode="after")
    def _custom_is_complete(self) -> ModelChoice:
        if self.family == "custom":
            if not self.class_path or ":" not in self.class_path:
                raise ValueError("class must read 'package.module:Class'")
            if not self.size or not self.values:
                raise ValueError("a model class needs `size` (its parameter) and `values` to try")
        elif self.class_path or self.size or self.values or self.arguments or self.loss:
            raise ValueError("`size`, `values`, `arguments` and `loss` go with `class`")
        return self


class DataFile(Strict):
    """A file that `llem data prepare` made, raw little-endian ids, or a text to read as bytes.

    What the file's sidecar says need not be given, and is a fault where it is given otherwise.
    """

    path: DataText | None = None
    dtype: Literal["uint8", "uint16", "uint32"] | None = None
    evaluation_tokens: Count | None = None


class MixturePart(DataFile):
    """A file of a mixture; of the sum of all weights so many windows are its own."""

    path: DataText
    weight: PositiveFloat


class DataChoice(DataFile):
    """One file, several by weight, or `builtin`; and how windows are cut from them. For a model
    class of the user's own also a `dataset` of samples."""

    builtin: Literal["python-sources"] | None = None
    mixture: tuple[MixturePart, ...] | None = Field(None, min_length=2)
    packing: Literal["stream", "documents"] = Field(
        "stream", description="documents: those that fit into a window are never cut"
    )
    dataset: DataText | None = Field(
        None, description="module:object of a data set or a function that makes one, or a folder"
    )
    evaluation: float | DataText | None = Field(
        None, description="the held-out share of `dataset`, or another data set"
    )

    @model_validator(mode="after")
    def _one_source(self) -> DataChoice:
        given = [name for name in ("path", "builtin", "mixture", "dataset") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"give `{given[0]}` or `{given[1]}`, not both")
        if self.mixture and (self.dtype or self.evaluation_tokens):
            raise ValueError("in a mixture `dtype` and `evaluation_tokens` go with each file")
        if self.packing == "documents" and not (self.path or self.mixture):
            raise ValueError("`packing: documents` goes with what `llem data prepare` made")
        if self.dataset and (self.dtype or self.evaluation_tokens):
            raise ValueError("`dataset` goes with `evaluation` alone")
        if self.evaluation is not None and not self.dataset:
            raise ValueError("`evaluation` goes with `dataset`")
        return self


class Grid(Strict):
    """The first wave: an isoFLOP grid of `levels` budgets, `ratio` apart, `sizes` models each.

    What is left open (`levels`, `sizes`, `runs`) follows from the budget.
    """

    levels: PositiveInt | None = None
    sizes: PositiveInt | None = None
    runs: PositiveInt | None = Field(None, description="runs asked for; seeds fill the grid up")
    ratio: float = Field(3.0, gt=1)
    span: PositiveFloat = Field(0.6, description="decades of N to either side of the prior optimum")
    tokens_per_param: PositiveFloat = Field(20.0, description="D/N at the prior optimum")


class Training(Strict):
    """Hyperparameters that the user fixes; what is left out follows from a named rule."""

    rule: Literal["steplaw", "small", "olmo", "marin", "nanochat"] = "steplaw"
    batch_tokens: Count | None = None
    learning_rate: PositiveFloat | None = None
    max_learning_rate: PositiveFloat = 0.02
    warmup_fraction: float | None = Field(None, ge=0, lt=1)
    schedule: Literal["wsd", "cosine", "constant"] = "wsd"
    decay_fraction: float = Field(0.3, ge=0, le=1)
    weight_decay: float = Field(0.1, ge=0)
    beta2: float | None = Field(None, gt=0, lt=1)
    clip_norm: PositiveFloat = 1.0
    precision: Literal["fp32", "bf16"] = "bf16"
    checkpoint_every: PositiveInt | None = Field(None, description="steps between checkpoints")
    optimiser: Literal["adamw", "muon"] = "adamw"
    z_loss: float = Field(0.0, ge=0, description="weight of log^2 Z in the training loss")
    parametrisation: Literal["standard", "mup"] = "standard"
    base_width: PositiveInt | None = Field(
        None, description="of mup: the width at which learning_rate was found"
    )
    evaluate_at: tuple[Place, ...] = Field(
        (), description="where in a run the held-out loss is taken: tokens, or a part below 1"
    )
    branch_at: tuple[Place, ...] = Field(
        (), description="where runs of the same start end: tokens, or a part below 1; of wsd"
    )
    deepspeed: dict[str, Any] = Field(
        default_factory=dict, description="settings of DeepSpeed over those that llem makes"
    )

    @model_validator(mode="after")
    def _options_go_together(self) -> Training:
        if self.parametrisation == "mup":
            # A rule's rate falls with the size by itself.
            if not self.base_width or not self.learning_rate:
                raise ValueError(
                    "parametrisation mup needs `base_width` and the `learning_rate` found there"
                )
            if self.optimiser == "muon":
                raise ValueError("parametrisation mup is of adamw; muon has a scale of its own")
        elif self.base_width:
            raise ValueError("`base_width` goes with parametrisation mup")
        if self.branch_at and self.schedule != "wsd":
            raise ValueError(f"`branch_at` goes with schedule wsd, not {self.schedule}")
        return self


class LayoutChoice(Strict):
    """Where ranks go, when the user decides and not the planner."""

    nodes: PositiveInt = 1
    gpus_per_node: PositiveInt = 1
    zero_stage: int = Field(0, ge=0, le=3)
    micro_batch: PositiveInt | None = Field(None, description="sequences per rank and step")
    activation_checkpointing: bool | None = Field(
        None, description="compute activations again in the backward pass; null: where needed"
    )
    sharding: Literal["zero", "fsdp2"] = "zero"
    compile: bool = Field(False, description="let torch compile each block")

    @model_validator(mode="after")
    def _one_way_to_shard(self) -> LayoutChoice:
        if self.sharding == "fsdp2" and self.zero_stage:
            raise ValueError("`zero_stage` is of sharding zero; fsdp2 shards everything")
        if self.compile and self.zero_stage == 3:
            raise ValueError(
                "compile does not go with zero_stage 3, whose weights come and go inside blocks: "
                "sharding fsdp2 takes both"
            )
        return self


def _words(value: Any) -> Any:
    return [word.strip() for word in value.split(",")] if isinstance(value, str) else value


class Energy(Strict):
    """How energy is measured, and what is waited for before a job's first run.

    `meters` names some of them (`nvml, rapl`), where not all are wanted; a model estimates where
    nothing is measured, and only then. By default nothing is waited for, and a GPU's idle power
    is taken from before the ranks touched it, where it was seen idle then.
    """

    interval: Annotated[float, BeforeValidator(parse_interval), Field(ge=0.001, le=60)] = 0.1
    meters: Annotated[tuple[MeterName, ...], BeforeValidator(_words)] = ("auto",)
    baseline: Seconds | None = Field(
        None, description="keep the devices idle for so long and measure their power"
    )
    thermal_floor: Seconds | None = Field(
        None, description="wait, at most so long, for their temperature to stand still"
    )
    thermal_slope: PositiveFloat = Field(
        1.0, description="what counts as still: degrees Celsius a minute"
    )

    @model_validator(mode="after")
    def _some_meter(self) -> Energy:
        if not self.meters:
            raise ValueError("`meters` names none: leave it out for all, or name some")
        if "auto" in self.meters and len(self.meters) > 1:
            raise ValueError("`meters` is auto, or names some")
        if {"cpu-model", "codecarbon"} <= set(self.meters):
            raise ValueError("one of cpu-model and codecarbon: the other would never be asked")
        return self


class Campaign(Strict):
    """The whole file; everything has a default but `name`, `target` and a budget."""

    name: Name
    target: Amount
    budget: Amount | None = None
    workload: Literal["training"] = "training"
    model: ModelChoice = ModelChoice()
    data: DataChoice = DataChoice(builtin="python-sources")
    seeds: PositiveInt = 1
    waves: int = Field(
        1,
        ge=1,
        le=MOST_WAVES,
        description="parts of the budget; each later one is planned from the records",
    )
    law: Literal["chinchilla"] = "chinchilla"
    grid: Grid = Grid()
    training: Training = Training()
    layout: LayoutChoice | None = None
    energy: Energy = Energy()
    site: SiteChoice = "laptop"
    calibration: DataText | None = Field(
        None, description="what `llem calibrate` measured on the site: its DIR, or its file"
    )
    notify: Notify | None = Field(None, description="instead of the site's")
    trackers: tuple[TrackerChoice, ...] | None = Field(
        None, description="where trainings are shown while they run, beside llem's own records"
    )

    @model_validator(mode="after")
    def _options_suit_the_layout_and_the_model(self) -> Campaign:
        training, layout = self.training, self.layout
        shards = layout is not None and (layout.zero_stage or layout.sharding == "fsdp2")
        if training.optimiser == "muon" and shards:
            raise ValueError(
                "training.optimiser: muon needs each matrix whole, and the layout shards them; "
                "set zero_stage: 0 and sharding: zero, or adamw"
            )
        if training.z_loss and self.data.dataset:
            raise ValueError("training.z_loss is of tokens; with `dataset` the loss is your own")
        for name, value in (
            ("optimiser", "muon"), ("parametrisation", "mup"),
        ):  # fmt: skip
            if self.model.family == "custom" and getattr(training, name) == value:
                raise ValueError(
                    f"training.{name}: {value} is made for the llama family: of another model llem "
                    "does not know the parts"
                )
        return self
