"""Checks of a machine: what a campaign needs, what is there, and what to do about the rest."""

from typing import TYPE_CHECKING

from llem.cluster.doctor.check import FAIL, OK, WARN, Check

if TYPE_CHECKING:
    from llem.cluster.doctor.job import examine_job
    from llem.cluster.doctor.login import examine

__all__ = ["FAIL", "OK", "WARN", "Check", "examine", "examine_job"]

_LAZY = {"examine": "llem.cluster.doctor.login", "examine_job": "llem.cluster.doctor.job"}


def __getattr__(name: str) -> object:
    # `llem.cluster.image` needs the rows alone; the checks themselves need much more, and it.
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
