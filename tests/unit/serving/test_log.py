"""What is told between passes of a batch, and what the record has of it."""

import itertools
import time
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed")

from llem.records import FORWARDS, Phase
from llem.serving.log import ASK_NS, Log


class Kept:
    """A record of the test: forward passes in memory."""

    def __init__(self):
        self.blocks = []
        self.flushed = 0

    def append_rows(self, table, rows):
        assert table == "forwards" and rows.dtype == FORWARDS
        self.blocks.append(rows)

    def flush(self):
        self.flushed += 1

    @property
    def rows(self):
        return np.concatenate(self.blocks)


class Ticks:
    """A counter that counts a millijoule a reading."""

    uuid, reason = "GPU-test", ""

    def __init__(self):
        self._values = itertools.count()

    def read(self):
        return float(next(self._values))


def of_batch(live):
    def counts(steps):
        return {
            "phase": np.where(steps, Phase.DECODE, Phase.PREFILL), "tokens_in": live,
            "tokens_out": live, "context": 10 + live * steps, "live": live, "attended": 1,
        }  # fmt: skip

    return counts


def open_passes(log, *, live=3, first=0, began=None, asks=True):
    return log.passes(
        began or log.now(), batch=0, sequences=3, first=first, counts=of_batch(live), asks=asks
    )


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves by a fiftieth of what lies between two questions each time it is read."""
    moments = itertools.count(10**15, ASK_NS // 50)
    fake = SimpleNamespace(**{**vars(time), "monotonic_ns": lambda: next(moments)})
    monkeypatch.setattr("llem.serving.log.time", fake)
    return fake.monotonic_ns


def test_passes_are_recorded_in_their_order_each_from_the_end_of_the_one_before_it(clock):
    kept = Kept()
    log = Log(kept, counter=Ticks())
    ended = open_passes(log)
    for _ in range(4):
        assert not ended()
    ended = open_passes(log, live=2, first=4, began=log.last)
    ended()
    # The first is told of at once, the others a second later.
    assert len(kept.rows) == 1
    log.hand_over()
    rows = kept.rows
    assert rows["forward"].tolist() == [0, 1, 2, 3, 4] and log.forwards == 5
    assert rows["phase"].tolist() == [Phase.PREFILL] + [Phase.DECODE] * 4
    assert rows["context"].tolist() == [10, 13, 16, 19, 18]
    assert (rows["t0_ns"][1:] == rows["t1_ns"][:-1]).all() and (np.diff(rows["t1_ns"]) > 0).all()
    assert (rows["e1_mj"] - rows["e0_mj"] == 1).all()
    assert log.tokens_out == rows["tokens_out"].sum() == 14


def test_what_was_handed_over_is_not_again_and_the_passes_go_on():
    kept = Kept()
    log = Log(kept, counter=Ticks())
    ended = open_passes(log)
    ended()
    log.hand_over()
    log.hand_over()
    assert len(kept.blocks) == 1
    ended()
    log.hand_over()
    assert kept.rows["forward"].tolist() == [0, 1]
    assert kept.rows["context"].tolist() == [10, 13]
    assert kept.rows["t0_ns"][1] == kept.rows["t1_ns"][0] and log.last[0] == kept.rows["t1_ns"][1]


def test_passes_are_handed_over_as_often_as_progress_is_told(monkeypatch):
    monkeypatch.setattr("llem.serving.log.PROGRESS_INTERVAL_S", 0.0)
    monkeypatch.setattr("llem.serving.log.ASK_NS", 0)
    kept, told = Kept(), []
    log = Log(kept, counter=Ticks(), told=told.append)
    ended = open_passes(log)
    ended()
    ended()
    assert len(kept.rows) == 2 and [progress.tokens for progress in told] == [3, 6]


def test_who_waits_for_requests_has_what_was_recorded_on_disk(monkeypatch):
    monkeypatch.setattr("llem.serving.log.PROGRESS_INTERVAL_S", 1e-9)
    kept = Kept()
    log = Log(kept, counter=Ticks())
    open_passes(log)()
    log.wait_until(0.0)
    assert len(kept.rows) == 1 and kept.flushed == 1


@pytest.mark.parametrize("asks", [True, False])
def test_whether_to_leave_is_asked_at_each_pass_where_it_is_this_rank_that_decides(
    asks, monkeypatch
):
    monkeypatch.setattr("llem.serving.log.ASK_NS", 0)
    reasons = iter([None, "now", "later"])
    log = Log(Kept(), counter=Ticks(), should_stop=lambda: next(reasons))
    ended = open_passes(log, asks=asks)
    assert [ended() for _ in range(3)] == [False, asks, asks]
    assert log.stop_reason == ("now" if asks else None)


def test_short_passes_do_not_ask_each_time(clock):
    asked = []
    log = Log(Kept(), counter=Ticks(), should_stop=lambda: asked.append(1))
    ended = open_passes(log)
    begun = clock()
    count = 0
    while clock() - begun < 3 * ASK_NS:
        ended()
        count += 1
    assert 3 <= len(asked) <= 4 < count


def test_a_counter_that_is_read_no_more_costs_nothing_and_stamps_nothing():
    kept, counter = Kept(), Ticks()
    log = Log(kept, counter=counter)
    open_passes(log)()
    counter.reason = "50 us a reading are too much here"
    before = counter.read()
    ended = open_passes(log, first=1, began=log.last)
    ended()
    ended()
    log.hand_over()
    assert counter.read() == before + 1
    assert np.isnan(kept.rows["e1_mj"]).tolist() == [False, True, True]
    assert kept.rows["context"].tolist() == [10, 13, 16]


def test_passes_of_the_warm_up_have_its_phase():
    kept = Kept()
    log = Log(kept, counter=Ticks(), warmup=True)
    open_passes(log)()
    log.hand_over()
    assert kept.rows["phase"].tolist() == [Phase.WARMUP]
