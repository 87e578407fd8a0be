"""The files of all runs: cached where final, and right again whatever becomes of the cache."""

import csv
import json
import math

import pytest

from llem.cluster import CampaignFolder
from llem.cluster.disk.ends import read_ends, write_ends

ONE, TWO, THREE = "0123456789ab", "ba9876543210", "00000000ffff"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "c" / "jobs").mkdir(parents=True)
    return CampaignFolder(tmp_path / "c")


def attempt(folder, run, *, end=None, begin=None, progress=None):
    place = folder.new_attempt(run)
    for name, values in {"end": end, "begin": begin, "progress": progress}.items():
        if values is not None:
            (place / f"{name}.json").write_text(json.dumps(values))
    return place


def done(seconds=10, ranks=2, **values):
    return {"status": "completed", "loss": 2.5, "started_ns": 10**9, "ranks": ranks,
            "ended_ns": 10**9 + int(seconds * 1e9), **values}  # fmt: skip


def settle(folder, **options):
    ends = read_ends(folder, **options)
    write_ends(folder, ends)
    return ends


def test_attempts_are_added_up(folder):
    attempt(folder, ONE, end={**done(5), "status": "failed", "reason": "x"})
    attempt(folder, ONE, end=done(10, energy_j=7.0))
    files = read_ends(folder).of(ONE)
    assert files.final and files.attempts == 2
    assert files.device_s == 2 * 5 + 2 * 10
    # the first attempt's energy is not told: the sum is not known
    assert files.energy_j is None
    assert read_ends(folder).of(THREE).attempts == 0


def test_a_killed_attempt_counts_to_its_last_sign_of_life(folder):
    attempt(folder, ONE, begin={"started_ns": 10**9, "ranks": 4}, progress={"time_ns": 4 * 10**9})
    attempt(folder, ONE, end=done(10, ranks=4))
    assert read_ends(folder).of(ONE).device_s == 4 * 3 + 4 * 10


def test_an_open_attempt_is_told_with_its_progress(folder):
    place = attempt(folder, ONE, begin={"started_ns": 5 * 10**9}, progress={"step": 3})
    files = read_ends(folder).of(ONE)
    assert not files.final and files.open_attempt == place
    assert files.begun_s == 5.0 and files.progress == {"step": 3}


def test_a_final_run_is_read_once(folder):
    attempt(folder, ONE, end=done())
    attempt(folder, TWO, end={**done(), "status": "interrupted"})
    before = settle(folder)
    # whatever is done to the file of a final run, the cache does not look
    (folder.run(ONE) / "attempt-0" / "end.json").write_text("torn")
    assert read_ends(folder).of(ONE).end == {
        k: v for k, v in before.of(ONE).end.items() if k != "ranks"
    }
    attempt(folder, TWO, end=done())
    assert read_ends(folder).of(TWO).final


@pytest.mark.parametrize("text", [None, "", '{"schema": "llem-ends-1", "runs": {"', "[]", "{}"])
def test_the_cache_is_safe_to_delete_and_to_tear(folder, text):
    attempt(folder, ONE, end=done())
    before = settle(folder)
    if text is None:
        folder.ends_file.unlink()
    else:
        folder.ends_file.write_text(text)
    again = settle(folder)
    assert again.of(ONE).device_s == before.of(ONE).device_s
    assert folder.ends_file.stat().st_size > 50


def test_a_run_whose_folder_is_gone_leaves_the_cache(folder):
    import shutil

    attempt(folder, ONE, end=done())
    settle(folder)
    shutil.rmtree(folder.run(ONE))
    assert read_ends(folder).of(ONE).attempts == 0


def test_a_folder_that_cannot_be_written_can_be_read(folder, monkeypatch):
    import os

    def refuse(*_):
        raise PermissionError("read-only")

    attempt(folder, ONE, end=done())
    monkeypatch.setattr(os, "replace", refuse)
    assert settle(folder).of(ONE).final
    assert not folder.ends_file.exists()


def test_energy_is_taken_from_the_end_record_the_last_aggregation_or_the_records(folder):
    attempt(folder, ONE, end=done(energy_j=5.0))
    attempt(folder, TWO, end=done())
    attempt(folder, THREE, end=done())
    folder.results.mkdir()
    with open(folder.results / "observations.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["run_id", "attempts", "energy_j"])
        rows.writerow([TWO, 1, 6.5])
        # of before its second attempt
        rows.writerow([THREE, 3, 99.0])
    ends = settle(folder, energy_s=5.0)
    assert ends.of(ONE).energy_j == 5.0
    assert ends.of(TWO).energy_j == 6.5
    # no record of a node: never to be known, and not asked for again
    assert math.isnan(ends.of(THREE).energy_j)
    assert math.isnan(read_ends(folder).of(THREE).energy_j)


def test_records_are_read_for_no_longer_than_allowed_and_the_next_call_goes_on(folder, monkeypatch):
    import llem.results

    seen = []

    class Energy:
        energy_j = 3.0

    def read(path):
        seen.append(path)
        return Energy

    monkeypatch.setattr(llem.results, "device_energies", read)
    clock = iter(range(100))
    monkeypatch.setattr("llem.cluster.disk.ends.time.monotonic", lambda: next(clock))
    for name in (ONE, TWO, THREE):
        attempt(folder, name, end=done())
    settle(folder, energy_s=1.5)
    assert len(seen) == 1
    settle(folder, energy_s=1.5)
    settle(folder, energy_s=1.5)
    assert len(seen) == len(set(seen)) == 3
    settle(folder, energy_s=1.5)
    assert len(seen) == 3
