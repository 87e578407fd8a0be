"""A study over its cycles: ratios of sums with intervals, pooled percentiles, and what compares."""

import csv
import json
import math

import numpy as np
import pytest

from llem.cli import main
from llem.cluster import CampaignFolder
from llem.pipeline import aggregate_campaign, load_rows
from llem.pipeline.viewing import compare_groups
from llem.report.plots.pareto import front
from llem.results.ranks.pool import Pool, read_pools, write_pools
from llem.results.study.deployments import RATIOS, clustered, group_served, pair_ratios, student

CYCLES = 3


@pytest.fixture
def study(planted, course):
    """Batches of 2 and of 4 in three cycles; each cycle draws so much more power."""
    planted.site = {"device": {"peak_flops": 1e9, "name": "cpu"}}
    for batch in (2, 4):
        for cycle in range(CYCLES):
            base = course(batches=2, batch=batch)
            watts = {k: w * (1 + 0.1 * cycle) * (1 + 0.01 * batch * cycle)
                     for k, w in base.watts.items()}  # fmt: skip
            its = course(batches=2, batch=batch, prefill_s=0.2 + 0.1 * cycle, watts=watts)
            planted.served(f"b{batch}c{cycle}", its, deployment=f"batch{batch}", cycle=cycle)
    return CampaignFolder(planted.folder)


def test_joules_per_token_of_a_deployment_are_a_ratio_of_sums_over_its_cycles(study):
    aggregate_campaign(study)
    rows = load_rows(study).rows
    [two, four] = load_rows(study, "deployments").rows
    own = [r for r in rows if r["deployment_id"] == "batch2"]
    joules, tokens = sum(r["energy_j"] for r in own), sum(r["tokens_out"] for r in own)
    assert two["j_per_token"] == pytest.approx(joules / tokens)
    assert two["j_per_token"] != pytest.approx(4.0)
    off = [r["energy_j"] - joules / tokens * r["tokens_out"] for r in own]
    se = math.sqrt(CYCLES / (CYCLES - 1) * sum(o * o for o in off)) / tokens
    assert two["j_per_token_se"] == pytest.approx(se)
    # 4.303 is Student's t of two degrees of freedom, as in any table of it
    reach = math.log(two["j_per_token_high"] / two["j_per_token"])
    assert reach == pytest.approx(4.3027 * se / two["j_per_token"], rel=1e-4)
    assert reach == pytest.approx(math.log(two["j_per_token"] / two["j_per_token_low"]))
    assert (two["options.batch_size"], four["options.batch_size"]) == (2, 4)
    assert two["cycles"] == two["completed"] == CYCLES


def test_percentiles_of_a_group_are_those_of_all_raw_samples(study):
    aggregate_campaign(study)
    pools = read_pools(study.results / "latencies.h5")
    [line] = load_rows(study).grouped(["backend"]).rows
    raw = np.concatenate(
        [np.repeat(pool["ttft"].ns, pool["ttft"].count) for pool in pools.values()]
    )
    assert len(raw) == CYCLES * 2 * (2 + 4)
    for percent in (50, 90, 99):
        assert line[f"ttft_p{percent}_s"] == pytest.approx(np.percentile(raw, percent) / 1e9)
    assert line["ttft_p50_low_s"] < line["ttft_p50_s"] < line["ttft_p50_high_s"]


def row(cycle, joules, tokens, group="a", **more):
    return {"run_id": f"{group}{cycle}", "cycle": cycle, "status": "completed", "group": group,
            "energy_j": joules, "tokens_out": tokens, **more}  # fmt: skip


def test_what_a_cycle_does_to_both_cancels_in_the_ratio_of_two_deployments():
    random = np.random.default_rng(1)
    rows = []
    for cycle, factor in enumerate(np.exp(random.normal(0, 0.3, 12))):
        for group, watts in (("a", 100.0), ("b", 200.0)):
            joules = watts * factor * math.exp(random.normal(0, 0.001))
            rows.append(row(cycle, joules, 10.0, group))
    [pair] = pair_ratios(rows, ["group"])
    assert pair.how == "paired"
    assert pair.low < 2.0 < pair.high and pair.high / pair.low < 1.01
    apart = [r | {"cycle": r["cycle"] + 100} if r["group"] == "b" else r for r in rows]
    [wide] = pair_ratios(apart, ["group"])
    assert wide.how == "independent" and wide.high / wide.low > 1.3
    assert wide.ratio == pytest.approx(pair.ratio)


@pytest.mark.parametrize("paired", [True, False])
def test_intervals_of_ratios_hold_the_truth_as_often_as_they_say(paired):
    random = np.random.default_rng(3)
    held = 0
    for _ in range(400):
        shared = random.normal(0, 0.05, 5)
        rows = []
        for group, value in (("a", 3.0), ("b", 4.5)):
            for cycle in range(5):
                tokens = float(random.integers(800, 1200))
                noise = random.normal(0, 0.02) + (shared[cycle] if paired else 0.0)
                number = cycle if paired or group == "a" else cycle + 50
                rows.append(row(number, value * tokens * math.exp(noise), tokens, group))
        [pair] = pair_ratios(rows, ["group"])
        held += pair.low < 1.5 < pair.high
    assert 0.92 < held / 400 < 0.98


def test_intervals_of_joules_per_token_hold_the_truth_as_often_as_they_say():
    random = np.random.default_rng(5)
    above, below = RATIOS["j_per_token"]
    held = 0
    for _ in range(400):
        tokens = random.integers(800, 1200, 4).astype(float)
        rows = [row(c, 2.0 * t * (1 + random.normal(0, 0.03)), t) for c, t in enumerate(tokens)]
        low, high = clustered(rows, above, below).interval()
        held += low < 2.0 < high
    assert 0.92 < held / 400 < 0.98


def test_one_cycle_has_no_interval_and_a_run_that_failed_is_only_counted(study):
    aggregate_campaign(study)
    rows = [dict(r) for r in load_rows(study).rows if r["cycle"] == 0]
    [two, four] = group_served(rows, ["options.batch_size"])
    assert two["j_per_token"] > 0 and math.isnan(two["j_per_token_low"])
    failed = [*rows, {**rows[0], "status": "failed", "energy_j": 1e9}]
    [again, _] = group_served(failed, ["options.batch_size"])
    assert again["j_per_token"] == two["j_per_token"] and again["runs"] == two["runs"] + 1
    [pair] = pair_ratios(rows, ["options.batch_size"])
    assert pair.how == "none" and math.isnan(pair.low)
    assert pair.ratio == pytest.approx(four["j_per_token"] / two["j_per_token"])


def test_quantiles_of_student_s_t_are_the_table_s():
    assert [round(student(n), 3) for n in (1, 2, 10)] == [12.706, 4.303, 2.228]


def test_pools_come_back_from_their_file_as_they_were(tmp_path):
    random = np.random.default_rng(2)
    runs = {
        f"run{i}": {"ttft": Pool.of(random.integers(1, 99, 50)), "itl": Pool()} for i in range(3)
    }
    write_pools(tmp_path / "pools.h5", runs)
    found = read_pools(tmp_path / "pools.h5")
    assert list(found) == list(runs)
    for run, pools in runs.items():
        assert np.array_equal(found[run]["ttft"].ns, pools["ttft"].ns)
        assert np.array_equal(found[run]["ttft"].count, pools["ttft"].count)
        assert len(found[run]["itl"]) == 0


def test_the_front_holds_what_no_other_beats_in_both():
    points = [(1, 9), (2, 5), (3, 6), (4, 4), (4, 4), (5, 4), (math.nan, 1), (0.5, 20)]
    assert front(points) == [7, 0, 1, 3, 4]


# -- the command line


def run(capsys, *words):
    code = main([str(word) for word in words])
    told = capsys.readouterr()
    return code, told.out, told.err


def test_llem_aggregate_writes_the_columns_of_a_study(study, capsys):
    code, out, _ = run(capsys, "aggregate", study.root)
    assert code == 0 and "6 runs: 6 completed" in out
    with (study.results / "observations.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {"options.batch_size", "effective.precision", "prompts.output_tokens", "cycle",
            "prefill_j", "ttft_p99_s"} <= set(rows[0])  # fmt: skip
    assert "loss" not in rows[0]
    assert [r["options.batch_size"] for r in rows] == ["2"] * 3 + ["4"] * 3


def test_llem_results_lists_shows_and_exports_a_study(study, capsys):
    code, out, _ = run(capsys, "results", "list", study.root, "--where", "options.batch_size>=4")
    assert code == 0 and out.count("b4c") == 3 and "b2c" not in out and "J/token" in out
    code, out, _ = run(capsys, "results", "show", study.root, "b4c1")
    assert code == 0 and "prefill" in out and "settle" in out
    code, out, _ = run(capsys, "results", "list", study.root, "--group-by", "options.batch_size",
                       "--json")  # fmt: skip
    assert [line["options.batch_size"] for line in json.loads(out)] == [2, 4]
    code, out, _ = run(capsys, "results", "export", study.root, "--table", "latencies",
                       "--where", "time=itl", "--out", "-")  # fmt: skip
    assert code == 0 and out.startswith("run_id,time,ns,count")
    assert len(out.splitlines()) > 6
    code, out, _ = run(capsys, "results", "export", study.root, "--table", "deployments",
                       "--out", "-")  # fmt: skip
    assert code == 0 and len(out.splitlines()) == 3


def test_llem_results_compares_groups_with_intervals_and_ratios(study, capsys):
    code, out, _ = run(capsys, "results", "compare", study.root, "--by", "options.batch_size")
    assert code == 0 and "±" in out and "paired" in out
    code, out, _ = run(capsys, "results", "compare", study.root, "--by", "options.batch_size",
                       "--json")  # fmt: skip
    told = json.loads(out)
    assert len(told["groups"]) == 2 and told["ratios"][0]["how"] == "paired"
    groups, pairs = compare_groups(load_rows(study), ["options.batch_size"])
    assert told["ratios"][0]["ratio"] == pytest.approx(pairs[0].ratio)
    assert groups.rows[0]["completed"] == CYCLES


def test_what_cannot_be_compared_is_told_with_a_guess(study, capsys):
    code, _, err = run(capsys, "results", "compare", study.root, "--by", "options.batchsize")
    assert code == 2 and "did you mean 'options.batch_size'" in err
    code, _, err = run(capsys, "results", "compare", study.root, "b2c0", "--by", "model")
    assert code == 2 and "--by" in err
    code, _, err = run(capsys, "results", "compare", study.root, "b2c0", "b2c1", "--plot")
    assert code == 2 and "--by" in err


def test_llem_results_draws_the_front(study, capsys, tmp_path):
    pytest.importorskip("matplotlib")
    code, _, err = run(capsys, "results", "compare", study.root, "--by", "options.batch_size",
                       "--plot", tmp_path / "plots")  # fmt: skip
    assert code == 0 and "pareto.svg" in err
    assert (tmp_path / "plots" / "pareto.png").stat().st_size > 10_000


def test_a_campaign_that_trains_has_no_groups_to_compare(planted, capsys):
    planted.complete()
    planted.site = {"device": {"peak_flops": 1e9, "name": "cpu"}}
    planted.complete("bbbb")
    code, _, err = run(capsys, "results", "compare", planted.folder, "--by", "params")
    assert code == 2 and "studies" in err
