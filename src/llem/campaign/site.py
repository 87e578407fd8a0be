"""The site: what a cluster (or a laptop) offers, in the user's words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from llem.campaign.guards import (
    Bind,
    Constraint,
    DataText,
    Directive,
    Extra,
    Flag,
    GresType,
    Name,
    Nodelist,
    ScriptPath,
    Variable,
    WebAddress,
    check_data_text,
)
from llem.campaign.options import check_backend
from llem.campaign.quantities import parse_bytes, parse_duration

Seconds = Annotated[int, BeforeValidator(parse_duration)]
Bytes = Annotated[int, BeforeValidator(parse_bytes)]

# sbatch options that llem writes itself -> the key that sets them, where there is one.
OWN_DIRECTIVES = {
    "account": "account",
    "array": "limits.throttle",
    "chdir": "",
    "comment": "",
    "constraint": "constraint",
    "cpu-bind": "cpu_bind",
    "cpus-per-task": "cpus_per_rank",
    "dependency": "",
    "error": "",
    "exclude": "exclude",
    "export": "environment",
    "gpu-bind": "gpu_bind",
    "gpus": "gpu_request",
    "gpus-per-node": "gpu_request",
    "gpus-per-task": "gpu_request",
    "gres": "gpu_request",
    "hint": "hint",
    "job-name": "",
    "mem": "memory_per_node",
    "nodes": "",
    "ntasks": "",
    "ntasks-per-node": "",
    "open-mode": "",
    "output": "",
    "partition": "partition",
    "qos": "qos",
    "requeue": "",
    "reservation": "reservation",
    "signal": "",
    "time": "limits.time",
    "wrap": "",
}
# Read by the loader or the interpreter before llem could set them from the manifest.
TOO_EARLY = frozenset({"LD_LIBRARY_PATH", "LD_PRELOAD", "PYTHONHOME", "PYTHONPATH"})


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
    """How the image that ranks and samplers run in is entered. Without `image`, which no shipped
    site can know, jobs run with the Python that planned them. Backends that serve models and
    cannot share an environment each have one of their own in `images`."""

    image: ScriptPath | None = None
    images: dict[Annotated[str, AfterValidator(check_backend)], ScriptPath] = Field(
        default_factory=dict, description="by backend, in place of `image`"
    )
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
    events: tuple[Literal["done", "failed", "budget"], ...] = ("done", "failed", "budget")

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


def _carbon(value: Any) -> float | str | None:
    if isinstance(value, str) and value:
        return check_data_text(value)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if value is None or (number and math.isfinite(value) and value >= 0):
        return value  # type: ignore[no-any-return]
    raise ValueError(f"{value!r} is neither a number of g per kWh nor the name of a file")


def _not_own(values: dict[str, Any]) -> dict[str, Any]:
    for flag in values:
        if flag in OWN_DIRECTIVES:
            key = OWN_DIRECTIVES[flag]
            raise ValueError(f"--{flag} is llem's to write" + (f": use `{key}`" if key else ""))
    return values


def _not_early(values: dict[str, str]) -> dict[str, str]:
    for name in sorted(TOO_EARLY & values.keys()):
        raise ValueError(
            f"{name} is read before a value from here is set: export it in a template's "
            f"environment block (APPTAINERENV_{name} for the image)"
        )
    return values


class Site(Strict):
    """Where a campaign runs. `gpus_per_node` is also the number of ranks on a node; a site
    without GPUs counts CPU ranks instead."""

    name: Name = "here"
    executor: Literal["slurm", "local"] = "slurm"
    partition: Directive | None = None
    account: Directive | None = None
    needs_account: bool = Field(False, description="the scheduler refuses jobs without an account")
    qos: Directive | None = None
    reservation: Directive | None = None
    constraint: Constraint | None = None
    exclude: Nodelist | None = Field(None, description="nodes that jobs must not get")
    nodes: PositiveInt = Field(1, description="most nodes that one job may take")
    gpus_per_node: PositiveInt = 1
    cpus_per_rank: PositiveInt = 1
    hint: Literal["nomultithread", "multithread"] | None = None
    cpu_bind: Directive | None = Field(None, description="srun's --cpu-bind, for the ranks")
    gpu_bind: Directive | None = Field(None, description="srun's --gpu-bind, for the ranks")
    gpu: Gpu = Gpu()
    gpu_request: Literal["gres", "gpus-per-node", "gpus-per-task", "none"] = "gpus-per-node"
    gpu_type: GresType | None = Field(None, description="the gres type, as in gpu:a100:4")
    memory_per_node: Directive | None = None
    extra: Annotated[dict[Flag, Extra], AfterValidator(_not_own)] = Field(
        default_factory=dict, description="more sbatch options; `true` for one without a value"
    )
    overlap: bool = Field(True, description="the sampler runs in a step of its own (--overlap)")
    limits: Limits = Limits()
    concurrency: PositiveInt = Field(1, description="elements at one time on the local executor")
    modules: tuple[Directive, ...] = ()
    container: Annotated[
        Container | None, BeforeValidator(lambda value: None if value == "none" else value)
    ] = None
    template: DataText | None = Field(
        None, description="a Jinja file that overrides blocks of array.sbatch.j2: your own code"
    )
    environment: Annotated[dict[Variable, DataText], AfterValidator(_not_early)] = Field(
        default_factory=dict
    )
    utilisation: PositiveFloat | None = Field(None, le=1, description="model FLOPs utilisation")
    startup_s: float = Field(30.0, ge=0, description="fixed cost of starting an element, seconds")
    pack_s: float | None = Field(
        None, ge=0, description="short runs are packed into elements this long; 0: one run each"
    )
    pue: float = Field(1.0, ge=1)
    carbon_g_per_kwh: Annotated[float | str | None, PlainValidator(_carbon)] = Field(
        None, description="a number, or a CSV of a series in time (columns time, g_per_kwh)"
    )
    prices: Prices = Prices()
    notify: Notify | None = None

    @model_validator(mode="after")
    def _one_binding(self) -> Site:
        if self.hint and self.cpu_bind:
            raise ValueError("`hint` and `cpu_bind` exclude each other, says SLURM")
        if self.gpu_type and self.gpu_request == "none":
            raise ValueError("`gpu_type` goes with a `gpu_request`")
        return self

    @property
    def image(self) -> str | None:
        """The image that ranks run in; None where they run in the Python that planned them."""
        return self.container.image if self.container else None

    def image_for(self, backend: str) -> str | None:
        """The image that a backend runs in; that of trainings for ""."""
        images: Mapping[Any, str] = self.container.images if self.container else {}
        return images.get(backend, self.image)

    def doubts(self) -> list[tuple[str, str, str]]:
        """What a job will not get as it was meant: (key, what follows from it, what to set).

        SLURM counts a job's time in whole minutes and rounds seconds up (sbatch(1), --time).
        """
        if self.executor != "slurm":
            return []
        found = []
        time_s, minutes = self.limits.time, math.ceil(self.limits.time / 60)
        counted = f"SLURM counts whole minutes: a job is ended after {minutes} min"
        if time_s < max(60, self.startup_s):
            text = f"a job of {time_s:g} s has hardly begun (startup_s {self.startup_s:g}) when it"
            text += f" must leave; {counted}"
            found.append(("limits.time", text, "limits: {time: 10m}, or longer"))
        elif time_s % 60:
            text = f"{time_s:g} s are planned with, and {counted}"
            found.append(("limits.time", text, f"limits: {{time: {minutes}m}}"))
        if self.gpu.name != "cpu" and self.cpus_per_rank == 1:
            text = "one CPU for each rank of a GPU: reading data, launching kernels, autograd's and"
            text += (
                " NCCL's threads share it, one of them with the node's sampler, and the GPU waits"
            )
            text += " (OMP_NUM_THREADS is 1 too; SLURM often gives memory by CPU)"
            setting = "cpus_per_rank: the CPUs of a node / its GPUs"
            found.append(("cpus_per_rank", text, setting))
        return found

    def left_open(self) -> list[tuple[str, str]]:
        """Keys that only the user knows and has not given: (key, what follows from it)."""
        found = []
        if self.executor == "slurm" and self.needs_account and not self.account:
            found.append(("account", "sbatch refuses jobs without an account here"))
        if self.container and not self.container.image:
            text = "without an image, jobs run with the Python that planned them"
            found.append(("container.image", text))
        return found
