"""Runs longer than a job may take: how many jobs one after the other, and when each must leave."""

from __future__ import annotations

import math

from llem.campaign import Site
from llem.planning.layout import TIME_MARGIN

# A run that is expected to take no more than this share of the limit is not cut.
SINGLE_JOB = 0.9
# Ranks write a checkpoint and leave this long before the limit, at most a tenth of it.
LEAD_S = 300
LEAD_SHARE = 0.1
# What a job that is killed outright may lose, as a share of its time.
CHECKPOINT_SHARE = 1 / 8


def lead_s(time_limit_s: float) -> int:
    """Seconds before the time limit at which the ranks write a checkpoint and leave."""
    return max(1, math.floor(min(LEAD_S, LEAD_SHARE * time_limit_s)))


def segment_s(site: Site) -> float:
    """Seconds of training in a job of the longest time: without its start and its last minutes."""
    limit = site.limits.time
    return max(LEAD_SHARE * limit, limit - lead_s(limit) - site.startup_s)


def segments_of(duration_s: float, site: Site) -> int:
    """Jobs that a run of so many seconds is given, one after the other.

    One where it fits with a margin; else as many as it needs if it takes 1 / TIME_MARGIN times
    as long as expected: a job that finds its run complete ends at once.
    """
    if duration_s <= SINGLE_JOB * site.limits.time:
        return 1
    return math.ceil(duration_s / (TIME_MARGIN * segment_s(site)))


def checkpoint_steps_of(duration_s: float, steps: int, asked: int | None, site: Site) -> int:
    """Steps between checkpoints: the user's, or for a run of several jobs a few in each."""
    if asked:
        return asked
    if segments_of(duration_s, site) == 1:
        return 0
    return max(1, math.floor(steps * CHECKPOINT_SHARE * segment_s(site) / duration_s))
