"""In which order the cycles of deployments that share a node are run.

A node warms up and its neighbours come and go: what runs early is measured under other conditions
than what runs late. An order decides what of that a comparison of deployments takes up.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import chain

Place = tuple[int, int]


def ordered(order: str, deployments: int, cycles: int, *, seed: int = 0) -> list[Place]:
    """(deployment, cycle) of every run of one element, in the order in which they run.

    sequential: all cycles of one deployment, then of the next. interleaved: each deployment once,
    then each again. reverse: the same, every second cycle backwards, so that a steady drift
    cancels (ABBA). shuffled: each cycle in a random order of its own, by `seed`. latin-square:
    cycle c in row c of a Latin square in which each deployment follows each other equally often
    (Williams, Aust. J. Sci. Res. A 2, 149, 1949); complete after as many cycles as deployments,
    twice as many for an odd number.
    """
    every = range(deployments)
    if order == "sequential":
        return [(d, c) for d in every for c in range(cycles)]
    rows: Sequence[Sequence[int]]
    match order:
        case "interleaved":
            rows = [every] * cycles
        case "reverse":
            rows = [every[:: -1 if c % 2 else 1] for c in range(cycles)]
        case "shuffled":
            # Random's own shuffle may change between versions of Python; its numbers do not.
            dice = random.Random(seed)
            keys = [[dice.random() for _ in every] for _ in range(cycles)]
            rows = [sorted(every, key=row.__getitem__) for row in keys]
        case "latin-square":
            square = williams(deployments)
            rows = [square[c % len(square)] for c in range(cycles)]
        case _:
            raise ValueError(f"no order {order!r}")
    return list(chain.from_iterable(((d, c) for d in row) for c, row in enumerate(rows)))


def williams(size: int) -> list[list[int]]:
    """Rows of a Latin square of 0 ... size-1, balanced for what comes before each.

    An odd size needs the mirrored rows besides: there are then twice as many.
    """
    # 0, 1, -1, 2, -2 ... modulo n: the differences of its neighbours are all different.
    first = [(k + 1) // 2 * (1 if k % 2 else -1) % size for k in range(size)]
    rows = [[(entry + shift) % size for entry in first] for shift in range(size)]
    return rows if size % 2 == 0 or size == 1 else rows + [row[::-1] for row in rows]
