"""Stamps, spans and clocks: what ranks record beside the numbers of their steps."""

from __future__ import annotations

import math
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from llem.records import Phase, read_rank
from llem.training import clocks


class Meter:
    """A counter of 100 W (mJ in ns), by the clock that the records use."""

    uuid = "GPU-7"
    reason = ""

    def __init__(self, until: int = 10**9) -> None:
        self.left = until

    def read(self) -> float:
        import time

        self.left -= 1
        if self.left < 0:
            self.reason = "GPU-7: no stamps: the driver went away"
            return math.nan
        return time.monotonic_ns() / 1e4


def test_steps_and_spans_are_stamped_at_their_ends(tmp_path, make_run, train_alone):
    run = make_run(steps=12, checkpoint_steps=5)
    assert train_alone(run, counter=Meter()).status == "completed"
    record = read_rank(tmp_path / "attempt-0" / "rank-00000.h5")
    assert record.meta["device_uuid"] == "GPU-7"
    for table in (record.steps, record.spans):
        assert (table["t1_ns"] >= table["t0_ns"]).all()
        for end in "01":
            # read right after the clock: within a millisecond of 100 W
            off_mj = table[f"e{end}_mj"] - table[f"t{end}_ns"] / 1e4
            assert np.all((off_mj >= 0) & (np.median(off_mj) < 100))
    spans = [(int(s["step"]), Phase(int(s["phase"]))) for s in record.spans]
    assert spans == [(5, Phase.CHECKPOINT), (10, Phase.CHECKPOINT), (12, Phase.EVALUATION)]
    # no step contains what a span does
    for span in record.spans:
        inside = (record.steps["t0_ns"] < span["t1_ns"]) & (record.steps["t1_ns"] > span["t0_ns"])
        assert not inside.any()


def test_a_counter_that_ends_is_told_and_the_training_goes_on(tmp_path, make_run, train_alone):
    assert train_alone(make_run(steps=8), counter=Meter(until=6)).status == "completed"
    record = read_rank(tmp_path / "attempt-0" / "rank-00000.h5")
    assert np.isfinite(record.steps["e1_mj"]).tolist() == [True] * 3 + [False] * 5
    told = [e["text"].decode() for e in record.events if e["code"] == b"stamps"]
    assert told == ["the energy counter of GPU-7", "GPU-7: no stamps: the driver went away"]


class TwoHosts:
    """Two ranks in threads, each pretending to be a machine of its own."""

    def __init__(self) -> None:
        self.barrier = threading.Barrier(2)
        self.told: dict[str, object] = {}

    def world(self, rank: int) -> SimpleNamespace:
        def gather_text(text):
            self.told[f"text-{rank}"] = f"boot-{rank}"
            self.barrier.wait()
            found = [self.told["text-0"], self.told["text-1"]]
            self.barrier.wait()
            return found

        def first(function):
            if rank == 0:
                self.told["first"] = function()
            self.barrier.wait()
            return self.told["first"]

        return SimpleNamespace(rank=rank, main=rank == 0, gather_text=gather_text, first=first)


@pytest.fixture
def two_hosts(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    hosts = TwoHosts()
    found = {}

    def compare():
        threads = [
            threading.Thread(
                target=lambda r=rank: found.update({r: clocks.compare_clocks(hosts.world(r))})
            )
            for rank in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        return found

    return compare


def test_a_node_s_clock_is_compared_with_rank_0_s(two_hosts):
    found = two_hosts()
    assert math.isnan(found[0].offset_ns) and found[0].reason == ""
    # one machine after all: its clock is its own to within the round trip
    assert abs(found[1].offset_ns) <= found[1].rtt_ns < 1e9


def test_a_network_that_does_not_answer_is_a_reason(two_hosts, monkeypatch):
    monkeypatch.setattr(clocks.socket, "create_server", _refuse)
    found = two_hosts()
    assert math.isnan(found[1].offset_ns) and "127.0.0.1:0" in found[1].reason


def _refuse(*_args, **_more):
    raise OSError("no port is free")
