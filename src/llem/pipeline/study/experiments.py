"""`run_experiment` and `run_study`: what serving costs, in one call.

A study is a campaign as any other: the call is checked as a campaign file is, then planned, run,
and its records reduced. A run is named by the content of all that changes its result, so that the
same call goes on where an earlier one ended, and nothing is served twice.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llem.campaign import site_of
from llem.campaign.load import campaign_from, campaign_to_dict, read_yaml
from llem.campaign.options import BACKENDS
from llem.campaign.study.study import Study
from llem.errors import Fault, InputError, LlemError, did_you_mean, typed
from llem.pipeline.campaigns import aggregate_campaign, run_campaign
from llem.pipeline.saying import Say
from llem.pipeline.study.plan import PlannedStudy, study_plan, write_study
from llem.pipeline.study.result import ExperimentResult, StudyResult

if TYPE_CHECKING:
    from llem.campaign import Campaign
    from llem.planning import StudyPlan

SOURCE = {"experiment": "run_experiment", "study": "run_study"}
EXECUTORS = ("local", "slurm")
OWN = ("config", "executor", "out", "base", "progress", "model")

# Words that others use for what is not asked here -> what to say.
ELSEWHERE = {
    "dtype": "it is called `precision`, in `options`",
    "engine": "it is called `backend`",
    "output_dir": "it is called `out`",
    "n_cycles": "it is called `cycles`",
    "dataset": "it goes into `prompts`",
    "max_input_tokens": "`prompts={'synthetic': {'input_tokens': ...}}`",
    "max_output_tokens": "`prompts={..., 'output_tokens': ...}`",
    "grid": "it goes into `sweep`",
    "resume": "runs that are done are never served again: choose another `out` to start anew",
}


class StudyCallError(InputError, TypeError):
    """A keyword that `run_study` and `run_experiment` do not know."""


def run_experiment(
    config: str | Path | Mapping[str, Any] | Study | None = None,
    *,
    model: str | Path | Mapping[str, Any] | None = None,
    executor: Literal["local", "slurm"] = "local",
    out: str | Path | None = None,
    base: str | Path | None = None,
    progress: bool = True,
    **keys: Any,
) -> ExperimentResult:
    """Serve one deployment, in all its cycles, and tell what that cost.

    The arguments are those of `run_study`. Raises InputError where they ask for several
    deployments, and with all other faults at once; LlemError where no cycle completed.
    """
    planned, problems = _run(
        "experiment", config, model=model, executor=executor, out=out, base=base,
        progress=progress, keys=keys,
    )  # fmt: skip
    return ExperimentResult(planned.folder.root, problems)


def run_study(
    config: str | Path | Mapping[str, Any] | Study | None = None,
    *,
    model: str | Path | Mapping[str, Any] | None = None,
    executor: Literal["local", "slurm"] = "local",
    out: str | Path | None = None,
    base: str | Path | None = None,
    progress: bool = True,
    **keys: Any,
) -> StudyResult:
    """Serve every deployment of a study in all its cycles, and tell which costs least.

    config: a campaign file, its content as a mapping, or a Study. `keys` are keys of the file
    (`models`, `backend`, `options`, `prompts`, `sweep`, ...: docs/studies.md), in place of what
    `config` says or without any. model: short for `models` with one: a folder of weights, or a
    configuration of transformers. out: the folder of the study (by default its name); a second
    call goes on from what is there. base: where relative paths start, by default the file's folder.

    executor: `local` serves on this machine, `slurm` submits to the `site` and waits.

    Raises InputError with all faults of the call at once, LlemError where no run completed.
    """
    planned, problems = _run(
        "study", config, model=model, executor=executor, out=out, base=base, progress=progress,
        keys=keys,
    )  # fmt: skip
    return StudyResult(planned.folder.root, problems)


def _run(
    what: str,
    config: Any,
    *,
    model: Any,
    executor: str,
    out: str | Path | None,
    base: str | Path | None,
    progress: bool,
    keys: Mapping[str, Any],
) -> tuple[PlannedStudy, tuple[str, ...]]:
    place = base if base is not None else _folder_of(config)
    study = _study(what, config, model=model, executor=executor, keys=keys, base=Path(place))
    root = Path(out) if out is not None else Path(study.name)
    plan = study_plan(study, base=place)
    if what == "experiment":
        _one_deployment(plan)
    planned = write_study(plan, out=root, replace_old=True)
    say = Say(progress)
    _tell_plan(say, planned)
    outcome = run_campaign(planned.folder, planned.plan, watch=say.watch)
    if getattr(outcome, "interrupted", False):
        raise KeyboardInterrupt(f"stopped: the same call goes on from what is in {root}")
    found = aggregate_campaign(planned.folder)
    if not any(row.status == "completed" for row in found.served):
        raise _none_completed(planned, [(row.run_id, row.reason) for row in found.served])
    say(f"the records are in {root}")
    return planned, found.problems


def _folder_of(config: Any) -> Path:
    return Path(config).parent if isinstance(config, (str, Path)) else Path()


def _study(
    what: str, config: Any, *, model: Any, executor: str, keys: Mapping[str, Any], base: Path
) -> Study:
    """The call as a study. Raises InputError with every fault, StudyCallError for a keyword."""
    source = SOURCE[what]
    known = _known_keys()
    faults = [_unknown(key, known) for key in keys if key not in known]
    if executor not in EXECUTORS:
        hint = did_you_mean(str(executor), EXECUTORS)
        faults.append(Fault("executor", f"{executor!r} is none of {', '.join(EXECUTORS)}", hint))
    unknown = any(key not in known for key in keys)
    values = {
        "name": what,
        **_values_of(config, source),
        **{key: value for key, value in keys.items() if key in known},
    }
    # A file says itself what it is: without the word it trains.
    if not isinstance(config, (str, Path)):
        values.setdefault("workload", "inference")
    if model is not None:
        if keys.get("models") is not None:
            faults.append(Fault("model", "is short for `models`: give one of them"))
        values["models"] = _one_model(model)
    study: Campaign | Study | None = None
    try:
        study = campaign_from(values, source=source, folder=base)
    except InputError as error:
        faults += error.faults
    if isinstance(study, Study):
        faults += _executor_faults(study, executor)
        if not faults:
            return study
    elif study is not None:
        faults.append(Fault("workload", "this trains models", "`llem.run_campaign` runs it"))
    raise (StudyCallError if unknown else InputError)(source, list(dict.fromkeys(faults)))


def _known_keys() -> list[str]:
    return [field.alias or name for name, field in Study.model_fields.items()]


def _unknown(key: str, known: list[str]) -> Fault:
    if any(key in options for options in BACKENDS.values()):
        return Fault(key, "there is no such keyword", f"it goes into `options`: {{{key!r}: ...}}")
    hint = ELSEWHERE.get(key) or did_you_mean(key, [*known, *OWN])
    return Fault(key, "there is no such keyword", hint or f"known: {', '.join([*known, *OWN])}")


def _values_of(config: Any, source: str) -> dict[str, Any]:
    if config is None:
        return {}
    if isinstance(config, Study):
        return campaign_to_dict(config)
    if isinstance(config, (str, Path)):
        config = read_yaml(config)
    if isinstance(config, Mapping):
        return dict(config)
    kind = type(config).__name__
    raise InputError(
        source, [Fault("config", f"{kind} is neither a file, a mapping of its keys nor a Study")]
    )


def _one_model(model: Any) -> dict[str, Any]:
    """`models` of one: by its folder's name, or called `model`."""
    if isinstance(model, (str, Path)):
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(model).name).strip("-._")
        return {name or "model": {"path": str(model)}}
    if isinstance(model, Mapping) and not {"path", "config"} & model.keys():
        return {"model": {"config": dict(model)}}
    return {"model": model}


def _executor_faults(study: Study, executor: str) -> list[Fault]:
    try:
        site = site_of(study)
    except InputError as error:
        return list(error.faults)
    if executor not in EXECUTORS or site.executor == executor:
        return []
    if executor == "slurm":
        hint = "a shipped site's name, or a mapping"
        return [Fault("site", f"{site.name} has no SLURM, which executor='slurm' needs", hint)]
    hint = "executor='slurm' submits it; site='laptop' serves on this machine"
    return [Fault("site", f"{site.name} is a SLURM site, and the executor is local", hint)]


def _one_deployment(plan: StudyPlan) -> None:
    count = len(plan.runs.replicates)
    if count != 1:
        text = f"asks for {count} deployments, and an experiment is of one"
        raise InputError(
            SOURCE["experiment"], [Fault("sweep", text, "`llem.run_study` serves them all")]
        )


def _tell_plan(say: Say, planned: PlannedStudy) -> None:
    plan = planned.plan
    ids = plan.runs.run_ids
    done = sum(planned.folder.final_end(name) is not None for name in ids)
    told = f", {done} of which are done already" if done else ""
    count, cycles = len(plan.runs.replicates), plan.campaign.cycles
    say(
        f"{count} deployment{'s' if count > 1 else ''} x {cycles} cycle{'s' if cycles > 1 else ''} "
        f"= {len(ids)} runs{told}"
    )
    for note in plan.warnings:
        say(f"note: {note}")


def _none_completed(planned: PlannedStudy, runs: list[tuple[str, str]]) -> LlemError:
    told = "; ".join(f"{run_id}: {' '.join(reason.split())}" for run_id, reason in runs[:3])
    root = planned.folder.root
    return LlemError(
        f"none of {len(runs)} runs completed ({told})",
        remedy=f"see `{typed('llem', 'status', root)}` and `{typed('llem', 'logs', root)}`",
    )
