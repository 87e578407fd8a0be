"""`find_optimal`: a user's model, data and loss to a scaling law, in one call.

The call is checked as a whole, the model is looked at on torch's meta device, and then it is a
campaign as any other: plan, runs, records, aggregation, fit. Nothing is trained twice: a run is
named by the content of all that changes its result.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack, overload

from llem._numerals import format_flops
from llem.campaign import Budget, Run, Site
from llem.errors import Fault, InputError, LlemError, did_you_mean, typed
from llem.pipeline.campaigns import Planned, aggregate_campaign, run_campaign
from llem.pipeline.files import FIT_FILE
from llem.pipeline.fitting import campaign_table, fit_campaign
from llem.pipeline.foreign import (
    Foreign,
    Looked,
    in_session,
    look_at,
    name_of,
    same_everywhere,
    write_for_ranks,
)
from llem.pipeline.optimal.arguments import Arguments
from llem.pipeline.optimal.asked import SOURCE, Asked
from llem.pipeline.optimal.proposal import Proposal
from llem.pipeline.optimal.result import Preview, Result
from llem.pipeline.optimal.sizes import Ladder
from llem.pipeline.refining import refine_campaign, wave_is_due
from llem.pipeline.saying import Say

if TYPE_CHECKING:
    from llem.training import World
    from llem.training.samples.samples import Objects
    from llem.training.samples.sampleset import Samples

# Compute levels of the grid.
LEVELS = 3

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
class _Call(Asked):
    """One call, step by step."""

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
                return Proposal(self, looked, world.world_size if world else 1).plan()

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
            notes=_notes_of(looked, ladder), target=self.budget_of(self.target or self.budget),
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

        base = self.code_folder()
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

    def _no_law(self, planned: Planned, reason: str) -> LlemError:
        count = len(planned.plan.runs)
        return LlemError(
            f"{count} runs were planned, and those that completed carry no law: {reason}",
            remedy=f"see the runs with `{typed('llem', 'status', planned.folder.root)}`; more "
            "budget or sizes add runs, and those that are done are not trained again",
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
        with say.meanwhile(planned):
            outcome = run_here(
                planned.folder, planned.plan, world=world, task_of=task_of,
                told=lambda run, status: say.run(planned, run, status),
            )  # fmt: skip
        if outcome.interrupted:
            raise KeyboardInterrupt(
                f"stopped with a checkpoint in {planned.folder.root}: the same call goes on"
            )


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


def _notes_of(looked: Looked, ladder: Ladder) -> tuple[str, ...]:
    skipped = [f"passed over: {s.reason}" for s in ladder.skipped]
    return (*looked.notes, *ladder.notes, *skipped)


def _tell_plan(say: Say, planned: Planned, looked: Looked, ladder: Ladder) -> None:
    plan, unit = planned.plan, looked.data.unit
    values = ", ".join(str(p.value) for p in ladder.rungs)
    say(
        f"{len(plan.runs)} runs of {len(ladder.rungs)} models ({looked.size} = {values}), "
        f"{format_flops(plan.totals['flops'])} FLOP, D in {unit}s; "
        f"{looked.data.samples} samples to train on, {looked.data.evaluation_samples} held out"
    )
    for note in (*_notes_of(looked, ladder), *plan.warnings):
        say(f"note: {note}")
