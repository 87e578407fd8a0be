"""The order of training windows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llem.training.tokens.order import WindowOrder

SIZES = st.integers(1, 3000)
SEEDS = st.integers(-(2**63), 2**63)


@given(size=SIZES, seed=SEEDS)
def test_an_epoch_visits_every_window_once(size: int, seed: int) -> None:
    assert np.array_equal(np.sort(WindowOrder(size, seed=seed)(np.arange(size))), np.arange(size))


@given(size=SIZES, seed=SEEDS, first=st.integers(0, 10**6), count=st.integers(0, 50))
def test_any_place_can_be_asked_for_alone(size: int, seed: int, first: int, count: int) -> None:
    order = WindowOrder(size, seed=seed)
    together = order(np.arange(first, first + count))
    assert [order(place).item() for place in range(first, first + count)] == together.tolist()


@pytest.mark.parametrize("size", [7, 64, 1000])
def test_every_epoch_has_an_order_of_its_own(size: int) -> None:
    order = WindowOrder(size, seed=3)
    epochs = order(np.arange(3 * size)).reshape(3, size)
    assert (np.sort(epochs, axis=1) == np.arange(size)).all()
    assert not (epochs[0] == epochs[1]).all()
    assert not (epochs[1] == epochs[2]).all()


def test_the_next_seed_is_not_the_next_epoch() -> None:
    places = np.arange(1000)
    assert not np.array_equal(
        WindowOrder(1000, seed=0)(places + 1000), WindowOrder(1000, seed=1)(places)
    )


def test_windows_beyond_32_bits_are_reached() -> None:
    order = WindowOrder(2**40 + 12345, seed=1)
    windows = order(np.arange(10_000))
    assert len(np.unique(windows)) == 10_000
    assert windows.max() > 2**39


def test_the_order_looks_random() -> None:
    """Places and windows are uncorrelated, neighbours are far apart, each half gets its share."""
    size = 100_003
    windows = WindowOrder(size, seed=5)(np.arange(size))
    assert abs(np.corrcoef(np.arange(size), windows)[0, 1]) < 0.02
    assert np.abs(np.diff(windows)).mean() == pytest.approx(size / 3, rel=0.02)
    assert (windows[:10_000] < size / 2).mean() == pytest.approx(0.5, abs=0.03)


def test_small_orders_cover_all_permutations_of_three() -> None:
    seen = {tuple(WindowOrder(3, seed=seed)(np.arange(3)).tolist()) for seed in range(200)}
    assert len(seen) == 6


def test_an_empty_order_is_refused() -> None:
    with pytest.raises(ValueError, match="0 windows"):
        WindowOrder(0, seed=0)
