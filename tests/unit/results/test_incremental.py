"""Reductions that are kept, and runs that are reduced at once: the same result, less work."""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from llem.errors import LlemError
from llem.records import seal
from llem.results import aggregate, keep_sealed, read_carbon, write_observations
from llem.results.reducing import workers

BEFORE_S = 60.0


@pytest.fixture
def campaign(planted):
    """Three runs, one of them in two attempts and one without its node's record."""
    planted.complete("aaaa")
    planted.complete("bbbb")
    planted.rank("bbbb", 1, start_s=101.0)
    planted.node("bbbb", 1, from_s=100.0, to_s=112.0, devices=["GPU-of-bbbb"])
    planted.end("bbbb", 1, window_s=(101.0, 111.0))
    planted.complete("cccc")
    (planted.attempt("cccc") / "node-n0.h5").unlink()
    _settle(planted.folder)
    return planted


def _settle(folder: Path) -> None:
    """Files that nobody has written to for a minute."""
    then = time.time() - BEFORE_S
    for path in folder.rglob("*"):
        if path.is_file():
            os.utime(path, (then, then))


def _blind(folder: Path) -> None:
    """Records that cannot be read any more, and look as they did."""
    for path in folder.rglob("*.h5"):
        found = path.stat()
        path.write_bytes(bytes(found.st_size))
        os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


def _all(aggregation) -> str:
    """Rows, phases, devices and problems; as text, in which NaN equals NaN."""
    rows = (aggregation.observations, aggregation.phases, aggregation.devices)
    return repr([[asdict(row) for row in kind] for kind in rows]) + repr(aggregation.problems)


def test_runs_whose_files_have_not_changed_are_not_read_again(campaign, tmp_path):
    cache = tmp_path / "cache"
    first = aggregate(campaign.folder, cache=cache)
    _blind(campaign.folder)
    assert _all(aggregate(campaign.folder, cache=cache)) == _all(first)
    assert "node records missing" in repr(first.observations[2])
    blind = aggregate(campaign.folder)
    assert all("not readable as HDF5" in problem for problem in blind.problems) and blind.problems


def test_devices_that_runs_shared_are_not_read_again_until_one_of_them_changes(planted, tmp_path):
    for run_id, begins in (("aaaa", 1.0), ("bbbb", 6.0)):
        planted.run(run_id)
        planted.rank(run_id, start_s=begins)
        planted.node(run_id, to_s=20.0)
        planted.end(run_id, window_s=(begins, begins + 10))
    _settle(planted.folder)
    cache = tmp_path / "cache"
    first = aggregate(planted.folder, cache=cache)
    assert [row.energy_j for row in first.observations] == pytest.approx([750.0, 750.0])
    seen = {path: path.read_bytes() for path in planted.folder.rglob("*.h5")}
    _blind(planted.folder)
    assert _all(aggregate(planted.folder, cache=cache)) == _all(first)
    for path, content in seen.items():
        path.write_bytes(content)
    _settle(planted.folder)
    planted.end("bbbb", window_s=(9.0, 16.0))
    found = aggregate(planted.folder, cache=cache)
    assert _all(found) == _all(aggregate(planted.folder))
    assert found.observations[0].energy_j == pytest.approx(900.0)


def test_sealing_leaves_reductions_as_they_were_and_only_those(campaign, tmp_path):
    cache = tmp_path / "cache"
    first = aggregate(campaign.folder, cache=cache)

    def sealing() -> list[Path]:
        records = sorted(campaign.folder.rglob("*.h5"))
        for path in records:
            seal(path)
        campaign.end("aaaa", status="failed")  # changes meanwhile, by another's hand
        return records

    keep_sealed(campaign.folder, cache, sealing)
    _blind(campaign.folder)
    found = aggregate(campaign.folder, cache=cache)
    assert repr(found.observations[1:]) == repr(first.observations[1:])
    # nobody knows what else may have changed in that run: it is read again
    assert any("aaaa" in problem and "not readable" in problem for problem in found.problems)
    assert not any("bbbb" in problem for problem in found.problems)


def test_late_options_are_applied_to_what_was_kept(campaign, tmp_path):
    options = {"pue": 1.5, "idle_power_w": 20.0, "price_per_kwh": 0.3, "carbon_g_per_kwh": 400.0}
    wanted = aggregate(campaign.folder, **options)
    aggregate(campaign.folder, cache=tmp_path / "cache")
    _blind(campaign.folder)
    found = aggregate(campaign.folder, cache=tmp_path / "cache", **options)
    assert _all(found) == _all(wanted)
    assert found.observations[0].energy_net_j == pytest.approx(800.0)


def test_a_run_with_a_new_file_or_a_changed_one_is_reduced_again(campaign, tmp_path):
    cache = tmp_path / "cache"
    aggregate(campaign.folder, cache=cache)
    campaign.node("cccc", devices=["GPU-of-cccc"], power_w=lambda *_: 300.0)
    campaign.end("aaaa", status="failed", reason="said later")
    found = aggregate(campaign.folder, cache=cache)
    assert _all(found) == _all(aggregate(campaign.folder))
    assert found.observations[2].energy_j == pytest.approx(3000.0)
    assert found.observations[0].status == "failed"


def test_a_carbon_series_is_a_part_of_what_a_reduction_is_of(campaign, tmp_path, host):
    cache = tmp_path / "cache"
    aggregate(campaign.folder, cache=cache)
    (tmp_path / "carbon.csv").write_text(
        "time,g_per_kwh\n2025-06-15T00:00Z,100\n2025-06-15T12:00Z,200\n2025-06-16T00:00Z,300\n"
    )
    series = read_carbon(tmp_path / "carbon.csv")
    found = aggregate(campaign.folder, cache=cache, carbon_g_per_kwh=series)
    assert _all(found) == _all(aggregate(campaign.folder, carbon_g_per_kwh=series))
    assert found.observations[0].carbon_g > 0


@pytest.mark.parametrize("at", [3, -20, 4000])
def test_a_damaged_cache_is_told_and_harms_nothing(campaign, tmp_path, at):
    cache = tmp_path / "cache"
    first = aggregate(campaign.folder, cache=cache)
    content = bytearray(cache.read_bytes())
    content[at] ^= 4
    cache.write_bytes(content)
    found = aggregate(campaign.folder, cache=cache)
    [told] = set(found.problems) - set(first.problems)
    assert str(cache) in told and "left out" in told
    assert repr(found.observations) == repr(first.observations)
    assert aggregate(campaign.folder, cache=cache).problems == first.problems


def test_a_cache_that_is_no_file_or_cannot_be_written_costs_time_alone(campaign, tmp_path):
    (tmp_path / "folder").mkdir()
    found = aggregate(campaign.folder, cache=tmp_path / "folder")
    assert any("folder" in problem for problem in found.problems)
    assert repr(found.observations) == repr(aggregate(campaign.folder).observations)


def test_what_was_written_a_moment_ago_is_not_kept(campaign, tmp_path):
    os.utime(campaign.attempt("aaaa") / "end.json")
    aggregate(campaign.folder, cache=tmp_path / "cache")
    kept = (tmp_path / "cache").read_text()
    assert " aaaa " not in kept and " bbbb " in kept


def test_a_campaign_that_was_moved_is_not_read_again_and_problems_name_its_place(
    campaign, tmp_path
):
    (campaign.attempt("cccc") / "stranger.h5").write_bytes(b"")
    _settle(campaign.folder)
    cache = tmp_path / "cache"
    aggregate(campaign.folder, cache=cache)
    moved = campaign.folder.rename(tmp_path / "elsewhere")
    wanted = _all(aggregate(moved))
    _blind(moved)
    found = aggregate(moved, cache=cache)
    assert _all(found) == wanted and str(moved / "runs/cccc") in found.problems[0]


def test_what_is_too_large_to_be_kept_is_read_again_with_the_same_result(
    planted, host, monkeypatch
):
    hosts = [host(f"n{i}", f"boot-{i}", mono_ns=10**15 * (i + 1)) for i in range(2)]
    planted.run(nodes=2, per_node=2, steps=40)
    for rank in range(4):
        planted.rank(rank=rank, world=4, host=hosts[rank // 2], steps=range(1, 41),
                     step_s=0.25 + 0.001 * rank, device_uuid=f"GPU-{rank}")  # fmt: skip
    for i, each in enumerate(hosts):
        planted.node(host=each, devices=[f"GPU-{2 * i}", f"GPU-{2 * i + 1}"],
                     power_w=lambda uuid, s: 100.0 + 10 * int(uuid[-1]) + s)  # fmt: skip
    planted.end(host=hosts[0], ranks=4, step=40, hosts=["n0", "n1"])
    wanted = aggregate(planted.folder)
    assert wanted.observations[0].devices == 4 and not wanted.problems
    monkeypatch.setattr("llem.results.ranks.ranks.KEPT_BYTES", 0)
    monkeypatch.setattr("llem.results.attempt.LARGE_BYTES", 0)
    assert _all(aggregate(planted.folder)) == _all(wanted)


def test_two_processes_give_the_same_bytes_as_none(campaign, tmp_path):
    for number in range(4):
        campaign.complete(f"d{number}")
    one, two = (aggregate(campaign.folder, workers=n) for n in (1, 2))
    assert _all(one) == _all(two)
    write_observations(one.observations, tmp_path / "one.csv")
    write_observations(two.observations, tmp_path / "two.csv")
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()


def test_a_worker_that_ends_is_told_with_the_run_it_had(campaign, monkeypatch):
    monkeypatch.setitem(workers.ENVIRONMENT, "PYTHONHOME", "/nowhere")
    with pytest.raises(LlemError, match="a worker process ended") as caught:
        aggregate(campaign.folder, workers=2)
    assert "--workers 1" in caught.value.remedy
