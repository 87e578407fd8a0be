"""The passes in C against numpy, bit for bit, on columns that are odd in every way."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from llem import _compiling
from llem.records import STEPS, rank_writer, read_rank
from llem.records.native import compiled

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
@pytest.mark.parametrize("odd", ["", "equal times", "unknown", "infinite", "disorder"])
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
    start = 10**15 + 7
    t_ns = start + (chance.uniform(x[0] - 1, x[-1] + 1, 3 * n) * 1e9).astype(np.int64)
    t_ns[::5] = start + (x[chance.integers(0, n, len(t_ns[::5]))] * 1e9).astype(np.int64)
    if odd != "disorder":
        t_ns.sort()
    with np.errstate(all="ignore"):
        wanted = np.interp((t_ns - start) / 1e9, x, y)
    assert same(library.lookup(x, y, library.slopes(x, y), start, t_ns), wanted)


@pytest.mark.parametrize("n", LENGTHS)
def test_samples_become_a_series_as_numpy_makes_it(library, n):
    chance = np.random.default_rng(n)
    t_ns = 10**15 + np.cumsum(chance.integers(0, 2 * 10**8, n))
    energy = 3e12 + np.cumsum(chance.integers(0, 3, n) * 40_000.0)
    power, flags = chance.normal(6e5, 1e4, n), chance.integers(0, 4, n).astype(np.uint16)
    for place in range(n // 50):
        energy[chance.integers(n)] = [np.nan, np.inf, 0.0][place % 3]
        power[chance.integers(n)] = np.nan
        t_ns[chance.integers(n)] -= 10**9 * (n % 2)
    got = library.series(t_ns, energy, power, flags, failed=2)
    at_s, power_w = (t_ns - t_ns[0]) / 1e9, power / 1e3
    with np.errstate(invalid="ignore"):
        steps = np.diff(energy) / 1e3
        joules = np.append(0.0, np.cumsum(steps))
        integral = ((power_w[1:] + power_w[:-1]) / 2 * np.diff(at_s)).sum()
    assert same(got.at_s, at_s) and same(got.joules, joules) and same(got.integral_j, integral)
    assert got.unknown == np.count_nonzero(~np.isfinite(energy))
    assert got.dark == np.count_nonzero(~np.isfinite(power))
    assert (got.late, got.back) == (np.count_nonzero(np.diff(t_ns) < 0), (steps < 0).sum())
    assert got.failed == np.count_nonzero(flags & 2)
    assert got.most_w == np.fmax.reduce(power_w, initial=0.0)
    if not got.late:  # of no use where times go back
        stood = max((at_s[j + 1] - at_s[i] for i in range(n - 1)
                     for j in range(i, min(i + 40, n - 1)) if not steps[i : j + 1].any()),
                    default=0.0)  # fmt: skip
        assert got.stood_s == stood
    for apart in (1, 3, n + 1):
        with np.errstate(all="ignore"):
            means = (joules[apart:] - joules[:-apart]) / (at_s[apart:] - at_s[:-apart])
        assert same(library.most(at_s, joules, apart), means.max(initial=0.0))


@pytest.mark.parametrize("n", [1, *LENGTHS])
def test_sums_and_counts_are_those_of_numpy(library, n):
    chance = np.random.default_rng(n)
    a, b = np.cumsum(chance.normal(0, 1e3, n)), chance.normal(0, 1e-3, n)
    assert library.difference(a, b) == (a - b).sum()
    x = a - a.mean()
    wanted = float((x * b).sum()) / float((x * x).sum()) if n > 1 else np.nan
    assert same(library.slope(a, b), wanted)
    assert np.isnan(library.slope(a, np.append(b[1:], np.inf)))
    t = chance.integers(-(2**62), 2**62, n)
    u = t + chance.integers(-1000, 3000, n)
    got = library.waited(t, u, same_ns=500)
    assert got == (int((u - t).sum()), int((u - t < 500).sum()), int((t > u).sum()))
    scan = library.scan(t, t, u, u)
    assert scan.numbered == scan.ordered == (n == 1) or n < 4
    assert (scan.first_ns, scan.last_ns, scan.tokens) == (t.min(), u.max(), u.sum())
    assert library.scan(np.arange(n), t, np.sort(u), u).numbered
    assert library.scan(np.arange(n), t, np.sort(u), u).ordered
    celsius = np.repeat(chance.integers(30, 33, n).astype(np.float32), 3)
    kept = np.ones(3 * n, dtype=bool)
    changed = celsius[1:] != celsius[:-1]
    kept[1:-1] = changed[:-1] | changed[1:]
    assert same(library.changes(celsius), np.flatnonzero(kept))
    celsius[n] = np.nan
    assert library.changes(celsius) is None


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
        columns = {"step": np.empty(20, np.int64)}
        words = {"chunk_rows": 10, "rows": 20, "dtype": STEPS, "slab_rows": 20}
        library.read_columns(raw.fileno(), places=[chunk.byte_offset] * 2, **words,
                             columns=columns)  # fmt: skip
        assert same(columns["step"], np.tile(table["step"][:10], 2))
        with pytest.raises(EOFError):
            library.read_columns(raw.fileno(), places=[chunk.byte_offset, path.stat().st_size],
                                 **words, columns=columns)  # fmt: skip
        with pytest.raises(OSError, match="Bad file"):
            library.read_columns(-1, places=[0, 0], **words, columns=columns)
        with pytest.raises(ValueError, match="20 rows"):
            library.read_columns(raw.fileno(), places=[0], **words, columns=columns)


def test_what_does_not_lie_together_is_refused_before_c_sees_it(library):
    with pytest.raises(ValueError, match="together"):
        library.difference(np.ones(9), np.ones(18)[::2])
