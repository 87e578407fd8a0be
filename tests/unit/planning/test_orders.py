"""Orders of cycles on a node: each a permutation, and what each of them balances."""

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llem.planning.study.orders import ordered, williams

ORDERS = ("sequential", "interleaved", "shuffled", "reverse", "latin-square")
sizes = st.integers(1, 12)


@given(order=st.sampled_from(ORDERS), deployments=sizes, cycles=sizes, seed=st.integers(0, 99))
def test_every_cycle_of_every_deployment_runs_once(order, deployments, cycles, seed):
    found = ordered(order, deployments, cycles, seed=seed)

    assert sorted(found) == [(d, c) for d in range(deployments) for c in range(cycles)]


@given(order=st.sampled_from(ORDERS[1:]), deployments=sizes, cycles=sizes)
def test_but_for_sequential_each_cycle_holds_every_deployment(order, deployments, cycles):
    found = ordered(order, deployments, cycles)

    assert [c for _, c in found] == [c for c in range(cycles) for _ in range(deployments)]


def test_sequential_ends_with_one_deployment_before_the_next():
    assert ordered("sequential", 2, 3) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]


def test_interleaved_goes_round():
    assert ordered("interleaved", 3, 2) == [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1)]


@given(deployments=sizes, pairs=st.integers(1, 4))
def test_reverse_gives_every_deployment_the_same_mean_place(deployments, pairs):
    """A drift that is linear in time then adds the same to each."""
    found = ordered("reverse", deployments, 2 * pairs)

    places = Counter()
    for place, (deployment, _) in enumerate(found):
        places[deployment] += place
    assert len(set(places.values())) == 1


def test_shuffled_is_another_order_in_each_cycle_and_by_another_seed():
    found = ordered("shuffled", 8, 2, seed=1)
    rows = [[d for d, c in found if c == cycle] for cycle in range(2)]

    assert rows[0] != rows[1]
    assert found == ordered("shuffled", 8, 2, seed=1)
    assert found != ordered("shuffled", 8, 2, seed=2)


@given(size=st.integers(1, 15))
def test_a_square_has_each_deployment_once_in_each_row_and_equally_often_in_each_place(size):
    square = williams(size)

    assert all(sorted(row) == list(range(size)) for row in square)
    for column in zip(*square, strict=True):
        assert set(Counter(column).values()) == {len(square) // size}


@given(size=st.integers(2, 15))
def test_in_a_square_each_deployment_follows_each_other_equally_often(size):
    square = williams(size)

    follows = Counter(pair for row in square for pair in pairwise(row))
    assert len(follows) == size * (size - 1)
    assert set(follows.values()) == {len(square) // size}


@given(size=st.integers(2, 9))
def test_as_many_cycles_as_rows_run_the_whole_square(size):
    rows = len(williams(size))
    found = ordered("latin-square", size, rows)

    places = Counter((d, place % size) for place, (d, _) in enumerate(found))
    assert set(places.values()) == {rows // size}


def test_an_order_that_nobody_knows_is_refused():
    with pytest.raises(ValueError, match="no order"):
        ordered("alphabetical", 2, 2)
