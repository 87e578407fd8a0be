"""Devices that were slowed or held at their power limit: seconds, by the devices' own word."""

import math

import pytest

from llem.results import aggregate

HEAT, SUPPLY, LIMIT, IDLE = 0x20, 0x80, 0x4, 0x1


def served(planted, course, throttle, **node):
    planted.serving(course=course)
    planted.served_rank(course=course)
    planted.node(power_w=course.power_w, to_s=course.end_s + 1, throttle=throttle, **node)
    planted.end(window_s=(0.0, course.end_s + 0.5))
    found = aggregate(planted.folder)
    [row], [device] = found.served, found.devices
    return row, device


def between(t0, t1, reason):
    """A sample's word is of the time before it."""
    return lambda s: reason if t0 < s - 1e-6 and s - 1e-6 <= t1 else IDLE


def test_seconds_of_the_window_are_told_apart_from_those_of_the_attempt(planted, course):
    its = course()
    assert its.begin_s == 3.0
    row, device = served(planted, its, between(1.0, 4.5, HEAT))
    assert row.slowed_s == pytest.approx(1.5, abs=0.11)
    assert device.slowed_s == pytest.approx(3.5, abs=0.11)
    assert row.capped_s == device.capped_s == 0


def test_reasons_are_told_apart_and_may_come_together(planted, course):
    its = course()
    row, _ = served(planted, its, between(3.5, 4.5, SUPPLY | LIMIT))
    assert row.slowed_s == row.capped_s == pytest.approx(1.0, abs=0.11)


def test_a_device_that_nothing_slowed_says_zero_and_one_that_does_not_tell_says_nothing(
    planted, course, plant, tmp_path
):
    row, device = served(planted, course(), lambda _s: IDLE)
    assert row.slowed_s == row.capped_s == device.slowed_s == 0
    other = plant(tmp_path / "other")
    row, device = served(other, course(), lambda _s: 0, attrs={"domain": "package"})
    assert math.isnan(row.slowed_s) and math.isnan(device.capped_s)


def test_a_training_has_them_by_device(planted):
    planted.run()
    planted.rank()
    planted.node(throttle=between(3.0, 5.0, LIMIT))
    planted.end()
    [device] = aggregate(planted.folder).devices
    assert device.capped_s == pytest.approx(2.0, abs=0.11) and device.slowed_s == 0


def test_the_cache_keeps_them(planted, course, tmp_path):
    its = course()
    served(planted, its, between(3.5, 4.5, HEAT))
    import os
    import time

    for path in planted.folder.rglob("*"):
        os.utime(path, (time.time() - 60,) * 2)
    cache = tmp_path / "reductions.cache"
    first = aggregate(planted.folder, cache=cache)
    again = aggregate(planted.folder, cache=cache)
    assert cache.stat().st_size > 100
    assert again.served[0].slowed_s == first.served[0].slowed_s > 0
