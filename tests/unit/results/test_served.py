"""Runs of served models, reduced to rows: planted by the real writers, their truth is known."""

import json
import math

import numpy as np
import pytest

from llem.records import Phase, rank_writer
from llem.records.schema import REQUESTS, TOKENS
from llem.results import aggregate
from llem.results.ranks.pool import Pool, pooled
from llem.results.ranks.served import passes_by_tokens


def the_row(folder, **options):
    found = aggregate(folder, **options)
    [row] = found.served
    return row, found


def test_energy_of_the_measured_window_is_divided_among_what_was_done(planted, course):
    its = course(idle_s=0.5)
    planted.served(course=its)
    row, found = the_row(planted.folder)
    assert row.status == "completed" and not row.reason and not found.problems
    assert row.prefill_j == pytest.approx(its.joules("prefill"))
    assert row.decode_j == pytest.approx(its.joules("decode"))
    assert row.host_j == pytest.approx(its.joules("serve"))
    assert row.idle_j == pytest.approx(its.joules("idle"))
    measured = its.joules("prefill", "decode", "serve", "idle")
    assert row.energy_j == pytest.approx(measured)
    assert row.energy_total_j == pytest.approx(
        measured + its.joules("load", "warmup", "settle") + 0.5 * 50
    )
    seconds = its.end_s - its.begin_s
    assert row.duration_s == pytest.approx(seconds)
    assert row.energy_net_j == pytest.approx(measured - 50 * seconds)


def test_tokens_requests_and_times_are_those_that_were_planted(planted, course):
    its = course()
    planted.served(course=its)
    row, _ = the_row(planted.folder, peak_flops_per_gpu=1e6)
    n = its.requests
    assert (row.requests, row.requests_done, row.expected_requests) == (n, n, n)
    assert (row.tokens_in, row.tokens_out) == (n * its.tokens_in, n * its.tokens_out)
    assert row.ttft_p50_s == row.ttft_p99_s == pytest.approx(its.host_s + its.prefill_s)
    assert row.itl_p50_s == row.itl_p99_s == pytest.approx(its.decode_s)
    assert row.latency_p90_s == pytest.approx(its.of_batch_s - its.host_s)
    span_s = its.end_s - its.begin_s - its.host_s
    assert row.tokens_per_s == pytest.approx(n * its.tokens_out / span_s)
    assert row.requests_per_s == pytest.approx(n / span_s)
    assert row.batch_mean == its.batch
    assert row.coverage == pytest.approx(1.0)
    assert row.j_per_token == pytest.approx(row.energy_j / row.tokens_out)
    assert row.decode_j_per_token == pytest.approx(row.decode_j / (row.tokens_out - n))
    assert (row.peak_memory_bytes, row.peak_memory_window_bytes, row.load_s) == (3e9, 2e9, 1.0)
    assert row.settings["options.batch_size"] == 4
    assert row.settings["effective.precision"] == "fp32"
    # each token reads itself once, and attends to all before it and to itself
    tokens = its.tokens_in + its.tokens_out - 1
    pairs = sum(range(1, tokens + 1))
    flops = n * (tokens * 8000.0 + pairs * 4 * 2 * 4 * 8)
    assert row.flops == pytest.approx(flops)
    assert row.mfu == pytest.approx(flops / (span_s * 1e6))


def test_while_others_wait_nothing_is_idle_and_all_parts_add_up(planted, course):
    its = course(at_once=True)
    planted.served(course=its)
    row, _ = the_row(planted.folder)
    assert row.idle_j == pytest.approx(its.host_s * its.watts["idle"])  # after the last answer
    assert row.host_j == pytest.approx(its.joules("serve"))
    waited = [its.begins(b) - its.begin_s + its.host_s + its.prefill_s for b in range(its.batches)]
    assert row.ttft_p90_s == pytest.approx(np.percentile(np.repeat(waited, its.batch), 90))
    parts = row.prefill_j + row.decode_j + row.host_j + row.idle_j
    assert parts == pytest.approx(row.energy_j)


def test_phases_of_a_counter_slower_than_they_are_said_to_be_divided_by_time(planted, course):
    slow = course(prefill_s=0.4, decode_s=0.2)
    planted.served("slow", slow)
    planted.served("fast", course(prefill_s=0.04, decode_s=0.01, host_s=0.01))
    rows = {row.run_id: row for row in aggregate(planted.folder).served}
    assert rows["slow"].split_reason == ""
    assert "40 ms at a time" in rows["fast"].split_reason
    # the window as a whole is exact all the same
    assert rows["fast"].energy_j == pytest.approx(
        sum(getattr(rows["fast"], f"{p}_j") for p in ("prefill", "decode", "host", "idle"))
    )


def test_a_window_that_was_never_ended_is_told_from_its_requests(planted, course):
    its = course()
    planted.serving(course=its)
    planted.served_rank(course=its, spans=False, batches=2)
    planted.node(power_w=its.power_w, to_s=its.end_s)
    row, _ = the_row(planted.folder)
    assert row.status == "unfinished"
    assert "12 expected" in row.reason and "no end record" in row.reason
    assert row.tokens_out == 2 * its.batch * its.tokens_out
    assert row.coverage == pytest.approx(2 / 3)


def test_attempts_that_failed_are_in_the_total_and_not_in_joules_per_token(planted, course):
    its = course()
    planted.serving(course=its)
    planted.served_rank(course=its, batches=1)
    planted.node(power_w=its.power_w, to_s=6.0, devices=["GPU-0"])
    planted.end(status="failed", reason="CUDA out of memory", window_s=(0.0, 5.0))
    planted.served_rank(course=its, number=1)
    planted.node(number=1, power_w=its.power_w, to_s=its.end_s + 1, devices=["GPU-1"])
    planted.end(number=1, window_s=(0.0, its.end_s))
    row, _ = the_row(planted.folder)
    assert (row.attempts, row.attempt, row.status) == (2, 1, "completed")
    measured = its.joules("prefill", "decode", "serve", "idle")
    assert row.energy_j == pytest.approx(measured)
    failed = sum(its.power_w("", 0.05 + k / 10) / 10 for k in range(50))
    assert row.energy_total_j == pytest.approx(
        measured + its.joules("load", "warmup", "settle") + failed
    )


def test_a_total_that_is_not_known_says_why_and_leaves_the_window_as_it_is(planted, course):
    its = course()
    planted.serving(course=its)
    planted.served_rank(course=its, batches=1)
    planted.end(status="interrupted", reason="signal SIGTERM", window_s=(0.0, 5.0))
    planted.served_rank(course=its, number=1)
    planted.node(number=1, power_w=its.power_w, to_s=its.end_s + 1, devices=["GPU-1"])
    planted.end(number=1, window_s=(0.0, its.end_s))
    row, _ = the_row(planted.folder)
    assert row.energy_j == pytest.approx(its.joules("prefill", "decode", "serve", "idle"))
    assert math.isnan(row.energy_total_j)
    assert "energy_total_j is not known: attempt 0: " in row.reason


@pytest.mark.parametrize("workers", [1, 2])
def test_rows_are_the_same_from_the_cache_and_from_processes(planted, course, tmp_path, workers):
    for i in range(3):
        planted.served(f"run{i}", course(batches=i + 1), cycle=i)
    first = aggregate(planted.folder)
    cache = tmp_path / "cache"
    for _ in range(2):
        again = aggregate(planted.folder, workers=workers, cache=cache)
        assert repr(again.served) == repr(first.served)
        for one, other in zip(again.samples, first.samples, strict=True):
            assert np.array_equal(one.gaps.ns, other.gaps.ns)
            assert np.array_equal(one.ttft.count, other.ttft.count)


def test_a_server_is_measured_by_its_tokens_and_prefill_is_not_told_from_decode(
    planted, course, host, own_clock
):
    its = course(batches=1, batch=2, tokens_out=3)
    planted.serving(course=its)
    here = host()
    path = planted.attempt() / "rank-00000.h5"
    meta = {"run_id": "aaaa", "rank": 0, "world": 1, "host": here.name, "boot_id": here.boot_id,
            "workload": "inference"}  # fmt: skip
    times = {0: (3.5, 3.7, 4.2), 1: (3.6, 4.0, 4.1)}
    with rank_writer(path, meta=meta) as writer:
        own_clock(writer, here)
        for request, arrived in times.items():
            for index, s in enumerate(arrived):
                writer.append("tokens", (request, index, here.at(s)))
            row = (request, request, 0, 16, 3, here.at(3.0), here.at(3.0), here.at(arrived[0]),
                   here.at(arrived[-1]), 0)  # fmt: skip
            writer.append("requests", row)
        for t0, t1, phase in ((0.0, 3.0, Phase.LOAD), (3.0, 4.6, Phase.SERVE)):
            writer.append("spans", (0, here.at(t0), here.at(t1), math.nan, math.nan, int(phase)))
    planted.node(power_w=lambda _u, s: 80.0 if s < 3 else 200.0, to_s=6)
    planted.end(window_s=(0.0, 5.0))
    row, _ = the_row(planted.folder)
    assert row.energy_j == pytest.approx(1.6 * 200)
    assert row.idle_j == pytest.approx(0.4 * 200)
    assert math.isnan(row.prefill_j) and "server's own" in row.split_reason
    # first tokens come at 3.5 and 3.6, nearer than half of a gap; of those at 3.7, 4.0, 4.1 and 4.2
    # the last is alone: two and a half passes
    assert row.passes_by == "tokens" and (row.prefills, row.decodes) == (1, 2)
    assert row.batch_mean == pytest.approx(4 / 2)
    gaps = [0.2, 0.5, 0.4, 0.1]
    assert row.itl_p90_s == pytest.approx(np.percentile(gaps, 90))
    assert row.ttft_p50_s == pytest.approx(np.percentile([0.5, 0.6], 50))


def test_the_passes_of_a_server_are_told_from_when_its_tokens_came():
    """Five sequences of one batch, the k-th of k + 1 tokens, and two that come while it lasts."""
    requests, tokens, truth = np.zeros(7, REQUESTS), [], []
    under_way: dict[int, int] = {}
    ends = [k + 2 for k in range(5)] + [3, 3]
    requests["request"], requests["tokens_in"], requests["tokens_out"] = range(7), 10, ends
    for number in range(12):
        at = (number + 1) * 10_000_000
        if number in (0, 3):  # prompts are read together, and their first tokens come
            for one in range(5) if number == 0 else (5, 6):
                requests["t_first_ns"][one] = at + one
                tokens.append((one, 0, at + one))
                under_way[one] = 1
            continue
        if under_way:
            truth.append((len(under_way), sum(11 + made for made in under_way.values())))
        for one, made in list(under_way.items()):
            tokens.append((one, made, at + one))
            requests["t_last_ns"][one] = at + one
            under_way[one] += 1
            if under_way[one] == ends[one]:
                del under_way[one]
    told = passes_by_tokens(np.array(tokens, TOKENS), requests)
    assert told["prefills"] == 2 and told["told_by_tokens"]
    assert told["decodes"] == pytest.approx(len(truth), abs=1)
    assert told["sequences"] == sum(rows for rows, _ in truth)
    assert told["context"] == sum(held for _, held in truth)


def test_replicas_that_are_split_count_each_device_and_each_request_once(planted, course):
    """Four ranks, two replicas of two: the first of each says what was served."""
    its = course()
    planted.serving(course=its, per_node=4)
    uuids = [f"GPU-{rank}" for rank in range(4)]
    for rank in range(4):
        planted.served_rank(course=its, rank=rank, world=4, requests=rank % 2 == 0,
                            replica=rank // 2, replicas=2, device_uuid=uuids[rank])  # fmt: skip
    planted.node(devices=uuids, power_w=its.power_w, to_s=its.end_s + 1)
    planted.end(window_s=(0.0, its.end_s + 0.5), ranks=4)
    row, _ = the_row(planted.folder)
    assert (row.ranks, row.replicas, row.devices, row.requests) == (4, 2, 4, 2 * its.requests)
    assert row.tokens_out == 2 * its.requests * its.tokens_out
    # Ranks without requests know nothing of when there were none: all time of the window counts.
    window_s = its.end_s - its.begin_s
    joules = its.joules("prefill", "decode", "serve", "idle")
    assert row.duration_s == pytest.approx(window_s)
    assert row.energy_j == pytest.approx(4 * joules)
    one = 2 * its.requests * its.tokens_in * 8000.0
    assert one < row.flops_computed < 2 * one  # of one rank of each replica


def passes_of(planted, host, own_clock, forwards, request, *, its):
    """A run of one request with these passes: (from s, to s, phase, the numbers that it counts)."""
    here = host()
    planted.serving(course=its)
    path = planted.attempt() / "rank-00000.h5"
    meta = {"run_id": "aaaa", "rank": 0, "world": 1, "host": here.name, "boot_id": here.boot_id,
            "workload": "inference"}  # fmt: skip
    with rank_writer(path, meta=meta) as writer:
        own_clock(writer, here)
        for number, (t0, t1, phase, counts) in enumerate(forwards):
            sequences, read, gave, context, live, attended = counts
            writer.append("forwards", (number, 0, here.at(t0), here.at(t1), sequences, read, gave,
                                       context, math.nan, math.nan, int(phase), live,
                                       attended))  # fmt: skip
        given, first, last = request
        writer.append("requests", (0, 0, 0, 4, given, here.at(3.0), here.at(3.0), here.at(first),
                                   here.at(last), 0))  # fmt: skip
        for t0, t1, phase in ((0.0, 3.0, Phase.LOAD), (3.0, 4.6, Phase.SERVE)):
            writer.append("spans", (0, here.at(t0), here.at(t1), math.nan, math.nan, int(phase)))
    planted.node(power_w=lambda _u, s: 80.0 if s < 3 else 200.0, to_s=6)
    planted.end(window_s=(0.0, 5.0))
    row, found = the_row(planted.folder)
    return row, found.samples[0]


def test_tokens_of_one_pass_come_together_and_what_was_guessed_wrongly_is_computed_too(
    planted, course, host, own_clock
):
    """Prompt lookup: 4 tokens and 2 guesses read, of which 1 was right; and so on."""
    row, samples = passes_of(
        planted, host, own_clock,
        [
            (3.0, 3.2, Phase.PREFILL, (1, 6, 2, 5, 1, 21)),
            (3.2, 3.3, Phase.DECODE, (1, 4, 4, 9, 1, 6 + 7 + 8 + 9)),
            (3.3, 3.4, Phase.DECODE, (1, 3, 1, 10, 1, 10 + 11 + 12)),
        ],
        (7, 3.2, 3.4), its=course(batches=1, batch=1, tokens_in=4, tokens_out=7),
    )  # fmt: skip
    assert row.tokens_out == 7 and row.requests_done == 1
    assert row.ttft_p50_s == pytest.approx(0.2)
    assert samples.gaps.ns.tolist() == pytest.approx([0, 100_000_000], abs=2)
    assert samples.gaps.count.tolist() == [4, 2]
    assert row.batch_mean == 1 and row.context_mean == 9.5
    pair = 4 * 2 * 4 * 8
    assert row.flops == pytest.approx(10 * 8000.0 + sum(range(1, 11)) * pair)
    assert row.flops_computed == pytest.approx(13 * 8000.0 + (21 + 30 + 33) * pair)


def test_a_text_that_comes_whole_has_no_times_between_its_tokens(planted, course, host, own_clock):
    """Two beams: everything is computed twice, and known with the last pass."""
    row, samples = passes_of(
        planted, host, own_clock,
        [
            (3.0, 3.2, Phase.PREFILL, (2, 8, 0, 8, 2, 20)),
            (3.2, 3.3, Phase.DECODE, (2, 2, 0, 10, 2, 10)),
            (3.3, 3.4, Phase.DECODE, (2, 2, 3, 12, 2, 12)),
        ],
        (3, 3.4, 3.4), its=course(batches=1, batch=1, tokens_in=4, tokens_out=3),
    )  # fmt: skip
    assert row.ttft_p50_s == row.latency_p50_s == pytest.approx(0.4)
    assert math.isnan(row.itl_p50_s) and not len(samples.gaps) and not row.reason
    assert row.batch_mean == 2 and row.context_mean == 5.5
    pair = 4 * 2 * 4 * 8
    assert row.flops == pytest.approx(6 * 8000.0 + 21 * pair)
    assert row.flops_computed == pytest.approx(2 * row.flops)


def test_pooled_percentiles_are_numpy_s_of_all_raw_values():
    random = np.random.default_rng(7)
    parts = [random.integers(1_000_000, 5_000_000, size) for size in (1, 7, 400, 33)]
    parts.append(np.repeat([2_000_000, 3_000_000], [50, 3]))
    every = np.concatenate(parts)
    pool = pooled([Pool.of(part) for part in parts])
    assert len(pool) == len(every)
    assert len(pool.ns) < len(every)
    for percent in (0, 1, 25, 50, 90, 99, 99.9, 100):
        exact = np.percentile(every, percent) / 1e9
        assert pool.percentile_s(percent) == pytest.approx(exact, rel=1e-12)
    assert pool.mean_s == pytest.approx(every.mean() / 1e9)


def test_percentiles_of_percentiles_are_something_else():
    slow, fast = np.full(10, 9_000_000), np.full(990, 1_000_000)
    pool = pooled([Pool.of(slow), Pool.of(fast)])
    assert pool.percentile_s(50) == pytest.approx(1e-3)
    assert np.mean([Pool.of(p).percentile_s(50) for p in (slow, fast)]) == pytest.approx(5e-3)


def test_samples_counted_several_times_are_as_so_many_samples():
    values, counts = np.array([5, 3, 5, 9]), np.array([2, 1, 0, 4])
    pool = Pool.of(values, counts)
    assert pool.ns.tolist() == [3, 5, 9] and pool.count.tolist() == [1, 2, 4]
    assert math.isnan(Pool().percentile_s(50)) and math.isnan(Pool().mean_s)


def test_the_plan_s_settings_stand_where_nothing_ran(planted, course):
    planted.serving(course=course())
    row, _ = the_row(planted.folder)
    assert row.status == "missing" and math.isnan(row.energy_j)
    assert row.settings["prompts.output_tokens"] == 5
    assert json.dumps(row.settings["arrival.rate"]) == "null"
