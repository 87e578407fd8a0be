"""Whether a run is tried again, and how: a pure function of how earlier attempts ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from llem.campaign import AnyRun, Decoder, Layout, Run

# Cause -> attempts in a row that may end so without getting further. Causes that are not listed
# (a divergence, a run that does not fit) are never tried again.
TRIES: Final[Mapping[str, int]] = {
    "exception": 2,
    "rendezvous": 5,
    "disk-full": 5,
    "node-failure": 5,
    "killed": 5,
    "preempted": 20,
    "time-limit": 20,
    "signal": 20,
    "asked-to-stop": 20,
    "superseded": 20,
    "starter-gone": 20,
}


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How one earlier attempt ended, as its files tell; `cause` is a word of `causes.CAUSES`.

    `start_step` is where it began, `saved_step` the last step that it left in a checkpoint.
    `given_up` says why it was to be the last one, '' otherwise.
    """

    number: int
    cause: str
    reason: str = ""
    layout: Layout | None = None
    start_step: int = 0
    saved_step: int = 0
    started_ns: int = 0
    given_up: str = ""


@dataclass(frozen=True)
class Go:
    """Try again with this layout; `why` says why it is not the plan's, '' where it is."""

    layout: Layout
    why: str = ""


@dataclass(frozen=True)
class GiveUp:
    """Do not try again by itself. `llem resubmit` begins the count anew."""

    cause: str
    reason: str


def next_try(
    run: AnyRun,
    endings: Sequence[Ending],
    *,
    since_ns: int = 0,
    tries: Mapping[str, int] = TRIES,
) -> Go | GiveUp:
    """What to do after `endings` (oldest first); those begun before `since_ns` do not count.

    Attempts that got further are not held against those after them: the count begins anew.
    """
    layout = run.layout
    for ending in endings:
        if ending.layout is not None and _divides_alike(ending.layout, run.layout):
            layout = ending.layout
    counted = [ending for ending in endings if ending.started_ns >= since_ns]
    if counted and counted[-1].given_up:
        return GiveUp(counted[-1].cause, counted[-1].given_up)
    if endings and endings[-1].cause == "out-of-memory":
        smaller = smaller_layout(run, layout)
        if smaller is None and counted:
            reason = (
                "memory does not suffice for the smallest layout there is"
                if run.workload == "training"
                else "memory does not suffice for this deployment"
            )
            return GiveUp("out-of-memory", reason)
        layout = smaller or layout
        return Go(layout, _told(layout, run))
    if not counted:
        return Go(layout, _told(layout, run))
    last = counted[-1]
    same = 0
    for ending in _since_progress(endings):
        if ending.started_ns >= since_ns and ending.cause == last.cause:
            same += 1
    allowed = tries.get(last.cause, 0)
    if same >= allowed:
        times = "not tried again" if not allowed else f"{same} tries got no further"
        return GiveUp(last.cause, f"{times}: {last.reason or last.cause}")
    return Go(layout, _told(layout, run))


def smaller_layout(run: AnyRun, layout: Layout) -> Layout | None:
    """The next layout that needs less memory and computes the same; None where there is none.

    Half the micro-batch (or the next smaller divisor) with as much more accumulation; at one
    sequence, activation checkpointing, which a user's own model class has to bring itself. What
    a deployment needs is what is measured of it: there is nothing to make smaller.
    """
    if not isinstance(run, Run):
        return None
    sequences = layout.micro_batch * layout.grad_accum
    for micro_batch in range(layout.micro_batch // 2, 0, -1):
        if sequences % micro_batch == 0:
            return replace(layout, micro_batch=micro_batch, grad_accum=sequences // micro_batch)
    if not layout.activation_checkpointing and isinstance(run.model, Decoder):
        return replace(layout, activation_checkpointing=True)
    return None


def _divides_alike(layout: Layout, planned: Layout) -> bool:
    """Whether a layout is the planned one but for what memory made of it."""
    parts = [
        (x.nodes, x.gpus_per_node, x.zero_stage, x.sharding, x.micro_batch * x.grad_accum)
        for x in (layout, planned)
    ]
    return parts[0] == parts[1]


def _since_progress(endings: Sequence[Ending]) -> Sequence[Ending]:
    """The endings after the last attempt that left the run further than it had been."""
    best, first = 0, 0
    for i, ending in enumerate(endings):
        # One that was killed said nothing, but the next one may have begun where it had come to.
        follower = endings[i + 1].start_step if i + 1 < len(endings) else 0
        reached = max(ending.saved_step, follower)
        if reached > best:
            best, first = reached, i + 1
    return endings[first:]


def _told(layout: Layout, run: AnyRun) -> str:
    if layout == run.layout:
        return ""
    text = f"micro-batch {layout.micro_batch}, accumulation {layout.grad_accum}"
    return text + (", activation checkpointing" if layout.activation_checkpointing else "")
