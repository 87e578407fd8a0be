"""Sealing: a finished record becomes small, says the same to the last bit, and is never lost."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import llem
from llem.records import (
    SAMPLES,
    STEPS,
    RecordError,
    RecordInUseError,
    check_seal,
    digest,
    host_meta,
    node_writer,
    rank_writer,
    read_node,
    read_rank,
    read_seal,
    samples_table,
    seal,
)
from llem.records.reader import opened
from llem.records.writing import ABANDONED_S, QUIET_S, has_open, still_written

ENVIRON = {**os.environ, "PYTHONPATH": str(Path(llem.__file__).parents[1])}
DEVICE = {"domain": "gpu", "contains": ["package"], "counter": True, "quality": "counter"}


def step(number):
    return (number, number + 10, number + 20, 100, 100, 3.0 + number, 1.0, 1e-3, np.nan, 2.5, 1)


def write_node(path, *, rows=3000):
    chance = np.random.default_rng(1)
    with node_writer(path, meta={"run_id": "a"}, devices={"GPU-1": DEVICE, "GPU-2": {}}) as writer:
        for t in (10**9 + np.cumsum(chance.integers(99, 101, rows))).tolist():
            power = float(chance.normal(4e5, 1e4))
            writer.append(samples_table("GPU-1"), (t, 5, t * 7.0, power, 40, 90, 1400, 2**63, 3))
        writer.event("code", "text ü")
    return path


def write_rank(path, *, rows=100, close=True):
    writer = rank_writer(path, meta={"run_id": "a", "rank": 0, "list": ["x"], "flag": True})
    for i in range(rows):
        writer.append("steps", step(i))
    writer.flush()
    if close:
        writer.close()
    return writer


ABANDON = """
import os, signal, sys
from llem.records import rank_writer
writer = rank_writer(sys.argv[1], meta={"run_id": "a"})
for i in range(100):
    writer.append("steps", (i, i + 10, i + 20, 100, 100, 3.0, 1.0, 1e-3, 0.0, 2.5, 1))
writer.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""


def abandon(path):
    """A record whose writer was killed."""
    done = subprocess.run([sys.executable, "-c", ABANDON, str(path)], env=ENVIRON, check=False)
    assert done.returncode == -signal.SIGKILL
    return path


def same(a, b):
    """Bit by bit, so that a NaN is equal to itself and -0.0 not to 0.0."""
    assert (a.meta, a.closed) == (b.meta, b.closed)
    tables = ("steps", "evals") if hasattr(a, "steps") else ("baseline",)
    pairs = [(getattr(a, name), getattr(b, name)) for name in (*tables, "clock", "events")]
    for one, two in zip(getattr(a, "devices", ()), getattr(b, "devices", ()), strict=True):
        assert (one.uuid, one.attrs) == (two.uuid, two.attrs)
        pairs.append((one.samples, two.samples))
    for one, two in pairs:
        assert one.dtype == two.dtype and one.tobytes() == two.tobytes()


def left_over(folder):
    return [path.name for path in folder.iterdir() if path.name.endswith(".sealing")]


def test_a_sealed_record_is_read_as_before_and_is_smaller(tmp_path):
    path = write_node(tmp_path / "node-a.h5")
    before, size, content = read_node(path), path.stat().st_size, digest(path)
    path.chmod(0o640)
    os.utime(path, (5, 5))
    sealed = seal(path)
    same(before, read_node(path))
    assert (sealed.path, sealed.sha256, sealed.bytes_before) == (path, content, size)
    assert sealed.bytes_after == path.stat().st_size < size / 3 and sealed.fresh
    assert digest(path) == content == check_seal(path).sha256
    assert path.stat().st_mode & 0o777 == 0o640 and path.stat().st_mtime == 5
    assert os.listdir(tmp_path) == ["node-a.h5"]


def test_a_killed_writers_record_is_sealed_and_stays_one_that_was_not_closed(tmp_path):
    path = abandon(tmp_path / "rank-00000.h5")
    before = read_rank(path)
    seal(path)
    same(before, read_rank(path))
    assert not read_rank(path).closed and len(before.steps) == 100


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_root_leaves_a_record_to_its_user(tmp_path):
    path = write_node(tmp_path / "node-a.h5")
    os.chown(path, 1234, 2345)
    seal(path)
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 2345)


def test_what_is_sealed_is_not_sealed_again(tmp_path):
    path = write_node(tmp_path / "node-a.h5")
    assert read_seal(path) is None
    first = seal(path)
    written = path.stat().st_ino
    again = seal(path)
    assert path.stat().st_ino == written and not again.fresh
    assert (again.sha256, again.bytes_before) == (first.sha256, first.bytes_before)


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(steps=hnp.arrays(STEPS, st.integers(0, 40)), text=st.text(max_size=30))
def test_whatever_was_written_comes_back_bit_by_bit(tmp_path_factory, steps, text):
    path = tmp_path_factory.mktemp("any") / "rank-00000.h5"
    text = text.encode("utf-8", "replace").decode().replace("\0", "")
    with rank_writer(path, meta={"run_id": "a", "words": text}) as writer:
        for row in steps:
            writer.append("steps", tuple(row))
        writer.event("said", text)
    before = read_rank(path)
    seal(path)
    same(before, read_rank(path))
    check_seal(path)


def test_the_five_lines_of_the_docs_read_it_sealed_or_not(tmp_path, monkeypatch, capsys):
    docs = Path(__file__).parents[3] / "docs" / "records.md"
    [code] = re.findall(r"```python\n(.*?)```", docs.read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "node-a.h5"
    with node_writer(path, meta={}, devices={"GPU-1": DEVICE}) as writer:
        for t in range(1, 3000):
            writer.append(samples_table("GPU-1"), (t, 5, t * 7.0, 4e5, 40, 90, 1400, 0, 0))
    exec(code, {})
    first = capsys.readouterr().out
    assert first == "GPU-1 20.986 J\n"
    seal(path)
    exec(code, {})
    assert capsys.readouterr().out == first


def test_a_record_whose_writer_lives_is_left_alone_however_long_it_was_silent(tmp_path):
    path = tmp_path / "rank-00000.h5"
    writer = write_rank(path, close=False)
    os.utime(path, (0, 0))
    for over in (False, True):
        with pytest.raises(RecordInUseError, match=f"process {os.getpid()} on this machine"):
            seal(path, over=over)
    writer.append("steps", step(100))
    writer.close()
    assert left_over(tmp_path) == []
    seal(path)
    assert len(read_rank(path).steps) == 101


@pytest.mark.parametrize(
    ("other", "over", "quiet_s", "living"),
    [
        ({}, False, 0, False),  # this machine: the process does not have it open
        ({"pid": os.getpid()}, True, 1e9, True),  # this machine: it does
        ({"boot_id": "b"}, False, ABANDONED_S - 1, True),
        ({"boot_id": "b"}, False, ABANDONED_S + 1, False),
        ({"boot_id": "b"}, True, QUIET_S - 1, True),
        ({"boot_id": "b"}, True, QUIET_S + 1, False),
        ({"boot_id": "b"}, True, -1e6, True),  # written "in the future": clocks disagree
        ({"pid_space": "pid:[1]"}, False, 0, True),  # a container's own process numbers
        ({"pid_space": ""}, False, 0, True),
    ],
)
def test_from_another_machine_only_time_tells_that_a_writer_is_gone(
    tmp_path, other, over, quiet_s, living
):
    path = tmp_path / "rank-00000.h5"
    writer = write_rank(path, close=False)
    gone = subprocess.Popen(["true"])
    gone.wait()
    meta = {**host_meta(), "pid": gone.pid, **other}
    now_s = path.stat().st_mtime + quiet_s
    assert bool(still_written(path, meta, over=over, now_s=now_s)) is living
    writer.close()
    assert still_written(path, meta, over=over, now_s=now_s) == ""


def test_a_process_that_will_not_say_what_it_has_open_counts_as_living(tmp_path):
    path = tmp_path / "x"
    path.touch()
    assert not has_open(os.getpid(), path)
    with path.open():
        assert has_open(os.getpid(), path)
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "fd").touch()  # no folder that could be listed
    assert has_open(7, path, proc=tmp_path) and not has_open(8, path, proc=tmp_path)


def test_a_record_that_is_not_whole_is_left_as_it_is(tmp_path):
    path = abandon(tmp_path / "rank-00000.h5")
    with opened(path) as file:
        chunk = file["steps"].id.get_chunk_info(0).byte_offset
    os.truncate(path, chunk + 30 * STEPS.itemsize + 5)
    assert read_rank(path).problems == (f"{path}: table steps: 70 of 100 rows are lost",)
    content = path.read_bytes()
    with pytest.raises(RecordError, match=r"rank-00000\.h5.*left as it is"):
        seal(path)
    assert path.read_bytes() == content and left_over(tmp_path) == []
    (tmp_path / "other.h5").write_text("hello")
    with pytest.raises(RecordError, match=r"other\.h5"):
        seal(tmp_path / "other.h5")


def test_a_seal_that_does_not_fit_its_content_is_found(tmp_path):
    import h5py

    path = write_node(tmp_path / "node-a.h5")
    with pytest.raises(RecordError, match="not sealed"):
        check_seal(path)
    sealed = seal(path)
    with h5py.File(path, "r+") as file:
        table = file["devices/GPU-1/samples"]
        rows = table[5:6]
        rows["energy_mj"] += 1
        table[5:6] = rows
    with pytest.raises(RecordError, match=f"its seal says {sealed.sha256}"):
        check_seal(path)


def test_every_spoilt_byte_of_a_sealed_table_is_an_error_and_no_value(tmp_path):
    """zlib's checksum covers what HDF5's own does not."""
    path = write_node(tmp_path / "node-a.h5", rows=500)
    seal(path)
    data, truth = path.read_bytes(), read_node(path).devices[0].samples
    chance = random.Random(1)
    for _ in range(60):
        at = chance.randrange(len(data))
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :])
        try:
            record = read_node(path)
        except RecordError:
            continue
        found = [device.samples for device in record.devices if device.uuid == "GPU-1"]
        assert record.problems or found[0].tobytes() == truth.tobytes()


def test_nothing_lies_where_hdf5_has_no_checksum(tmp_path):
    """A spoilt byte in the heap of texts of any length makes HDF5 2.0.0 read on for ever."""
    path = write_node(tmp_path / "node-a.h5")
    assert b"GCOL" not in path.read_bytes()
    seal(path)
    assert b"GCOL" not in path.read_bytes()


KILLED = """
import os, sys
from llem.records import seal
import h5py
while sys.stdin.readline():
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.read(read, 1)
        seal(sys.argv[1])
        os._exit(0)
    print(pid, flush=True)
    os.write(write, b"x")
    os.waitpid(pid, 0)
    print("gone", flush=True)
"""


@pytest.mark.slow
def test_sealing_that_was_killed_at_any_moment_has_lost_nothing(tmp_path):
    path = write_node(tmp_path / "node-a.h5", rows=20_000)
    original, content, truth = path.read_bytes(), digest(path), read_node(path)
    took_s = []
    for _ in range(3):
        path.write_bytes(original)
        began = time.monotonic()
        seal(path)
        took_s.append(time.monotonic() - began)
    parent = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], env=ENVIRON, text=True,
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    chance, caught = random.Random(3), 0
    for _ in range(40):
        path.write_bytes(original)
        parent.stdin.write("next\n")
        parent.stdin.flush()
        pid = int(parent.stdout.readline())
        time.sleep(chance.uniform(0, min(took_s)))
        with contextlib.suppress(ProcessLookupError):  # it was ready before
            os.kill(pid, signal.SIGKILL)
        assert parent.stdout.readline() == "gone\n"
        caught += bool(left_over(tmp_path))
        assert digest(path) == content
    parent.stdin.close()
    assert parent.wait(60) == 0
    parent.stdout.close()
    seal(path)
    same(truth, read_node(path))
    assert check_seal(path).sha256 == content and left_over(tmp_path) == []
    assert caught >= 5  # else no kill met the copying


def test_a_copy_of_a_sealing_that_may_still_go_on_elsewhere_is_not_touched(tmp_path):
    path = write_node(tmp_path / "node-a.h5")
    going = tmp_path / ".node-a.h5.elsewhere.17.sealing"
    ended = tmp_path / ".node-a.h5.elsewhere.18.sealing"
    foreign = tmp_path / ".node-b.h5.elsewhere.18.sealing"
    for other in (going, ended, foreign):
        other.touch()
    for other in (ended, foreign):
        os.utime(other, (0, 0))
    seal(path)
    assert sorted(left_over(tmp_path)) == [going.name, foreign.name]


FULL = """
import sys
from pathlib import Path
from llem.records import RecordWriteError, digest, read_seal, seal
path = Path("/DISK/node-a.h5")
path.write_bytes(Path(sys.argv[1]).read_bytes())
content = digest(path)
junk = open("/DISK/junk", "wb", buffering=0)
try:
    while True: junk.write(bytes(4096))
except OSError:
    pass
for free in range(0, 400_000, 20_480):
    junk.truncate(size := Path("/DISK/junk").stat().st_size - free)
    try:
        seal(path)
        print("sealed"); break
    except RecordWriteError as error:
        assert "No space left" in str(error), error
        assert digest(path) == content and read_seal(path) is None
        print("full")
    with open("/DISK/junk", "r+b") as file: file.seek(0, 2); file.write(bytes(free))
print(digest(path) == content, sorted(p.name for p in Path("/DISK").iterdir()))
"""


def test_a_full_disk_leaves_the_original_and_the_process(tmp_path):
    """Whatever little room is left: HDF5 2.0.0 must not end the process at its exit."""
    write_node(tmp_path / "node-a.h5", rows=6000)
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f'mount -t tmpfs -o size=1m none {disk} && exec "$@"'
    prefix = ["unshare", "-rm", "sh", "-c", mount, "sh"]
    if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no user namespaces here")
    done = subprocess.run(
        [*prefix, sys.executable, "-c", FULL.replace("/DISK", str(disk)),
         str(tmp_path / "node-a.h5")],
        env=ENVIRON, capture_output=True, text=True, check=False,
    )  # fmt: skip
    *tries, last = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (0, "")
    assert tries[0] == "full" and tries[-1] == "sealed"
    assert last == "True ['junk', 'node-a.h5']"


def test_a_lost_nodes_record_is_read_as_far_as_it_goes(tmp_path):
    """Cut off anywhere: the rows that are there are right, and the others are said to be lost."""
    path = abandon(tmp_path / "rank-00000.h5")
    data, truth = path.read_bytes(), read_rank(path).steps
    os.utime(path, (0, 0))
    chance = random.Random(5)
    partly = 0
    for _ in range(150):
        keep = chance.randrange(200, len(data))
        path.write_bytes(data[:keep])
        os.utime(path, (0, 0))
        try:
            record = read_rank(path)
        except RecordError:
            continue
        steps = record.steps
        assert steps.tobytes() == truth[: len(steps)].tobytes()
        assert len(steps) == len(truth) or any("table steps" in text for text in record.problems)
        partly += 0 < len(steps) < len(truth)
    assert partly >= 5


def test_a_page_that_never_reached_the_disk_costs_its_rows_and_no_other(tmp_path):
    import h5py

    path = tmp_path / "live.h5"
    writer = node_writer(path, meta={"run_id": "a"}, devices={"GPU-1": DEVICE})
    for i in range(1, 3001):
        writer.append(samples_table("GPU-1"), (i, 5, i * 7.0, 4e5, 40, 90, 1400, 0, 0))
    writer.flush()
    data = bytearray(path.read_bytes())
    writer.close()
    with h5py.File(path, "r") as file:
        table = file["devices/GPU-1/samples"]
        info = table.id.get_chunk_info_by_coord((1024,))
    page = (info.byte_offset // 4096 + 2) * 4096
    data[page : page + 4096] = bytes(4096)
    hole = tmp_path / "node-a.h5"
    hole.write_bytes(data)
    os.utime(hole, (0, 0))
    record = read_node(hole)
    samples = record.devices[0].samples
    assert np.array_equal(samples["energy_mj"], samples["t_ns"] * 7.0)
    lost = 3000 - len(samples)
    assert 4096 // SAMPLES.itemsize <= lost <= 4096 // SAMPLES.itemsize + 4
    [problem] = record.problems
    assert f"{lost} of 3000 rows are lost" in problem
