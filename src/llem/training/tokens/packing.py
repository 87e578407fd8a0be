"""Windows that keep documents whole: best-fit packing (Ding et al. 2024, arXiv 2404.10830).

A document longer than a window is cut into whole windows and a rest. Rests, and the documents
that fit, are packed best-fit decreasing: the longest first, each into the fullest window that
still has room for it. What room is then left over is filled by the documents of the emptiest
windows, which alone are cut. So every window is full, each token is an input once an epoch, and
no target is ignored: losses are means over as many tokens as in a stream, on any number of ranks.

A target is always the token that follows its input in the file; after an end of document that is
the first of the next document there, which is as likely as any other.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Packed:
    """Windows of `context` inputs: window i has the pieces first[i] .. first[i + 1] - 1.

    A piece is `lengths` tokens of the file from `starts` on: 16 bytes for each.
    """

    context: int
    starts: Integers
    lengths: Integers
    first: Integers

    def __len__(self) -> int:
        return len(self.first) - 1

    def positions(self, windows: Integers) -> Integers:
        """Where the inputs of `windows` stand in the file: (len(windows), context)."""
        counts = self.first[windows + 1] - self.first[windows]
        pieces = _ranges(self.first[windows], counts)
        found = _ranges(self.starts[pieces], self.lengths[pieces])
        return found.reshape(len(windows), self.context)


def pack_documents(offsets: Integers, *, tokens: int, context: int) -> Packed:
    """Pack the documents that begin and end at `offsets`, (documents + 1,), as far as `tokens`.

    Each of the first tokens but the last can be an input: the last is the target of the one before.
    All are, but fewer than `context` of them.
    """
    inputs = tokens - 1
    count = int(np.searchsorted(offsets, inputs))
    edges = np.minimum(offsets[: count + 1], inputs)
    begins, sizes = edges[:-1], np.diff(edges)
    whole, rest = np.divmod(sizes, context)
    full = _ranges(np.zeros(len(whole), dtype=np.int64), whole) * context
    full += np.repeat(begins, whole)
    short = np.flatnonzero(rest)
    starts = (begins + whole * context)[short]
    lengths = rest[short]
    bins, space = best_fit(lengths, capacity=context)
    kept = int(lengths.sum()) // context
    # The fullest first: the emptiest are those that are divided among the others.
    rank = np.empty(len(space), dtype=np.int64)
    rank[np.argsort(space, kind="stable")] = np.arange(len(space))
    place = rank[bins]
    stays = place < kept
    filler = _fill(
        starts[~stays], lengths[~stays], gaps=space[np.argsort(space, kind="stable")[:kept]]
    )
    window = np.concatenate((np.arange(len(full)), len(full) + place[stays],
                             len(full) + filler[0]))  # fmt: skip
    starts = np.concatenate((full, starts[stays], filler[1]))
    lengths = np.concatenate((np.full(len(full), context), lengths[stays], filler[2]))
    order = np.argsort(window, kind="stable")
    first = np.searchsorted(window[order], np.arange(len(full) + kept + 1))
    return Packed(context, starts[order], lengths[order], first)


def best_fit(lengths: Integers, *, capacity: int) -> tuple[Integers, Integers]:
    """The bin of each piece by best-fit decreasing, and the space that is left in each bin.

    Pieces of one length, and bins with one space, are moved together: some hundred thousand of
    either take as long as a few.
    """
    bins = np.empty(len(lengths), dtype=np.int64)
    order = np.argsort(-lengths, kind="stable")
    edges = np.flatnonzero(np.diff(lengths[order], prepend=-1, append=-1))
    # Bins by the space in them; only what has any is of use.
    free: dict[int, list[Integers]] = {}
    spaces: list[int] = []
    left: list[tuple[Integers, int]] = []
    made = 0

    def put(some: Integers, space: int) -> None:
        if not len(some):
            return
        if space == 0:
            left.append((some, 0))
            return
        if space not in free:
            free[space] = []
            insort(spaces, space)
        free[space].append(some)

    for begin, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        length = int(lengths[order[begin]])
        while begin < end:
            at = bisect_left(spaces, length)
            if at < len(spaces):
                space = spaces[at]
                some = free[space].pop()
                if not free[space]:
                    del free[space], spaces[at]
            else:
                space = capacity
                new = -(-(end - begin) // (capacity // length))
                some = np.arange(made, made + new)
                made += new
            each = space // length
            used = min(len(some), -(-(end - begin) // each))
            put(some[used:], space)
            pieces = order[begin : min(end, begin + used * each)]
            bins[pieces] = np.repeat(some[:used], each)[: len(pieces)]
            begin += len(pieces)
            last = len(pieces) - (used - 1) * each
            put(some[: used - 1], space - each * length)
            put(some[used - 1 : used], space - last * length)
    space_of = np.zeros(made, dtype=np.int64)
    for space, groups in free.items():
        for some in groups:
            space_of[some] = space
    return bins, space_of


def _fill(
    starts: Integers, lengths: Integers, *, gaps: Integers
) -> tuple[Integers, Integers, Integers]:
    """Pieces cut so that they fill `gaps` in their order: gap, start and length of each."""
    ends, closed = np.cumsum(lengths), np.cumsum(gaps)
    total = int(closed[-1]) if len(closed) else 0
    cuts = np.union1d(ends[ends < total], closed[gaps > 0])
    begins = np.concatenate(([0], cuts[:-1])) if len(cuts) else cuts
    piece = np.searchsorted(ends, begins, side="right")
    gap = np.searchsorted(closed, begins, side="right")
    return gap, starts[piece] + begins - (ends - lengths)[piece], cuts - begins


def _ranges(starts: Integers, counts: Integers) -> Integers:
    """start, start + 1, ... of each, `counts` of them, one after the other."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    found: Integers = np.repeat(starts - (ends - counts), counts) + np.arange(total)
    return found
