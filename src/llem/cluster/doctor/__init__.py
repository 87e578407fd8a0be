"""Checks of a machine: what a campaign needs, what is there, and what to do about the rest."""

from llem.cluster.check import FAIL, OK, WARN, Check
from llem.cluster.doctor.job import examine_job
from llem.cluster.doctor.login import examine

__all__ = ["FAIL", "OK", "WARN", "Check", "examine", "examine_job"]
