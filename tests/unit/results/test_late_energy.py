"""Energy by phase, its error, its waits and its carbon, for campaigns whose truth is planted."""

from __future__ import annotations

import csv
import json
import math
from typing import Any

import numpy as np
import pytest

from llem.errors import InputError
from llem.records import Phase, rank_writer
from llem.results import aggregate, ratio_of_sums, ratios_by_cell, read_carbon
from llem.results.warmup import steady_by_energy

from .conftest import SECOND, WALL_NS, Host, _own_clock

HERE = Host()


def plant_rank(planted: Any, *, ends_s, rank=0, world=1, host=HERE, tokens=1000, begin_s=1.0,
               phases=None, spans=(), stamp=None, number=0, run_id="aaaa", **meta):  # fmt: skip
    """A rank whose steps end at `ends_s`, each beginning with the end of what came before;
    `stamp(seconds)` gives the counter in J."""
    path = planted.attempt(run_id, number) / f"rank-{rank:05d}.h5"
    values = {"run_id": run_id, "attempt": number, "rank": rank, "world": world,
              "host": host.name, "boot_id": host.boot_id, **meta}  # fmt: skip
    mj = (lambda s: stamp(s) * 1e3) if stamp else lambda _s: math.nan
    of_step = tokens if callable(tokens) else lambda _step: tokens
    with rank_writer(path, meta=values) as writer:
        _own_clock(writer, host)
        busy = sorted(b for _, a, b in spans)
        at = begin_s
        for step, end in enumerate(ends_s, 1):
            at = max([at, *(b for b in busy if b <= end)])
            phase = int(phases[step - 1]) if phases else 1
            n = of_step(step)
            writer.append("steps", (step, host.at(at), host.at(end), n, n, 3.5, 1.0, 1e-3,
                                    mj(at), mj(end), phase))  # fmt: skip
            at = end
        for phase, a, b in spans:
            writer.append("spans", (len(ends_s), host.at(a), host.at(b), mj(a), mj(b), int(phase)))
        if rank == 0:
            end = host.at(ends_s[-1])
            writer.append("evals", (len(ends_s), end, end, 3.0, 0.01, 5000))
    return path


def staircase(*steps):
    """Power in time: (from second, watts) one after the other."""
    return lambda _uuid, s: [w for since, w in steps if s >= since][-1]


# --- the average of averages -------------------------------------------------------------------


def test_a_mean_of_ratios_is_a_quarter_off_where_llem_is_right(planted, host):
    """Two ranks, four full steps and a short one, and a straggler in every step.

    Each step takes what it takes at 900 W for the full ones; the short one uses a third of a full
    one's energy for an eighth of its tokens, as fixed costs have it. A mean of the steps' joules
    per token is 27 % too high, and a mean over ranks is half of the truth on top: each rank's
    energy over the step's tokens, which both ranks share.
    """
    full, short = 65_536, 8_192
    ends = [11.0, 21.0, 31.0, 41.0, 51.0]
    tokens = lambda step: (short if step == 5 else full) // 2  # noqa: E731
    planted.run(steps=5, per_node=2, batch_tokens=(4 * full + short) // 5)
    for rank in range(2):
        # rank 1 is done two seconds before rank 0 in every step
        own = [e - 2.0 * rank for e in ends]
        path = plant_rank(planted, rank=rank, world=2, tokens=tokens, ends_s=own,
                          device_uuid=f"GPU-{rank}")  # fmt: skip
        assert path.is_file()
    power = staircase((0.0, 45.0), (41.0, 15.0))
    planted.node(devices=["GPU-0", "GPU-1"], power_w=power, to_s=52.0)
    planted.end(ranks=2, window_s=(1.0, 51.0), step=5)
    [row] = aggregate(planted.folder).observations

    step_j = np.array([900.0] * 4 + [300.0])
    step_t = np.array([full] * 4 + [short])
    truth = step_j.sum() / step_t.sum()
    assert row.joules_per_token == pytest.approx(truth, rel=1e-9)
    # what others do with the same records
    assert (step_j / step_t).mean() / truth == pytest.approx(1.269, abs=0.001)
    per_rank = [(row.energy_j / 2) / row.tokens] * 2
    assert np.mean(per_rank) == pytest.approx(truth / 2)
    # and the straggler's price: rank 1 waited 2 s in each step, at its device's power then
    assert row.wait_energy_j == pytest.approx(4 * 2 * 45 + 2 * 15)


def test_tokens_that_ranks_share_count_once(planted):
    """Model parallelism: four ranks read the same tokens, and one of them counts them."""
    planted.run(per_node=4)
    for rank in range(4):
        path = plant_rank(planted, rank=rank, world=4, ends_s=np.arange(2.0, 12.0).tolist(),
                          tokens=1000 if rank == 0 else 0)  # fmt: skip
        assert path.is_file()
    planted.node(devices=[f"GPU-{i}" for i in range(4)])
    planted.end(ranks=4)
    [row] = aggregate(planted.folder).observations
    assert row.tokens == 10_000
    assert row.joules_per_token == pytest.approx(4 * 100 * 10 / 10_000)


# --- phases ------------------------------------------------------------------------------------


def test_every_joule_is_in_one_phase(planted):
    """Start, warm-up, training, checkpoint, again, decay, evaluation, leaving, each its power."""
    W, T, D = Phase.WARMUP, Phase.TRAIN, Phase.DECAY
    ends = [3.0, 4.0, 5.0, 6.0, 10.0, 11.0]
    planted.run(steps=6)
    plant_rank(planted, ends_s=ends, begin_s=2.0, phases=[W, T, T, T, T, D],
               spans=[(Phase.CHECKPOINT, 6.0, 9.0), (Phase.EVALUATION, 11.5, 13.0)])  # fmt: skip
    power = staircase((0, 10), (2, 100), (3, 200), (6, 50), (9, 220), (10, 180), (11, 20),
                      (11.5, 90), (13, 30))  # fmt: skip
    planted.node(power_w=power, to_s=15.0, attrs={})
    planted.end(window_s=(0.5, 14.0), step=6)
    found = aggregate(planted.folder)
    rows = {row.phase: row for row in found.phases}
    want = {"startup": 15, "warmup": 100, "train": 820, "decay": 180, "evaluation": 135,
            "checkpoint": 150, "rest": 40}  # fmt: skip
    assert {k: round(r.energy_j, 3) for k, r in rows.items()} == want
    assert sum(r.energy_j for r in rows.values()) == pytest.approx(found.observations[0].energy_j)
    assert sum(r.duration_s for r in rows.values()) == pytest.approx(13.5)
    assert (rows["train"].steps, rows["train"].tokens) == (4, 4000)
    assert rows["train"].joules_per_token == pytest.approx(0.205)
    assert rows["checkpoint"].duration_s == pytest.approx(3.0)
    assert list(rows) == ["startup", "warmup", "train", "decay", "evaluation", "checkpoint", "rest"]


def test_phases_of_a_shared_device_add_up_to_each_run_s_part(planted):
    for run_id, begin in (("aaaa", 1.0), ("bbbb", 4.0)):
        planted.run(run_id, steps=4)
        ends = [begin + i for i in range(1, 5)]
        plant_rank(planted, run_id=run_id, ends_s=ends, begin_s=begin)
        planted.node(run_id, to_s=12.0)
        planted.end(run_id, window_s=(begin - 0.5, begin + 5), step=4)
    found = aggregate(planted.folder)
    for row in found.observations:
        own = [p.energy_j for p in found.phases if p.run_id == row.run_id]
        assert sum(own) == pytest.approx(row.energy_j, rel=1e-9)
    train = {p.run_id: p.energy_j for p in found.phases if p.phase == "train"}
    # 1 s to 5 s, of which the other run holds the device from 3.5 s on; and 4 s to 8 s, until 6 s
    assert train["aaaa"] == pytest.approx(250 + 75)
    assert train["bbbb"] == pytest.approx(100 + 200)


def counter_at(s):
    return 5000.0 + 100.0 * s


def test_stamps_that_agree_give_phases_too_and_those_that_do_not_are_told(planted):
    W, T = Phase.WARMUP, Phase.TRAIN
    for run_id, off_j in (("aaaa", 0.0), ("bbbb", 400.0)):
        planted.run(run_id, steps=4)
        late = lambda s, off_j=off_j: counter_at(s) + (off_j if s > 3.5 else 0.0)  # noqa: E731
        plant_rank(planted, run_id=run_id, ends_s=[2.0, 3.0, 4.0, 5.0], phases=[W, W, T, T],
                   stamp=late, device_uuid=f"GPU-{run_id}")  # fmt: skip
        planted.node(run_id, devices=[f"GPU-{run_id}"], to_s=8.0)
        planted.end(run_id, window_s=(0.5, 6.0), step=4)
    found = aggregate(planted.folder)
    good, bad = found.observations
    assert good.energy_reason == ""
    assert "2 of 4 step stamps disagree with the samples by 400 J" in bad.energy_reason
    assert bad.energy_j == pytest.approx(good.energy_j)  # the samples are the truth
    rows = {(p.run_id, p.phase): p for p in found.phases}
    assert rows["aaaa", "warmup"].stamped_j == pytest.approx(200)
    assert rows["aaaa", "train"].stamped_j == pytest.approx(200)
    assert rows["aaaa", "train"].stamped_sampled_j == pytest.approx(200)
    assert rows["bbbb", "train"].stamped_j == pytest.approx(600)
    assert math.isnan(rows["aaaa", "startup"].stamped_j)


def test_without_samples_the_stamps_still_tell_of_the_steps(planted):
    planted.run(steps=2)
    plant_rank(planted, ends_s=[2.0, 3.0], stamp=counter_at, device_uuid="GPU-0")
    planted.end(window_s=(0.5, 4.0), step=2)
    found = aggregate(planted.folder)
    assert math.isnan(found.observations[0].energy_j)
    [train] = [p for p in found.phases if p.phase == "train"]
    assert math.isnan(train.energy_j) and train.stamped_j == pytest.approx(200)


def test_every_device_tells_how_much_of_its_window_was_sampled(planted):
    planted.run()
    planted.rank()
    planted.node(devices=["GPU-0"], name="a")
    planted.node(devices=["GPU-1"], name="b", to_s=6.0)
    planted.end(hosts=["a", "b"])
    found = aggregate(planted.folder)
    assert {d.uuid: round(d.coverage, 2) for d in found.devices} == {"GPU-0": 1.0, "GPU-1": 0.5}
    assert found.observations[0].device_coverage == pytest.approx(0.5)


# --- errors ------------------------------------------------------------------------------------


def test_the_error_of_a_ratio_is_that_of_repeated_samples():
    """4000 samples of 12 clusters: the stated error against the spread of the ratios."""
    rng = np.random.default_rng(4)
    tokens = rng.lognormal(3.0, 0.4, (4000, 12))
    joules = 2.0 * tokens * (1 + 0.1 * rng.standard_normal(tokens.shape))
    found = [ratio_of_sums(j, t) for j, t in zip(joules, tokens, strict=True)]
    spread = np.std([f.value for f in found])
    assert math.sqrt(np.mean([f.se**2 for f in found])) == pytest.approx(spread, rel=0.08)


def test_a_run_on_one_node_has_its_error_from_blocks_of_time(planted):
    """200 s in which the power changes every 20 s: blocks of 10 s see it."""
    planted.run(steps=200)
    plant_rank(planted, ends_s=np.arange(2.0, 202.0).tolist())
    power = lambda _u, s: 100.0 + (20.0 if int((s - 1) // 20) % 2 else -20.0)  # noqa: E731
    planted.node(power_w=power, to_s=203.0)
    planted.end(window_s=(1.0, 201.0), step=200)
    [row] = aggregate(planted.folder).observations
    assert row.joules_per_token_clusters == "20 blocks of 10 s"
    # 20 blocks at +-200 J around 1000 J for 10,000 tokens each
    se = math.sqrt(20 / 19 * 20 * 200**2) / 200_000
    assert row.joules_per_token == pytest.approx(0.1, rel=1e-6)
    assert row.joules_per_token_se == pytest.approx(se, rel=1e-3)


def test_many_nodes_are_the_clusters(planted):
    hosts = [Host(f"n{i}", f"boot-{i}") for i in range(6)]
    planted.run(nodes=6, per_node=1)
    for rank, h in enumerate(hosts):
        plant_rank(planted, rank=rank, world=6, host=h, ends_s=np.arange(2.0, 12.0).tolist())
        planted.node(host=h, devices=[f"GPU-{rank}"],
                     power_w=lambda _u, _s, w=100 + 10 * rank: float(w))  # fmt: skip
    planted.end(ranks=6, hosts=[h.name for h in hosts])
    [row] = aggregate(planted.folder).observations
    watts = np.array([100.0 + 10 * i for i in range(6)])
    assert row.joules_per_token_clusters == "6 nodes and attempts"
    assert row.joules_per_token_se == pytest.approx(
        ratio_of_sums(watts * 10, [10_000.0] * 6).se, rel=1e-6
    )


def test_a_short_run_has_no_error_and_a_cell_has_one_over_its_runs(planted):
    for i, run_id in enumerate(("aaaa", "bbbb", "cccc")):
        planted.run(run_id)
        planted.rank(run_id)
        planted.node(run_id, devices=[f"GPU-{i}"],
                     power_w=lambda _u, _s, w=100 + 10 * i: float(w))  # fmt: skip
        planted.end(run_id)
    rows = aggregate(planted.folder).observations
    assert all(math.isnan(r.joules_per_token_se) for r in rows)
    [cell] = ratios_by_cell(rows)
    assert (cell.runs, cell.left_out) == (3, 0)
    assert cell.joules_per_token == pytest.approx(0.11)
    assert cell.joules_per_token_se == pytest.approx(math.sqrt(3 / 2 * 2 * 100**2) / 30_000)


# --- waits -------------------------------------------------------------------------------------


def test_waits_are_aligned_between_hosts_whose_clocks_differ(planted, host):
    """Rank 1's node is 3 s off by its wall clock; a measured offset takes it back."""
    far = host("n1", "boot-b", mono_ns=77 * SECOND, wall_error_ns=3 * SECOND)
    planted.run(nodes=2, per_node=1, batch_tokens=2000)
    ends = np.arange(2.0, 12.0)
    plant_rank(planted, rank=0, world=2, ends_s=ends.tolist())
    path = plant_rank(planted, rank=1, world=2, host=far, ends_s=(ends - 0.25).tolist())
    planted.node(devices=["GPU-0"])
    planted.node(host=far, devices=["GPU-1"])
    planted.end(ranks=2, hosts=["n0", "n1"])
    import h5py

    assert math.isnan(aggregate(planted.folder).observations[0].wait_energy_j)
    with h5py.File(path, "r+") as file:  # what ranks of other hosts measure
        clock = file["clock"][()]
        clock["peer_offset_ns"], clock["rtt_ns"] = -3.0 * SECOND, 2e5
        file["clock"][()] = clock
    found = aggregate(planted.folder)
    [row] = found.observations
    assert ["+3.00 s off rank 0's: aligned as measured" in p for p in found.problems] == [True]
    assert row.energy_j == pytest.approx(2000, rel=1e-6)
    assert row.wait_energy_j == pytest.approx(10 * 0.25 * 100, rel=1e-6)


def test_waits_are_not_known_where_a_rank_s_record_is_missing(planted):
    planted.run(per_node=2)
    plant_rank(planted, rank=0, world=2, ends_s=[2.0, 3.0])
    planted.node(devices=["GPU-0", "GPU-1"])
    planted.end(ranks=2)
    assert math.isnan(aggregate(planted.folder).observations[0].wait_energy_j)


# --- warm-up -----------------------------------------------------------------------------------


def heated(n, *, step_s=3.0, drop=None, temperature=lambda s: 60.0):
    """`n` steps; energy per token falls from 3 times to 1 with a time constant of `drop` steps."""
    k = np.arange(n)
    joules = 100.0 * (1 + (2 * np.exp(-k / drop) if drop else 0 * k))
    ends = (k + 1) * step_s
    return {"step": k + 1, "joules": joules, "tokens": np.full(n, 1000.0),
            "seconds": np.full(n, step_s), "ends_s": ends,
            "temperature_c": lambda of: np.array([temperature(s) for s in ends[of]])}  # fmt: skip


def test_the_warm_up_ends_where_energy_per_token_converges():
    found = steady_by_energy(**heated(200, drop=10))
    assert found.reason == ""
    values = heated(200, drop=10)["joules"]
    window = values[found.begins - 1 : found.step]
    assert len(window) == 20
    assert window.std(ddof=1) / window.mean() < 0.05
    slope = np.polyfit(np.arange(20), window, 1)[0]
    assert abs(slope * 20) / window.mean() < 0.02
    earlier = values[found.begins - 2 : found.step - 1]
    assert abs(np.polyfit(np.arange(20), earlier, 1)[0] * 20) / earlier.mean() >= 0.02


def test_a_device_that_still_heats_up_is_not_steady():
    warm = steady_by_energy(**heated(200, temperature=lambda s: min(80.0, 40.0 + s / 5)))
    cold = steady_by_energy(**heated(200))
    assert cold.step == 20
    # 12 degrees a minute until second 200, then none
    assert warm.step > 200 / 3
    always = steady_by_energy(**heated(100, temperature=lambda s: 30 + s / 5))
    assert always.step is None and "temperature" in always.reason


def test_short_steps_are_taken_together_and_too_few_are_told():
    """Steps of 50 ms whose energy a counter of 100 ms tells as 0 or twice: no noise for groups."""
    values = heated(2000, step_s=0.05)
    values["joules"] = np.where(np.arange(2000) % 2, 0.0, 200.0)
    found = steady_by_energy(**values)
    assert found.step == 20 * 40
    few = steady_by_energy(**heated(100, step_s=0.05))
    assert few.step is None and "groups of 40 steps" in few.reason


def test_the_row_says_from_where_a_run_is_steady_and_loses_nothing(planted):
    planted.run(steps=100)
    plant_rank(planted, ends_s=[1.0 + 3.0 * i for i in range(1, 101)])
    power = lambda _u, s: 100 * (1 + 2 * math.exp(-(s - 1) / 30))  # noqa: E731
    planted.node(power_w=power, to_s=303.0)
    planted.end(window_s=(1.0, 301.0), step=100)
    [row] = aggregate(planted.folder).observations
    assert 40 < row.steady_from_step < 70
    assert row.steady_joules_per_token == pytest.approx(0.3, rel=0.01)
    assert row.energy_j == pytest.approx(100 * (300 + 60 * (1 - math.exp(-10))), rel=1e-3)


# --- baseline ----------------------------------------------------------------------------------


def test_the_source_of_the_idle_power_is_stated_and_net_energy_is_not_clipped(planted):
    planted.run()
    planted.rank()
    planted.node(idle_w=130.0)
    planted.end()
    [row] = aggregate(planted.folder).observations
    assert row.energy_net_j == pytest.approx(-300)
    assert row.idle_source == "measured before the run, n=100, sd 0.1 W, no context"
    [given] = aggregate(planted.folder, idle_power_w=20.0).observations
    assert (given.energy_net_j, given.idle_source) == (pytest.approx(800), "given")


def test_idle_samples_before_the_first_step_stand_in_for_a_baseline(planted):
    planted.run()
    planted.rank(start_s=6.0)
    path = planted.node(to_s=17.0, power_w=staircase((0, 60.0), (5.0, 300.0)))
    planted.end(window_s=(5.0, 16.0))
    assert "not seen idle" in aggregate(planted.folder).observations[0].idle_source
    import h5py

    with h5py.File(path, "r+") as file:
        samples = file["devices/GPU-0/samples"][()]
        samples["utilization"][samples["t_ns"] < Host().at(4.95)] = 0
        file["devices/GPU-0/samples"][()] = samples
    [row] = aggregate(planted.folder).observations
    assert "samples before the first step, n=40" in row.idle_source
    assert row.energy_net_j == pytest.approx(11 * (300 - 60), rel=1e-6)


# --- carbon ------------------------------------------------------------------------------------

# the conftest's wall clock at second 0 of a test's world, in UTC
START = "2025-06-15T15:06:40"


def carbon_csv(folder, *rows, header="time,g_per_kwh"):
    path = folder / "grid.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_carbon_follows_the_grid_in_time_and_the_offset_of_its_times(planted, tmp_path):
    """100 W for 4 s at 100 g and for 6 s at 400 g per kWh, told in another time zone."""
    assert WALL_NS == 1_750_000_000 * SECOND
    planted.complete()
    path = carbon_csv(tmp_path, "2025-06-15T17:06:35+02:00,100", "2025-06-15T15:06:45Z,400",
                      "2025-06-15T15:06:55Z,0")  # fmt: skip
    [row] = aggregate(planted.folder, carbon_g_per_kwh=read_carbon(path), pue=1.5).observations
    assert row.carbon_g == pytest.approx(1.5 * (400 * 100 + 600 * 400) / 3.6e6)
    assert row.carbon_reason == ""


def test_what_the_series_does_not_cover_is_not_guessed(planted, tmp_path):
    planted.complete()
    gap = carbon_csv(tmp_path, "2025-06-15T15:06:30Z,100", "2025-06-15T15:06:35Z,100",
                     "2025-06-15T15:06:40Z,100", "2025-06-15T15:07:00Z,100")  # fmt: skip
    [row] = aggregate(planted.folder, carbon_g_per_kwh=read_carbon(gap)).observations
    assert math.isnan(row.carbon_g)
    assert "says nothing of the time of 60.0 % of the energy" in row.carbon_reason


@pytest.mark.parametrize(
    ("rows", "header", "told"),
    [
        (["2025-06-15T15:00,5", "2025-06-15T15:15Z,5"], "time,g_per_kwh", "no offset from UTC"),
        (["2025-06-15T15:00Z,x", "2025-06-15T14:00Z,5"], "time,g_per_kwh", "not later"),
        (["2025-06-15T15:00Z,-1", "noon,5"], "time,g_per_kwh", "'noon' is no time"),
        (["2025-06-15T15:00Z,1"], "time,g_per_kwh", "at least 2"),
        (["2025-06-15T15:00Z,1"], "time,g_per_kWh", "did you mean 'g_per_kWh'?"),
    ],
)
def test_a_series_that_cannot_be_trusted_is_refused_with_its_lines(tmp_path, rows, header, told):
    with pytest.raises(InputError) as error:
        read_carbon(carbon_csv(tmp_path, *rows, header=header))
    assert told in str(error.value)


def test_the_tables_on_disk_hold_what_was_found(planted, tmp_path):
    from llem.results import PhaseEnergy, write_rows

    planted.complete()
    found = aggregate(planted.folder)
    write_rows(PhaseEnergy, found.phases, tmp_path / "phases.csv")
    rows = list(csv.DictReader((tmp_path / "phases.csv").open()))
    assert [r["phase"] for r in rows] == ["train"]
    assert float(rows[0]["energy_j"]) == pytest.approx(1000)
    assert json.loads(rows[0]["tokens"]) == 10_000
