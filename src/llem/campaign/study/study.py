"""The study: a campaign of the workload inference, as `campaign.yaml` asks it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    PositiveFloat,
    PositiveInt,
    Tag,
    model_validator,
)

from llem.campaign.campaign import Amount, Count, Energy, SiteChoice
from llem.campaign.guards import DataText, Name
from llem.campaign.options import check_backend
from llem.campaign.site import Notify, Seconds, Strict

BackendName = Annotated[str, AfterValidator(check_backend)]
Order = Literal["sequential", "interleaved", "shuffled", "reverse", "latin-square"]


def _several(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


class ServedChoice(Strict):
    """A model: a folder of weights, or a transformers configuration with random weights."""

    path: DataText | None = None
    config: dict[str, Any] | None = None
    seed: int = Field(0, ge=0, description="of the random weights")

    @model_validator(mode="after")
    def _one_source(self) -> ServedChoice:
        if (self.path is None) == (self.config is None):
            raise ValueError("give `path` (a folder of weights) or `config` (random weights)")
        if self.path is not None and self.seed:
            raise ValueError("`seed` goes with `config`")
        return self


class Synthetic(Strict):
    """Prompts of random ids, all of one length."""

    input_tokens: Count
    output_tokens: Count
    count: Count


class PromptChoice(Strict):
    """What is asked: synthetic prompts, texts of a file or of a saved data set, or a built-in set.

    Of texts the first `count` are asked (all where it is left out), each for `output_tokens`.
    """

    synthetic: Synthetic | None = None
    jsonl: DataText | None = None
    dataset: DataText | None = None
    builtin: Literal["instructions"] | None = None
    field: DataText = "text"
    output_tokens: Count | None = None
    count: Count | None = None
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _one_kind(self) -> PromptChoice:
        kinds = ("synthetic", "jsonl", "dataset", "builtin")
        given = [kind for kind in kinds if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(f"give one of {', '.join(f'`{kind}`' for kind in kinds)}")
        if self.synthetic is not None and (self.output_tokens or self.count):
            raise ValueError("`output_tokens` and `count` of synthetic prompts go inside it")
        if self.synthetic is None and self.output_tokens is None:
            raise ValueError("texts need `output_tokens`: how many are asked of the model for each")
        return self


class ArrivalChoice(Strict):
    """When requests come, where they do not come all at once: so many a second."""

    rate: PositiveFloat | None = None
    poisson: PositiveFloat | None = None

    @model_validator(mode="after")
    def _one_rate(self) -> ArrivalChoice:
        if (self.rate is None) == (self.poisson is None):
            raise ValueError("give `rate` (at equal distances) or `poisson`, in requests a second")
        return self


# Told apart by what the user wrote, as sites are.
ArrivalAsked = Annotated[
    Annotated[Literal["batch"], Tag("batch")] | Annotated[ArrivalChoice, Tag("Arrival")],
    Discriminator(lambda value: "batch" if isinstance(value, str) else "Arrival"),
]


class WarmupChoice(Strict):
    """Batches before the measured ones, until they take equally long; see `Warmup`."""

    least: int = Field(2, ge=0)
    most: PositiveInt = 20
    window: int = Field(3, ge=2)
    spread: PositiveFloat = 0.05
    floor: Seconds | None = Field(None, description="warm up at least so long")

    @model_validator(mode="after")
    def _ordered(self) -> WarmupChoice:
        if self.least > self.most:
            raise ValueError("`least` is more than `most`")
        return self


class PlacesChoice(Strict):
    """How many GPUs serve a deployment; by default one replica's."""

    nodes: PositiveInt = 1
    gpus_per_node: PositiveInt = 1


class Rule(Strict):
    """Deployments that are not served: those where each key of `when` has the value (or one of a
    list, or `">= 32"`), and why."""

    when: dict[str, Any] = Field(min_length=1)
    reason: DataText = Field(min_length=1)


class Sweep(Strict):
    """What varies, by dotted keys: every combination of `grid`, and of it with each group of
    `zip`, whose lists go along together; besides each of `list` as it stands; less `exclude`."""

    grid: dict[str, list[Any]] = Field(default_factory=dict)
    zipped: tuple[dict[str, list[Any]], ...] = Field((), alias="zip")
    listed: tuple[dict[str, Any], ...] = Field((), alias="list")
    exclude: tuple[Rule, ...] = ()


class Study(Strict):
    """The whole file of a study; everything has a default but `name`, `models` and `prompts`."""

    name: Name
    workload: Literal["inference"]
    models: Annotated[Mapping[Name, ServedChoice], Field(min_length=1)]
    backend: Annotated[tuple[BackendName, ...], BeforeValidator(_several), Field(min_length=1)] = (
        "transformers",
    )
    options: dict[str, Any] = Field(default_factory=dict)
    prompts: PromptChoice
    arrival: ArrivalAsked = "batch"
    sweep: Sweep = Sweep()
    cycles: PositiveInt = 3
    order: Order = "interleaved"
    seed: int = Field(0, ge=0, description="of a shuffled order")
    block: PositiveInt | None = Field(
        None, description="deployments that share an element, and with it a node"
    )
    warmup: WarmupChoice = WarmupChoice()
    cooldown: Seconds | None = Field(None, description="devices are left idle before each run")
    budget: Amount | None = None
    layout: PlacesChoice | None = None
    energy: Energy = Energy()
    site: SiteChoice = "laptop"
    calibration: DataText | None = Field(
        None, description="a study that ran on the site: its DIR. What it took tells the times"
    )
    notify: Notify | None = Field(None, description="instead of the site's")

    @property
    def trackers(self) -> None:
        """Trackers show losses: a study has none."""
