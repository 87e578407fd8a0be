"""Small C libraries, compiled at first use where there is a compiler, and loaded once.

Nothing needs them: without a compiler, without a cache that programs may be loaded from, or where
the result fails its test, numpy does the same work, slower, and `status` says why.
LLEM_COMPILE=no asks for numpy.

A library lies in the user's cache under a name made of everything that it depends on: the
sources, the compiler, and the processor, since a home directory is often shared by unlike machines.
"""

from __future__ import annotations

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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

COMPILERS = ("cc", "gcc", "clang")
# How compilers are asked for all that this processor can do; the last is for those that cannot.
TUNING = (("-march=native",), ("-mcpu=native",), ())
TIMEOUT_SECONDS = 20.0
SWITCH = "LLEM_COMPILE"

L = TypeVar("L")


@dataclass(frozen=True)
class Status:
    """Whether the library is in use, why (not), where it lies and how long compiling took (s)."""

    active: bool
    reason: str
    path: Path | None = None
    seconds: float = 0.0


class Unavailable(Exception):
    """There is no library; the message says why."""


class Kept(Generic[L]):
    """A library that is looked for at its first use; `look` leads from an environment to it."""

    def __init__(self, look: Callable[[Mapping[str, str]], tuple[L | None, Status]]) -> None:
        self._look = look
        self._lock = threading.Lock()
        self._known: tuple[L | None, Status] | None = None

    def library(self) -> L | None:
        """The library, compiled if need be; None where numpy has to do."""
        return self._found()[0]

    def status(self) -> Status:
        """Which of the two is in use, and why."""
        return self._found()[1]

    def forget(self) -> None:
        """Look for the library anew at the next use: the environment has changed."""
        with self._lock:
            self._known = None

    def _found(self) -> tuple[L | None, Status]:
        known = self._known
        if known is None:
            with self._lock:
                known = self._known
                if known is None:
                    known = self._known = self._look(os.environ)
        return known


def look(
    environment: Mapping[str, str],
    *,
    sources: tuple[Path, ...],
    flags: tuple[str, ...],
    load: Callable[[Path], L],
    agrees: Callable[[L], bool],
) -> tuple[L | None, Status]:
    """What these environment variables lead to. `load` raises Unavailable; `agrees` is the test."""
    try:
        return _provide(environment, sources, flags, load, agrees)
    except Unavailable as reason:
        return None, Status(False, f"numpy: {reason}")


def _provide(
    environment: Mapping[str, str],
    sources: tuple[Path, ...],
    flags: tuple[str, ...],
    load: Callable[[Path], L],
    agrees: Callable[[L], bool],
) -> tuple[L, Status]:
    if environment.get(SWITCH, "").strip().lower() in ("no", "0", "false", "off"):
        raise Unavailable(f"{SWITCH}={environment[SWITCH]}")
    if os.name != "posix":
        raise Unavailable(f"no compiler is looked for on {sys.platform}")
    compiler = find_compiler(environment)
    folder = private_folder(cache_folder(environment))
    path = folder / f"{cache_key(compiler, sources, flags)}.so"
    seconds = 0.0
    if not path.exists():
        begin = time.perf_counter()
        compile_to(path, compiler, sources, flags)
        seconds = time.perf_counter() - begin
    _refuse_foreign(path)
    found = load(path)
    if not agrees(found):
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


def cache_key(
    compiler: tuple[str, ...],
    sources: tuple[Path, ...],
    flags: tuple[str, ...],
    *,
    processor: str | None = None,
) -> str:
    """Name of the library that this compiler makes of these sources for this processor.

    The version of the compiler is told by its file: asking costs a process at every start.
    """
    program = os.path.realpath(compiler[0])
    try:
        about = os.stat(program)
        parts = [program, str(about.st_size), str(about.st_mtime_ns), *compiler]
        parts += [source.read_text(encoding="utf-8") for source in sources]
    except OSError as error:
        raise Unavailable(f"the sources or the compiler cannot be read: {error}") from None
    parts += [*flags, *(flag for tuning in TUNING for flag in tuning)]
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


def compile_to(
    path: Path, compiler: tuple[str, ...], sources: tuple[Path, ...], flags: tuple[str, ...]
) -> None:
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
                [*compiler, *flags, *tuning, "-o", name, *map(str, sources)],
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
