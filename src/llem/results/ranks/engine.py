"""What the engine of a server told of its steps (table `/engine`), reduced to sums.

A step counts by the time that it took: since the step before it, or where the engine had nothing to
do since then, since the first request came that it had. So means are over the time in which the
engine worked, however unevenly long its steps are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Table = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Engine:
    """The steps of the engines of one attempt, added up; `steps` is 0 where none told any.

    `work_ns` is the time of all steps; `running`, `waiting` and `cache` are integrals over it, in
    requests x ns, and shares of the cache x ns. Of prompts the engine computed `computed` tokens
    and found `cached` in its cache; of `drafted` tokens that it guessed `accepted` were right.
    `preempted` requests lost their cache.
    """

    steps: int = 0
    work_ns: int = 0
    running: float = 0.0
    waiting: float = 0.0
    cache: float = 0.0
    cache_most: float = 0.0
    computed: int = 0
    cached: int = 0
    preempted: int = 0
    drafted: int = 0
    accepted: int = 0


def engine_sums(steps: Table, *, sent_ns: Integers, left_ns: Integers) -> Engine:
    """The sums of a record's steps; the engine had a request from when it was sent, `sent_ns`, to
    its last token, `left_ns` (same length)."""
    if not len(steps):
        return Engine()
    steps = steps[np.argsort(steps["t_ns"], kind="stable")]
    took = _took_ns(steps["t_ns"], sent_ns, left_ns)
    # vLLM makes one more step when the last request has left it.
    had = steps["running"] + steps["waiting"] + steps["tokens_in"] + steps["tokens_out"]
    took = np.where(had > 0, took, 0)
    # Recorded with six digits, in 32 bits.
    cache = steps["cache_used"].astype(np.float64).round(6)
    # Those that this step gave their last token run no more after it. With several tokens of a
    # sequence in a step, the guesses that were right are not sequences.
    running = np.maximum(steps["running"], steps["tokens_out"] - steps["accepted"])
    return Engine(
        steps=len(steps),
        work_ns=int(took.sum()),
        running=float(running @ took),
        waiting=float(steps["waiting"] @ took),
        cache=float(cache @ took),
        cache_most=float(cache.max()),
        computed=int(steps["tokens_in"].sum()),
        cached=int(steps["tokens_cached"].sum()),
        preempted=int(steps["preempted"].sum()),
        drafted=int(steps["drafted"].sum()),
        accepted=int(steps["accepted"].sum()),
    )


def engines_together(parts: Sequence[Engine]) -> Engine:
    """Of several replicas: sums, and the fullest cache."""
    found = {f.name: sum(getattr(part, f.name) for part in parts) for f in fields(Engine)}
    found["cache_most"] = max((part.cache_most for part in parts), default=0.0)
    return Engine(**found)


def _took_ns(at: Integers, sent_ns: Integers, left_ns: Integers) -> Integers:
    """How long each step took, that ended `at`."""
    before: Integers = np.concatenate([at[:1], at[:-1]])
    if not len(sent_ns):
        alone: Integers = at - before
        return alone
    order = np.argsort(sent_ns, kind="stable")
    sent, left = sent_ns[order], np.maximum.accumulate(left_ns[order])
    # Where every request before it had left, a new stretch of work begins.
    begins = sent[np.concatenate([[True], sent[1:] > left[:-1]])]
    place = np.searchsorted(begins, at, "right") - 1
    since = np.where(place >= 0, begins[place], at)
    before[0] = min(before[0], since[0])
    took: Integers = at - np.maximum(before, since)
    return took
