"""The task of any model on any data set of samples, with any loss."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llem.campaign import CustomModel, Run, SampleData
from llem.errors import Fault, InputError, did_you_mean
from llem.training.model import count_params
from llem.training.naming import load_object
from llem.training.samples.batches import map_tensors
from llem.training.samples.losses import Loss, loss_of
from llem.training.samples.sampleset import Samples, generators_kept, open_samples
from llem.training.task import HeldOut
from llem.training.tokens.data import Batch, Share
from llem.training.tokens.order import Ahead, Places, WindowOrder
from llem.training.world import World

# Which samples are held out is drawn by this, whatever the seed of a run.
SPLIT_SEED = 0x5EED
# An evaluation's standard error is taken over about so many groups of samples.
CLUSTERS = 64
MOST_IN_CLUSTER = 256
# Places looked up at once.
AHEAD = 4096


@dataclass(frozen=True)
class Objects:
    """What a task is made of: a user's class (or function), loss and data."""

    make: Callable[..., Any]
    loss: Loss
    train: Samples
    held_out: Samples | None = None

    @cached_property
    def fingerprint(self) -> str:
        """Of all samples, those of an evaluation set of its own included."""
        if self.held_out is None:
            return self.train.fingerprint
        both = f"{self.train.fingerprint}|{self.held_out.fingerprint}"
        return hashlib.blake2b(both.encode(), digest_size=16).hexdigest()

    def build(self, size: str, value: int, arguments: Mapping[str, Any]) -> nn.Module:
        """The model of one size, on torch's default device. Raises InputError."""
        model = self.make(**{size: value, **arguments})
        if not isinstance(model, nn.Module):
            text = f"it returned {type(model).__name__}, not a torch.nn.Module"
            raise InputError("find_optimal", [Fault("model", text)])
        return model


def params_of(model: nn.Module) -> int:
    """`num_params()` of the model where it has that, else its trainable parameters."""
    told = getattr(model, "num_params", None)
    return int(told()) if callable(told) else count_params(model)


def check_model(make: Any, size: str, arguments: Mapping[str, Any]) -> list[Fault]:
    """What is wrong with the class, by its signature alone; nothing where it tells none."""
    if isinstance(make, nn.Module):
        hint = f"give its class: {type(make).__name__}"
        return [Fault("model", "it is a model already, which has one size", hint)]
    if not callable(make):
        return [Fault("model", f"{make!r} cannot be called", "give a class or a function")]
    faults = []
    if size in arguments:
        text = f"{size!r} is the size that is searched, and cannot be fixed as well"
        faults.append(Fault("model_kwargs", text, "leave it out, or search another parameter"))
    try:
        parameters = inspect.signature(make).parameters
    except (TypeError, ValueError):
        return faults
    plain = [
        n for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for name in [size, *arguments]:
            if name not in plain:
                key = "size" if name == size else "model_kwargs"
                hint = did_you_mean(name, plain) or f"it takes {', '.join(plain) or 'nothing'}"
                faults.append(Fault(key, f"the model takes no {name!r}", hint))
    missing = [
        n for n in plain if parameters[n].default is inspect.Parameter.empty
        and n != size and n not in arguments
    ]  # fmt: skip
    if missing:
        text = f"the model also needs {', '.join(missing)}"
        faults.append(Fault("model_kwargs", text, "give them in model_kwargs"))
    return faults


@lru_cache(maxsize=8)
def objects_named(
    class_path: str, loss: str, dataset: str, evaluation: str, context: int
) -> Objects:
    """The objects that a run names, for ranks that share nothing with who planned it."""

    def samples(name: str) -> Samples:
        length = context if context > 1 else None
        return open_samples(name if ":" in name else Path(name), context=length)

    return Objects(
        make=load_object(class_path, key="class", what="a model"),
        loss=loss_of(load_object(loss, key="loss", what="a loss") if loss else None),
        train=samples(dataset),
        held_out=samples(evaluation) if evaluation else None,
    )


class SampleTask:
    """Batches of samples in an order of the seed alone, whatever the number of ranks.

    `objects` are those of the session that called; by default they are imported by their names.
    """

    # A user's model may draw random numbers: dropout.
    draws = True

    def __init__(self, run: Run, world: World, *, objects: Objects | None = None) -> None:
        assert isinstance(run.data, SampleData) and isinstance(run.model, CustomModel)
        self.run = run
        self.world = world
        self.model = run.model
        self.data = run.data
        self._given = objects

    @cached_property
    def objects(self) -> Objects:
        model, data = self.model, self.data
        return self._given or objects_named(
            model.class_path, model.loss, data.dataset, data.evaluation, model.context
        )

    def verify(self) -> None:
        found = self.objects.fingerprint
        if found != self.data.fingerprint:
            text = f"its content is {found}, planned was {self.data.fingerprint}"
            hint = "the data set changed after the campaign was planned"
            raise InputError(self.data.dataset, [Fault("data.fingerprint", text, hint)])

    def open(self) -> None:
        data, train = self.data, self.objects.train
        expected = data.samples + (0 if data.split == "own" else data.evaluation_samples)
        if train.size != expected:
            text = f"{train.size} samples, planned were {expected}"
            raise InputError(data.dataset, [Fault("data", text)])
        self._order = WindowOrder(data.samples, seed=self.run.seed)
        self._split = WindowOrder(expected, seed=SPLIT_SEED)
        self._ahead = Ahead(self._look_up, least=AHEAD)

    def build(self) -> nn.Module:
        torch.manual_seed(self.run.seed)
        model = self.objects.build(self.model.size, self.model.value, self.model.arguments)
        found = params_of(model)
        if found != self.model.params:
            text = f"{found} parameters built, {self.model.params} planned"
            raise InputError("model", [Fault("params", text)])
        return model

    def batch(self, step: int, share: Share) -> Batch:
        first = step * share.batch_windows
        (order,) = self._ahead(first, share.batch_windows)
        micros, samples, unique = [], 0, 0
        for part in share.slices():
            chosen = order[part]
            places = range(first + part.start, first + part.stop)
            micros.append(self._read(self.objects.train, chosen, places))
            samples += len(chosen)
            # Places beyond the first epoch repeat what has been read.
            unique += int(np.clip(self.data.samples - first - part.start, 0, len(chosen)))
        units = self.data.units
        return Batch(micros=tuple(micros), tokens=samples * units, tokens_unique=unique * units)

    def _look_up(self, places: Places) -> tuple[Places]:
        """The samples at places of the endless order."""
        found = self._order(places)
        return (self._split(found) if self.data.split == "random" else found,)

    def loss(self, module: nn.Module, micro: Any) -> Tensor:
        batch = map_tensors(lambda t: t.to(self.world.device, non_blocking=True), micro)
        try:
            return self.objects.loss(module, batch, autocast=self.world.autocast)
        except ValueError as error:
            raise InputError("model", [Fault("loss", str(error))]) from error

    def warm_up(self, module: nn.Module) -> Tensor:
        # What a batch leaves behind (running means) must be as it was: a resume has it from disk.
        buffers = [(b, b.clone()) for b in module.buffers()]
        indices = np.arange(min(2, self.data.samples))
        total = self.loss(module, self._read(self.objects.train, indices, indices))
        for buffer, before in buffers:
            if not torch.equal(buffer, before):
                buffer.data.copy_(before)
        return total

    @property
    def held_out(self) -> HeldOut:
        count = self.data.evaluation_samples
        size = max(1, min(MOST_IN_CLUSTER, count // CLUSTERS))
        return HeldOut(clusters=count // size, per_batch=1, units=size * self.data.units)

    def held_out_losses(self, module: nn.Module, first: int, count: int) -> Tensor:
        size = self.held_out.units // self.data.units
        samples = self.objects.held_out or self.objects.train
        losses = []
        for cluster in range(first, first + count):
            indices = np.arange(cluster * size, (cluster + 1) * size)
            if self.data.split != "own":
                indices = indices + self.data.samples
            if self.data.split == "random":
                indices = self._split(indices)
            # By the sample and not by the step: every evaluation reads the same.
            losses.append(self.loss(module, self._read(samples, indices, indices)).double())
        return torch.stack(losses).cpu()

    def _read(self, samples: Samples, indices: Sequence[int] | Any, places: Any) -> Any:
        if not self.data.draws:
            return samples.fetch(indices)
        with generators_kept():
            seeds = [(self.run.seed * 1_000_000_007 + int(p)) % 2**63 for p in places]
            return samples.seeded(indices, seeds)
