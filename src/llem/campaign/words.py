"""What pydantic finds wrong with a value, in llem's words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# pydantic's names of a bound that a number breaks: (where it tells the bound, what to say).
_BOUNDS = {
    "greater_than": ("gt", "not above"),
    "greater_than_equal": ("ge", "below"),
    "less_than": ("lt", "not below"),
    "less_than_equal": ("le", "above"),
}
_TYPES = {
    "int_parsing": "is not a whole number",
    "int_type": "is not a whole number",
    "int_from_float": "is not a whole number",
    "float_parsing": "is not a number",
    "float_type": "is not a number",
    "bool_parsing": "is neither true nor false",
    "bool_type": "is neither true nor false",
}


def in_words(error: Mapping[str, Any]) -> str:
    """One of a ValidationError's `errors()`: what is wrong with the value, without its path."""
    kind, given = error["type"], error["input"]
    if kind == "value_error":
        return str(error["ctx"]["error"])
    if kind in _TYPES:
        return f"{given!r} {_TYPES[kind]}"
    if kind in _BOUNDS:
        key, words = _BOUNDS[kind]
        return f"{given!r} is {words} {error['ctx'][key]:g}"
    return str(error["msg"]).lower()
