"""Runs reduced in slices, by jobs, into parts of the cache: the same result as all at once."""

from __future__ import annotations

import os
import time
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llem.errors import LlemError
from llem.results import aggregate, deal, parts_of, reduce_slice, slices, unreduced
from llem.results.slices import Unreduced


@pytest.fixture
def campaign(planted):
    for run_id in ("aaaa", "bbbb", "cccc"):
        planted.complete(run_id)
    settle(planted.folder)
    return planted


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def array(cache):
    place = parts_of(cache) / "array"
    place.mkdir(parents=True)
    return place


def settle(folder, seconds=60.0):
    """Files that nobody has written to for a minute."""
    then = time.time() - seconds
    for path in folder.rglob("*"):
        if path.is_file():
            os.utime(path, (then, then))


def blind(folder, run_id="*"):
    """Records that cannot be read any more, and look as they did."""
    for path in folder.glob(f"runs/{run_id}/*/*.h5"):
        found = path.stat()
        path.write_bytes(bytes(found.st_size))
        os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


def told(aggregation):
    kinds = (aggregation.observations, aggregation.phases, aggregation.devices, aggregation.ranks)
    return repr([[asdict(row) for row in kind] for kind in kinds]) + repr(aggregation.problems)


def test_what_slices_have_reduced_is_not_read_again_and_gives_the_same(campaign, cache, array):
    serial = told(aggregate(campaign.folder))
    for name, runs in (("0", ["aaaa", "cccc"]), ("1", ["bbbb"])):
        done = reduce_slice(campaign.folder, runs, carbon=None, into=array, name=name)
        assert done == len(runs)
    blind(campaign.folder)
    assert told(aggregate(campaign.folder, cache=cache)) == serial
    assert not list(array.glob("*.part")), "what was used of parts is in the cache"
    assert told(aggregate(campaign.folder, cache=cache)) == serial


def test_a_record_that_changed_after_its_slice_is_read_as_it_is_now(campaign, cache, array):
    reduce_slice(campaign.folder, ["aaaa", "bbbb"], carbon=None, into=array, name="0")
    (campaign.attempt("bbbb") / "rank-00000.h5").unlink()
    left, planned = unreduced(campaign.folder, cache=cache, carbon=None)
    assert ([run.run_id for run in left], planned) == (["bbbb", "cccc"], 3)
    assert told(aggregate(campaign.folder, cache=cache)) == told(aggregate(campaign.folder))


def test_an_element_that_is_taken_up_again_goes_on_where_it_was(campaign, array, monkeypatch):
    of_all = slices.reduce_runs

    def dies(folder, runs, **options):
        yield next(of_all(folder, runs, **options))
        raise LlemError("killed")

    monkeypatch.setattr(slices, "reduce_runs", dies)
    runs = ["aaaa", "bbbb"]
    with pytest.raises(LlemError):
        reduce_slice(campaign.folder, runs, carbon=None, into=array, name="0")
    monkeypatch.undo()
    assert reduce_slice(campaign.folder, runs, carbon=None, into=array, name="0") == 1
    assert reduce_slice(campaign.folder, runs, carbon=None, into=array, name="0") == 0
    assert len(list(array.glob("0-*.part"))) == 2


SLOW = """\
import pathlib, sys, time
from llem.results.reducing import workers

reduce = workers.reduce_to_text

def slowly(folder, run, carbon):
    # The second run is not done before the first one's part is there.
    until = time.monotonic() + 20
    while run["run_id"] == "bbbb" and not list(pathlib.Path({array!r}).glob("0-*.part")):
        if time.monotonic() > until:
            sys.exit(3)
        time.sleep(0.05)
    return reduce(folder, run, carbon)

workers.reduce_to_text = slowly
workers.main()
"""


def test_a_run_is_written_when_it_is_done_and_does_not_wait_for_the_next(
    campaign, array, monkeypatch
):
    import subprocess
    import sys

    from llem.results.reducing import workers

    def start():
        command = [sys.executable, "-c", SLOW.format(array=str(array))]
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(workers.PACKAGE.parent)},
        )  # fmt: skip

    monkeypatch.setattr(workers, "_start", start)
    monkeypatch.setattr(workers, "IDLE_S", 0.1)
    done = reduce_slice(
        campaign.folder, ["aaaa", "bbbb"], carbon=None, into=array, name="0", workers=2
    )
    assert done == 2 and len(list(array.glob("0-*.part"))) == 2


def test_looking_for_what_is_left_changes_no_file(campaign, cache, array):
    aggregate(campaign.folder, cache=cache)
    reduce_slice(campaign.folder, ["aaaa"], carbon=None, into=array, name="0")
    files = {path: path.read_bytes() for path in (cache, *array.iterdir())}
    assert unreduced(campaign.folder, cache=cache, carbon=None) == ([], 3)
    assert files == {path: path.read_bytes() for path in (cache, *array.iterdir())}


def test_a_torn_part_is_told_and_its_run_reduced_again(campaign, cache, array):
    serial = aggregate(campaign.folder)
    reduce_slice(campaign.folder, ["aaaa"], carbon=None, into=array, name="0")
    [part] = array.glob("*.part")
    part.write_bytes(part.read_bytes()[:-40])
    found = aggregate(campaign.folder, cache=cache)
    assert repr(found.observations) == repr(serial.observations)
    assert [text for text in found.problems if "damaged" in text and part.name in text]


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=60), st.integers(1, 20))
def test_every_run_is_dealt_once_and_no_slice_is_much_larger(sizes, count):
    runs = [Unreduced(f"{i:03}", size) for i, size in enumerate(sizes)]
    dealt = deal(runs, count)
    assert sorted(name for slice_ in dealt for name in slice_) == [run.run_id for run in runs]
    assert all(dealt) and len(dealt) == min(count, len(runs))
    of = {run.run_id: max(run.bytes, 1) for run in runs}
    totals = [sum(of[name] for name in slice_) for slice_ in dealt]
    assert max(totals) - min(totals) <= max(of.values())
