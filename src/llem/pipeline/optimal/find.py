"""`find_optimal`: a user's model, data and loss to a scaling law, in one call.

The call is checked as a whole, the model is looked at on torch's meta device, and then it is a
campaign as any other: plan, runs, records, aggregation, fit. Nothing is trained twice: a run is
named by the content of all that changes its result.
"""

from __future__ import annotations

import inspect
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack, overload

from llem.campaign import Budget, Campaign, Run, Site, parse_budget
from llem.errors import Fault, InputError, LlemError, did_you_mean
from llem.pipeline.campaigns import Planned, aggregate_campaign, plan_campaign, run_campaign
from llem.pipeline.files import FIT_FILE
from llem.pipeline.fitting import campaign_table, fit_campaign
from llem.pipeline.foreign import (
    Foreign,
    Looked,
    folder_of_module,
    in_session,
    look_at,
    name_of,
    same_everywhere,
    shipped_code,
    write_for_ranks,
)
from llem.pipeline.optimal.arguments import Arguments
from llem.pipeline.optimal.result import Preview, Result
from llem.pipeline.optimal.sizes import (
    SIZES,
    Ladder,
    data_per_parameter,
    find_ladder,
    ladder_of,
)
from llem.pipeline.refining import refine_campaign, wave_is_due
from llem.pipeline.saying import Say

if TYPE_CHECKING:
    from llem.planning import Plan
    from llem.training import World
    from llem.training.samples.samples import Objects
    from llem.training.samples.sampleset import Samples

SOURCE = "find_optimal"
LEVELS = 3
# A batch where neither the user nor a DataLoader says one: samples, or about so many tokens.
BATCH_SAMPLES = 64
BATCH_TOKENS = 1024
# Of a model without embeddings to count apart, rates by this rule (see `llem.planning.recipe`).
RULE = "small"

# Words that others' libraries use for what is not asked here -> what to say.
ELSEWHERE = {
    "epochs": "there are none: the budget says how much each run reads",
    "num_epochs": "there are none: the budget says how much each run reads",
    "lr": "it is called `learning_rate`",
    "batch_size": "it is called `batch`",
    "model_cls": "it is called `model`",
    "model_size_param": "it is called `size`",
    "compute_budgets": "give the whole of it as `budget`: the levels follow (`levels`, `ratio`)",
    "train": "`plan_only=True` trains nothing",
    "mode": "`plan_only=True` trains nothing; `executor` says where runs are",
    "output_dir": "it is called `out`",
    "resume": "runs that are done are never trained again: choose another `out` to start anew",
}


class CallError(InputError, TypeError):
    """A keyword that `find_optimal` does not know."""


@overload
def find_optimal(*, plan_only: Literal[False] = False, **asked: Unpack[Arguments]) -> Result: ...
@overload
def find_optimal(*, plan_only: Literal[True], **asked: Unpack[Arguments]) -> Preview: ...
@overload
def find_optimal(*, plan_only: bool, **asked: Unpack[Arguments]) -> Result | Preview: ...
def find_optimal(
    *,
    model: Any,
    size: str,
    dataset: Any,
    budget: str | float | Budget,
    loss_fn: Any = None,
    target: str | float | Budget | None = None,
    sizes: Sequence[int] | None = None,
    data_per_parameter: float | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    evaluation: Any = None,
    context: int | None = None,
    batch: int | None = None,
    learning_rate: float | None = None,
    schedule: Literal["wsd", "cosine", "constant"] = "wsd",
    warmup_fraction: float | None = None,
    weight_decay: float = 0.1,
    clip_norm: float = 1.0,
    precision: Literal["fp32", "bf16"] = "fp32",
    micro_batch: int | None = None,
    seeds: int = 1,
    waves: int = 1,
    levels: int = LEVELS,
    ratio: float = 3.0,
    law: str = "chinchilla",
    executor: Literal["local", "slurm"] = "local",
    site: str | Site | Mapping[str, Any] | None = None,
    code: str | Path | None = None,
    max_samples: int = 1_000_000,
    name: str = "find-optimal",
    out: str | Path = "find_optimal",
    plan_only: bool = False,
    progress: bool = True,
    **unknown: Any,
) -> Result | Preview:
    """How large should the model be, on how much data, at a budget: by a law fitted to real runs.

    model: a torch.nn.Module class, a function that builds one, or "package.module:Class". size: its
    parameter that sets the size, an integer; `sizes` are the values to train (default: a ladder
    that fits the budget, centred where D/N is `data_per_parameter` if that is given),
    `model_kwargs` its other arguments (as JSON can hold them).

    dataset: a Dataset, IterableDataset or DataLoader, tensors of one length in a tuple or mapping,
    a 1-D array of token ids (cut into windows of `context`), a function that returns one of these,
    or "package.module:function". evaluation: the held-out share, or a data set of its own.

    loss_fn: `loss_fn(output, target)`, or `loss_fn(model, batch)` where its first parameter is
    called model; None where the model returns its loss, and for token ids. A mean, not a sum.

    budget: what all runs may cost together, target: where the answer is wanted (default: there);
    FLOP, GPUh, kWh or money. batch: samples of one step. What else there is: docs/find_optimal.md.

    Returns a Result, with `plan_only` the Preview of what would be trained. Called by all ranks
    under `accelerate launch` or `torchrun`, it returns the same on each. Raises InputError with all
    faults of the call at once, and LlemError where the runs carry no law.
    """
    given = {k: v for k, v in locals().items() if k != "unknown"}
    _refuse(unknown)
    call = _Call(**given)
    call.check()
    with call.world() as world:
        return call.answer(world)


def _refuse(unknown: Mapping[str, Any]) -> None:
    if not unknown:
        return
    known = [n for n, p in inspect.signature(find_optimal).parameters.items()
             if p.kind is p.KEYWORD_ONLY]  # fmt: skip
    raise CallError(
        SOURCE,
        [
            Fault(word, "there is no such keyword", ELSEWHERE.get(word) or did_you_mean(word, known)
                  or f"known: {', '.join(known)}")
            for word in unknown
        ],
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Call:
    """The arguments of one call, and what follows from them step by step."""

    model: Any
    size: str
    dataset: Any
    budget: Any
    loss_fn: Any
    target: Any
    sizes: Sequence[int] | None
    data_per_parameter: float | None
    model_kwargs: Mapping[str, Any] | None
    evaluation: Any
    context: int | None
    batch: int | None
    learning_rate: float | None
    schedule: str
    warmup_fraction: float | None
    weight_decay: float
    clip_norm: float
    precision: str
    micro_batch: int | None
    seeds: int
    waves: int
    levels: int
    ratio: float
    law: str
    executor: str
    site: Any
    code: str | Path | None
    max_samples: int
    name: str
    out: str | Path
    plan_only: bool
    progress: bool

    @property
    def root(self) -> Path:
        return Path(self.out)

    @property
    def arguments(self) -> dict[str, Any]:
        return dict(self.model_kwargs or {})

    def check(self) -> None:
        """What can be told without the model or the data. Raises InputError."""
        faults: list[Fault] = []
        for key in ("budget", "target"):
            value = getattr(self, key)
            if value is not None and not isinstance(value, Budget):
                try:
                    parse_budget(value)
                except ValueError as error:
                    faults.append(Fault(key, str(error)))
        for key in ("batch", "context", "micro_batch", "seeds", "waves", "levels", "max_samples"):
            value = getattr(self, key)
            whole = isinstance(value, int) and not isinstance(value, bool)
            if value is not None and not (whole and value >= 1):
                faults.append(Fault(key, f"{value!r} is no whole number above 0"))
        for key, choices in (("executor", ("local", "slurm")), ("precision", ("fp32", "bf16"))):
            value = getattr(self, key)
            if value not in choices:
                hint = did_you_mean(str(value), choices)
                faults.append(Fault(key, f"{value!r} is none of {', '.join(choices)}", hint))
        if not str(self.size).isidentifier():
            faults.append(Fault("size", f"{self.size!r} is no name of a parameter"))
        for value in self.sizes or ():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                faults.append(Fault("sizes", f"{value!r} is no whole number above 0"))
        each = self.data_per_parameter
        if each is not None:
            number = isinstance(each, (int, float)) and not isinstance(each, bool)
            if not (number and 0 < each < math.inf):
                faults.append(Fault("data_per_parameter", f"{each!r} is no number above 0"))
            elif self.sizes:
                text = "centres a ladder that is looked for: `sizes` are given"
                faults.append(Fault("data_per_parameter", text, "leave one of them out"))
        share = self.evaluation
        if isinstance(share, (int, float)) and not 0 < share < 1:
            faults.append(Fault("evaluation", f"{share!r} is no share between 0 and 1"))
        try:
            json.dumps(self.arguments)
        except (TypeError, ValueError) as error:
            hint = "write a function that builds the model from numbers and texts"
            faults.append(Fault("model_kwargs", f"{error}", hint))
        if self.executor == "slurm" and self.site is None:
            faults.append(Fault("site", "SLURM needs one", "a shipped site's name, or a mapping"))
        if faults:
            raise InputError(SOURCE, faults)

    @contextmanager
    def world(self) -> Iterator[World | None]:
        """The ranks that train here; None where nothing is trained in this process."""
        if self.executor == "slurm" or self.plan_only:
            yield None
            return
        from llem.cluster.here import world_here

        with world_here(precision=self.precision) as world:
            yield world

    def answer(self, world: World | None) -> Result | Preview:
        from llem.training.samples.sampleset import generators_kept

        say = Say(self.progress and (world is None or world.main))
        with generators_kept():
            looked = self._look(world)
            if world is not None:
                same_everywhere(world, looked.data.fingerprint)

            def prepare() -> tuple[Planned, Ladder]:
                return self._plan(looked, ranks=world.world_size if world else 1)

            planned, ladder = world.first(prepare) if world is not None else prepare()
            _tell_plan(say, planned, looked, ladder)
            if self.plan_only:
                return Preview(planned.plan, looked, ladder, notes=_notes_of(looked, ladder))
            foreign = Foreign(looked.data, looked.own)
            while True:
                self._run(planned, looked, world, say)
                if not wave_is_due(planned.plan):
                    break
                refine = partial(refine_campaign, planned.folder, foreign=foreign,
                                 after=len(planned.plan.waves))  # fmt: skip
                planned = world.first(refine) if world is not None else refine()
            end = partial(_finish, planned)
            fit, reason, problems = world.first(end) if world is not None else end()
        if fit is None:
            raise self._no_law(planned, reason)
        result = Result.of(
            planned.folder.root, fit=fit, looked=looked, ladder=ladder, problems=problems,
            notes=_notes_of(looked, ladder), target=self._budget(self.target or self.budget),
        )  # fmt: skip
        say(f"the law and its records are in {result.folder}")
        return result

    def _look(self, world: World | None) -> Looked:
        """Model, loss and data; every fault that can be found beside another at once."""
        from llem.training.naming import load_object
        from llem.training.samples.losses import loss_of
        from llem.training.samples.samples import Objects, check_model
        from llem.training.samples.sampleset import open_samples

        faults: list[Fault] = []
        once = world.first if world is not None else (lambda work: work())

        def tried(work: Callable[[], Any]) -> Any:
            try:
                return work()
            except InputError as error:
                faults.extend(error.faults)
                return None

        base = self._code()
        if base is not None and str(base) not in sys.path:
            sys.path.insert(0, str(base))

        def named(value: Any, key: str) -> Any:
            return load_object(value, key=key) if isinstance(value, str) else value

        def samples(value: Any, key: str) -> Samples:
            return open_samples(
                value, key=key, context=self.context, max_samples=self.max_samples, once=once,
                spool=self.root / "data" / ("samples" if key == "dataset" else key),
            )  # fmt: skip

        make = tried(lambda: named(self.model, "model"))
        loss = tried(lambda: loss_of(named(self.loss_fn, "loss_fn")))
        train = tried(lambda: samples(self.dataset, "dataset"))
        separate = self.evaluation is not None and not isinstance(self.evaluation, (int, float))
        held = tried(lambda: samples(self.evaluation, "evaluation")) if separate else None
        if make is not None:
            faults += check_model(make, self.size, self.arguments)
        names = (name_of(self.model), "" if self.loss_fn is None else name_of(self.loss_fn))
        if self.executor == "slurm":
            faults += _unnamed(names)
        if faults:
            raise InputError(SOURCE, faults)
        objects: Objects = Objects(make=make, loss=loss, train=train, held_out=held)
        share = None if separate or self.evaluation is None else float(self.evaluation)
        return look_at(
            objects, size=self.size, arguments=self.arguments, share=share,
            dataset=self._data_name(self.dataset, train, "dataset"),
            evaluation=self._data_name(self.evaluation, held, "evaluation") if separate else "",
        )  # fmt: skip

    def _data_name(self, given: Any, samples: Any, key: str) -> str:
        if isinstance(given, str):
            return given
        if self.executor == "slurm":
            named = name_of(given) if inspect.isfunction(given) else ""
            if named and not in_session(named):
                return named
            place = "samples" if key == "dataset" else key
            return write_for_ranks(samples, self.root, place, key=key, write=not self.plan_only)
        return f"data/{samples.folder.name}" if samples.folder else name_of(samples.name)

    def _code(self) -> Path | None:
        """The folder whose modules are shipped with the campaign."""
        if self.code is not None:
            return Path(self.code).resolve()
        return None if isinstance(self.model, str) else folder_of_module(self.model)

    def _plan(self, looked: Looked, *, ranks: int) -> tuple[Planned, Ladder]:
        from llem.campaign import campaign_from

        units = looked.data.units
        batch = self._batch(looked, ranks)
        budget = self._budget(self.budget)
        values = self._values(ranks)
        ladder = self._ladder(looked, batch * units, budget, values)
        if ranks > 1 and ladder.rungs[-1].unused:
            names = ", ".join(ladder.rungs[-1].unused[:3])
            text = f"the loss does not depend on all parameters ({names}), which {ranks} ranks need"
            raise InputError(SOURCE, [Fault("model", text, "remove them, or train on one rank")])
        model_name = name_of(self.model)
        loss_name = "" if self.loss_fn is None else name_of(self.loss_fn)
        model = {
            "class": model_name, "size": self.size, "values": [p.value for p in ladder.rungs],
            "arguments": self.arguments, "context": units, "vocabulary": 1,
            **({"loss": loss_name} if loss_name else {}),
        }  # fmt: skip
        data = {"dataset": looked.data.dataset}
        if looked.data.evaluation:
            data["evaluation"] = looked.data.evaluation
        training = {
            "rule": RULE, "batch_tokens": batch * units, "schedule": self.schedule,
            "weight_decay": self.weight_decay, "clip_norm": self.clip_norm,
            "precision": self.precision,
            **({"learning_rate": self.learning_rate} if self.learning_rate else {}),
            **({"warmup_fraction": self.warmup_fraction}
               if self.warmup_fraction is not None else {}),
        }  # fmt: skip
        campaign = campaign_from(
            {
                "name": self.name, "target": self._budget(self.target or self.budget),
                "budget": budget, "model": model, "data": data, "seeds": self.seeds,
                "waves": self.waves, "law": self.law,
                "grid": {
                    "levels": self.levels, "sizes": len(ladder.rungs), "ratio": self.ratio,
                    # Of a user's own model no D/N is known to be best: where the ladder stands.
                    "tokens_per_param": self.data_per_parameter or data_per_parameter(
                        ladder.rungs, math.sqrt(math.prod(self._levels(budget, values)))
                    ),
                },
                "training": training, **values,
            },
            source=SOURCE,
        )  # fmt: skip
        assert isinstance(campaign, Campaign)
        code: dict[str, str] = {}
        base = self._code()
        if self.executor == "slurm" and base is not None:
            for named in (model_name, loss_name, looked.data.dataset, looked.data.evaluation):
                code |= shipped_code(named, base)
        planned = plan_campaign(
            campaign, out=self.root, base=base or Path.cwd(), replace_old=True,
            write=not self.plan_only, foreign=Foreign(looked.data, looked.own, code),
        )  # fmt: skip
        self._enough(planned.plan)
        return planned, ladder

    def _values(self, ranks: int) -> dict[str, Any]:
        """What a campaign says of where it runs."""
        if self.executor == "slurm":
            site = self.site
            found = {"site": site if isinstance(site, (str, Site)) else dict(site)}
            fixed = {"layout": {"micro_batch": self.micro_batch}} if self.micro_batch else {}
            return {**found, **fixed}
        import os

        local = int(os.environ.get("LOCAL_WORLD_SIZE") or ranks)
        nodes = max(1, ranks // local)
        site = {
            "name": "here", "executor": "local", "gpu_request": "none", "nodes": nodes,
            "gpus_per_node": local, "gpu": _device_here(), "startup_s": 0, "pack_s": 40,
            "limits": {"time": "24h"},
        }  # fmt: skip
        if self.site is not None:
            site = self.site if isinstance(self.site, (str, Site)) else {**site, **self.site}
        micro = {"micro_batch": self.micro_batch} if self.micro_batch else {}
        return {"site": site, "layout": {"nodes": nodes, "gpus_per_node": local, **micro}}

    def _batch(self, looked: Looked, ranks: int) -> int:
        """Samples of a step."""
        hint = looked.objects.train.batch_size
        units = looked.data.units
        default = BATCH_SAMPLES if units == 1 else max(1, BATCH_TOKENS // units)
        batch = self.batch or hint or default
        if batch % ranks:
            text = f"{batch} samples do not divide among {ranks} ranks"
            raise InputError(SOURCE, [Fault("batch", text)])
        if batch > looked.data.samples:
            text = f"{batch} samples are more than the {looked.data.samples} there are to train on"
            raise InputError(SOURCE, [Fault("batch", text)])
        return int(batch)

    def _ladder(
        self, looked: Looked, batch: int, budget: Budget, values: Mapping[str, Any]
    ) -> Ladder:
        if self.sizes:
            return ladder_of(list(self.sizes), looked.look)
        smallest, largest = self._levels(budget, values)
        return find_ladder(
            looked.look, largest_flops=largest, smallest_flops=smallest, batch=batch,
            budget=self._first_flops(budget, values), centre=self.data_per_parameter,
        )  # fmt: skip

    def _levels(self, budget: Budget, values: Mapping[str, Any]) -> tuple[float, float]:
        """FLOPs of a run at the lowest and the highest compute level."""
        weight = sum(self.ratio**-level for level in range(self.levels))
        sizes = len(self.sizes or ()) or SIZES
        largest = self._first_flops(budget, values) / (sizes * self.seeds * weight)
        return largest / self.ratio ** (self.levels - 1), largest

    def _first_flops(self, budget: Budget, values: Mapping[str, Any]) -> float:
        """What the first wave may cost."""
        flops = _flops_of(budget, values["site"])
        if self.waves > 1:
            from llem.planning.waves import wave_share

            flops *= wave_share(1, self.waves)
        return flops

    def _enough(self, plan: Plan) -> None:
        """Raise InputError where the runs cannot carry the law, before any is trained."""
        from llem.scaling import get_law

        cells = {(some.run.params, some.run.tokens) for some in plan.runs.replicates}
        needed = len(get_law(self.law).parameters) + 1
        models = {some.run.params for some in plan.runs.replicates}
        if len(cells) >= needed and len(models) >= 3:
            return
        dropped = "; ".join(dict.fromkeys(f"{d.params:.3g}: {d.reason}" for d in plan.dropped))
        text = (
            f"{plan.budget} buys {len(cells)} trainings of {len(models)} sizes, and the law "
            f"{self.law} needs {needed} of at least 3" + (f" ({dropped})" if dropped else "")
        )
        raise InputError(SOURCE, [Fault("budget", text, "raise it, or give smaller `sizes`")])

    def _no_law(self, planned: Planned, reason: str) -> LlemError:
        count = len(planned.plan.runs)
        return LlemError(
            f"{count} runs were planned, and those that completed carry no law: {reason}",
            remedy=f"see the runs with `llem status {planned.folder.root}`; more budget or sizes "
            "add runs, and those that are done are not trained again",
        )

    def _run(self, planned: Planned, looked: Looked, world: World | None, say: Say) -> None:
        if world is None:
            run_campaign(planned.folder, planned.plan, watch=say.watch)
            return
        from llem.cluster.here import run_here
        from llem.training.samples.samples import SampleTask

        def task_of(run: Run, here: World) -> SampleTask:
            return SampleTask(run, here, objects=looked.objects)

        say.begin(planned)
        outcome = run_here(
            planned.folder, planned.plan, world=world, task_of=task_of,
            told=lambda run, status: say.run(planned, run, status),
        )  # fmt: skip
        if outcome.interrupted:
            raise KeyboardInterrupt(
                f"stopped with a checkpoint in {planned.folder.root}: the same call goes on"
            )

    @staticmethod
    def _budget(value: Any) -> Budget:
        return value if isinstance(value, Budget) else parse_budget(value)


def _finish(planned: Planned) -> tuple[dict[str, Any] | None, str, tuple[str, ...]]:
    """The fit, or why there is none, and what was wrong with records; a report is for who asks."""
    found = aggregate_campaign(planned.folder)
    table = campaign_table(planned.folder, found.observations)
    try:
        fit = fit_campaign(planned.folder, table=table, allow_edge_minima=True)
    except InputError as error:
        # A law of an earlier state of the campaign must not pass for one of this state.
        (planned.folder.results / FIT_FILE).unlink(missing_ok=True)
        return None, str(error), found.problems
    return fit, "", found.problems


def _unnamed(names: tuple[str, str]) -> list[Fault]:
    """Faults of what ranks of a SLURM job could not import."""
    hints = {
        "model": "write the class into a module and give 'module:Class', with `code` its folder",
        "loss_fn": "give a function by name, e.g. 'torch.nn.functional:cross_entropy'",
    }
    return [
        Fault(key, f"{name.partition(':')[2]} has no name that another process could import",
              hints[key])
        for key, name in zip(hints, names, strict=True)
        if in_session(name)
    ]  # fmt: skip


def _device_here() -> dict[str, Any]:
    """The accelerator of this process, as a site tells of one."""
    import torch

    from llem.planning import ACCELERATORS

    if not torch.cuda.is_available():
        return {"name": "cpu"}
    told = torch.cuda.get_device_name()
    known = next((n for n in sorted(ACCELERATORS, key=len, reverse=True) if n in told), None)
    memory = int(torch.cuda.get_device_properties(0).total_memory)
    if known is not None:
        return {"name": known, "memory": memory}
    # A name that the table does not have: a prior, told as such by the plan's errors.
    return {"name": told, "peak_flops": 1e14, "memory": memory, "power_w": 300.0}


def _flops_of(budget: Budget, site: Any) -> float:
    from llem.campaign import load_site, validated
    from llem.planning import accelerator_of, target_flops

    if isinstance(site, str):
        found = load_site(site)
    else:
        found = site if isinstance(site, Site) else validated(Site, site, SOURCE)
    return target_flops(budget, found, accelerator_of(found))


def _notes_of(looked: Looked, ladder: Ladder) -> tuple[str, ...]:
    skipped = [f"passed over: {s.reason}" for s in ladder.skipped]
    return (*looked.notes, *ladder.notes, *skipped)


def _tell_plan(say: Say, planned: Planned, looked: Looked, ladder: Ladder) -> None:
    plan, unit = planned.plan, looked.data.unit
    values = ", ".join(str(p.value) for p in ladder.rungs)
    say(
        f"{len(plan.runs)} runs of {len(ladder.rungs)} models ({looked.size} = {values}), "
        f"{plan.totals['flops']:.3g} FLOP, D in {unit}s; {looked.data.samples} samples to "
        f"train on, {looked.data.evaluation_samples} held out"
    )
    for note in (*_notes_of(looked, ladder), *plan.warnings):
        say(f"note: {note}")
