"""Laws by name: those that come with llem, and those that a user makes known."""

from __future__ import annotations

from llem.scaling.errors import OptionError, UnknownLawError
from llem.scaling.laws.chinchilla import CHINCHILLA
from llem.scaling.laws.formula import FormulaLaw
from llem.scaling.laws.law import Law
from llem.scaling.laws.shipped import SHIPPED

_LAWS: dict[str, Law] = {law.name: law for law in (CHINCHILLA, *SHIPPED)}


def get_law(name: str | Law) -> Law:
    """The law of that name, or of that formula, or UnknownLawError naming those that exist.

    A text with an equals sign, an operator or a parenthesis is read as a formula of N and D.
    """
    if isinstance(name, Law):
        return name
    plain = name.strip().replace("-", "_")
    if plain in _LAWS:
        return _LAWS[plain]
    if any(mark in name for mark in "+*/^("):
        return FormulaLaw.parse(name)
    raise UnknownLawError(name, tuple(_LAWS))


def register_law(law: Law) -> Law:
    """Make a law known by its name, for `fit_law(law=...)` and `Fit.from_dict`."""
    if _LAWS.get(law.name, law) != law:
        raise OptionError("law.name", law.name, "a name that no other law has")
    _LAWS[law.name] = law
    return law


def law_names() -> tuple[str, ...]:
    """Names of the laws that are known."""
    return tuple(_LAWS)
