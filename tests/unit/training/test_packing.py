"""Windows that keep documents whole."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from llem.training.tokens.packing import best_fit, pack_documents

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=60)


def offsets(lengths: list[int]) -> np.ndarray:
    return np.concatenate(([0], np.cumsum(lengths)))


def slow_best_fit(lengths: list[int], capacity: int) -> list[int]:
    """How full the bins are, piece by piece as the textbook has it."""
    space: list[int] = []
    for length in sorted(lengths, reverse=True):
        room = [(s, i) for i, s in enumerate(space) if s >= length]
        if room:
            space[min(room)[1]] -= length
        else:
            space.append(capacity - length)
    return sorted(space)


@given(lengths=LENGTHS)
def test_bins_are_those_of_best_fit_decreasing_one_by_one(lengths: list[int]) -> None:
    bins, space = best_fit(np.array(lengths), capacity=40)
    assert sorted(space.tolist()) == slow_best_fit(lengths, 40)
    filled = np.bincount(bins, weights=lengths, minlength=len(space))
    assert np.array_equal(filled + space, np.full(len(space), 40))


@given(lengths=LENGTHS, context=st.integers(1, 40), held_out=st.integers(0, 30))
def test_each_token_is_an_input_at_most_once_and_all_but_a_rest_are(
    lengths: list[int], context: int, held_out: int
) -> None:
    tokens = max(2, sum(lengths) - held_out)
    packed = pack_documents(offsets(lengths), tokens=tokens, context=context)
    assert len(packed) == (tokens - 1) // context
    read = packed.positions(np.arange(len(packed))).ravel()
    assert len(np.unique(read)) == len(read)
    # the target of the last input is the last token that is not held out
    assert read.size == 0 or (read.min() >= 0 and read.max() < tokens - 1)


@given(lengths=LENGTHS, context=st.integers(2, 40))
def test_windows_can_be_asked_for_in_any_order(lengths: list[int], context: int) -> None:
    packed = pack_documents(offsets(lengths), tokens=max(2, sum(lengths)), context=context)
    backwards = np.arange(len(packed))[::-1]
    assert np.array_equal(packed.positions(backwards)[::-1], packed.positions(backwards[::-1]))


def test_documents_that_fit_together_stay_whole() -> None:
    # a stream of windows of 10 would cut each but the first
    edges = offsets([7, 6, 3, 4, 10, 25, 5, 1])
    packed = pack_documents(edges, tokens=61, context=10)
    windows = packed.positions(np.arange(len(packed)))
    cut = []
    for begin, end in pairwise(edges):
        places = {int(np.flatnonzero((windows == token).any(axis=1))[0])
                  for token in range(begin, min(end, 60))}  # fmt: skip
        cut.append(len(places) > 1)
    assert cut == [False] * 5 + [True] + [False] * 2


def test_far_fewer_documents_are_cut_than_in_a_stream() -> None:
    rng = np.random.default_rng(0)
    lengths = np.maximum(1, rng.lognormal(4.5, 1.0, 20_000)).astype(np.int64)
    edges = offsets(lengths.tolist())
    packed = pack_documents(edges, tokens=int(edges[-1]), context=512)
    document = np.searchsorted(edges, packed.starts, side="right") - 1
    pieces = np.bincount(document, minlength=len(lengths))
    fits = lengths <= 512
    stream = edges[:-1] // 512 != (edges[1:] - 1) // 512
    assert stream[fits].mean() > 0.2
    assert (pieces[fits] > 1).mean() < 0.002
