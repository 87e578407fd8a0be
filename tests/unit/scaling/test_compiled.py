"""The C library against numpy, and everything that may keep it from being used."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from llem import _compiling
from llem.scaling.fitting.minimiser import Minima, minimise, newton_step
from llem.scaling.fitting.problem import PARTS, Local
from llem.scaling.laws.chinchilla import ChinchillaProblem
from llem.scaling.native import compiled

FloatArray = compiled.FloatArray

needs_compiler = pytest.mark.skipif(
    not any(shutil.which(name) for name in _compiling.COMPILERS), reason="no C compiler"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def environment(folder: Path) -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", ""), "XDG_CACHE_HOME": str(folder)}


@pytest.fixture
def library(environment: dict[str, str]) -> compiled.Library:
    found, status = compiled.look(environment)
    assert found is not None, status.reason
    return found


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Changes of the environment, seen by what asks for the library."""
    compiled.forget()
    yield monkeypatch
    monkeypatch.undo()
    compiled.forget()


def problem(rows: int, *, seed: int = 0, noise: float = 0.02) -> ChinchillaProblem:
    rng = np.random.default_rng(seed)
    params, tokens = np.exp(rng.uniform(15, 25, rows)), np.exp(rng.uniform(18, 28, rows))
    loss = 1.8 + 400 / params**0.34 + 400 / tokens**0.28
    return ChinchillaProblem.of(params, tokens, loss * np.exp(noise * rng.normal(size=rows)))


def points(count: int, *, seed: int = 0) -> FloatArray:
    rng = np.random.default_rng(seed)
    return np.array([0.6, -0.5, -0.6, 0.34, 0.3]) + 0.2 * rng.normal(size=(count, 5))


def assert_equal_parts(got: Local, wanted: Local) -> None:
    """To 1e-12 of the largest entry of each problem's part."""
    for name in PARTS:
        a, b = getattr(got, name), getattr(wanted, name)
        a, b = a.reshape(a.shape[0], -1), b.reshape(b.shape[0], -1)
        size = np.abs(b).max(axis=1, keepdims=True)
        assert np.all(np.abs(a - b) <= 1e-12 * size), name


@needs_compiler
@pytest.mark.parametrize("rows", [1, 5, 7, 8, 9, 37, 240, 256, 257, 264, 511, 1000])
@pytest.mark.parametrize("shared", [True, False])
def test_the_library_gives_what_numpy_gives(
    library: compiled.Library, rows: int, shared: bool
) -> None:
    p, theta = problem(rows, seed=rows), points(6, seed=rows)
    rng = np.random.default_rng(rows)
    weight = rng.gamma(1.0, size=(1 if shared else 6, rows))
    weight[:, :: max(2, rows // 3)] = 0.0
    weight[:, 0] = 1.0
    delta = np.array([1e-3, 1e-2, 0.1, 1.0, np.inf, 1e-2])
    got = Local(*library.chinchilla((p.x, p.y, p.z), theta, weight, delta))
    assert_equal_parts(got, p._evaluate_numpy(theta, weight, delta, slice(0, rows)))


@needs_compiler
def test_any_layout_of_the_arrays_will_do(library: compiled.Library) -> None:
    p, theta = problem(60), np.asfortranarray(points(4))
    delta = np.full(4, 0.01)
    wide = np.random.default_rng(0).gamma(1.0, size=(60, 8))
    for weight in (wide.T[::2], np.asfortranarray(wide.T[:4]), np.ones((4, 60), dtype=int)):
        got = Local(*library.chinchilla((p.x, p.y, p.z), theta, weight, delta))
        assert_equal_parts(got, p._evaluate_numpy(theta, weight * 1.0, delta, slice(0, 60)))
    part = slice(13, 50)
    columns = (p.x[part], p.y[part], p.z[part])
    got = Local(*library.chinchilla(columns, theta, wide.T[:4, part], delta))
    assert_equal_parts(got, p._evaluate_numpy(theta, wide.T[:4, part], delta, part))


@needs_compiler
def test_wrong_shapes_are_refused_before_c_sees_them(library: compiled.Library) -> None:
    p, theta, delta = problem(20), points(3), np.full(3, 0.01)
    columns, weight = (p.x, p.y, p.z), np.ones((3, 20))
    with pytest.raises(ValueError, match="weight"):
        library.chinchilla(columns, theta, weight[:2], delta)
    with pytest.raises(ValueError, match="weight"):
        library.chinchilla(columns, theta[:, :4], weight, delta)
    with pytest.raises(ValueError, match="delta"):
        library.chinchilla(columns, theta, weight, delta[:1])
    with pytest.raises(ValueError, match="columns"):
        library.chinchilla((p.x, p.y[:5], p.z), theta, weight, delta)


@needs_compiler
@pytest.mark.parametrize(
    "theta",
    [
        [-30.0, -30.0, -30.0, 3.0, 3.0],
        [1.0, -400.0, -600.0, 0.5, 0.5],
        [1.0, 300.0, 200.0, 0.5, 0.5],
        [1.0, -5000.0, 0.2, 0.1, 0.1],
        [0.0, 5000.0, 0.0, 0.1, 0.1],
        [0.0, 0.0, 0.0, 900.0, -900.0],
        [np.inf, 0.0, 0.0, 0.1, 0.1],
        [0.0, np.nan, 0.0, 0.1, 0.1],
        [0.0, 0.0, 0.0, 0.1, np.nan],
    ],
)
def test_points_far_away_are_as_finite_as_in_numpy(
    library: compiled.Library, theta: list[float]
) -> None:
    p, weight = problem(37), np.ones((1, 37))
    at = np.array([theta])
    for delta in (np.full(1, 1e-3), np.full(1, np.inf)):
        got = Local(*library.chinchilla((p.x, p.y, p.z), at, weight, delta))
        with np.errstate(all="ignore"):
            wanted = p._evaluate_numpy(at, weight, delta, slice(0, 37))
        assert np.isfinite(got.value) == np.isfinite(wanted.value)
        for name in PARTS if np.isfinite(wanted.value) else ():
            # All entries of a Hessian may cancel to nothing here, so the terms' size counts, 1.
            a, b = getattr(got, name), getattr(wanted, name)
            size = max(1.0, float(np.abs(b).max()))
            assert np.all(np.abs(a - b) <= 1e-12 * size), name


@needs_compiler
def test_exponentials_and_logarithms_are_exact_over_their_whole_range(
    library: compiled.Library,
) -> None:
    # One row and least squares with weight 2: the value is the squared residual itself.
    zero, one = np.zeros(1), np.ones(1)
    at = np.concatenate([np.linspace(-700, 700, 20_001), np.linspace(-2, 2, 20_001)])
    theta = np.zeros((at.size, 5))
    theta[:, 1], theta[:, 2] = at, -1e9
    value = library.chinchilla((zero, zero, zero), theta, 2 * one[None], np.full(at.size, np.inf))
    wanted = np.log1p(np.exp(at))
    rounding = 2 * np.finfo(float).eps
    assert np.all(np.abs(np.sqrt(value[0]) - wanted) <= rounding * np.maximum(wanted, 1.0))
    share = np.exp(at) / (1.0 + np.exp(at))
    assert np.allclose(-value[1][:, 1], -2 * wanted * share, rtol=2e-14, atol=1e-15)


@needs_compiler
def test_the_step_is_that_of_numpy(library: compiled.Library, fresh: pytest.MonkeyPatch) -> None:
    p, rng = problem(80), np.random.default_rng(1)
    # Far enough from the minimum that some have directions of negative curvature.
    theta, k = points(300) + 0.3 * rng.normal(size=(300, 5)), 300
    here = p._evaluate_numpy(theta, np.ones((1, 80)), np.full(k, 1e-2), slice(0, 80))
    fixed, none = (rng.random((k, 5)) < 0.2).astype(float), np.empty((k, 0, 0))
    damping, cap = 10.0 ** rng.uniform(-3, 2, k), np.array([2.0, 2.0, 2.0, 0.75, 0.75])
    turns = np.linalg.qr(rng.normal(size=(k, 5, 5)))[0]
    for held, basis in ((fixed, none), (np.zeros((k, 5)), none), (fixed, turns)):
        fresh.setattr(compiled, "library", lambda: library)
        move, promised, solved = newton_step(here, damping, held, basis, cap)
        fresh.setattr(compiled, "library", lambda: None)
        wanted = newton_step(here, damping, held, basis, cap)
        assert solved.all()
        assert move == pytest.approx(wanted[0], rel=1e-7, abs=1e-9)
        assert promised == pytest.approx(wanted[1], rel=1e-7)
        free = move if basis is none else np.einsum("kij,ki->kj", turns, move)
        assert np.all(np.abs(free[held == 1]) <= (0.0 if basis is none else 1e-14))
    indefinite = np.linalg.eigvalsh(here.hessian + damping[:, None, None] * here.metric)[:, 0] < 0
    assert indefinite.any() and not indefinite.all()


@needs_compiler
def test_a_problem_that_is_not_finite_has_no_step(library: compiled.Library) -> None:
    gradient, square = np.ones((5, 2)), np.tile(np.eye(2), (5, 1, 1))
    square[0, 0, 1] = square[0, 1, 0] = np.nan
    square[1, 0, 0] = np.inf
    gradient[2, 1], gradient[3, 0] = np.nan, np.inf
    damping, cap = np.full(5, 0.1), np.full(2, 9.0)
    move, promised, solved = library.newton(gradient, square, square, damping, None, cap)
    assert solved.tolist() == [False, False, False, False, True]
    assert np.all(move[:4] == 0) and np.all(promised[:4] == 0)


@needs_compiler
def test_minima_are_those_of_numpy(fresh: pytest.MonkeyPatch, folder: Path) -> None:
    p = problem(120)
    weight = np.random.default_rng(2).multinomial(120, np.full(120, 1 / 120), size=300) * 1.0

    def minima() -> Minima:
        compiled.forget()
        return minimise(p, np.tile(points(1), (300, 1)), weight, delta=1e-2)

    fresh.setenv("XDG_CACHE_HOME", str(folder))
    fresh.delenv(_compiling.SWITCH, raising=False)
    ours, status = minima(), compiled.status()
    assert status.active, status.reason
    fresh.setenv(_compiling.SWITCH, "no")
    theirs = minima()
    assert not compiled.status().active
    assert ours.converged.all()
    assert ours.objective == pytest.approx(theirs.objective, rel=1e-12)
    assert ours.theta == pytest.approx(theirs.theta, abs=1e-6)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"PATH": ""}, "no C compiler"),
        ({_compiling.SWITCH: "no"}, "LLEM_COMPILE=no"),
        ({"CC": "'"}, "CC="),
        ({"CC": "false"}, "failed"),
        ({"XDG_CACHE_HOME": os.devnull}, "no cache folder"),
    ],
)
def test_what_is_missing_is_named_and_numpy_takes_over(
    environment: dict[str, str], tmp_path: Path, change: dict[str, str], reason: str
) -> None:
    if "failed" in reason and not shutil.which("false"):
        pytest.skip("no program that always fails")
    found, status = compiled.look(environment | {"XDG_CACHE_HOME": str(tmp_path)} | change)
    assert found is None
    assert not status.active
    assert reason in status.reason
    assert not list(tmp_path.rglob("*.so"))


def test_a_fit_needs_no_compiler(fresh: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fresh.setenv("PATH", str(tmp_path))
    fresh.delenv("CC", raising=False)
    fresh.delenv(_compiling.SWITCH, raising=False)
    fresh.setenv("XDG_CACHE_HOME", str(tmp_path))
    p, theta, delta = problem(30), points(3), np.full(3, 0.01)
    got = p.evaluate(theta, np.ones((1, 30)), delta, slice(0, 30))
    assert "no C compiler" in compiled.status().reason
    wanted = p._evaluate_numpy(theta, np.ones((1, 30)), delta, slice(0, 30))
    assert all(np.array_equal(getattr(got, name), getattr(wanted, name)) for name in PARTS)


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def test_a_compiler_that_hangs_is_given_up(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_compiling, "TIMEOUT_SECONDS", 0.2)
    slow = {"CC": script(tmp_path / "slow", "exec sleep 60"), "XDG_CACHE_HOME": str(tmp_path)}
    found, status = compiled.look(environment | slow)
    assert found is None
    assert "took over" in status.reason
    assert not list(tmp_path.rglob("*.so"))


@needs_compiler
def test_a_compiler_that_cannot_tune_is_asked_without(
    environment: dict[str, str], tmp_path: Path
) -> None:
    true = _compiling.find_compiler(environment)[0]
    text = f'case "$*" in *=native*) exit 1;; esac\nexec {true} "$@"'
    plain = {"CC": script(tmp_path / "plain", text), "XDG_CACHE_HOME": str(tmp_path)}
    found, status = compiled.look(environment | plain)
    assert found is not None, status.reason


@needs_compiler
def test_the_second_use_finds_the_library_of_the_first(
    environment: dict[str, str], tmp_path: Path
) -> None:
    here = environment | {"XDG_CACHE_HOME": str(tmp_path)}
    _, first = compiled.look(here)
    _, second = compiled.look(here)
    assert first.seconds > 0 == second.seconds
    assert first.path == second.path
    assert first.path is not None
    assert first.path.parent.stat().st_mode & 0o777 == 0o700
    assert [p.name for p in first.path.parent.iterdir()] == [first.path.name]


def key_of(
    compiler: tuple[str, ...],
    *,
    sources: tuple[Path, ...] = compiled.SOURCES,
    processor: str | None = None,
) -> str:
    return _compiling.cache_key(compiler, sources, compiled.FLAGS, processor=processor)


@needs_compiler
def test_the_name_of_a_library_tells_sources_compiler_and_processor(
    environment: dict[str, str], tmp_path: Path
) -> None:
    compiler = _compiling.find_compiler(environment)
    other = (script(tmp_path / "other", "exit 1"),)
    keys = [
        key_of(compiler),
        key_of(compiler, processor="another"),
        key_of((*compiler, "-g")),
        key_of(other),
    ]
    os.utime(other[0], (1, 1))
    keys.append(key_of(other))
    changed = tmp_path / "changed.c"
    changed.write_text("int changed;\n", encoding="utf-8")
    keys.append(key_of(compiler, sources=(changed,)))
    assert len(set(keys)) == len(keys)
    assert key_of(compiler, sources=(changed,)) == keys[-1]
    assert _compiling.describe_processor() == _compiling.describe_processor()


@needs_compiler
def test_nothing_is_loaded_that_others_could_have_written(
    environment: dict[str, str], tmp_path: Path
) -> None:
    here = environment | {"XDG_CACHE_HOME": str(tmp_path)}
    path = compiled.look(here)[1].path
    assert path is not None
    path.chmod(0o720)
    assert "written by other users" in compiled.look(here)[1].reason
    path.chmod(0o700)
    path.parent.chmod(0o702)
    assert "written by other users" in compiled.look(here)[1].reason
    path.parent.chmod(0o700)
    assert compiled.look(here)[1].active
    elsewhere = path.rename(tmp_path / "elsewhere.so")
    path.symlink_to(elsewhere)
    assert "is a link" in compiled.look(here)[1].reason


@needs_compiler
@pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")
def test_nothing_is_loaded_that_belongs_to_another_user(
    environment: dict[str, str], tmp_path: Path
) -> None:
    here = environment | {"XDG_CACHE_HOME": str(tmp_path)}
    path = compiled.look(here)[1].path
    assert path is not None
    os.chown(path, 65534, 65534)
    assert "another user" in compiled.look(here)[1].reason


@needs_compiler
def test_a_library_that_computes_something_else_is_not_used(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = compiled.SOURCES[0].read_text(encoding="utf-8")
    wrong = tmp_path / "wrong.c"
    wrong.write_text(text.replace("0.5 * psi", "0.4 * psi"), encoding="utf-8")
    monkeypatch.setattr(compiled, "SOURCES", (wrong, compiled.SOURCES[1]))
    found, status = compiled.look(environment | {"XDG_CACHE_HOME": str(tmp_path)})
    assert found is None
    assert "other numbers than numpy" in status.reason


def test_a_file_that_is_no_library_is_not_used(environment: dict[str, str], tmp_path: Path) -> None:
    text = 'while [ "$1" != -o ]; do shift; done\necho no library > "$2"'
    strange = {"CC": script(tmp_path / "strange", text), "XDG_CACHE_HOME": str(tmp_path)}
    found, status = compiled.look(environment | strange)
    assert found is None
    assert "cannot be loaded" in status.reason


@pytest.mark.slow
@needs_compiler
def test_four_processes_may_compile_at_once(environment: dict[str, str], tmp_path: Path) -> None:
    code = "from llem.scaling.native import compiled as c; s = c.status(); print(s.active, s.path)"
    here = os.environ | environment | {"XDG_CACHE_HOME": str(tmp_path)}
    here.pop(_compiling.SWITCH, None)
    here.pop("CC", None)
    command = [sys.executable, "-c", code]
    running = [
        subprocess.Popen(command, env=here, stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    said = [process.communicate()[0].split() for process in running]
    assert len({path for _, path in said}) == 1
    assert [active for active, _ in said] == ["True"] * 4
    assert len(list((tmp_path / "llem" / "compiled").iterdir())) == 1


def test_importing_compiles_nothing(environment: dict[str, str], tmp_path: Path) -> None:
    here = os.environ | environment | {"XDG_CACHE_HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", "import llem.scaling"], env=here, check=True)
    assert list(tmp_path.iterdir()) == []
