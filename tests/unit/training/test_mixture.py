"""The turns that the files of a mixture take."""

from __future__ import annotations

from math import gcd

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llem.training.tokens.mixture import MixtureOrder

WEIGHTS = st.lists(st.integers(1, 60), min_size=1, max_size=7).map(
    lambda found: [weight // gcd(*found) for weight in found]
)


@given(weights=WEIGHTS)
def test_in_every_prefix_each_file_is_within_one_window_of_its_weight(weights: list[int]) -> None:
    whole = sum(weights)
    files, _ = MixtureOrder(weights)(np.arange(3 * whole))
    places = np.arange(1, 3 * whole + 1)
    for file, weight in enumerate(weights):
        count = np.cumsum(files == file)
        assert (np.abs(count * whole - places * weight) < whole).all()


@given(weights=WEIGHTS, first=st.integers(0, 10**9), count=st.integers(0, 50))
def test_any_place_can_be_asked_for_alone(weights: list[int], first: int, count: int) -> None:
    order = MixtureOrder(weights)
    files, within = order(np.arange(first, first + count))
    for i, place in enumerate(range(first, first + count)):
        assert [int(found) for found in order(place)] == [files[i], within[i]]


@given(weights=WEIGHTS)
def test_each_file_is_read_in_its_own_order_without_a_gap(weights: list[int]) -> None:
    files, within = MixtureOrder(weights)(np.arange(2 * sum(weights)))
    for file in range(len(weights)):
        own = within[files == file]
        assert np.array_equal(own, np.arange(len(own)))


@pytest.mark.parametrize(("weights", "turns"), [([1], "000"), ([3, 1], "0001" * 2), ([1, 1], "01")])
def test_small_mixtures_take_turns_as_one_would_by_hand(weights: list[int], turns: str) -> None:
    files, _ = MixtureOrder(weights)(np.arange(len(turns)))
    assert "".join(map(str, files)) == turns


def test_the_largest_period_is_made_in_well_under_a_second() -> None:
    files, _ = MixtureOrder([60_000, 5_535, 1])(np.arange(65_536))
    assert np.bincount(files).tolist() == [60_000, 5_535, 1]
