"""Plan → script text and manifests. Pure: nothing is written or submitted here."""

from __future__ import annotations

import shlex
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

from llem._resources import resource_folder
from llem._version import __version__
from llem.campaign import Site, slurm_time
from llem.campaign.guards import check_directive, check_script_path
from llem.cluster.files import json_line
from llem.cluster.folder import INTERRUPTED
from llem.errors import Fault, InputError
from llem.planning import ArrayJob, Plan
from llem.planning.segments import lead_s

FINISH = "finish"
FINISH_TIME_S = 1800
# Nets below the policy by which a run is tried again: times that an element requeues itself, and
# that its ranks are started in one job.
RESTARTS = 100
TRIES = 20


def render_files(plan: Plan, *, image_digest: str = "") -> dict[str, str]:
    """Every file of `jobs/` by its name: a manifest per array and, for SLURM, the scripts."""
    files = {f"{a.name}.jsonl": render_manifest(plan, a, image_digest) for a in plan.arrays}
    if plan.site.executor == "slurm":
        files |= {f"{a.name}.sbatch": render_array(plan, a) for a in plan.arrays}
        files[f"{FINISH}.sbatch"] = render_finish(plan)
    return files


def render_array(plan: Plan, array: ArrayJob) -> str:
    """The sbatch script of one array."""
    site = plan.site
    gpus = {
        "gres": ("gres", f"gpu:{array.gpus_per_node}"),
        "gpus-per-node": ("gpus-per-node", str(array.gpus_per_node)),
    }.get(site.gpu_request)
    return _render(
        "array.sbatch.j2",
        plan,
        array.name,
        log="%x-%A_%a.log",
        directives=[*([gpus] if gpus else []), *_directives(site)],
        last=len(array.elements) - 1,
        throttle=array.throttle,
        nodes=array.nodes,
        ranks_per_node=array.gpus_per_node,
        cpus_per_rank=site.cpus_per_rank,
        time=slurm_time(array.time_limit_s),
        limit_s=array.time_limit_s,
        lead_s=lead_s(array.time_limit_s),
        interrupted=INTERRUPTED,
        restarts=RESTARTS,
        tries=TRIES,
        manifest=f"jobs/{array.name}.jsonl",
        overlap=site.overlap,
        step_gpus=f" --{gpus[0]}={gpus[1]}" if gpus else "",
    )


def render_finish(plan: Plan) -> str:
    """The script of the job that aggregates and fits after all arrays."""
    return _render(
        "finish.sbatch.j2",
        plan,
        FINISH,
        log="%x-%j.log",
        directives=_directives(plan.site),
        time=slurm_time(min(FINISH_TIME_S, plan.site.limits.time)),
    )


def render_manifest(plan: Plan, array: ArrayJob, image_digest: str = "") -> str:
    """JSON Lines, one element a line: all that a rank needs, and all that users typed freely."""
    shared = {
        "array": array.name,
        "campaign": plan.campaign.name,
        "plan": plan.digest,
        "ranks": array.nodes * array.gpus_per_node,
        "zero_stage": array.zero_stage,
        "precision": array.precision,
        "sampler": "step" if plan.site.executor == "slurm" and plan.site.overlap else "child",
        "environment": dict(plan.site.environment),
        "image_digest": image_digest,
    }
    lines = [
        json_line(
            {"element": index, **shared, "runs": [plan.by_id[name].to_dict() for name in names]}
        )
        for index, names in enumerate(array.elements)
    ]
    return "\n".join(lines) + "\n"


def _render(template: str, plan: Plan, name: str, **values: Any) -> str:
    site = plan.site
    text: str = (
        _environment()
        .get_template(template)
        .render(
            template=template,
            version=__version__,
            job_name=check_directive(f"llem-{plan.campaign.name}-{name}"),
            comment=check_directive(f"llem:{plan.digest}:{name}"),
            modules=site.modules,
            container=_container(plan),
            python=_python(),
            **values,
        )
    )
    # Blank lines that blocks leave at their ends say nothing to a reader.
    lines = [line.rstrip() for line in text.splitlines()]
    kept = [x for i, x in enumerate(lines) if x or (i and lines[i - 1])]
    return "\n".join(kept).strip() + "\n"


@lru_cache
def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(resource_folder("slurm_templates")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["quote"] = lambda value: shlex.quote(str(value))
    return environment


def _container(plan: Plan) -> dict[str, Any] | None:
    container = plan.site.container
    if container is None:
        return None
    options = {"nv": ["--nv"], "rocm": ["--rocm"], "none": []}[container.gpu]
    binds = [*container.binds, *_data_folders(plan)]
    for bind in dict.fromkeys(binds):
        options = [*options, "--bind", bind]
    return {"runtime": container.runtime, "options": options, "image": container.image}


def _data_folders(plan: Plan) -> list[str]:
    """Folders of data outside the campaign folder, which ranks must see at the same path."""
    folders = {
        str(Path(run.data.path).parent) for run in plan.runs if Path(run.data.path).is_absolute()
    }
    try:
        return [check_script_path(folder) for folder in sorted(folders)]
    except ValueError as error:
        raise InputError("campaign", [Fault("data.path", str(error))]) from None


def _python() -> str:
    try:
        return check_script_path(sys.executable)
    except ValueError as error:
        raise InputError("this Python", [str(error)]) from None


def _directives(site: Site) -> list[tuple[str, str]]:
    values = {
        "partition": site.partition,
        "account": site.account,
        "qos": site.qos,
        "reservation": site.reservation,
        "constraint": site.constraint,
        "mem": site.memory_per_node,
    }
    return [(flag, value) for flag, value in values.items() if value]
