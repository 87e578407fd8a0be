"""A study's settings to deployments: placed, checked, less what is excluded and what is double."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from llem._numerals import format_si
from llem.campaign import Arrival, Deployment, Layout, Prompts, ServedModel, Site
from llem.campaign.conflicts import conflicts
from llem.campaign.options import effective_options
from llem.campaign.study.study import ArrivalChoice, PromptChoice, Rule
from llem.campaign.study.sweep import Setting, matches
from llem.errors import Fault, InputError
from llem.planning.hardware import Accelerator
from llem.planning.study.cost import memory_of_serving
from llem.planning.study.law import ServingLaw

# Faults that are told one by one, however many deployments have them.
MOST_TOLD = 20
# So many standard errors of what is needed decide what surely does not fit, and what may not.
MEMORY_ERRORS = 2.0


@dataclass(frozen=True)
class Excluded:
    """A deployment that is not served, by the values that set it apart, and why.

    `by` is `rule` or `memory`.
    """

    what: Mapping[str, Any]
    reason: str
    by: str


@dataclass(frozen=True)
class Duplicate:
    """A deployment that would be another one (`deployment_id`) under other words."""

    what: Mapping[str, Any]
    deployment_id: str


@dataclass(frozen=True)
class Expanded:
    """What a study comes to. `varied` are the keys in which its deployments differ."""

    deployments: tuple[Deployment, ...]
    excluded: tuple[Excluded, ...]
    duplicates: tuple[Duplicate, ...]
    notes: tuple[str, ...] = ()
    varied: tuple[str, ...] = ()
    # How many are expected to fit into memory by less than the error of that.
    tight: int = 0


def expand(
    settings: Sequence[Setting],
    *,
    models: Mapping[str, ServedModel],
    prompts: Mapping[PromptChoice, Prompts],
    rules: Sequence[Rule],
    site: Site,
    device: Accelerator,
    laws: Mapping[str, ServingLaw],
) -> Expanded:
    """Every deployment that is to be served, in the order of the settings.

    Excluded are those that a rule names, and those that do not fit into memory even if they need
    two standard errors less than is expected. Of deployments
    that llem knows to be the same the first is kept. Raises InputError where a parallelism, a
    layout or a text's length fits neither model nor site, and where options contradict each other:
    once for each way in which they do.
    """
    varied = _varied(settings)
    made = _Expansion(
        models=models, prompts=prompts, site=site, device=device, laws=laws, varied=varied
    )
    used = [0] * len(rules)
    for setting in settings:
        made.take(setting, rules, used)
    if made.faults:
        raise InputError("campaign", _told(made.faults))
    notes = [
        f"sweep.exclude.{number} ({rule.reason}) excludes nothing"
        for number, rule in enumerate(rules)
        if not used[number]
    ]
    return Expanded(
        deployments=tuple(made.deployments.values()),
        excluded=tuple(made.excluded),
        duplicates=tuple(made.duplicates),
        notes=tuple(notes),
        varied=varied,
        tight=made.tight,
    )


@dataclass
class _Expansion:
    models: Mapping[str, ServedModel]
    prompts: Mapping[PromptChoice, Prompts]
    site: Site
    device: Accelerator
    laws: Mapping[str, ServingLaw]
    varied: tuple[str, ...]
    tight: int = 0
    deployments: dict[Any, Deployment] = field(default_factory=dict)
    excluded: list[Excluded] = field(default_factory=list)
    duplicates: list[Duplicate] = field(default_factory=list)
    faults: dict[Fault, None] = field(default_factory=dict)
    # What was asked is hashed once for each distinct object; texts and rates are few.
    arrivals: dict[ArrivalChoice | None, Arrival] = field(default_factory=dict)
    memory: dict[Any, float] = field(default_factory=dict)

    def take(self, setting: Setting, rules: Sequence[Rule], used: list[int]) -> None:
        """Make the deployment of one setting, and put it where it belongs."""
        model = self.models[setting.model]
        effective = effective_options(setting.backend, setting.options, config=model.config)
        prompts = self.prompts[setting.prompts]
        if rules:
            values = values_of(setting, effective)
            for number, rule in enumerate(rules):
                if matches(rule, values):
                    used[number] += 1
                    self.excluded.append(Excluded(self._what(values), rule.reason, "rule"))
                    return
        layout = self._layout(setting, effective, model)
        wrong = list(conflicts(setting.backend, effective, model=model, prompts=prompts))
        for fault in wrong:
            hint = f"{fault.hint}; or exclude both together by a rule"
            self.faults[replace(fault, hint=hint)] = None
        fits = self._long_enough(setting, model, prompts)
        if layout is None or wrong or not fits:
            return
        arrival = self._arrival(setting.arrival)
        same = (model.digest, setting.backend, tuple(effective.items()), prompts, arrival, layout)
        if (first := self.deployments.get(same)) is not None:
            what = self._what(values_of(setting, effective))
            self.duplicates.append(Duplicate(what, first.deployment_id))
            return
        deployment = Deployment(
            model=model,
            backend=setting.backend,
            options=setting.options,
            effective=effective,
            prompts=prompts,
            arrival=arrival,
            layout=layout,
        )
        law = self.laws[setting.backend]
        needed = memory_of_serving(deployment, self.device, factor=law.memory).total
        off = math.exp(MEMORY_ERRORS * law.memory_error)
        self.tight += needed / off <= self.device.memory_bytes < needed * off
        # What is left out is never known to be wrong; what runs out of memory says so.
        if needed / off > self.device.memory_bytes:
            reason = (
                f"needs about {format_si(needed, 'B')} (x/ {off:.2f}) on each device, which has "
                f"{format_si(self.device.memory_bytes, 'B')}"
            )
            what = self._what(values_of(setting, effective))
            self.excluded.append(Excluded(what, reason, "memory"))
            return
        self.deployments[same] = deployment

    def _what(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Of a setting's values those that set it apart."""
        return {key: values[key] for key in self.varied if key in values}

    def _arrival(self, choice: ArrivalChoice | None) -> Arrival:
        if choice not in self.arrivals:
            kind = "fixed" if choice and choice.rate else "poisson" if choice else "batch"
            rate = (choice.rate or choice.poisson) if choice else None
            self.arrivals[choice] = Arrival(kind=kind, rate=rate)
        return self.arrivals[choice]

    def _long_enough(self, setting: Setting, model: ServedModel, prompts: Prompts) -> bool:
        if not prompts.input_tokens:
            return True
        length = prompts.input_tokens + prompts.output_tokens
        if length <= model.context:
            return True
        text = (
            f"{prompts.input_tokens} tokens in and {prompts.output_tokens} out are more than the "
            f"{model.context} that {model.name} takes"
        )
        self.faults[Fault("prompts", text, "shorter prompts, or exclude them by a rule")] = None
        return False

    def _layout(
        self, setting: Setting, effective: Mapping[str, Any], model: ServedModel
    ) -> Layout | None:
        """Where the ranks are; None, and a fault, where the parallelism fits no such place."""
        tensor = int(effective.get("tensor_parallel") or 1)
        pipeline = int(effective.get("pipeline_parallel") or 1)
        parts = tensor * pipeline
        each = self.site.gpus_per_node
        nodes = setting.layout.get("nodes", 1)
        ranks = setting.layout.get("gpus_per_node")
        if ranks is None:
            # One replica: within a node, or on whole ones.
            nodes = max(nodes, math.ceil(parts / each))
            ranks = parts if parts <= each else each
        problem = self._misfit(model, tensor, pipeline, nodes, ranks)
        if problem is not None:
            self.faults[problem] = None
            return None
        return _layout(nodes, ranks)

    def _misfit(
        self, model: ServedModel, tensor: int, pipeline: int, nodes: int, ranks: int
    ) -> Fault | None:
        """What is wrong with a parallelism on so many nodes and GPUs of each."""
        site, parts = self.site, tensor * pipeline
        most = site.nodes * site.gpus_per_node
        path = "options.tensor_parallel" if tensor > 1 or pipeline == 1 else (
            "options.pipeline_parallel"
        )  # fmt: skip
        product = f"{tensor} x {pipeline}" if pipeline > 1 else f"{tensor}"
        if parts > most:
            text = f"{product} GPUs a replica; site {site.name} has {site.nodes} x "
            text += f"{site.gpus_per_node} for a job"
            return Fault(path, text, f"{most} at most, or another site")
        if nodes > site.nodes or ranks > site.gpus_per_node:
            text = f"{nodes} x {ranks} GPUs; site {site.name} has {site.nodes} x "
            text += f"{site.gpus_per_node} for a job"
            return Fault("layout", text)
        if (nodes * ranks) % parts:
            text = f"{product} GPUs a replica do not divide the {nodes} x {ranks} of the layout"
            fitting = [n for n in range(1, nodes * ranks + 1) if nodes * ranks % n == 0]
            return Fault(path, text, f"one of {', '.join(map(str, fitting))}, or leave out layout")
        if (straddling := (ranks % parts if parts <= ranks else parts % ranks)) and nodes > 1:
            text = f"{product} GPUs a replica on nodes of {ranks} each: some replica would have "
            text += f"{straddling} of its GPUs on a node that it shares"
            fitting = [
                n
                for n in range(1, nodes * ranks + 1)
                if (ranks % n == 0 if n <= ranks else nodes * ranks % n == n % ranks == 0)
            ]
            return Fault(path, text, f"one of {', '.join(map(str, fitting))}, or another layout")
        if model.heads % tensor or (model.kv_heads % tensor and tensor % model.kv_heads):
            text = (
                f"{tensor} does not divide the {model.heads} heads ({model.kv_heads} of keys and "
                f"values) of {model.name}"
            )
            fitting = [n for n in range(1, min(model.heads, most) + 1)
                       if model.heads % n == 0 and model.kv_heads % n == 0]  # fmt: skip
            return Fault(path, text, f"one of {', '.join(map(str, fitting))}")
        if pipeline > model.layers:
            text = f"{pipeline} parts of a model of {model.layers} layers"
            return Fault("options.pipeline_parallel", text, f"{model.layers} at most")
        return None


@lru_cache
def _layout(nodes: int, ranks: int) -> Layout:
    """One object for each place: thousands of deployments share a few."""
    return Layout(nodes=nodes, gpus_per_node=ranks)


def values_of(setting: Setting, effective: Mapping[str, Any]) -> dict[str, Any]:
    """What a setting says, by dotted key: options as asked, else as they become."""
    prompts, arrival = setting.prompts, setting.arrival
    found: dict[str, Any] = {"model": setting.model, "backend": setting.backend}
    for name, value in setting.options.items():
        found[f"options.{name}"] = effective.get(name) if value is None else value
    for name, value in effective.items():
        found.setdefault(f"options.{name}", value)
    if prompts.synthetic is not None:
        inner = prompts.synthetic
        found["prompts.synthetic.input_tokens"] = inner.input_tokens
        found["prompts.synthetic.output_tokens"] = inner.output_tokens
        found["prompts.synthetic.count"] = inner.count
    for name in ("jsonl", "dataset", "builtin", "field", "output_tokens", "count", "seed"):
        found[f"prompts.{name}"] = getattr(prompts, name)
    found["arrival"] = "batch"
    if arrival is not None:
        found["arrival"] = "rate" if arrival.rate else "poisson"
        found["arrival.rate"], found["arrival.poisson"] = arrival.rate, arrival.poisson
    found["layout.nodes"] = setting.layout.get("nodes")
    found["layout.gpus_per_node"] = setting.layout.get("gpus_per_node")
    return found


def _varied(settings: Sequence[Setting]) -> tuple[str, ...]:
    """Keys that have more than one value among the settings."""
    seen: dict[str, dict[str, None]] = {}
    parts: dict[int, dict[str, Any]] = {}
    for setting in settings:
        seen.setdefault("model", {})[setting.model] = None
        seen.setdefault("backend", {})[setting.backend] = None
        for name, value in setting.options.items():
            seen.setdefault(f"options.{name}", {})[repr(value)] = None
        # Objects that many settings share are looked at once.
        shared = (setting.prompts, setting.arrival)
        key = hash(shared)
        if key not in parts:
            bare = Setting(setting.model, setting.backend, {}, *shared, {}, "")
            parts[key] = values_of(bare, {})
        for name, number in setting.layout.items():
            seen.setdefault(f"layout.{name}", {})[repr(number)] = None
    for values in parts.values():
        for name, value in values.items():
            if name not in ("model", "backend"):
                seen.setdefault(name, {})[repr(value)] = None
    return tuple(name for name, values in seen.items() if len(values) > 1)


def _told(faults: Iterable[Fault]) -> list[Fault]:
    every = list(faults)
    if len(every) <= MOST_TOLD:
        return every
    return [*every[:MOST_TOLD], Fault("", f"and {len(every) - MOST_TOLD} more like these")]
