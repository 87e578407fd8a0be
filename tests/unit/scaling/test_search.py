"""Minima and roots of many functions at once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, minimize_scalar

from llem.scaling.answers.search import argmin, root


def valleys(x: np.ndarray, at: np.ndarray, skew: float = 0.3) -> np.ndarray:
    """Loss-like: flat far away on one side, steep on the other, least at `at`."""
    return 2.0 + np.exp(-skew * (x - at)) / skew + np.exp(x - at)


def test_every_problem_gets_its_own_minimum() -> None:
    at = np.linspace(0.5, 39.0, 1000)
    found = argmin(lambda x: valleys(x, at), 0.0, 40.0, shape=at.shape)
    assert found == pytest.approx(at, abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(skew=st.floats(0.02, 5.0), at=st.floats(1.0, 30.0), bend=st.floats(0.1, 3.0))
def test_the_minimum_is_that_of_scipy(skew: float, at: float, bend: float) -> None:
    def function(x: np.ndarray) -> np.ndarray:
        return np.exp(-skew * (x - at)) + np.exp(bend * (x - at))

    expected = minimize_scalar(
        lambda x: float(np.log(function(np.array(x)))), bounds=(0, 40), method="bounded",
        options={"xatol": 1e-10},
    ).x  # fmt: skip
    found = argmin(function, 0.0, 40.0, shape=())
    assert float(found) == pytest.approx(expected, abs=1e-5)


def test_guesses_lead_to_the_same_minimum_wherever_they_are() -> None:
    at = np.linspace(0.5, 39.0, 200)
    for off in (0.0, 0.3, -2.0, 30.0):
        near = np.clip(at + off, 0, 40)
        found = argmin(lambda x: valleys(x, at), 0.0, 40.0, shape=at.shape, near=near)
        assert found == pytest.approx(at, abs=1e-6)


def test_of_two_valleys_the_lower_is_found() -> None:
    def function(x: np.ndarray) -> np.ndarray:
        return np.minimum((x - 5.0) ** 2 + 1.0, (x - 30.0) ** 2)

    assert float(argmin(function, 0.0, 40.0, shape=())) == pytest.approx(30.0, abs=1e-6)


def test_a_kink_and_an_edge_are_minima_too() -> None:
    at = np.linspace(0.5, 39.0, 500)
    kinks = argmin(lambda x: np.abs(x - at), 0.0, 40.0, shape=at.shape)
    assert kinks == pytest.approx(at, abs=2e-5)
    assert float(argmin(lambda x: x, 0.0, 40.0, shape=())) == pytest.approx(0.0, abs=1e-6)
    assert float(argmin(lambda x: -x, 0.0, 40.0, shape=())) == pytest.approx(40.0, abs=1e-6)


def test_places_without_a_value_are_passed_over() -> None:
    def function(x: np.ndarray) -> np.ndarray:
        return np.where(x < 12.0, np.nan, np.where(x > 25.0, np.inf, (x - 13.0) ** 2))

    assert float(argmin(function, 0.0, 40.0, shape=())) == pytest.approx(13.0, abs=1e-6)
    assert np.isnan(argmin(lambda x: x * np.nan, 0.0, 40.0, shape=()))


def test_no_problems_are_no_work() -> None:
    assert argmin(lambda x: x, 0.0, 1.0, shape=(0,)).shape == (0,)
    assert root(lambda x: x, 0.0, 1.0, shape=(0,)).shape == (0,)


@settings(max_examples=60, deadline=None)
@given(rate=st.floats(0.05, 5.0), at=st.floats(0.0, 40.0), mix=st.floats(0.0, 1.0))
def test_the_root_is_that_of_scipy(rate: float, at: float, mix: float) -> None:
    def function(x: float) -> float:
        return float(mix * (np.exp(rate * (x - at)) - 1.0) + (x - at))

    expected = brentq(function, -1.0, 41.0, xtol=1e-13)
    found = root(np.vectorize(function), -1.0, 41.0, shape=())
    assert float(found) == pytest.approx(expected, abs=1e-9)


def test_a_root_that_is_not_between_the_ends_is_nan_for_that_problem_alone() -> None:
    at = np.array([1.0, 5.0, 20.0, np.nan])
    found = root(lambda x: x - at, 0.0, 10.0, shape=at.shape)
    assert found[:2] == pytest.approx([1.0, 5.0])
    assert np.isnan(found[2:]).all()
