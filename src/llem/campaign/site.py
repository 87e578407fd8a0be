"""The site: what a cluster (or a laptop) offers, in the user's words."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from llem.campaign.guards import (
    Bind,
    Constraint,
    DataText,
    Directive,
    Name,
    ScriptPath,
    Variable,
    WebAddress,
)
from llem.campaign.quantities import parse_bytes, parse_duration

Seconds = Annotated[int, BeforeValidator(parse_duration)]
Bytes = Annotated[int, BeforeValidator(parse_bytes)]


class Strict(BaseModel):
    """Unknown keys are faults; values are frozen once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Gpu(Strict):
    """One accelerator. Values left out are looked up by name in the planner's table."""

    name: DataText = "cpu"
    peak_flops: PositiveFloat | None = Field(
        None, description="dense FLOP/s at the run's precision"
    )
    memory: Bytes | None = None
    power_w: PositiveFloat | None = Field(None, description="board power under load, watts")


class Limits(Strict):
    """What the scheduler allows one user."""

    time: Seconds = 24 * 3600
    array_size: PositiveInt = Field(1001, description="SLURM's MaxArraySize: caps the INDEX")
    throttle: PositiveInt | None = Field(None, description="elements of an array at one time")
    submit: PositiveInt | None = Field(
        None, description="SLURM's MaxSubmitJobs: elements of one user that wait or run"
    )


class Container(Strict):
    """The image that ranks and samplers run in, and how it is entered."""

    image: ScriptPath
    runtime: Literal["apptainer", "singularity"] = "apptainer"
    gpu: Literal["none", "nv", "rocm"] = "nv"
    binds: tuple[Bind, ...] = ()


class Notify(Strict):
    """Who is told when a campaign is done, when a run failed for good, at 80 % of the budget.

    `command` is started with the message as JSON on its standard input, as an argument list and
    never by a shell; `webhook` gets the same JSON by POST. Each event is told once.
    """

    command: tuple[DataText, ...] = ()
    webhook: WebAddress | None = None
    on: tuple[Literal["done", "failed", "budget"], ...] = ("done", "failed", "budget")

    @model_validator(mode="after")
    def _tells_someone(self) -> Notify:
        if not self.command and self.webhook is None:
            raise ValueError("needs a `command` or a `webhook`")
        return self


class Prices(Strict):
    """Applied late, and changed without running anything again."""

    currency: Literal["EUR", "USD", "GBP", "CHF"] = "EUR"
    per_gpu_hour: PositiveFloat | None = None
    per_kwh: PositiveFloat | None = None


class Site(Strict):
    """Where a campaign runs. `gpus_per_node` is also the number of ranks on a node; a site
    without GPUs counts CPU ranks instead."""

    name: Name = "here"
    executor: Literal["slurm", "local"] = "slurm"
    partition: Directive | None = None
    account: Directive | None = None
    qos: Directive | None = None
    reservation: Directive | None = None
    constraint: Constraint | None = None
    nodes: PositiveInt = Field(1, description="most nodes that one job may take")
    gpus_per_node: PositiveInt = 1
    cpus_per_rank: PositiveInt = 1
    gpu: Gpu = Gpu()
    gpu_request: Literal["gres", "gpus-per-node", "none"] = "gpus-per-node"
    memory_per_node: Directive | None = None
    overlap: bool = Field(True, description="the sampler runs in a step of its own (--overlap)")
    limits: Limits = Limits()
    concurrency: PositiveInt = Field(1, description="elements at one time on the local executor")
    modules: tuple[Directive, ...] = ()
    container: Container | None = None
    environment: dict[Variable, DataText] = Field(default_factory=dict)
    utilisation: PositiveFloat | None = Field(None, le=1, description="model FLOPs utilisation")
    startup_s: float = Field(30.0, ge=0, description="fixed cost of starting an element, seconds")
    pack_s: float | None = Field(
        None, ge=0, description="short runs are packed into elements this long; 0: one run each"
    )
    pue: float = Field(1.0, ge=1)
    carbon_g_per_kwh: float | None = Field(None, ge=0)
    prices: Prices = Prices()
    notify: Notify | None = None
