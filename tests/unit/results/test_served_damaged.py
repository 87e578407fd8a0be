"""Damaged records of served models: never fatal, and what is lost is said."""

import math
import random
import time
from itertools import pairwise

import numpy as np
import pytest

from llem.records import Phase, RequestStatus, rank_writer, read_rank
from llem.report.study import study_answer
from llem.results import aggregate
from llem.results.ranks.served import as_training, served_by
from llem.results.ranks.timeline import PHASES, stretches, timeline


def test_files_cut_off_or_overwritten_anywhere_are_told_and_never_fatal(planted, course):
    pick = random.Random(4)
    its = course()
    for i in range(24):
        run = f"run{i:02d}"
        planted.served(run, its)
        folder = planted.attempt(run)
        victim = folder / pick.choice(["rank-00000.h5", f"node-{'n0'}.h5", "end.json"])
        size = victim.stat().st_size
        with victim.open("r+b") as file:
            if i % 3 == 0:
                file.truncate(pick.randrange(size))
            else:
                file.seek(pick.randrange(size))
                file.write(pick.randbytes(64))
    planted.served("whole", its)
    found = aggregate(planted.folder)
    rows = {row.run_id: row for row in found.served}
    assert len(rows) == 25 and rows["whole"].coverage == pytest.approx(1.0)
    whole = rows["whole"].energy_j
    told = " ".join(found.problems)
    for row in found.served:
        # bytes of plain rows have no checksum: a row may differ, what is nonsense may not pass
        if math.isfinite(row.energy_j) and row.coverage == 1.0 and row.run_id not in told:
            assert row.energy_j == pytest.approx(whole, rel=0.6)


def test_a_lost_rank_record_leaves_no_energy_of_a_window_that_nobody_knows(planted, course):
    its = course()
    planted.served(course=its)
    (planted.attempt() / "rank-00000.h5").unlink()
    [row] = aggregate(planted.folder).served
    assert math.isnan(row.energy_j) and "measured window" in row.energy_reason
    assert row.energy_total_j > 0 and "1 of 1 rank records missing" in row.reason


def test_requests_that_failed_count_as_not_done_and_their_tokens_as_none(planted, course):
    its = course(batches=1)
    planted.serving(course=its)
    path = planted.served_rank(course=its)
    record = read_rank(path)
    requests = record.requests.copy()
    requests["status"][0] = RequestStatus.FAILED
    requests["t_first_ns"][0] = requests["t_last_ns"][0] = 0
    path.unlink()
    with rank_writer(path, meta={k: v for k, v in record.meta.items() if k != "closed"}) as writer:
        writer.extend("requests", requests)
        writer.extend("forwards", record.forwards)
        writer.extend("spans", record.spans)
    planted.node(power_w=its.power_w, to_s=its.end_s + 1)
    planted.end(window_s=(0.0, its.end_s))
    [row] = aggregate(planted.folder).served
    assert (row.requests, row.requests_done) == (4, 3)
    assert row.tokens_out == 3 * its.tokens_out
    assert "1 of 4 requests not done" in row.reason
    assert row.coverage == pytest.approx(0.75)
    told = study_answer([vars(row)], [])
    assert "warning: 1 of 1 runs: requests failed, and figures are of those that did not" in told


def test_ranks_that_split_one_model_count_its_tokens_once(planted, course):
    its = course()
    planted.serving(course=its, per_node=2)
    for rank in range(2):
        planted.served_rank(course=its, rank=rank, world=2, requests=rank == 0,
                            device_uuid=f"GPU-{rank}")  # fmt: skip
    planted.node(devices=["GPU-0", "GPU-1"], power_w=its.power_w, to_s=its.end_s + 1)
    planted.end(window_s=(0.0, its.end_s), ranks=2)
    [row] = aggregate(planted.folder).served
    assert row.tokens_out == its.requests * its.tokens_out and row.replicas == 1
    assert row.energy_j == pytest.approx(2 * its.joules("prefill", "decode", "serve", "idle"))
    assert row.prefill_j == pytest.approx(2 * its.joules("prefill"))
    assert row.wait_energy_j == pytest.approx(0.0, abs=1e-6)


def replicas(planted, courses, *, devices=("GPU-0", "GPU-1")):
    """Two replicas of one rank each, in courses of their own on these devices."""
    planted.serving(course=courses[0], per_node=2)
    for rank, its in enumerate(courses):
        planted.served_rank(course=its, rank=rank, world=2, replica=rank, replicas=2,
                            device_uuid=devices[rank])  # fmt: skip
    end_s = max(its.end_s for its in courses)
    power = dict(zip(devices, (its.power_w for its in courses), strict=True))
    planted.node(devices=sorted(set(devices)), power_w=lambda uuid, s: power[uuid](uuid, s),
                 to_s=end_s + 1)  # fmt: skip
    planted.end(window_s=(0.0, end_s), ranks=2)
    [row] = aggregate(planted.folder).served
    return row


def test_the_energy_of_replicas_is_divided_by_the_passes_of_each_on_its_own_device(planted, course):
    one, other = course(), course(prefill_s=0.8, decode_s=0.1)
    row = replicas(planted, (one, other))
    assert row.replicas == 2 and row.tokens_out == one.requests * one.tokens_out * 2
    for name, phase in (("prefill_j", "prefill"), ("decode_j", "decode"), ("host_j", "serve")):
        planted_j = one.joules(phase) + other.joules(phase)
        assert getattr(row, name) == pytest.approx(planted_j), name
    assert row.prefill_s == pytest.approx(one.batches * (0.4 + 0.8))
    assert row.split_reason == ""


def test_replicas_on_one_device_are_told_together_without_a_split(planted, course):
    row = replicas(planted, (course(), course()), devices=("GPU-0", "GPU-0"))
    assert row.replicas == 2
    assert math.isnan(row.prefill_j)
    assert "2 replicas share what was measured" in row.split_reason


@pytest.mark.parametrize("seed", range(20))
def test_every_moment_of_a_served_rank_is_in_exactly_one_phase(tmp_path, seed):
    pick = np.random.default_rng(seed)
    path = tmp_path / "rank-00000.h5"
    now = 1_000_000
    with rank_writer(path, meta={"run_id": "a", "rank": 0, "workload": "inference"}) as writer:
        begin = now
        for batch in range(int(pick.integers(0, 6))):
            now += int(pick.integers(0, 50))
            arrival = now - int(pick.integers(0, 100))
            start = now
            for k in range(int(pick.integers(1, 5))):
                t0, now = now + int(pick.integers(0, 5)), now + 5 + int(pick.integers(1, 20))
                phase = Phase.WARMUP if batch == 0 else Phase.PREFILL if k == 0 else Phase.DECODE
                writer.append("forwards", (k, batch - 1, t0, now, 1, 1, 1, 1, math.nan, math.nan,
                                           int(phase), 1, 1))  # fmt: skip
            if batch:
                writer.append("requests", (batch, 0, batch - 1, 1, 2, arrival, start, start + 1,
                                           now, 0))  # fmt: skip
        if pick.random() < 0.7:
            half = (begin + now) // 2
            writer.append("spans", (0, begin, half, math.nan, math.nan, int(Phase.WARMUP)))
            writer.append("spans", (0, half, now + 9, math.nan, math.nan, int(Phase.SERVE)))
    record = read_rank(path)
    served_by(record)
    changed = as_training(record)
    line = timeline(changed.steps, changed.spans)
    parts = stretches(line, (begin - 10, now + 20))
    assert parts[0].t0_ns == begin - 10 and parts[-1].t1_ns == now + 20
    for one, after in pairwise(parts):
        assert one.t1_ns == after.t0_ns and one.t1_ns > one.t0_ns
        assert one.phase in PHASES


@pytest.mark.slow
def test_half_a_million_forward_passes_are_reduced_in_seconds(tmp_path):
    path = tmp_path / "rank-00000.h5"
    count, batch = 500_000, 20
    with rank_writer(path, meta={"run_id": "a", "rank": 0, "workload": "inference"}) as writer:
        from llem.records import FORWARDS, REQUESTS

        forwards = np.zeros(count, FORWARDS)
        forwards["forward"] = np.arange(count)
        forwards["batch"] = np.arange(count) // batch
        forwards["t0_ns"] = 1000 * np.arange(count)
        forwards["t1_ns"] = forwards["t0_ns"] + 900
        forwards["tokens_out"] = forwards["live"] = 1
        forwards["phase"] = np.where(np.arange(count) % batch, Phase.DECODE, Phase.PREFILL)
        requests = np.zeros(count // batch, REQUESTS)
        requests["request"] = requests["batch"] = np.arange(len(requests))
        requests["tokens_out"] = batch
        requests["t_arrival_ns"] = 1000 * batch * np.arange(len(requests))
        requests["t_first_ns"] = requests["t_arrival_ns"] + 900
        requests["t_last_ns"] = requests["t_arrival_ns"] + 1000 * batch - 100
        writer.extend("forwards", forwards)
        writer.extend("requests", requests)
    record = read_rank(path)
    began = time.process_time()
    served = served_by(record)
    changed = as_training(record)
    assert time.process_time() - began < 5
    assert served.tokens_out == count and not served.reasons
    assert len(changed.steps) == count
