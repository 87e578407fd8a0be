"""Which rank the others wait for, and how far each host's clock is off: a row for each rank.

A rank waits from the end of its own step to the end of the last rank's. The rank that is last
again and again is the straggler: it waits least, and the others' waits are its doing. Moments on
two hosts can be compared as well as their clocks could; `clock` says how that was known.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from llem.results.ranks.ranks import Ranks
from llem.results.ranks.view import Wait


@dataclass(frozen=True, kw_only=True)
class RankRow:
    """One rank in one attempt. `wait_s` is how long it had ended its steps and others had not,
    `last_share` the share of its steps in which it was the last; NaN where that is not known.

    `clock_off_s` is how far its host's wall clock is off rank 0's, known by `clock`: `measured`
    over the network, by the `steps`' ends, on the `same` host, or `unknown`.
    """

    run_id: str
    attempt: int
    rank: int
    host: str
    device: str
    steps: int
    tokens: int
    wait_s: float
    last_share: float
    clock_off_s: float
    clock: str


def waited(waits: Iterable[Wait]) -> dict[int, tuple[float, float]]:
    """For each rank its `wait_s` and `last_share`."""
    return {
        wait.rank: (
            float(wait.total_ns) / 1e9,
            float(wait.last) / len(wait.to_ns) if len(wait.to_ns) else math.nan,
        )
        for wait in waits
    }


def rank_rows(
    run_id: str,
    attempt: int,
    ranks: Ranks,
    waits: Mapping[int, tuple[float, float]],
    skews: Mapping[str, int],
) -> tuple[RankRow, ...]:
    """The ranks of an attempt that told a time; `skews`: what clocks are off by the steps, ns."""
    rows = []
    for rank in sorted(ranks.ranks, key=lambda r: r.rank):
        clock = ranks.clocks[rank.boot_id]
        how, off_s = "unknown", math.nan
        if ranks.reference is not None and rank.boot_id == ranks.reference.boot_id:
            how, off_s = "same", 0.0
        elif skew := skews.get(rank.boot_id, 0):
            how, off_s = "steps", skew / 1e9
        elif clock.compared:
            how, off_s = "measured", clock.off_ns / 1e9
        wait_s, last_share = waits.get(rank.rank, (math.nan, math.nan))
        rows.append(
            RankRow(
                run_id=run_id,
                attempt=attempt,
                rank=rank.rank,
                host=rank.host,
                device=rank.device,
                steps=len(rank.steps),
                tokens=rank.tokens,
                wait_s=wait_s,
                last_share=last_share,
                clock_off_s=off_s,
                clock=how,
            )
        )
    return tuple(rows)
