"""What every other module here stands on: the fixed places, one gate to programs, atomic results.

Standard library only, and no import of llem: this runs with any `python3` before anything is
installed, because it is what brings the place up in which llem's own tests can run.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypedDict

# A command: never a shell string.
Argv = Sequence[str | Path]

REPOSITORY = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("LLEM_TEST_CACHE", "/var/cache/llem-test"))
STATE = Path("/var/lib/llem-test")
LOGS = STATE / "log"
USER = "llem"
CLEAN_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
}
STALE_RESULT_S = 24 * 3600.0
# A day of work on the sources makes dozens of images: beyond so many, only what runs may use.
KEPT_RESULTS = 6
IN_USE_S = 2 * 3600.0


class ClusterError(Exception):
    """A step failed. Names the step, the log to read and what to do about it. Exit status 1."""

    def __init__(self, step: str, *, why: str, log: Path | None = None, remedy: str = "") -> None:
        lines = [f"{step}: {why}"]
        if log is not None:
            lines.append(f"  log: {log}")
        if remedy:
            lines.append(f"  remedy: {remedy}")
        super().__init__("\n".join(lines))


class Unavailable(Exception):
    """This machine cannot carry the cluster at all; tests skip, saying why. Exit status 3."""

    def __init__(self, reasons: Sequence[str]) -> None:
        self.reasons = list(reasons)
        super().__init__("cannot run here: " + "; ".join(reasons))


def say(text: str) -> None:
    """Progress goes to stderr, so that stdout carries only what was asked for."""
    print(f"[cluster] {text}", file=sys.stderr, flush=True)


@contextmanager
def timed(step: str) -> Iterator[None]:
    """Announce a slow step, and say how long it took."""
    say(f"{step} ...")
    start = time.monotonic()
    yield
    say(f"{step}: {time.monotonic() - start:.1f} s")


def why_unavailable() -> list[str]:
    """What this machine lacks for `up`; empty when it can carry the cluster."""
    release = Path("/etc/os-release")
    words = release.read_text().replace('"', "").split() if release.exists() else []
    reasons = []
    if "ID=debian" not in words:
        reasons.append("not Debian (the packages, paths and Apptainer build are Debian's)")
    if os.uname().machine != "x86_64":
        reasons.append(f"machine is {os.uname().machine}, not x86_64")
    if shutil.which("apt-get") is None:
        reasons.append("no apt-get")
    if os.geteuid() != 0:
        reasons.append("not root (daemons, device nodes and /etc/hosts need it)")
    namespaces = Path("/proc/sys/user/max_user_namespaces")
    if not namespaces.exists() or int(namespaces.read_text()) == 0:
        reasons.append("user namespaces are off (Apptainer needs them)")
    return reasons


def require_possible() -> None:
    if reasons := why_unavailable():
        raise Unavailable(reasons)


def run(
    argv: Argv,
    *,
    step: str,
    user: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: str | None = None,
    timeout_s: float = 60.0,
    log: Path | None = None,
    remedy: str = "",
    check: bool = True,
) -> str:
    """Run a program from an argument list and return its stdout.

    With `log`, both streams go to that file instead (for long builds). With `user`, it runs with
    that user's identity and home, never root's environment.
    """
    environment = {**os.environ, **(env or {})} if user is None else as_user(user, env)
    words = [str(word) for word in argv]
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
    sink = open(log, "ab") if log is not None else None  # noqa: SIM115 - closed below
    try:
        done = subprocess.run(
            words,
            env=environment,
            cwd=cwd or "/",
            input=stdin,
            stdout=sink or subprocess.PIPE,
            stderr=sink or subprocess.PIPE,
            text=True,
            timeout=timeout_s,
            check=False,
            **identity(user),
        )
    except subprocess.TimeoutExpired as error:
        why = f"`{' '.join(words)}` took longer than {timeout_s:.0f} s"
        raise ClusterError(step, why=why, log=log, remedy=remedy) from error
    except OSError as error:
        raise ClusterError(step, why=f"`{words[0]}`: {error}", log=log, remedy=remedy) from error
    finally:
        if sink is not None:
            sink.close()
    if check and done.returncode != 0:
        said = (done.stderr or done.stdout or "").strip() or (tail(log) if log else "")
        why = f"`{' '.join(words)}` ended with status {done.returncode}: {said[-2000:]}"
        raise ClusterError(step, why=why, log=log, remedy=remedy)
    return done.stdout or ""


def succeeds(argv: Argv, *, user: str | None = None, timeout_s: float = 15.0) -> bool:
    """Whether a probe ends with status 0; a missing program or a hang is a plain no."""
    try:
        done: subprocess.CompletedProcess[bytes] = subprocess.run(
            [str(word) for word in argv],
            env=as_user(user) if user else {**os.environ},
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=timeout_s,
            check=False,
            **identity(user),
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


class Identity(TypedDict, total=False):
    user: str
    group: int
    extra_groups: list[int]


def identity(user: str | None) -> Identity:
    """The `subprocess` keywords that take on a user's identity, without its extra groups."""
    if user is None:
        return {}
    return {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}


def as_user(user: str, env: Mapping[str, str] | None = None) -> dict[str, str]:
    """A login-like environment: what runs as a user must not depend on root's."""
    home = pwd.getpwnam(user).pw_dir
    return {**CLEAN_ENVIRONMENT, "HOME": home, "USER": user, "LOGNAME": user, **(env or {})}


def wait_until(
    ready: Callable[[], bool], *, step: str, timeout_s: float, log: Path, remedy: str
) -> None:
    deadline = time.monotonic() + timeout_s
    while not ready():
        if time.monotonic() > deadline:
            why = f"not ready after {timeout_s:.0f} s: {tail(log)}"
            raise ClusterError(step, why=why, log=log, remedy=remedy)
        time.sleep(0.1)


def tail(log: Path, *, lines: int = 8) -> str:
    if not log.exists():
        return "(no log yet)"
    return "\n    ".join(["", *log.read_text(errors="replace").splitlines()[-lines:]])


def user_exists(user: str = USER) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True


def ensure_user() -> None:
    """The unprivileged user: Apptainer's namespaces and a job's home are an ordinary user's."""
    if not user_exists():
        run(["useradd", "--create-home", "--shell", "/bin/bash", USER], step="user")


def write_if_changed(path: Path, text: str, *, mode: int = 0o644, owner: str = "root") -> bool:
    """Write a file whole or not at all; True when its content changed."""
    entry = pwd.getpwnam(owner)
    changed = not path.exists() or path.read_text() != text
    if changed:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(path.name + ".new")
        draft.write_text(text)
        draft.replace(path)
    os.chown(path, entry.pw_uid, entry.pw_gid)
    path.chmod(mode)
    return changed


def folder(path: Path, *, owner: str = "root", mode: int = 0o755) -> Path:
    entry = pwd.getpwnam(owner)
    path.mkdir(parents=True, exist_ok=True)
    os.chown(path, entry.pw_uid, entry.pw_gid)
    path.chmod(mode)
    return path


def key(*parts: str | bytes) -> str:
    """A short name for content: what is built from the same parts is built once."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()[:12]


def cached(kind: str, name: str, build: Callable[[Path, Path], Path]) -> Path:
    """The cached thing `kind-name`, built if it is not there.

    `build(scratch, log)` returns a path inside `scratch`, which then takes its final name in one
    rename: a build that was killed leaves only a scratch folder, never a thing that looks whole.
    Results of the same kind are large: see `drop_stale` for which are kept.
    """
    final = CACHE / f"{kind}-{name}"
    if not final.exists():
        with locked(folder(CACHE) / f"{kind}.lock"):
            make(final, kind, build)
    os.utime(final)
    return final


def make(final: Path, kind: str, build: Callable[[Path, Path], Path]) -> None:
    if final.exists():
        return  # somebody else built it while we waited
    log = folder(CACHE / "log") / f"{kind}.log"
    log.unlink(missing_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f"tmp-{kind}-", dir=CACHE))
    try:
        scratch.chmod(0o755)
        with timed(f"building {final.name}"):
            built = build(scratch, log)
            os.chown(built, 0, 0)
            built.replace(final)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    drop_stale(kind, keep=final)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One at a time: a second caller waits until the first is done."""
    with open(path, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another call to release {path.name}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def drop_stale(kind: str, *, keep: Path) -> None:
    """Drop what nothing has used for a day; of more than a few, what was not for an hour."""
    now = time.time()
    found = [*CACHE.glob(f"{kind}-*"), *CACHE.glob(f"tmp-{kind}-*")]
    newest_first = sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)
    for rank, path in enumerate(newest_first):
        patience_s = STALE_RESULT_S if rank < KEPT_RESULTS else IN_USE_S
        if path != keep and now - path.stat().st_mtime > patience_s:
            say(f"dropping {path.name} (not used lately)")
            shutil.rmtree(path) if path.is_dir() else path.unlink()
