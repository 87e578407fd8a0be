"""Plan → script text and manifests. Pure: nothing is written or submitted here."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from llem._resources import resource_folder
from llem._version import __version__
from llem.campaign import Runs, Site, slurm_time
from llem.campaign.guards import check_directive, check_script_path
from llem.cluster.files import finite_or_none, json_line
from llem.errors import Fault, InputError
from llem.planning import ArrayJob, Plan
from llem.planning.segments import lead_s

FINISH = "finish"
FINISH_TIME_S = 1800


def render_files(plan: Plan, *, image_digest: str = "", wave: int | None = None) -> dict[str, str]:
    """Every file of `jobs/` by its name: a manifest per array and, for SLURM, the scripts.

    With `wave`, the arrays of that one alone: those of earlier ones may be at work.
    """
    arrays = [a for a in plan.arrays if wave in (None, a.wave)]
    texts = run_texts(plan.runs)
    files = {f"{a.name}.jsonl": render_manifest(plan, a, texts, image_digest) for a in arrays}
    if plan.site.executor == "slurm":
        files |= {f"{a.name}.sbatch": render_array(plan, a) for a in arrays}
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


def job_name(plan: Plan, name: str) -> str:
    """What the job of an array, or the one that fits at the end, is called on the cluster."""
    return check_directive(f"llem-{plan.campaign.name}-{name}")


def render_manifest(
    plan: Plan, array: ArrayJob, texts: Mapping[str, str], image_digest: str = ""
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
        "environment": dict(plan.site.environment),
        "image_digest": image_digest,
    }
    rest = json_line(shared)[1:-1]
    return "".join(
        f'{{"element":{index},{rest},"runs":[{",".join([texts[name] for name in names])}]}}\n'
        for index, names in enumerate(array.elements)
    )


def render_plan(plan: Plan) -> str:
    """`plan.json`: indented, with each array and each run on a line of its own.

    A file of many equal things reads better so, and is written ten times faster.
    """
    head = json.dumps(finite_or_none(plan.head()), indent=1, allow_nan=False)[:-2]
    arrays = ",\n".join(json_line(vars(array)) for array in plan.arrays)
    runs = ",\n".join(run_texts(plan.runs).values())
    return f'{head},\n "arrays": [\n{arrays}\n ],\n "runs": [\n{runs}\n ]\n}}\n'


def run_texts(runs: Runs) -> dict[str, str]:
    """Each run on one line of JSON, by its name: `json_line(run.to_dict())`, made once for a cell.

    Between the runs of a cell only the name and the seed differ.
    """
    texts = {}
    for some in runs.replicates:
        around: list[list[str]] = [[]]
        for key, value in some.run.to_dict().items():
            text = "" if key in ("run_id", "seed") else json_line(value)
            around[-1].append(f'"{key}":{text}')
            if not text:
                around.append([])
        name, seed, rest = (",".join(part) for part in around)
        for run_id, number in zip(some.run_ids, some.seeds, strict=True):
            texts[run_id] = f'{{{name}"{run_id}",{seed}{number},{rest}}}'
    return texts


def _render(template: str, plan: Plan, name: str, **values: Any) -> str:
    site = plan.site
    text: str = (
        _environment()
        .get_template(template)
        .render(
            template=template,
            version=__version__,
            job_name=job_name(plan, name),
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
    paths = {Path(some.run.data.path) for some in plan.runs.replicates}
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
