"""Records: what is written is read, also when the writer was killed, still runs or was cut off."""

from __future__ import annotations

import math
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import llem
from llem.records import (
    RecordError,
    host_meta,
    node_writer,
    rank_writer,
    read_node,
    read_rank,
    samples_table,
    worst_quality,
)
from llem.records.unclosed import Unclosed, is_unclosed, lookup3

DEVICE = {"domain": "gpu", "contains": ["package"], "counter": True, "quality": "counter"}


def step(number):
    return (number, 10, 20, 100, 100, 3.0, 1.0, 1e-3, math.nan, math.nan, 1)


def sample(t_ns):
    return (t_ns, 5, 1.5, 2.5, 40, 90, 1400, 2**63, 3)


@pytest.fixture
def rank_file(tmp_path):
    path = tmp_path / "rank-00000.h5"
    with rank_writer(path, meta={"run_id": "a", "rank": 0}) as writer:
        for i in range(100):
            writer.append("steps", step(i))
    return path


def killed(path):
    """The bytes of a record as its writer leaves them when it is killed after a flush."""
    writer = rank_writer(path.with_name("live.h5"), meta={"run_id": "a"})
    for i in range(100):
        writer.append("steps", step(i))
    writer.flush()
    path.write_bytes(writer.path.read_bytes())
    writer.close()
    return path


def test_a_closed_record_reads_back_as_it_was_written(tmp_path):
    path = tmp_path / "node-a.h5"
    big = 2**62 + 1  # no float could hold it
    meta = {"run_id": "a", "list": ["x", "y"], "nothing": None, "flag": True, "path": tmp_path}
    with node_writer(path, meta=meta, devices={"GPU-1": DEVICE, "GPU-2": DEVICE}) as writer:
        writer.append(samples_table("GPU-1"), sample(big))
        writer.event("code", "text ü")
    record = read_node(path)
    assert record.closed and record.meta["list"] == ["x", "y"] and record.meta["nothing"] == ""
    first, second = record.devices
    assert first.uuid == "GPU-1" and first.attrs["contains"] == ["package"]
    assert first.samples["t_ns"].tolist() == [big] and first.samples["throttle"][0] == 2**63
    assert len(second.samples) == 0
    assert record.events["text"][0].decode() == "text ü"


def test_a_record_is_never_overwritten(rank_file):
    with pytest.raises(FileExistsError):
        rank_writer(rank_file, meta={})


def test_a_record_that_is_being_written_can_be_read(tmp_path):
    path = tmp_path / "rank-00000.h5"
    with rank_writer(path, meta={"run_id": "a"}) as writer:
        for i in range(5000):  # more than a chunk
            writer.append("steps", step(i))
        writer.flush()
        live = read_rank(path)
        assert not live.closed and live.steps["step"].tolist() == list(range(5000))
        writer.append("steps", step(5000))
    assert read_rank(path).closed and len(read_rank(path).steps) == 5001


def test_a_killed_writers_record_is_whole_and_not_closed(tmp_path):
    record = read_rank(killed(tmp_path / "rank-00000.h5"))
    assert not record.closed and record.steps["step"].tolist() == list(range(100))


@pytest.mark.parametrize("keep", [0, 10, 47, 48, 100, 700, 2_000, 5_000, 20_000, 100_000, -1])
@pytest.mark.parametrize("closed", [True, False])
def test_a_record_that_was_cut_off_is_an_error_at_once_or_read_in_part(
    tmp_path, rank_file, keep, closed
):
    """HDF5's own reader of unclosed files would try a spoilt block again for ever."""
    path = rank_file if closed else killed(tmp_path / "rank-00001.h5")
    os.truncate(path, keep if keep >= 0 else path.stat().st_size + keep)
    old = time.time() - 3600
    os.utime(path, (old, old))
    # of the processor, for the machine may be busy
    began = time.process_time()
    try:
        assert len(read_rank(path).steps) <= 100
    except RecordError as error:
        assert str(path) in error.message  # noqa: PT017
    assert time.process_time() - began < 2.0


@settings(deadline=None)  # the machine may be busy with other things
@given(st.integers(0, 40_000), st.binary(min_size=1, max_size=64))
def test_a_record_with_spoilt_bytes_never_hangs_or_crashes(tmp_path_factory, at, noise):
    path = tmp_path_factory.mktemp("spoilt") / "rank-00000.h5"
    data = bytearray(SPOILT)
    data[at : at + len(noise)] = noise
    path.write_bytes(data)
    os.utime(path, (0, 0))
    try:
        read_rank(path)
    except RecordError as error:
        assert str(path) in error.message  # noqa: PT017


def _spoilt() -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return killed(Path(folder) / "rank-00000.h5").read_bytes()


SPOILT = _spoilt()


def test_what_is_no_record_is_named(tmp_path):
    import h5py

    text, other = tmp_path / "a.h5", tmp_path / "b.h5"
    text.write_text("hello")
    h5py.File(other, "w").close()
    for path in (text, other, tmp_path / "gone.h5", tmp_path):
        with pytest.raises(RecordError, match=str(path)):
            read_rank(path)


def test_a_node_record_is_no_rank_record(tmp_path):
    path = tmp_path / "node-a.h5"
    node_writer(path, meta={}, devices={}).close()
    with pytest.raises(RecordError, match="'node', expected"):
        read_rank(path)


def test_the_checksum_is_hdf5s_own(rank_file):
    head = rank_file.read_bytes()[:48]
    assert struct.unpack("<I", head[44:])[0] == lookup3(head[:44])
    assert lookup3(b"Four score and seven years ago") == 0x17770551
    assert not is_unclosed(rank_file)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 3000)), max_size=20))
def test_the_bytes_without_the_mark_differ_in_the_head_only(tmp_path_factory, reads):
    path = tmp_path_factory.mktemp("u") / "x.h5"
    path.write_bytes(SPOILT[:2500])
    with Unclosed(path) as file:
        for at, count in reads:
            file.seek(at)
            found = file.read(count) or b""
            kept = (SPOILT[:2500] + bytes(4000))[at : at + count]  # zeros where it was cut off
            assert len(found) == len(kept)
            assert found[max(0, 48 - at) :] == kept[max(0, 48 - at) :]


def test_a_machine_without_a_boot_id_is_known_by_its_name(tmp_path):
    meta = host_meta(boot_id=tmp_path / "gone")
    assert meta["boot_id"] == f"host-{meta['host']}"
    assert not str(host_meta()["boot_id"]).startswith("host-")


FULL = """
import sys
from llem.records import RecordWriteError, rank_writer, read_rank
writer = rank_writer("/DISK/rank-00000.h5", meta={"run_id": "a"})
n = 0
try:
    while True:
        writer.append("steps", (n, n, n, n, n, n, 0, 0, 0, 0, 1)); n += 1
        if n % 1000 == 0: writer.flush(); flushed = n
except RecordWriteError as error:
    print(error)
try:
    writer.append("steps", (n, n, n, n, n, n, 0, 0, 0, 0, 1))
except RecordWriteError:
    print("again")
writer.close(); writer.close()
record = read_rank(writer.path)
print(record.closed, len(record.steps) >= flushed, record.steps["step"].tolist()[:3])
"""


def test_a_full_disk_is_an_error_that_costs_neither_rows_nor_the_process(tmp_path):
    """HDF5 2.0.0 would end the process with a segmentation fault, after a training, at its exit."""
    mount = f'mount -t tmpfs -o size=1m none {tmp_path} && exec "$@"'
    prefix = ["unshare", "-rm", "sh", "-c", mount, "sh"]
    if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no user namespaces here")
    done = subprocess.run(
        [*prefix, sys.executable, "-c", FULL.replace("/DISK", str(tmp_path))],
        env={**os.environ, "PYTHONPATH": str(Path(llem.__file__).parents[1])},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    failed, again, found = done.stdout.splitlines()
    assert "writing failed" in failed and "No space left" in failed and again == "again"
    assert found == "False True [0, 1, 2]"
    assert (done.returncode, done.stderr) == (0, "")


KILLED = """
import os, sys
from llem.records import rank_writer
import h5py
for i, _ in enumerate(sys.stdin):
    pid = os.fork()
    if pid == 0:
        writer = rank_writer(f"{sys.argv[1]}/rank-{i:05d}.h5", meta={"run_id": "a"})
        n = 0
        while True:
            for _ in range(50):
                writer.append("steps", (n, n, n, n, n, n, 0, 0, 0, 0, 1)); n += 1
            writer.flush()
            with open(f"{sys.argv[1]}/{i}.acked", "w") as file:
                file.write(f"{n:09d}")
    print(pid, flush=True)
    os.wait()
"""


@pytest.mark.slow
def test_fifty_writers_killed_at_random_lose_no_row_that_was_flushed(tmp_path):
    kills = 50
    environ = {**os.environ, "PYTHONPATH": str(Path(llem.__file__).parents[1])}
    with subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], env=environ, text=True,
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:  # fmt: skip
        for number in range(kills):
            # One at a time: a writer that waits to be killed takes the others' processor.
            print("another", file=parent.stdin, flush=True)
            pid = int(parent.stdout.readline())
            while not (tmp_path / f"{number}.acked").exists():
                time.sleep(0.002)
            time.sleep(0.013 * (number % 7))
            os.kill(pid, signal.SIGKILL)
        parent.stdin.close()
        assert parent.wait(60) == 0
    for number in range(kills):
        text = (tmp_path / f"{number}.acked").read_text()
        steps = read_rank(tmp_path / f"rank-{number:05d}.h5").steps["step"]
        assert len(steps) >= int(text or 0)  # empty: killed while it noted the count
        assert np.array_equal(steps, np.arange(len(steps)))


@pytest.mark.parametrize(
    ("parts", "whole"),
    [(["counter"], "counter"), (["counter", "integral"], "integral"), ([], "none"),
     (["model", "counter"], "model"), (["none", "model"], "none"), (["counter", "odd"], "odd")],
)  # fmt: skip
def test_what_several_make_up_is_as_good_as_the_least_of_them(parts, whole):
    assert worst_quality(parts) == whole
