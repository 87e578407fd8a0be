"""The script templates, and a site's own that overrides blocks of them.

A site's template is its author's own code: what is typed there is shell. It says

    {% extends "array.sbatch.j2" %}
    {% block environment %}
    {{ super() }}
    export FI_CXI_DEFAULT_CQ_SIZE=131072
    {% endblock %}

and may override the blocks of `BLOCKS`. `work` is an array's alone, `launch` holds for the doctor's
job too, and the others for every job, also the one that fits at the end. What a template is handed
has passed the guards: names, numbers, checked paths.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llem._resources import resource_folder
from llem.errors import Fault, InputError, did_you_mean

if TYPE_CHECKING:
    from jinja2 import Environment

ARRAY = "array.sbatch.j2"
# Block -> what it holds.
BLOCKS = {
    "directives": "the #SBATCH lines",
    "modules": "module load",
    "environment": "exported variables",
    "container": "LLEM=(...), which starts a module of llem's inside the image",
    "launch": "how steps are bound: srun's own variables",
    "work": "the steps of an array element: the sampler and the ranks",
}


def render_template(template: str, *, own: Path | None, values: Mapping[str, Any]) -> str:
    """The shipped `template`, with the blocks of a site's `own` one in their place.

    Raises InputError with file and line where the site's template is wrong.
    """
    environment = _environment()
    if own is None:
        return environment.get_template(template).render(**values, template=template)
    source = _read(own)
    _check(environment, own, source)
    from jinja2 import FunctionLoader, TemplateError, TemplateNotFound

    # The same blocks hold for every job: under the name that the site's template extends lies the
    # template that is rendered now.
    def load(name: str) -> tuple[str, str, None] | None:
        if name == str(own):
            return source, name, None
        text = _shipped(template if name == ARRAY else name)
        return None if text is None else (text, name, None)

    overlay = environment.overlay(loader=FunctionLoader(load))
    try:
        text = overlay.get_template(str(own)).render(
            **values, template=f"{template} and {own.name}"
        )
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
        told = f"no template {error}" if isinstance(error, TemplateNotFound) else str(error)
        raise InputError(str(own), [Fault(_line(error, own), told)]) from None
    return str(text)


@lru_cache
def _environment() -> Environment:
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


@lru_cache
def _shipped(name: str) -> str | None:
    path = resource_folder("slurm_templates") / name
    return path.read_text(encoding="utf-8") if "/" not in name and path.is_file() else None


def _read(own: Path) -> str:
    try:
        return own.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(str(own), [Fault("site.template", "there is no such file")]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(str(own), [Fault("site.template", f"cannot be read: {error}")]) from None


def _check(environment: Environment, own: Path, source: str) -> None:
    """What can be told without rendering. Raises InputError with every fault."""
    from jinja2 import TemplateSyntaxError, nodes

    try:
        tree = environment.parse(source, filename=str(own))
    except TemplateSyntaxError as error:
        fault = Fault(f"line {error.lineno}", error.message or "not a template")
        raise InputError(str(own), [fault]) from None
    faults = []
    parents = list(tree.find_all(nodes.Extends))
    named = [p.template.value for p in parents if isinstance(p.template, nodes.Const)]
    if named != [ARRAY]:
        where = f"line {parents[0].lineno}" if parents else "line 1"
        faults.append(Fault(where, f'must say {{% extends "{ARRAY}" %}}, once'))
    for block in tree.find_all(nodes.Block):
        if block.name not in BLOCKS:
            hint = did_you_mean(block.name, list(BLOCKS)) or f"blocks: {', '.join(BLOCKS)}"
            faults.append(Fault(f"line {block.lineno}", f"no block {block.name!r}", hint))
    # Jinja drops in silence what a child says outside its blocks.
    for child in tree.body:
        if isinstance(child, nodes.Output) and any(
            not isinstance(part, nodes.TemplateData) or part.data.strip() for part in child.nodes
        ):
            faults.append(Fault(f"line {_first(child)}", "stands in no block and would be dropped"))
    if faults:
        raise InputError(str(own), faults)


def _first(output: Any) -> int:
    """The line of the first text of an output node that is not blank."""
    from jinja2 import nodes

    for part in output.nodes:
        if not isinstance(part, nodes.TemplateData):
            return int(part.lineno)
        if part.data.strip():
            blank = len(part.data) - len(part.data.lstrip())
            return int(part.lineno) + part.data[:blank].count("\n")
    return int(output.lineno)


def _line(error: BaseException, own: Path) -> str:
    """`line N` of the site's template where an error arose: Jinja puts it into the traceback."""
    found = ""
    frame = error.__traceback__
    while frame is not None:
        if frame.tb_frame.f_code.co_filename == str(own):
            found = f"line {frame.tb_lineno}"
        frame = frame.tb_next
    return found
