"""Checks of a machine: what a campaign needs, what is there, and what to do about the rest."""

from typing import TYPE_CHECKING

from llem._lazy import lazy
from llem.cluster.doctor.check import FAIL, OK, WARN, Check

if TYPE_CHECKING:
    from llem.cluster.doctor.job import examine_job
    from llem.cluster.doctor.login import examine

__all__ = ["FAIL", "OK", "WARN", "Check", "examine", "examine_job"]

_LAZY = {"examine": "login", "examine_job": "job"}

# `llem.cluster.image` needs the rows alone; the checks themselves need much more, and it.
__getattr__ = lazy(__name__, _LAZY)
