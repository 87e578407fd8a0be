"""Plan → script text and manifests. Pure: nothing is written or submitted here."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llem._version import __version__
from llem.campaign import Site, slurm_time
from llem.campaign.guards import check_directive, check_script_path
from llem.campaign.trackers import spec_of
from llem.cluster.disk.files import json_line
from llem.cluster.disk.folder import INTERRUPTED
from llem.cluster.disk.plan_text import run_texts
from llem.cluster.templates import render_template
from llem.errors import Fault, InputError
from llem.planning import AnyPlan, ArrayJob
from llem.planning.segments import lead_s

FINISH = "finish"
REDUCE = "reduce"
FINISH_TIME_S = 1800
DOCTOR_TIME_S = 300
# srun reads how tasks are bound from these; the option undoes it for the sampler, which is one task
# to a node and must see all of it.
BINDS = {"SLURM_CPU_BIND": "cpu-bind", "SLURM_GPU_BIND": "gpu-bind"}
# Nets below the policy by which a run is tried again: times that an element requeues itself, and
# that its ranks are started in one job.
RESTARTS = 100
TRIES = 20


def render_files(
    plan: AnyPlan,
    *,
    image_digest: str = "",
    image_digests: Mapping[str, str] | None = None,
    wave: int | None = None,
) -> dict[str, str]:
    """Every file of `jobs/` by its name: a manifest per array and, for SLURM, the scripts.

    `image_digests` are those of backends that have an image of their own.
    With `wave`, the arrays of that one alone: those of earlier ones may be at work.
    """
    arrays = [a for a in plan.arrays if wave in (None, a.wave)]
    texts = run_texts(plan.runs)
    digests = {"": image_digest, **(image_digests or {})}
    files = {
        f"{a.name}.jsonl": render_manifest(plan, a, texts, digests.get(a.backend, image_digest))
        for a in arrays
    }
    if plan.site.executor == "slurm":
        files |= {f"{a.name}.sbatch": render_array(plan, a) for a in arrays}
        files[f"{FINISH}.sbatch"] = render_finish(plan)
    return files


def render_array(plan: AnyPlan, array: ArrayJob) -> str:
    """The sbatch script of one array."""
    site = plan.site
    return _render_plan(
        "array.sbatch.j2",
        plan,
        array.name,
        log="%x-%A_%a.log",
        directives=[
            *_gpus(site, array.gpus_per_node, steps=False),
            *_directives(site),
            *_hint(site),
        ],
        last=len(array.elements) - 1,
        throttle=array.throttle,
        time=slurm_time(array.time_limit_s),
        limit_s=array.time_limit_s,
        lead_s=lead_s(array.time_limit_s),
        interrupted=INTERRUPTED,
        restarts=RESTARTS,
        tries=TRIES,
        manifest=f"jobs/{array.name}.jsonl",
        container=_container(site, _data_folders(plan), backend=array.backend),
        **_steps(site, nodes=array.nodes, ranks_per_node=array.gpus_per_node),
    )


def render_doctor(site: Site, *, nodes: int) -> str:
    """The script of the job that looks at nodes: the ranks of an array, with a probe in them."""
    count = site.gpus_per_node
    return _render(
        "doctor.sbatch.j2",
        site,
        binds=[],
        job_name="llem-doctor",
        comment="llem:doctor",
        log="%x-%j.log",
        directives=[*_gpus(site, count, steps=False), *_directives(site), *_hint(site)],
        time=slurm_time(min(DOCTOR_TIME_S, site.limits.time)),
        **_steps(site, nodes=nodes, ranks_per_node=count),
    )


def render_finish(plan: AnyPlan) -> str:
    """The script of the job that aggregates and fits after all arrays."""
    return _render_plan(
        "finish.sbatch.j2",
        plan,
        FINISH,
        log="%x-%j.log",
        # A partition of GPUs often refuses a job that asks for none.
        directives=[*_gpus(plan.site, 1, steps=False), *_directives(plan.site)],
        time=slurm_time(min(FINISH_TIME_S, plan.site.limits.time)),
    )


def render_reduce(plan: AnyPlan, *, manifest: str, elements: int) -> str:
    """The script of the array that reduces records, a slice of the runs an element."""
    return _render_plan(
        "reduce.sbatch.j2",
        plan,
        REDUCE,
        log="%x-%A_%a.log",
        directives=[*_gpus(plan.site, 1, steps=False), *_directives(plan.site)],
        last=elements - 1,
        cpus=plan.site.cpus_per_rank,
        time=slurm_time(min(FINISH_TIME_S, plan.site.limits.time)),
        manifest=manifest,
    )


def job_name(plan: AnyPlan, name: str) -> str:
    """What the job of an array, or the one that fits at the end, is called on the cluster."""
    return check_directive(f"llem-{plan.campaign.name}-{name}")


def render_manifest(
    plan: AnyPlan, array: ArrayJob, texts: Mapping[str, str], image_digest: str = ""
) -> str:
    """JSON Lines, one element a line: all that a rank needs, and all that users typed freely.

    `texts` are the runs' own, as `run_texts` makes them.
    """
    shared = {
        "array": array.name,
        "campaign": plan.campaign.name,
        "plan": plan.digest,
        "ranks": array.nodes * array.gpus_per_node,
        "zero_stage": array.zero_stage,
        "precision": array.precision,
        "sampler": "step" if plan.site.executor == "slurm" and plan.site.overlap else "child",
        "energy": _energy(plan),
        "environment": dict(plan.site.environment),
        "image_digest": image_digest,
        **_shown(plan),
    }
    rest = json_line(shared)[1:-1]
    return "".join(
        f'{{"element":{index},{rest},"runs":[{",".join([texts[name] for name in names])}]}}\n'
        for index, names in enumerate(array.elements)
    )


def _energy(plan: AnyPlan) -> dict[str, Any]:
    """What the samplers are told, as data; how long ranks keep still before their first run."""
    wanted = plan.campaign.energy
    return {
        "interval_s": wanted.interval,
        "meters": ",".join(wanted.meters),
        # A step cannot see that its job asked for whole nodes.
        "exclusive": plan.site.extra.get("exclusive") is True,
        "idle": {
            "baseline_s": wanted.baseline or 0,
            "cool_s": wanted.thermal_floor or 0,
            "slope": wanted.thermal_slope,
        }
        if wanted.baseline or wanted.thermal_floor
        else None,
    }


def _shown(plan: AnyPlan) -> dict[str, Any]:
    """What is shown while ranks train, and in what."""
    found: dict[str, Any] = {}
    # The table's figure for "a CPU" is no measure of this one.
    if not plan.device.cpu or plan.site.gpu.peak_flops:
        found["peak_flops"] = plan.device.peak_flops
    if plan.campaign.trackers:
        found["trackers"] = [spec_of(tracker) for tracker in plan.campaign.trackers]
    return found


def _render_plan(template: str, plan: AnyPlan, name: str, **values: Any) -> str:
    return _render(
        template,
        plan.site,
        binds=_data_folders(plan),
        job_name=job_name(plan, name),
        comment=check_directive(f"llem:{plan.digest}:{name}"),
        **values,
    )


def _render(template: str, site: Site, *, binds: Sequence[str], **values: Any) -> str:
    text = render_template(
        template,
        own=Path(site.template) if site.template else None,
        values={
            "version": __version__,
            "modules": site.modules,
            "container": _container(site, binds),
            "python": _python(),
            **values,
        },
    )
    # Blank lines that blocks leave at their ends say nothing to a reader.
    lines = [line.rstrip() for line in text.splitlines()]
    kept = [x for i, x in enumerate(lines) if x or (i and lines[i - 1])]
    return "\n".join(kept).strip() + "\n"


def _container(
    site: Site, more_binds: Sequence[str], *, backend: str = ""
) -> dict[str, Any] | None:
    container, image = site.container, site.image_for(backend)
    if container is None or image is None:
        return None
    options = {"nv": ["--nv"], "rocm": ["--rocm"], "none": []}[container.gpu]
    for bind in dict.fromkeys([*container.binds, *more_binds]):
        options = [*options, "--bind", bind]
    return {"runtime": container.runtime, "options": options, "image": image}


def _data_folders(plan: AnyPlan) -> list[str]:
    """Folders of data outside the campaign folder, which ranks must see at the same path."""
    paths = {Path(path) for some in plan.runs.replicates for path in some.run.paths}
    folders = {str(path.parent) for path in paths if path.is_absolute()}
    try:
        return [check_script_path(folder) for folder in sorted(folders)]
    except ValueError as error:
        raise InputError("campaign", [Fault("data.path", str(error))]) from None


def _python() -> str:
    try:
        return check_script_path(sys.executable)
    except ValueError as error:
        raise InputError("this Python", [str(error)]) from None


def _gpus(site: Site, count: int, *, steps: bool) -> list[tuple[str, str]]:
    """How `count` GPUs of a node are asked for, by the job or by its steps."""
    kind = f"{site.gpu_type}:" if site.gpu_type else ""
    match site.gpu_request:
        case "gres":
            return [("gres", f"gpu:{kind}{count}")]
        case "gpus-per-task" if not steps:
            return [("gpus-per-task", f"{kind}1")]
        case "gpus-per-task" | "gpus-per-node":
            return [("gpus-per-node", f"{kind}{count}")]
        case _:
            return []


def _directives(site: Site) -> list[tuple[str, str | None]]:
    """What every job of the site says; None is an option without a value."""
    values = {
        "partition": site.partition,
        "account": site.account,
        "qos": site.qos,
        "reservation": site.reservation,
        "constraint": site.constraint,
        "exclude": site.exclude,
        "mem": site.memory_per_node,
    }
    given: list[tuple[str, str | None]] = [(f, value) for f, value in values.items() if value]
    return given + [(f, None if value is True else value) for f, value in site.extra.items()]


def _hint(site: Site) -> list[tuple[str, str | None]]:
    return [("hint", site.hint)] if site.hint else []


def _steps(site: Site, *, nodes: int, ranks_per_node: int) -> dict[str, Any]:
    """What a template needs to start the sampler's step and the ranks'."""
    given = {"SLURM_CPU_BIND": site.cpu_bind, "SLURM_GPU_BIND": site.gpu_bind}
    binds = {variable: value for variable, value in given.items() if value}
    gpus = _gpus(site, ranks_per_node, steps=True)
    return {
        "nodes": nodes,
        "ranks_per_node": ranks_per_node,
        "cpus_per_rank": site.cpus_per_rank,
        "overlap": site.overlap,
        "step_gpus": "".join(f" --{flag}={value}" for flag, value in gpus),
        "gpu_request": site.gpu_request,
        "launch": list(binds.items()),
        "unbound": "".join(f" --{BINDS[variable]}=none" for variable in binds),
    }
