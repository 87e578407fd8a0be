"""Quantities as users write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llem.campaign import (
    Budget,
    parse_budget,
    parse_bytes,
    parse_count,
    parse_duration,
    parse_interval,
    slurm_time,
)


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("1e20", 1e20, "FLOP"),
        (1e20, 1e20, "FLOP"),
        ("3 EFLOP", 3e18, "FLOP"),
        ("1e17FLOP", 1e17, "FLOP"),
        ("500 GPUh", 500, "GPUh"),
        ("2.5 gpu-hours", 2.5, "GPUh"),
        ("12 node-h", 12, "node-h"),
        ("2 MWh", 2000, "kWh"),
        ("3.6 MJ", 1, "kWh"),
        ("1_000 EUR", 1000, "EUR"),
        ("10 $", 10, "USD"),
        ("€200", 200, "EUR"),
        ("10 GPU hours", 10, "GPUh"),
        ("5,000 EUR", 5000, "EUR"),
        ("1,234,567.5 GPUh", 1234567.5, "GPUh"),
    ],
)
def test_a_budget_is_read_in_every_unit(text, value, unit):
    budget = parse_budget(text)
    assert budget.unit == unit
    assert budget.value == pytest.approx(value)


NO_BUDGETS = ["", "x", "3 parsec", "-1 GPUh", "0", "1e400", "nan", True, None]
NO_THOUSANDS = ["1,5 EUR", "1,000,5 EUR", "1,0000 EUR", "3 E FLOP", "$5 EUR"]


@pytest.mark.parametrize("text", [*NO_BUDGETS, *NO_THOUSANDS])
def test_what_is_no_budget_is_refused(text):
    with pytest.raises(ValueError, match=r"expected|positive"):
        parse_budget(text)


@given(st.floats(1e-6, 1e30), st.sampled_from(["FLOP", "GPUh", "node-h", "kWh", "EUR"]))
def test_a_budget_written_with_all_digits_reads_back_the_same(value, unit):
    assert parse_budget(f"{value!r} {unit}") == Budget(value, unit)


@pytest.mark.parametrize(
    ("text", "count"), [("10M", 10_000_000), ("32_000", 32000), ("1.5e6", 1_500_000), (7, 7)]
)
def test_counts(text, count):
    assert parse_count(text) == count


@pytest.mark.parametrize("text", ["1.5", "-3", "ten", True, "1e400"])
def test_what_is_no_count_is_refused(text):
    with pytest.raises(ValueError, match=r"expected|whole|below 0"):
        parse_count(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        (90, 90),
        ("45m", 2700),
        ("24h", 86400),
        ("1:30:00", 5400),
        ("2-00:00:10", 172810),
    ],
)
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "seconds"), [(0.1, 0.1), ("0.1 s", 0.1), ("100 ms", 0.1), ("2", 2.0), ("20ms", 0.02)]
)
def test_intervals_below_a_second(text, seconds):
    assert parse_interval(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["10 Hz", "", True, "1 m"])
def test_what_is_no_interval_is_refused(text):
    with pytest.raises(ValueError, match="expected an interval"):
        parse_interval(text)


@given(st.integers(1, 10**8))
def test_a_slurm_time_reads_back_as_the_same_seconds(seconds):
    assert parse_duration(slurm_time(seconds)) == seconds


@pytest.mark.parametrize(
    ("text", "size"), [("80 GiB", 80 * 2**30), ("80GB", 80 * 10**9), ("512", 512), ("1.5k", 1500)]
)
def test_bytes(text, size):
    assert parse_bytes(text) == size
