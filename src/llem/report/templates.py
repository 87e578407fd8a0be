"""The templates of all pages: everything that came from a user is escaped by the engine."""

from __future__ import annotations

from functools import lru_cache
from typing import Any


def render(template: str, /, **values: Any) -> str:
    """A page as text. A value that a template asks for and does not get is an error."""
    text: str = _environment().get_template(template).render(values)
    return text


@lru_cache
def _environment() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("llem.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
