"""Axes have round ticks, and whatever is written into a picture stays well formed."""

import math
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llem.report import svg
from llem.report.svg import Axis, log_ticks, plain_ticks, time_ticks


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (9e3, 3e5, [1e4, 2e4, 5e4, 1e5, 2e5]),
        (9e6, 2e9, [1e7, 3e7, 1e8, 3e8, 1e9]),
        (1e5, 1e10, [1e5, 1e6, 1e7, 1e8, 1e9, 1e10]),
        (1e0, 1e12, [1e0, 1e2, 1e4, 1e6, 1e8, 1e10, 1e12]),
        (11, 24, [12, 14, 16, 18, 20, 22, 24]),
    ],
)
def test_ticks_of_a_logarithmic_axis(low, high, ticks):
    assert log_ticks(low, high) == pytest.approx(ticks)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 69, [0, 20, 40, 60]),
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 0.003, [0, 0.001, 0.002, 0.003]),
    ],
)
def test_ticks_of_a_plain_axis(low, high, ticks):
    assert plain_ticks(low, high, 6) == pytest.approx(ticks)


@pytest.mark.parametrize(
    ("end_s", "ticks"),
    [
        (110, [0, 30, 60, 90]),
        (62640, [0, 10800, 21600, 32400, 43200, 54000]),
        (14.1e6, [0, 50 * 86400, 100 * 86400, 150 * 86400]),
        (0.5, [0, 0.1, 0.2, 0.3, 0.4, 0.5]),
    ],
)
def test_ticks_of_time(end_s, ticks):
    assert time_ticks(end_s) == pytest.approx(ticks)


@given(st.floats(-12, 25), st.floats(0.05, 30))
def test_a_logarithmic_axis_always_has_a_few_ticks_within(low, decades):
    ends = 10.0**low, 10.0 ** (low + decades)
    ticks = log_ticks(*ends, 8)
    assert 2 <= len(ticks) <= 8
    assert ticks == sorted(set(ticks))
    assert all(ends[0] * (1 - 1e-6) <= t <= ends[1] * (1 + 1e-6) for t in ticks)


@given(st.floats(1e-3, 1e11))
def test_an_axis_of_time_always_has_two_ticks_and_no_crowd(end_s):
    ticks = time_ticks(end_s)
    assert 2 <= len(ticks) <= 7
    assert ticks[0] == 0 and ticks[-1] <= end_s * (1 + 1e-9)


def test_an_axis_puts_its_ends_where_it_is_told():
    axis = Axis(10, 1000, 50, 250, log=True)
    assert [axis.at(v) for v in (10, 100, 1000)] == pytest.approx([50, 150, 250])
    assert axis.holds(10) and not axis.holds(9.9)
    upward = Axis(0, 4, 200, 0)
    assert upward.at(1) == 150


@given(st.text(), st.floats(-1e4, 1e4))
def test_any_text_makes_well_formed_xml(words, value):
    parts = [
        svg.text((value, 1), words, words, turn=value),
        svg.dot((1, value), 2, words, told=words),
        svg.bar(0, 1, value, 2, words, told=words),
        svg.area([(0, 1), (2, value)], 3, words, told=words),
        svg.line((0, value), (1, 1), words),
        svg.polyline([(0, 1), (value, 3)], words),
    ]
    root = ElementTree.fromstring(svg.picture(100, 50, parts, told=words))
    assert len(root) == len(parts)
    assert not [e for e in root.iter() if e.tag.endswith("script")]


@given(st.floats(-1e5, 1e5))
def test_pixels_keep_a_tenth(value):
    text = svg.pixels(value)
    assert math.isclose(float(text), value, abs_tol=0.051)
    assert "e" not in text and text != "-0"
