#!/usr/bin/env python3
"""One command for each thing that a fresh machine is asked to do.

    python3 dev.py quickstart     the main job: trainings, a law, an optimum, its energy, a report
    python3 dev.py test           install what the tests need and run them all
    python3 dev.py unit           the unit tests alone, but those of many seconds
    python3 dev.py check          format, lint, types, import directions
    python3 dev.py faults         every fault of a cluster, three times, as root on Debian
    python3 dev.py wheel          the wheel, alone in a new environment, serves a login node

Needs Python 3.11 or newer and nothing else; what is missing is installed into `.venv`. As root on
Debian, `python3-venv` is installed where it lacks. Words after the command go to the program that
it calls: `python3 dev.py unit -k ladder`. TORCH names another torch to install.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = Path(os.environ.get("LLEM_VENV", ROOT / ".venv"))
TORCH = os.environ.get("TORCH", "torch==2.13.0")
# What a login node may weigh beyond numpy, scipy and h5py.
LOGIN_MEBIBYTES = 120
MEBIBYTE = 2**20


def main(argv: list[str]) -> int:
    if sys.version_info < (3, 11):
        print(f"dev.py: llem needs Python 3.11 or newer, this is {sys.version.split()[0]}")
        return 2
    commands = {
        "quickstart": quickstart,
        "test": test,
        "unit": unit,
        "check": check,
        "faults": faults,
        "wheel": wheel,
    }
    if not argv or argv[0] not in commands:
        print(__doc__)
        return 0 if argv[:1] in (["-h"], ["--help"]) else 2
    try:
        return commands[argv[0]](argv[1:])
    except subprocess.CalledProcessError as error:
        print(f"dev.py: {error.cmd[0]} failed with status {error.returncode}", file=sys.stderr)
        return 1


def quickstart(words: list[str]) -> int:
    install("train", "plot", "energy")
    return run("llem", "quickstart", *words)


@dataclass
class Part:
    """One call of pytest: what it is told, and what became of it."""

    name: str
    words: tuple[str, ...]
    said: bytearray = field(default_factory=bytearray)
    # That of what was never run.
    status: int = 2
    seconds: float = 0.0

    def run(self, words: list[str], *, aloud: bool) -> None:
        """Run it to its end; `aloud` passes on what it says as it says it."""
        if aloud:
            print(f"dev.py: {self.name}", flush=True)
        begun = time.monotonic()
        command, environment = venv_call("python", "-m", "pytest", *self.words, *words)
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL,
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
        assert process.stdout is not None
        with process:
            while some := os.read(process.stdout.fileno(), 65536):
                self.said += some
                if aloud:
                    write(some)
        self.status, self.seconds = shell_status(process.returncode), time.monotonic() - begun

    @property
    def lines(self) -> list[str]:
        return self.said.decode(errors="replace").splitlines()

    @property
    def closing(self) -> str:
        """What pytest's closing line counts, such as `2 failed, 9 passed`; empty where none is."""
        for line in reversed(self.lines):
            if found := re.fullmatch(r"=+ (.+) in [\d.]+s( \(.*\))? =+", line):
                return found[1]
        return ""

    @property
    def counts(self) -> Counter[str]:
        """How many passed, failed and so on; what ended before it could say so is an error."""
        told = re.findall(r"(\d+) ([a-z]+)", self.closing)
        counts = Counter({kind.removesuffix("s"): int(count) for count, kind in told})
        if self.status not in (0, 5) and not counts["failed"] + counts["error"]:
            counts["error"] = 1
        return counts

    @property
    def skips(self) -> Counter[str]:
        """How many tests were skipped, by reason."""
        found: Counter[str] = Counter()
        for line in self.lines:
            if told := re.fullmatch(r"SKIPPED \[(\d+)\] \S+?: (.+)", line):
                found[told[2]] += int(told[1])
        return found


def unit_part() -> Part:
    # Many wait for a sensor or a grace: three at a time keep two cores busy.
    return Part("the unit tests", ("tests/unit", "-m", "not slow", "-n", "3", "--dist", "loadfile"))


def slow_part() -> Part:
    # One at a time, beside campaigns that leave half of two cores idle. The cluster's first tests
    # are of sensors, by the clock: those here come last.
    folders = sorted(ROOT.glob("tests/unit/[a-z]*/"), key=lambda f: (f.name == "energy", f.name))
    named = (str(folder.relative_to(ROOT)) for folder in folders)
    return Part("the slow unit tests", (*named, "-m", "slow"))


def stages() -> list[list[list[Part]]]:
    """All tests: stage by stage, and in each what goes on side by side, part after part.

    Much of a campaign's time on the cluster nothing computes: two of them at once and something
    beside them keep two cores busy. Those marked `alone` have the cluster to themselves, for they
    take parts of it away.
    """
    two = ("-n", "2", "--dist", "loadfile")
    # In their order, which has what needs no image first, while it is built.
    cluster = ("tests/cluster", "-m", "not alone", "--no-loadscope-reorder", *two)
    return [
        [[unit_part()]],
        [[Part("campaigns on the cluster, two at a time", cluster)], [slow_part()]],
        [
            [Part("campaigns with the cluster to themselves", ("tests/cluster", "-m", "alone"))],
            # Most of their time one process trains at a time.
            [Part("campaigns on this machine", ("tests/integration", *two))],
        ],
    ]


def test(words: list[str]) -> int:
    """The unit tests, then real campaigns, on SLURM and here; what each took, and every skip."""
    begun = time.monotonic()
    install("train", "plot", "energy", "data", "test")
    done: list[Part] = []
    for first, *others in stages():
        beside = [threading.Thread(target=run_lane, args=(lane, words), kwargs={"aloud": False})
                  for lane in others]  # fmt: skip
        for thread in beside:
            thread.start()
        run_lane(first, words, aloud=True)
        for thread, lane in zip(beside, others, strict=True):
            thread.join()
            for part in lane:
                print(f"dev.py: {part.name}", flush=True)
                write(bytes(part.said))
        done += [part for lane in (first, *others) for part in lane]
    summarise(done, seconds=time.monotonic() - begun)
    # 5: the words chose none of these tests
    return max((p.status for p in done if not (words and p.status == 5)), default=5)


def run_lane(parts: list[Part], words: list[str], *, aloud: bool) -> None:
    for part in parts:
        part.run(words, aloud=aloud)


def summarise(parts: list[Part], *, seconds: float) -> None:
    """Each part with its seconds, each reason to skip once, and a closing line as pytest's."""
    print("\ndev.py: in all")
    for part in parts:
        told = part.closing or "ended without a count"
        status = f", status {part.status}" if part.status not in (0, 5) else ""
        print(f"  {part.seconds:5.0f} s  {part.name}: {told}{status}")
    skips = sum((part.skips for part in parts), Counter())
    if skips:
        print("dev.py: skipped")
        for reason, count in sorted(skips.items()):
            print(f"  {count:5d}    {reason}")
    counts = sum((part.counts for part in parts), Counter())
    print(f"===== {told_of(counts) or 'no tests ran'} in {seconds:.2f}s =====", flush=True)


def told_of(counts: Counter[str]) -> str:
    """Counts in words, what went wrong first."""
    kinds = ("failed", "error", "passed", "skipped", "xfailed", "xpassed", "warning")
    return ", ".join(f"{counts[kind]} {kind}" for kind in kinds if counts[kind])


def write(some: bytes) -> None:
    sys.stdout.buffer.write(some)
    sys.stdout.flush()


def unit(words: list[str]) -> int:
    install("train", "plot", "energy", "data", "test")
    return run("python", "-m", "pytest", *unit_part().words, *words)


def check(words: list[str]) -> int:
    """All four checks, each run whatever the others say; beside them every test is read once.

    pytest keeps what it makes of a file of tests; else each of its workers makes it anew.
    """
    install("train", "plot", "energy", "data", "test", "dev")
    collected = Part("every test is collected", ("tests", "--collect-only", "-q"))
    beside = threading.Thread(target=collected.run, args=([],), kwargs={"aloud": False})
    beside.start()
    calls = [
        ("ruff", "format", "--check", "."),
        ("ruff", "check", "."),
        ("mypy",),
        ("lint-imports",),
    ]
    statuses = [run(*call) for call in calls]
    beside.join()
    if collected.status:
        write(bytes(collected.said))
    return max(*statuses, collected.status)


def faults(words: list[str]) -> int:
    """Every fault of the test cluster, LLEM_ALL_FAULTS times each (three by default)."""
    install("train", "plot", "energy", "data", "test")
    os.environ.setdefault("LLEM_ALL_FAULTS", "3")
    names = ("interruptions", "faults", "killed_commands")
    files = [f"tests/cluster/test_{name}.py" for name in names]
    return run("python", "-m", "pytest", *files, *words)


def wheel(words: list[str]) -> int:
    """Build the wheel and try it where nothing else is installed."""
    with tempfile.TemporaryDirectory(prefix="llem-wheel-") as scratch:
        folder = Path(scratch)
        python = make_venv(folder / "venv")
        pip(python, "numpy", "scipy", "h5py")
        before = size(folder / "venv")
        pip(python, "build")
        build = [python, "-m", "build", "--quiet", "--wheel", "--outdir", folder, ROOT]
        subprocess.run([str(word) for word in build], check=True)
        subprocess.run([str(python), "-m", "pip", "uninstall", "--quiet", "--yes", "build",
                        "pyproject_hooks"], check=True)  # fmt: skip
        pip(python, str(next(folder.glob("llem-*.whl"))))
        grown = (size(folder / "venv") - before) / MEBIBYTE
        print(
            f"login node: {grown:.0f} MiB beyond numpy, scipy and h5py (at most {LOGIN_MEBIBYTES})"
        )
        tests = ROOT / "tests" / "wheel" / "try_login_node.py"
        done = subprocess.run([str(python), str(tests)], cwd=folder, check=False)
        return 1 if grown > LOGIN_MEBIBYTES else done.returncode


def install(*extras: str) -> None:
    """Bring `.venv` up to what these extras need; a second call with the same does nothing."""
    python = make_venv(VENV)
    state = VENV / "llem-installed.json"
    wanted = {
        "project": hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest(),
        "torch": TORCH,
        "extras": sorted(extras),
    }
    try:
        have = json.loads(state.read_text())
    except (OSError, ValueError):
        have = {}
    same = {k: have.get(k) for k in ("project", "torch")} == {
        k: wanted[k] for k in ("project", "torch")
    }
    if same and set(extras) <= set(have.get("extras", [])):
        return
    print(f"dev.py: installing llem[{','.join(extras)}] into {VENV.name}", flush=True)
    # torch first and by itself: another package's wider range would bring a CUDA build.
    pip(python, TORCH)
    pip(python, "--editable", f"{ROOT}[{','.join(extras)}]")
    if same:
        wanted["extras"] = sorted({*extras, *have["extras"]})
    state.write_text(json.dumps(wanted))


def make_venv(folder: Path) -> Path:
    """The Python of a virtual environment, made where it is not there yet."""
    python = folder / "bin" / "python"
    if python.exists():
        return python
    try:
        import ensurepip  # noqa: F401 - Debian ships Python without it
    except ImportError:
        if os.geteuid() != 0 or shutil.which("apt-get") is None:
            print("dev.py: this Python cannot make environments: install python3-venv")
            raise SystemExit(1) from None
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for words in (["update"], ["install", "--yes", "--no-install-recommends", "python3-venv"]):
            subprocess.run(["apt-get", "--quiet", *words], check=True, env=environment)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    return python


def pip(python: Path, *words: str) -> None:
    subprocess.run(
        [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet", *words],
        check=True,
    )


def run(program: str, *words: str) -> int:
    """Run a program of `.venv` from the repository's root; its exit status."""
    command, environment = venv_call(program, *words)
    return shell_status(subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode)


def venv_call(program: str, *words: str) -> tuple[list[str], dict[str, str]]:
    """The command and the environment that run a program of `.venv`."""
    environment = {**os.environ, "PATH": f"{VENV / 'bin'}:{os.environ['PATH']}"}
    # Workers and the commands that they start are many: each would compile all of llem anew.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return [str(VENV / "bin" / program), *words], environment


def shell_status(status: int) -> int:
    """As a shell has it, for a negative one would pass for less than success."""
    return 128 - status if status < 0 else status


def size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
