"""The hot loops in C, compiled at first use where there is a compiler.

Nothing needs them: without a compiler, without a cache that programs may be loaded from, or where
the result fails its test, numpy does the same work about ten times slower, and `status` says why.
LLEM_COMPILE=no asks for numpy.

The library lies in the user's cache under a name made of everything that it depends on: the
sources, the compiler, and the processor, since a home directory is often shared by unlike machines.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

SOURCES = tuple(Path(__file__).with_name(name) for name in ("chinchilla.c", "newton.c"))
COMPILERS = ("cc", "gcc", "clang")
# No -ffast-math: inf and NaN must stay what they are.
FLAGS = ("-std=c11", "-O2", "-ffp-contract=fast", "-fPIC", "-shared")
# How compilers are asked for all that this processor can do; the last is for those that cannot.
TUNING = (("-march=native",), ("-mcpu=native",), ())
TIMEOUT_SECONDS = 20.0
SWITCH = "LLEM_COMPILE"
LARGEST_DIMENSION = 16  # LARGEST in newton.c
# Shares of the largest entry by which the library may differ from numpy in its test.
TEST_TOLERANCE = 1e-11


@dataclass(frozen=True)
class Status:
    """Whether the library is in use, why (not), where it lies and how long compiling took (s)."""

    active: bool
    reason: str
    path: Path | None = None
    seconds: float = 0.0


class Unavailable(Exception):
    """There is no library; the message says why."""


class Library:
    """The functions of a loaded library. Arrays that come in may be of any layout."""

    def __init__(self, path: Path) -> None:
        whole, pointer = ctypes.c_int64, ctypes.c_void_p
        try:
            handle = ctypes.CDLL(str(path))
            self._chinchilla = handle.llem_chinchilla
            self._newton = handle.llem_newton
        except (OSError, AttributeError) as error:
            raise Unavailable(f"{path} cannot be loaded: {error}") from None
        self._chinchilla.argtypes = [whole, whole, *[pointer] * 5, whole, *[pointer] * 5]
        self._chinchilla.restype = None
        self._newton.argtypes = [whole, whole, *[pointer] * 9]
        self._newton.restype = None

    def chinchilla(
        self,
        columns: tuple[FloatArray, FloatArray, FloatArray],
        theta: FloatArray,
        weight: FloatArray,
        delta: FloatArray,
    ) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """Value (k,), gradient (k, 5), Hessian and metric (k, 5, 5) of `Problem.evaluate`.

        columns: x, y, z, each (n,). theta (k, 5), weight (k, n) or (1, n), delta (k,).
        """
        x, y, z = (_plain(column) for column in columns)
        theta, delta = _plain(theta), _plain(delta)
        k, n = theta.shape[0], x.size
        if weight.strides[1] != weight.itemsize or weight.dtype != np.float64:
            weight = _plain(weight)
        if theta.shape != (k, 5) or weight.shape not in ((k, n), (1, n)):
            raise ValueError(f"theta {theta.shape} and weight {weight.shape} for {n} rows")
        if not y.size == z.size == n or delta.shape != (k,):
            raise ValueError(f"columns of {n}, {y.size} and {z.size} rows, delta {delta.shape}")
        stride = 0 if weight.shape[0] == 1 else weight.strides[0] // weight.itemsize
        out = (np.empty(k), np.empty((k, 5)), np.empty((k, 5, 5)), np.empty((k, 5, 5)))
        given = [a.ctypes.data for a in (x, y, z, theta, weight)]
        self._chinchilla(k, n, *given, stride, delta.ctypes.data, *[a.ctypes.data for a in out])
        return out

    def newton(
        self,
        gradient: FloatArray,
        hessian: FloatArray,
        metric: FloatArray,
        damping: FloatArray,
        fixed: FloatArray | None,
        cap: FloatArray,
    ) -> tuple[FloatArray, FloatArray, NDArray[np.bool_]]:
        """`minimiser.newton_step` without a basis: move, promised, solved; zero where not solved.

        Solved is False as well where the damped Hessian is not positive definite.
        """
        k, d = gradient.shape
        square = (k, d, d)
        if d > LARGEST_DIMENSION or hessian.shape != square or metric.shape != square:
            raise ValueError(f"gradient {gradient.shape} and hessian {hessian.shape}")
        if damping.shape != (k,) or cap.shape != (d,):
            raise ValueError(f"damping {damping.shape} and cap {cap.shape}")
        if fixed is not None and fixed.shape != (k, d):
            raise ValueError(f"fixed {fixed.shape}")
        given = [_plain(a) for a in (gradient, hessian, metric, damping)]
        held, cap = None if fixed is None else _plain(fixed), _plain(cap)
        move, promised, solved = np.empty((k, d)), np.empty(k), np.empty(k, dtype=np.bool_)
        self._newton(
            k,
            d,
            *[a.ctypes.data for a in given],
            None if held is None else held.ctypes.data,
            *[a.ctypes.data for a in (cap, move, promised, solved)],
        )
        return move, promised, solved


def _plain(array: FloatArray) -> FloatArray:
    return np.ascontiguousarray(array, dtype=np.float64)


_lock = threading.Lock()
_known: tuple[Library | None, Status] | None = None


def library() -> Library | None:
    """The library, compiled if need be; None where numpy has to do."""
    return _found()[0]


def status() -> Status:
    """Which of the two is in use, and why."""
    return _found()[1]


def forget() -> None:
    """Look for the library anew at the next use: the environment has changed."""
    global _known
    with _lock:
        _known = None


def _found() -> tuple[Library | None, Status]:
    global _known
    if _known is None:
        with _lock:
            if _known is None:
                _known = look(os.environ)
    return _known


def look(environment: Mapping[str, str]) -> tuple[Library | None, Status]:
    """What these environment variables lead to, whatever is in use."""
    try:
        return _provide(environment)
    except Unavailable as reason:
        return None, Status(False, f"numpy: {reason}")


def _provide(environment: Mapping[str, str]) -> tuple[Library, Status]:
    if environment.get(SWITCH, "").strip().lower() in ("no", "0", "false", "off"):
        raise Unavailable(f"{SWITCH}={environment[SWITCH]}")
    if os.name != "posix":
        raise Unavailable(f"no compiler is looked for on {sys.platform}")
    compiler = find_compiler(environment)
    folder = private_folder(cache_folder(environment))
    path = folder / f"{cache_key(compiler)}.so"
    seconds = 0.0
    if not path.exists():
        begin = time.perf_counter()
        compile_to(path, compiler)
        seconds = time.perf_counter() - begin
    _refuse_foreign(path)
    found = Library(path)
    if not agrees_with_numpy(found):
        raise Unavailable(f"{path} gives other numbers than numpy")
    how = f"compiled by {shlex.join(compiler)}"
    return found, Status(True, how, path, seconds)


def find_compiler(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Command of the C compiler: $CC, or the first there is of cc, gcc and clang."""
    try:
        wanted = shlex.split(environment.get("CC", ""))
    except ValueError as error:
        raise Unavailable(f"CC={environment['CC']}: {error}") from None
    for command in ([wanted] if wanted else []) + [[name] for name in COMPILERS]:
        program = shutil.which(command[0], path=environment.get("PATH", ""))
        if program is not None:
            return (os.path.abspath(program), *command[1:])
    raise Unavailable("no C compiler (looked for $CC, " + ", ".join(COMPILERS) + ")")


def cache_folder(environment: Mapping[str, str]) -> Path:
    """Where compiled libraries lie: llem/compiled in $XDG_CACHE_HOME or ~/.cache."""
    root = environment.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(root):  # The standard says to ignore relative paths.
        try:
            root = os.path.join(environment.get("HOME") or str(Path.home()), ".cache")
        except RuntimeError:
            raise Unavailable("no home folder to keep a compiled library in") from None
    return Path(root) / "llem" / "compiled"


def private_folder(folder: Path) -> Path:
    """Make the folder; refuse one that others could have put a library into."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise Unavailable(f"no cache folder: {error}") from None
    _refuse_foreign(folder)
    return folder


def _refuse_foreign(path: Path) -> None:
    try:
        found = path.lstat()
    except OSError as error:
        raise Unavailable(f"no compiled library: {error}") from None
    if stat.S_ISLNK(found.st_mode):
        raise Unavailable(f"{path} is a link")
    if found.st_uid != os.getuid():
        raise Unavailable(f"{path} belongs to another user")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise Unavailable(f"{path} can be written by other users")


def cache_key(compiler: tuple[str, ...], *, processor: str | None = None) -> str:
    """Name of the library that this compiler makes of these sources for this processor.

    The version of the compiler is told by its file: asking costs a process at every start.
    """
    program = os.path.realpath(compiler[0])
    try:
        about = os.stat(program)
        parts = [program, str(about.st_size), str(about.st_mtime_ns), *compiler]
        parts += [source.read_text(encoding="utf-8") for source in SOURCES]
    except OSError as error:
        raise Unavailable(f"the sources or the compiler cannot be read: {error}") from None
    parts += [*FLAGS, *(flag for flags in TUNING for flag in flags)]
    parts += [sys.platform, platform.machine(), "-".join(platform.libc_ver())]
    parts += [describe_processor() if processor is None else processor]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def describe_processor() -> str:
    """Model and instruction sets of the first processor, as Linux lists them."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            first = file.read(65536).split("\n\n", 1)[0]
    except OSError:
        return platform.processor()
    # The clock and the like change from one reading to the next.
    kept = ("vendor_id", "cpu family", "model", "model name", "flags", "Features", "CPU part")
    pairs = (line.partition(":") for line in first.splitlines())
    return "\n".join(f"{k.strip()}={v.strip()}" for k, _, v in pairs if k.strip() in kept)


def compile_to(path: Path, compiler: tuple[str, ...]) -> None:
    """Compile the sources into `path`, which appears whole or not at all."""
    try:
        number, name = tempfile.mkstemp(prefix=".making-", suffix=".so", dir=path.parent)
        os.close(number)
    except OSError as error:
        raise Unavailable(f"the cache folder cannot be written: {error}") from None
    fresh = Path(name)
    try:
        said = ""
        for tuning in TUNING:
            done = subprocess.run(
                [*compiler, *FLAGS, *tuning, "-o", name, *map(str, SOURCES)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=TIMEOUT_SECONDS,
                check=False,
            )
            if done.returncode == 0:
                fresh.chmod(0o700)
                fresh.replace(path)
                return
            said = done.stderr.decode(errors="replace").strip()
        last = said.splitlines()[-1] if said else "no message"
        raise Unavailable(f"{shlex.join(compiler)} failed: {last}")
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{shlex.join(compiler)} took over {TIMEOUT_SECONDS:g} s") from None
    except OSError as error:
        raise Unavailable(f"{shlex.join(compiler)} cannot be run: {error}") from None
    finally:
        fresh.unlink(missing_ok=True)


def agrees_with_numpy(found: Library) -> bool:
    """Whether the library gives what plain formulas give, on a few points.

    Written apart from both implementations, so that it can judge either.
    """
    n, k = 19, 3
    x, y = np.sin(np.arange(n)), np.cos(1.7 * np.arange(n))
    z = 0.9 + 0.02 * np.sin(5.0 * np.arange(n))
    theta = np.array([[0.5, -0.5, -0.6, 0.3, 0.4], [0.2, 0.1, -1.0, 0.7, 0.2], [0.6, -1, 0, 1, 2]])
    weight = 1.0 + np.arange(k * n, dtype=np.float64).reshape(k, n) % 4
    delta = np.array([1e-2, np.inf, 0.3])
    terms = np.stack(
        [
            np.broadcast_to(theta[:, :1], (k, n)),
            theta[:, 1:2] - theta[:, 3:4] * x,
            theta[:, 2:3] - theta[:, 4:5] * y,
        ]
    )
    fitted = np.log(np.exp(terms).sum(axis=0))
    share = np.exp(terms - fitted)
    slope = np.stack([*share, -share[1] * x, -share[2] * y], axis=2)
    r = z - fitted
    psi = np.clip(r, -delta[:, None], delta[:, None])
    value = np.sum(weight * psi * (r - 0.5 * psi), axis=1)
    gradient = -np.einsum("kn,kni->ki", weight * psi, slope)
    # Second derivatives of log Lhat: shares times those of the terms' logs, less slope slope'.
    one, zero = np.ones(n), np.zeros(n)
    logs = (
        np.stack([one, zero, zero, zero, zero], axis=1),
        np.stack([zero, one, zero, -x, zero], axis=1),
        np.stack([zero, zero, one, zero, -y], axis=1),
    )
    curve = sum(np.einsum("kn,ni,nj->knij", s, d, d) for s, d in zip(share, logs, strict=True))
    curve = curve - np.einsum("kni,knj->knij", slope, slope)
    outer = np.einsum("kni,knj->knij", slope, slope)
    hessian = np.einsum("kn,knij->kij", weight * (np.abs(r) <= delta[:, None]), outer)
    hessian -= np.einsum("kn,knij->kij", weight * psi, curve)
    metric = np.einsum("kn,knij->kij", weight * psi / r, outer)
    got = found.chinchilla((x, y, z), theta, weight, delta)
    if not all(map(_close, got, (value, gradient, hessian, metric))):
        return False

    damping, cap, fixed = np.full(k, 0.1), np.full(5, 1e9), np.zeros((k, 5))
    fixed[0, 3] = 1.0
    damped = metric + damping[:, None, None] * metric
    free = 1.0 - fixed
    damped = damped * free[:, :, None] * free[:, None, :] + np.eye(5) * fixed[:, :, None]
    step = -np.linalg.solve(damped, (gradient * free)[:, :, None])[:, :, 0]
    bend = np.einsum("ki,kij,kj->k", step, metric, step)
    promised = -np.sum(gradient * step, axis=1) - 0.5 * bend
    # The step is as exact as the matrix is far from singular, and a trace is added to its diagonal.
    move, decrease, solved = found.newton(gradient, metric, metric, damping, fixed, cap)
    return (
        bool(solved.all() and _close(move, step, 1e-6) and _close(decrease, promised, 1e-6))
        and not found.newton(gradient, -metric, metric, damping, None, cap)[2].any()
    )


def _close(got: FloatArray, wanted: FloatArray, tolerance: float = TEST_TOLERANCE) -> bool:
    size = np.abs(wanted).max()
    return bool(np.all(np.abs(got - wanted) <= tolerance * size))
