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
from llem.campaign.quantities import Budget, parse_budget, parse_count
from llem.campaign.site import Notify, Seconds, Site, Strict
from llem.campaign.trackers import TrackerChoice

Amount = Annotated[
    Budget, BeforeValidator(lambda v: v if isinstance(v, Budget) else parse_budget(v))
]
Count = Annotated[int, BeforeValidator(parse_count), Field(ge=1)]

# Told apart by what the user wrote, so that a fault in one is not also told of the other.
SiteChoice = Annotated[
    Annotated[Name, Tag("name")] | Annotated[Site, Tag("Site")],
    Discriminator(lambda value: "name" if isinstance(value, str) else "Site"),
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
        elif self.class_path or self.size or self.values or self.arguments:
            raise ValueError("`size`, `values` and `arguments` go with `class`")
        return self


class DataChoice(Strict):
    """A token file (`path`, raw little-endian ids), a text file to read as bytes, or `builtin`."""

    path: DataText | None = None
    builtin: Literal["python-sources"] | None = None
    dtype: Literal["uint8", "uint16", "uint32"] | None = None
    evaluation_tokens: Count | None = None

    @model_validator(mode="after")
    def _one_source(self) -> DataChoice:
        if self.path and self.builtin:
            raise ValueError("give `path` or `builtin`, not both")
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


class LayoutChoice(Strict):
    """Where ranks go, when the user decides and not the planner."""

    nodes: PositiveInt = 1
    gpus_per_node: PositiveInt = 1
    zero_stage: int = Field(0, ge=0, le=3)
    micro_batch: PositiveInt | None = Field(None, description="sequences per rank and step")
    activation_checkpointing: bool | None = Field(
        None, description="compute activations again in the backward pass; null: where needed"
    )


class EnergyChoice(Strict):
    """What is waited for before a job's first run; by default nothing, and a GPU's idle power is
    taken from before the ranks touched it, where it was seen idle then."""

    baseline: Seconds | None = Field(
        None, description="keep the devices idle for so long and measure their power"
    )
    thermal_floor: Seconds | None = Field(
        None, description="wait, at most so long, for their temperature to stand still"
    )
    thermal_slope: PositiveFloat = Field(
        1.0, description="what counts as still: degrees Celsius a minute"
    )


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
    site: SiteChoice = "laptop"
    calibration: DataText | None = Field(
        None, description="what `llem calibrate` measured on the site: its DIR, or its file"
    )
    notify: Notify | None = Field(None, description="instead of the site's")
    energy: EnergyChoice | None = None
    trackers: tuple[TrackerChoice, ...] | None = Field(
        None, description="where trainings are shown while they run, beside llem's own records"
    )
