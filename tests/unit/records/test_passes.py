"""The passes in C against numpy, bit for bit, on columns that are odd in every way."""

from __future__ import annotations

import os
import shutil
from dataclasses import fields
from pathlib import Path

import h5py
import numpy as np
import pytest

from llem import _compiling
from llem.records import (
    SAMPLES,
    STEPS,
    Columns,
    node_writer,
    rank_writer,
    read_rank,
    samples_table,
)
from llem.records.columns import _type_of
from llem.records.native import compiled, hdf5
from llem.records.native.rows import ColumnsPass, SamplesPass, StepRows, StepsPass
from llem.records.reader import plain
from llem.records.schema import EVENTS

pytestmark = pytest.mark.skipif(
    not any(shutil.which(name) for name in _compiling.COMPILERS), reason="no C compiler"
)
LENGTHS = [2, 3, 7, 8, 9, 127, 128, 129, 255, 256, 257, 258, 1000, 4099]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> compiled.Library:
    here = {"PATH": os.environ["PATH"], "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache"))}
    found, status = compiled.look(here)
    assert found is not None, status.reason
    return found


def same(got, wanted) -> bool:
    return np.array_equal(got, wanted, equal_nan=True)


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("odd", ["", "equal times", "unknown", "infinite", "disorder", "far apart"])
def test_a_line_is_looked_up_as_numpy_does(library, n, odd):
    chance = np.random.default_rng(n)
    x = np.cumsum(chance.exponential(0.1, n))
    y = np.cumsum(chance.normal(60, 30, n))
    if odd == "equal times":
        x = np.sort(np.round(x, 1))
    elif odd == "unknown":
        y[chance.integers(0, n, 1 + n // 9)] = np.nan
    elif odd == "infinite":
        y[chance.integers(0, n, 1 + n // 9)] = np.inf
    elif odd == "far apart":
        x[n // 2 :] += 1e6
    start = 10**15 + 7
    t_ns = start + (chance.uniform(x[0] - 1, x[-1] + 1, 3 * n) * 1e9).astype(np.int64)
    t_ns[::5] = start + (x[chance.integers(0, n, len(t_ns[::5]))] * 1e9).astype(np.int64)
    if odd != "disorder":
        t_ns.sort()
    later = t_ns + chance.integers(0, 10**8, len(t_ns))
    with np.errstate(all="ignore"):
        found, ends = (np.interp((t - start) / 1e9, x, y) for t in (t_ns, later))
        rises, used = np.diff(found), float((ends - found).sum())
        read_mj = (found + 7.0) * 1e3 + chance.choice([0.0, 900.0, 2100.0, np.nan], len(t_ns))
        off = np.abs(read_mj / 1e3 - 7.0 - found)
        within = (int(t_ns[len(t_ns) // 4]), int(t_ns.max()) - 10**8)
        far = (off > 1.0) & np.isfinite(off) & (t_ns >= within[0]) & (t_ns <= within[1])
    line = library.line(start, x, y)
    assert same(library.rises(line, t_ns)[1:], rises)
    words = {"base_j": 7.0, "least_j": 1.0, "within_ns": within}
    got, doubtful = library.waits(line, t_ns, later, read_mj, **words)
    assert same(got, used) and doubtful == np.count_nonzero(far)
    assert library.waits(line, t_ns, None, read_mj, **words) == (0.0, doubtful)
    assert same(library.waits(line, t_ns, later, None)[0], used)
    with pytest.raises(ValueError, match="as many"):
        library.waits(line, t_ns, later[1:], None)


def samples_of(n: int) -> np.ndarray:
    """Samples of a device at which nothing is odd."""
    chance = np.random.default_rng(n)
    table = np.frombuffer(chance.bytes(n * SAMPLES.itemsize), SAMPLES).copy()
    table["t_ns"] = 10**15 + np.cumsum(chance.integers(1, 3 * 10**9, n))
    table["energy_mj"] = 3e12 + np.cumsum(chance.integers(0, 3, n) * 40_000.0)
    table["power_mw"] = chance.normal(6e5, 1e4, n)
    table["flags"] = 4 * chance.integers(0, 4, n)
    table["throttle"] = np.where(np.arange(n) < n // 3, 0, 1 << chance.integers(0, 6, n))
    table["temperature_c"] = np.repeat(chance.integers(30, 33, n), 3)[:n]
    table["temperature_c"][chance.random(n) < 0.1] = np.nan
    return table


def pass_of(library, table, **words) -> SamplesPass:
    asked = {"failed": 2, "slowed": 8, "capped": 4, "most_s": 2.0, "every_read": 7, "head_ns": 0}
    into = SamplesPass(len(table), **{**asked, **words})
    for part in np.array_split(table, 3):
        if not library.feed(np.ascontiguousarray(part), into=into):
            break
    return into


@pytest.mark.parametrize("n", LENGTHS)
def test_samples_become_a_series_as_numpy_makes_it(library, n):
    table = samples_of(n)
    head_ns = int(table["t_ns"][n // 2])
    got = pass_of(library, table, head_ns=head_ns).found()
    at_s, power_w = (table["t_ns"] - table["t_ns"][0]) / 1e9, table["power_mw"] / 1e3
    steps = np.diff(table["energy_mj"]) / 1e3
    joules = np.append(0.0, np.cumsum(steps))
    assert same(got.at_s, at_s) and same(got.joules, joules)
    assert got.integral_j == ((power_w[1:] + power_w[:-1]) / 2 * np.diff(at_s)).sum()
    assert got.most_w == power_w.max() and got.start_mj == table["energy_mj"][0]
    assert (got.start_ns, got.end_ns) == (table["t_ns"][0], table["t_ns"][-1])
    assert same(got.read_ns, table["read_ns"][::7])
    stood = [at_s[j + 1] - at_s[i] for i in range(n - 1)
             for j in range(i, min(i + 40, n - 1)) if not steps[i : j + 1].any()]  # fmt: skip
    assert got.stood_s == max(stood, default=0.0)
    for name, values in got.head.items():
        assert same(values, table[name][: n // 2])
    for mask, seconds in ((8, got.slowed_s), (4, got.capped_s)):
        told = (table["throttle"] & np.uint64(mask)) != 0
        parts = np.minimum(np.diff(table["t_ns"]) / 1e9, 2.0) * told[1:]
        wanted = np.append(0.0, np.cumsum(parts)) if told.any() else None
        assert same(seconds, wanted) if told.any() else seconds is None
    known = np.isfinite(table["temperature_c"])
    celsius, t_ns = table["temperature_c"][known], table["t_ns"][known]
    kept = np.ones(len(celsius), dtype=bool)
    changed = celsius[1:] != celsius[:-1]
    kept[1:-1] = changed[:-1] | changed[1:]
    assert same(got.celsius, celsius[kept]) and same(got.warm_ns, t_ns[kept])
    for apart in (1, 3, n + 1):
        with np.errstate(all="ignore"):
            means = (joules[apart:] - joules[:-apart]) / (at_s[apart:] - at_s[:-apart])
        assert same(library.most(at_s, joules, apart), means.max(initial=0.0))


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize(
    ("column", "value"),
    [("energy_mj", np.nan), ("energy_mj", np.inf), ("energy_mj", 0.0), ("power_mw", np.nan),
     ("t_ns", 5), ("flags", 2)],
)  # fmt: skip
def test_an_odd_sample_ends_the_pass(library, n, column, value):
    table = samples_of(n)
    place = np.random.default_rng(n).integers(1, n)
    table[column][place] = value
    into = pass_of(library, table)
    assert into.found() is None and into.state.done <= place + 128


def steps_of(n: int) -> np.ndarray:
    chance = np.random.default_rng(n)
    table = np.frombuffer(chance.bytes(n * STEPS.itemsize), STEPS).copy()
    table["step"] = np.cumsum(chance.integers(1, 3, n))
    table["t1_ns"] = 10**15 + np.cumsum(chance.integers(0, 10**9, n))
    table["t0_ns"] = table["t1_ns"] - chance.integers(1, 10**9, n)
    table["e1_mj"] = np.where(chance.random(n) < 0.9, 3e12 + np.arange(n) * 6e4, np.nan)
    table["phase"] = np.arange(n) // 100 % 2
    table["tokens_rank"] = 2048
    return table


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("same_numbers", [False, True])
def test_steps_are_passed_over_as_columns_say_them(library, n, same_numbers):
    table = steps_of(n)
    table["tokens_unique"] = np.where(np.arange(n) < n // 2, 2048, 2047 * (n % 2) + n % 2)
    known = table["step"].copy() if same_numbers else None
    into = StepsPass(n, known=known)
    for part in np.array_split(table, 3):
        assert library.feed(np.ascontiguousarray(part), into=into)
    got, wanted = into.found(), StepRows.of(Columns.of(table))
    assert got is not None and (got.step is known) == same_numbers
    for field in fields(StepRows):
        a, b = getattr(got, field.name), getattr(wanted, field.name)
        assert same(np.broadcast_to(a, np.shape(b)), b), field.name
    spans = np.sort(np.random.default_rng(n).integers(0, n + 1, 5))
    read = np.arange(5.0)
    begins, phase, joules = library.stretches(got, spans, read)
    before = np.append(got.began_mj, got.e1_mj)[:n]
    before[spans[spans < n]] = read[spans < n]
    with np.errstate(invalid="ignore"):
        step_j = (got.e1_mj - before) / 1e3
    step_j[step_j < 0] = np.nan
    assert same(begins, np.union1d(got.change, spans[spans < n]))
    assert same(phase, table["phase"][begins])
    assert same(joules, np.add.reduceat(step_j, begins))


@pytest.mark.parametrize(("column", "change"), [("step", 0), ("t1_ns", -(2 * 10**9)), ("known", 1)])
def test_steps_in_disorder_or_of_other_numbers_are_no_pass(library, column, change):
    table = steps_of(400)
    known = table["step"].copy()
    if column == "known":
        known[300] += change
    else:
        table[column][300] = table[column][299] + change
    into = StepsPass(400, known=known if column == "known" else None)
    assert not library.feed(table, into=into)
    assert into.found() is None


@pytest.mark.parametrize("n", [1, *LENGTHS])
def test_sums_and_counts_are_those_of_numpy(library, n):
    chance = np.random.default_rng(n)
    a, b = np.cumsum(chance.normal(0, 1e3, n)), chance.normal(0, 1e-3, n)
    x = a - a.mean()
    wanted = float((x * b).sum()) / float((x * x).sum()) if n > 1 else np.nan
    assert same(library.slope(a, b), wanted)
    assert np.isnan(library.slope(a, np.append(b[1:], np.inf)))
    assert library.median(a) == np.median(a)
    assert library.median(np.round(b, 3)) == np.median(np.round(b, 3))
    assert np.isnan(library.median(np.append(a, np.nan)))
    t = chance.integers(-(2**62), 2**62, n)
    u = t + chance.integers(-1000, 3000, n)
    got = library.waited(t, u, same_ns=500)
    assert got == (int((u - t).sum()), int((u - t < 500).sum()), int((t > u).sum()))


def test_the_first_window_in_which_a_temperature_stands_is_found(library):
    x = np.arange(100.0)
    y = np.where(x < 50, x, 50.0)
    since = np.arange(0, 80)
    words = {"most": 0.1, "times": 1.0}
    flat = library.flat(since, since + 20, x, y, **words)
    slopes = [np.polyfit(x[s : s + 21], y[s : s + 21], 1)[0] for s in since]
    assert flat == next(k for k, slope in enumerate(slopes) if abs(slope) < 0.1)
    assert library.flat(since[:9], since[:9] + 20, x, y, **words) == -1
    y[30] = np.nan
    assert library.flat(since, since + 20, x, y, **words) == -2 - 10


def test_rows_in_chunks_are_parted_and_a_file_that_ends_is_told(library, tmp_path: Path):
    path, chance = tmp_path / "rank-00000.h5", np.random.default_rng(5)
    table = np.frombuffer(chance.bytes(STEPS.itemsize * 10_001), STEPS)
    with rank_writer(path, meta={"run_id": "a"}) as writer:
        writer.extend("steps", table)
    names = ("phase", "step", "e1_mj")
    steps = read_rank(path, columns=names).steps
    for name in names:
        assert np.ascontiguousarray(table[name]).tobytes() == steps[name].tobytes()
    with h5py.File(path) as file, path.open("rb") as raw:
        found = file["steps"].id
        chunk = found.get_chunk_info(0)
        at, end = chunk.byte_offset, path.stat().st_size

        def read(descriptor: int, *places: int) -> np.ndarray:
            into = ColumnsPass(20, STEPS, {"step": np.empty(20, np.int64)})
            library.read(descriptor, np.array(places), chunk_rows=10, slab_rows=20, into=into)
            return into.columns["step"]

        assert same(read(raw.fileno(), at, at), np.tile(table["step"][:10], 2))
        with pytest.raises(EOFError):
            read(raw.fileno(), at, end)
        with pytest.raises(OSError, match="Bad file"):
            read(-1, 0, 0)
        with pytest.raises(ValueError, match="20 rows"):
            read(raw.fileno(), at)
    with pytest.raises(ValueError, match="20 rows"):
        ColumnsPass(20, STEPS, {"step": np.empty(19, np.int64)})


def test_attributes_tables_and_chunks_are_those_of_h5py(library, tmp_path: Path):
    path = tmp_path / "node-a.h5"
    told = {"text": "Zürich", "empty": "", "yes": True, "no": False, "count": -3,
            "big": 2**63, "share": 0.25, "single": np.float32(0.1), "list": ["a"]}  # fmt: skip
    with node_writer(path, meta=told, devices={"GPU-0": {"counter": True}}) as writer:
        writer.extend(samples_table("GPU-0"), samples_of(3000))
        writer.event("begin", "here")
    calls = hdf5._calls(library)
    assert calls is not None
    with h5py.File(path) as file:
        wanted = {key: plain(value) for key, value in file["meta"].attrs.items()}
        got = calls.attributes(file, "meta", lambda key: file["meta"].attrs[key])
        got = {key: plain(value) for key, value in got.items()}
        assert list(got.items()) == list(wanted.items())
        assert [type(a) for a in got.values()] == [type(a) for a in wanted.values()]
        events = file["events"]
        got = calls.table(file, "events", EVENTS, _type_of(EVENTS))
        assert len(got) == len(events) == 1 and got.tobytes() == events[()].tobytes()
        name = samples_table("GPU-0")
        assert calls.table(file, name, SAMPLES, _type_of(SAMPLES)) is None, "is not short"
        assert calls.table(file, "events", STEPS, _type_of(STEPS)) is None, "is another"
        rows, chunk, at = calls.places(file, name, _type_of(SAMPLES))
        found = file[name].id
        assert (rows, chunk) == (3000, 1024)
        assert at.tolist() == [found.get_chunk_info(i).byte_offset for i in range(3)]
        assert calls.table(file, "none", EVENTS, _type_of(EVENTS)) is None
        with pytest.raises(KeyError):
            calls.attributes(file, "none", lambda _: None)


def test_what_does_not_lie_together_is_refused_before_c_sees_it(library):
    with pytest.raises(ValueError, match="together"):
        library.slope(np.ones(9), np.ones(18)[::2])
