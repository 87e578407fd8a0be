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
import shutil
import subprocess
import sys
import tempfile
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


def test(words: list[str]) -> int:
    """The unit tests, then, with the machine to themselves, real campaigns here and on SLURM."""
    first = unit(words)
    print("dev.py: the slow unit tests", flush=True)
    slow = run("python", "-m", "pytest", "tests/unit", "-m", "slow", "-n", "2", *words)
    print("dev.py: campaigns on this machine", flush=True)
    # Most of their time one process trains at a time: two files at once keep two cores busy.
    here = run(
        "python", "-m", "pytest", "tests/integration", "-n", "2", "--dist", "loadfile", *words
    )
    print("dev.py: campaigns on the cluster", flush=True)
    last = run("python", "-m", "pytest", "tests/cluster", *words)
    # 5: the words chose none of these tests
    return max((s for s in (first, slow, here, last) if not (words and s == 5)), default=5)


def unit(words: list[str]) -> int:
    install("train", "plot", "energy", "data", "test")
    # Many wait for a sensor or a grace: three at a time keep two cores busy.
    spread = ["-n", "3", "--dist", "loadfile"]
    return run("python", "-m", "pytest", "tests/unit", "-m", "not slow", *spread, *words)


def check(words: list[str]) -> int:
    """All four checks, each run whatever the others say."""
    install("train", "plot", "energy", "data", "test", "dev")
    calls = [
        ("ruff", "format", "--check", "."),
        ("ruff", "check", "."),
        ("mypy",),
        ("lint-imports",),
    ]
    statuses = [run(*call) for call in calls]
    return max(statuses)


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
    environment = {**os.environ, "PATH": f"{VENV / 'bin'}:{os.environ['PATH']}"}
    # Workers and the commands that they start are many: each would compile all of llem anew.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [str(VENV / "bin" / program), *words]
    status = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
    # as a shell has it, for a negative one would pass for less than success
    return 128 - status if status < 0 else status


def size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
