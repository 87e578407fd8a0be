"""One deployment of a model, and a run of it: what a rank needs to serve it, and its names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self

from llem.campaign.run import Layout, Predicted, edited

SERVING_SCHEMA = "llem-serving-1"


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A model that is served: weights on disk, or random ones made from a transformers `config`.

    `digest` names its content (configuration and seed, or the files of `path`); the name is the
    user's and changes nothing. `width` is that of the residual stream, `kv_heads` the key-value
    heads, `head_size` the size of one; `flops_per_token_forward` are the matrix products of one
    token without attention over earlier ones, a multiply-add counted as two.
    """

    name: str
    source: str
    config: Mapping[str, Any] = field(hash=False)
    digest: str
    params: int
    params_nonembedding: int
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    context: int
    flops_per_token_forward: float
    path: str | None = None
    weights_seed: int = 0

    @property
    def kv_values_per_token(self) -> int:
        """Numbers that the KV cache keeps of one token: keys and values of all layers."""
        return 2 * self.layers * self.kv_heads * self.head_size

    def flops(self, *, tokens: float, context: float) -> float:
        """FLOPs of a forward of `tokens`, each attending to `context` tokens on average."""
        attention = 4.0 * self.layers * self.heads * self.head_size * context
        return tokens * (self.flops_per_token_forward + attention)

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "config": dict(self.config)}


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """What is asked: `count` requests, each for `output_tokens` tokens.

    `kind` is synthetic (random ids, `input_tokens` of them, from `seed`), jsonl (`path`), dataset
    (a saved Hugging Face data set at `path`) or builtin (`name`); `field` holds the text.
    `digest` names the content of what is read. `expected_input_tokens` is the mean length that
    the planner counts with, where texts are only counted when they are served.
    """

    kind: str
    count: int
    output_tokens: int
    input_tokens: int | None = None
    path: str | None = None
    field: str | None = None
    name: str | None = None
    digest: str = ""
    seed: int = 0
    expected_input_tokens: float = 0.0

    @property
    def mean_input_tokens(self) -> float:
        """Tokens of a prompt, as far as they are known beforehand."""
        return float(self.input_tokens) if self.input_tokens else self.expected_input_tokens

    def identity(self) -> dict[str, Any]:
        """What of it changes a result: content, not the place of a file."""
        keys = ("kind", "count", "output_tokens", "input_tokens", "field", "name", "digest", "seed")
        return {key: getattr(self, key) for key in keys}

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """When requests come: all at once (batch), or `rate` a second (fixed, or a poisson process)."""

    kind: str = "batch"
    rate: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass(frozen=True, kw_only=True)
class Warmup:
    """Batches served before the measured window, until they take equally long.

    At least `least` and at most `most`; enough when the standard deviation of the last `window`
    durations is below `spread` of their mean, and `floor_s` have gone by, in which a device gets
    as warm as it will be.
    """

    least: int = 2
    most: int = 20
    window: int = 3
    spread: float = 0.05
    floor_s: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """One configuration that serves a model.

    `options` are those of the backend as they were asked for, by name; None is the backend's own
    default. `effective` is what llem knows they become before anything runs (see
    `llem.campaign.options`); the backend's own word is in the end record.
    """

    model: ServedModel
    backend: str
    options: Mapping[str, Any] = field(hash=False)
    effective: Mapping[str, Any] = field(hash=False)
    prompts: Prompts
    arrival: Arrival = Arrival()
    layout: Layout = field(default_factory=Layout)

    @cached_property
    def deployment_id(self) -> str:
        """Twelve hex digits of a hash over all that changes the deployment's result."""
        return _digest(self.identity)

    @cached_property
    def identity(self) -> str:
        """All that changes the result, as JSON with sorted keys.

        Options that are None are left out: asking for the default is asking for nothing.
        """
        asked = {key: value for key, value in self.options.items() if value is not None}
        return _canonical(
            {
                "arrival": self.arrival.to_dict(),
                "backend": self.backend,
                "gpus_per_node": self.layout.gpus_per_node,
                "model": self.model.digest,
                "nodes": self.layout.nodes,
                "options": asked,
                "prompts": self.prompts.identity(),
                "schema": SERVING_SCHEMA,
            }
        )

    @cached_property
    def tensor_parallel(self) -> int:
        """Ranks that hold one replica of the model together, by splitting every layer."""
        return int(self.effective.get("tensor_parallel") or 1)

    @cached_property
    def pipeline_parallel(self) -> int:
        """Groups of ranks that each hold a part of the layers."""
        return int(self.effective.get("pipeline_parallel") or 1)

    @property
    def ranks_per_replica(self) -> int:
        """GPUs that hold one copy of the model together; a device map takes those of a node."""
        if self.effective.get("device_map"):
            return self.layout.gpus_per_node
        return self.tensor_parallel * self.pipeline_parallel

    @property
    def replicas(self) -> int:
        """Copies of the model that share the requests."""
        return max(1, self.layout.ranks // self.ranks_per_replica)

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.to_dict(),
            "backend": self.backend,
            "options": dict(self.options),
            "effective": dict(self.effective),
            "prompts": self.prompts.to_dict(),
            "arrival": self.arrival.to_dict(),
            "layout": dict(vars(self.layout)),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Deployment:
        """Inverse of `to_dict`."""
        return cls(
            model=ServedModel(**values["model"]),
            backend=values["backend"],
            options=values["options"],
            effective=values["effective"],
            prompts=Prompts(**values["prompts"]),
            arrival=Arrival(**values["arrival"]),
            layout=Layout(**values["layout"]),
        )


@dataclass(frozen=True, kw_only=True)
class Serving:
    """The run of the workload inference: one deployment in one cycle.

    `cycle` counts from 0 and is also the seed of what is random (arrival, sampling). Before it
    the devices are left idle for `cooldown_s`. What the cluster asks of every run is answered as
    `llem.campaign.Run` does.
    """

    deployment: Deployment
    cycle: int
    predicted: Predicted
    warmup: Warmup = Warmup()
    cooldown_s: float = 0.0
    workload: str = "inference"

    @property
    def seed(self) -> int:
        return self.cycle

    @property
    def layout(self) -> Layout:
        return self.deployment.layout

    @property
    def model(self) -> ServedModel:
        return self.deployment.model

    @property
    def paths(self) -> tuple[str, ...]:
        """What ranks read outside the campaign folder."""
        given = (self.model.path, self.deployment.prompts.path)
        return tuple(path for path in given if path)

    @property
    def params(self) -> int:
        return self.deployment.model.params

    @property
    def params_nonembedding(self) -> int:
        return self.deployment.model.params_nonembedding

    @property
    def segments(self) -> int:
        """A deployment is served in one job."""
        return 1

    @property
    def steps(self) -> int:
        """What progress is counted in: requests."""
        return self.deployment.prompts.count

    @property
    def level(self) -> int:
        """Deployments have no compute levels."""
        return 0

    @property
    def tokens(self) -> int:
        """Tokens that are to come out."""
        return self.deployment.prompts.count * self.deployment.prompts.output_tokens

    @property
    def flops(self) -> float:
        """Forward FLOPs of all requests: their prompts, and one forward a token after the first."""
        prompts, model = self.deployment.prompts, self.deployment.model
        before, after = prompts.mean_input_tokens, prompts.output_tokens - 1
        prefill = model.flops(tokens=before, context=(before + 1) / 2)
        decode = model.flops(tokens=after, context=before + (after + 1) / 2)
        return prompts.count * (prefill + decode)

    @cached_property
    def run_id(self) -> str:
        """Twelve hex digits of a hash over all that changes the run's result."""
        return self.names((self.cycle,))[0]

    def names(self, cycles: Iterable[int]) -> tuple[str, ...]:
        """`run_id` of the runs that differ from this one in their cycle alone."""
        return tuple(_digest(f"{self.deployment.identity}cycle {cycle:d}") for cycle in cycles)

    def with_seed(self, seed: int) -> Self:
        return self if seed == self.cycle else replace(self, cycle=seed)

    def with_layout(self, layout: Layout) -> Serving:
        return replace(self, deployment=replace(self.deployment, layout=layout))

    def to_dict(self) -> dict[str, Any]:
        """The run as `plan.json` and the manifests hold it; derived values come first."""
        return {
            "run_id": self.run_id,
            "deployment_id": self.deployment.deployment_id,
            "params": self.params,
            "params_nonembedding": self.params_nonembedding,
            "tokens": self.tokens,
            "flops": self.flops,
            "seed": self.seed,
            **self.deployment.to_dict(),
            "predicted": dict(vars(self.predicted)),
            "warmup": self.warmup.to_dict(),
            "cooldown_s": self.cooldown_s,
            "segments": self.segments,
            "workload": self.workload,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Serving:
        """Inverse of `to_dict`; derived values are computed again, and the name must agree."""
        run = cls(
            deployment=Deployment.from_dict(values),
            cycle=values["seed"],
            predicted=Predicted(**values["predicted"]),
            warmup=Warmup(**values["warmup"]),
            cooldown_s=values["cooldown_s"],
            workload=values["workload"],
        )
        if run.run_id != values["run_id"]:
            raise edited(values["run_id"], run.run_id)
        return run


def _canonical(values: Mapping[str, Any]) -> str:
    return json.dumps(values, sort_keys=True, separators=(",", ":"))


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
