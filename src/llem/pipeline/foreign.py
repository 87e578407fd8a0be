"""A user's model, data and loss, looked at and described so that they can be planned as a campaign.

What a run is named by: a hash of the code of class and loss, the content of the data set, and what
a recipe says. The names under which ranks find them are no part of it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llem._numerals import format_si
from llem.campaign import IN_SESSION, SampleData
from llem.errors import Fault, InputError
from llem.planning import OwnModel

if TYPE_CHECKING:
    from llem.campaign import Campaign
    from llem.training.samples.probe import Probe
    from llem.training.samples.samples import Objects
    from llem.training.samples.sampleset import Samples

# Held out where the user does not say: so large a share, at most so many samples.
EVALUATION_SHARE = 0.1
MOST_EVALUATED = 2048
# Samples of the batch with which a model is looked at: two, for what normalises over a batch.
PROBED = 2
# Arrays of a data set that is written for ranks elsewhere.
MOST_WRITTEN_BYTES = 4 << 30


@dataclass(frozen=True)
class Foreign:
    """A user's model on a data set of samples, as the planner knows it; `code` goes with it."""

    data: SampleData
    own: OwnModel
    code: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Looked:
    """A model and its data as they were found: `look` tells of one size, and remembers it."""

    objects: Objects
    data: SampleData
    size: str
    arguments: Mapping[str, Any]
    source: str
    notes: tuple[str, ...] = ()

    @cached_property
    def batch(self) -> Any:
        return self.objects.train.fetch(list(range(min(PROBED, self.objects.train.size))))

    @cached_property
    def _seen(self) -> dict[int, Probe]:
        return {}

    def look(self, value: int) -> Probe:
        """Parameters and FLOPs of one size. Raises InputError with what the model said."""
        if value not in self._seen:
            from llem.training.samples.batches import samples_in
            from llem.training.samples.probe import probe

            self._seen[value] = probe(
                self.objects, size=self.size, value=value, arguments=self.arguments,
                batch=self.batch, samples=samples_in(self.batch), units=self.data.units,
            )  # fmt: skip
        return self._seen[value]

    @property
    def own(self) -> OwnModel:
        return OwnModel(
            count=lambda value: self.look(value).params,
            source=self.source,
            flops=lambda value: self.look(value).flops,
        )


def look_at(
    objects: Objects,
    *,
    size: str,
    arguments: Mapping[str, Any],
    dataset: str,
    evaluation: str,
    share: float | None,
    notes: tuple[str, ...] = (),
) -> Looked:
    """Describe data and code. `share` of the samples is held out where there is no evaluation set.

    Raises InputError where there are too few samples, or reading them is not repeatable.
    """
    from llem.training.samples.batches import shapes_of, tokens_each
    from llem.training.samples.sourcecode import source_hash

    train, held = objects.train, objects.held_out
    if train.size < PROBED:
        raise InputError("find_optimal", [Fault("dataset", f"it has {train.size} sample")])
    batch = train.fetch(list(range(PROBED)))
    units, why_not = tokens_each(batch)
    if held is not None:
        other = shapes_of(held.fetch(list(range(min(PROBED, held.size)))))
        if held.size >= PROBED and other != shapes_of(batch):
            text = f"its batches are {other}, those of the data set {shapes_of(batch)}"
            raise InputError("find_optimal", [Fault("evaluation", text)])
        samples, evaluated = train.size, held.size
    else:
        wanted = round(train.size * (EVALUATION_SHARE if share is None else share))
        evaluated = max(1, wanted if share is not None else min(wanted, MOST_EVALUATED))
        samples = train.size - evaluated
    if samples < 1:
        text = f"{train.size} samples, of which {evaluated} are held out, leave none to train on"
        raise InputError("find_optimal", [Fault("evaluation", text)])
    data = SampleData(
        dataset=dataset,
        evaluation=evaluation,
        samples=samples,
        evaluation_samples=_whole_clusters(evaluated),
        fingerprint=objects.fingerprint,
        unit="token" if units else "sample",
        units=units or 1,
        split="own" if held is not None else "end" if train.ordered else "random",
        draws=train.draws or (held is not None and held.draws),
    )
    if held is None:
        # What does not fill a cluster is trained on.
        data = replace(data, samples=train.size - data.evaluation_samples)
    told = [*notes, *train.notes, *(held.notes if held is not None else ())]
    told += [why_not] if why_not else []
    code = source_hash(objects.make, objects.loss.function)
    return Looked(objects, data, size, dict(arguments), code, tuple(told))


def _whole_clusters(samples: int) -> int:
    from llem.training.samples.samples import CLUSTERS, MOST_IN_CLUSTER

    size = max(1, min(MOST_IN_CLUSTER, samples // CLUSTERS))
    return samples // size * size


def foreign_of(campaign: Campaign, *, base: Path) -> tuple[Campaign, Foreign]:
    """The model and data set that a campaign file names, and the campaign with what they say.

    Modules beside the file (`base`) are shipped with the campaign.
    """
    from llem.training.naming import load_object
    from llem.training.samples.losses import loss_of
    from llem.training.samples.samples import Objects, check_model
    from llem.training.samples.sampleset import open_samples

    choice, source = campaign.model, campaign.data
    if choice.family != "custom" or not choice.class_path or not choice.size:
        text = "a data set of samples goes with a model class of your own"
        raise InputError("campaign", [Fault("data.dataset", text, "give model.class")])
    if str(base) not in sys.path:
        sys.path.insert(0, str(base))
    context = choice.context if "context" in choice.model_fields_set else None
    evaluation = source.evaluation if isinstance(source.evaluation, str) else ""

    def samples(name: str, key: str) -> Samples:
        return open_samples(name if ":" in name else base / name, key=key, context=context)

    assert source.dataset
    objects = Objects(
        make=load_object(choice.class_path, key="model.class", what="a model"),
        loss=loss_of(load_object(choice.loss, key="model.loss") if choice.loss else None),
        train=samples(source.dataset, "data.dataset"),
        held_out=samples(evaluation, "data.evaluation") if evaluation else None,
    )
    faults = check_model(objects.make, choice.size, choice.arguments)
    if faults:
        raise InputError("campaign", faults)
    looked = look_at(
        objects, size=choice.size, arguments=choice.arguments, dataset=source.dataset,
        evaluation=evaluation,
        share=source.evaluation if isinstance(source.evaluation, float) else None,
    )  # fmt: skip
    for value in choice.values:
        looked.look(value)
    names = [choice.class_path, choice.loss or "", source.dataset, evaluation]
    code: dict[str, str] = {}
    for name in names:
        code |= shipped_code(name, base)
    told = campaign.model_copy(
        update={"model": choice.model_copy(update={"context": looked.data.units})}
    )
    return told, Foreign(looked.data, looked.own, code)


def shipped_code(name: str, base: Path) -> dict[str, str]:
    """The module of "module:object", or the package that it is in, as files below `code/`.

    Empty where it does not lie in the folder `base`.
    """
    top = name.partition(":")[0].partition(".")[0]
    found = [base / f"{top}.py"] if ":" in name and (base / f"{top}.py").is_file() else []
    if ":" in name and (base / top / "__init__.py").is_file():
        found = sorted((base / top).rglob("*.py"))
    return {f"code/{path.relative_to(base)}": path.read_text("utf-8") for path in found}


def name_of(found: Any) -> str:
    """The "module:object" to import a class or function by; IN_SESSION's where it has none."""
    if isinstance(found, str):
        return found
    qualname = getattr(found, "__qualname__", type(found).__qualname__)
    module = getattr(found, "__module__", "")
    if module and module != "__main__" and "<" not in qualname:
        try:
            here: Any = importlib.import_module(module)
            for part in qualname.split("."):
                here = getattr(here, part)
        except (ImportError, AttributeError):
            here = None
        if here is found:
            return f"{module}:{qualname}"
    return f"{IN_SESSION}:{qualname}"


def in_session(name: str) -> bool:
    return name.startswith(f"{IN_SESSION}:")


def folder_of_module(found: Any) -> Path | None:
    """The folder from which the module of a class is imported; None where it is installed."""
    from llem.training.samples.sourcecode import installed

    name = getattr(found, "__module__", "") or ""
    file = getattr(sys.modules.get(name), "__file__", None)
    if not file or installed(name):
        return None
    return Path(file).resolve().parents[name.count(".") + (Path(file).name == "__init__.py")]


def write_for_ranks(
    samples: Samples, root: Path, name: str, *, key: str, write: bool = True
) -> str:
    """Write the samples as plain arrays into the campaign folder; the name to find them by.

    Raises InputError where that is not possible: they draw random numbers, or are too many.
    """
    from llem.training.samples.batches import map_tensors, tensors_of
    from llem.training.samples.sampleset import write_samples

    relative = f"data/{name}"
    if samples.folder is not None and samples.folder == root / relative:
        return relative
    hint = "give the data set as 'package.module:function'"
    if samples.draws:
        text = "reading a sample draws random numbers: it cannot be written down for other ranks"
        raise InputError("find_optimal", [Fault(key, text, hint)])
    size = sum(t.numel() * t.element_size() for _, t in tensors_of(samples.fetch([0])))
    if size * samples.size > MOST_WRITTEN_BYTES:
        text = f"{format_si(size * samples.size, 'B')} are too much to copy into the campaign"
        raise InputError("find_optimal", [Fault(key, text, hint)])
    if write:
        one_by_one = (
            map_tensors(lambda t: t[0], samples.fetch([index])) for index in range(samples.size)
        )
        write_samples(one_by_one, root / relative, key=key, max_samples=samples.size)
    return relative


def same_everywhere(world: Any, fingerprint: str) -> None:
    """Raise InputError, on every rank, unless all ranks have the same data."""
    told = world.gather_text(fingerprint)
    other = next((rank for rank, text in enumerate(told) if text != told[0]), None)
    if other is not None:
        text = f"rank {other} has other samples than rank 0"
        hint = "seed what makes the data set, or load it from one file"
        raise InputError("find_optimal", [Fault("dataset", text, hint)])
