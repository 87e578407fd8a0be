"""Fixtures of the tests that need the real SLURM cluster and Apptainer.

They bring both up by the same command that a person uses. Where this machine cannot carry them
the tests skip and say what is lacking; where it can, a failure to come up is a failure.
"""

import json
import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CLUSTER = [sys.executable, str(HERE / "cluster.py")]
USER = "llem"
# Two processes share the files out in their order: those of minutes first, the longest at the head.
# Each takes its next file when it has two tests left, however long these are.
LONG = (
    "test_campaign.py",
    "test_image.py",
    "test_reduce.py",
    "test_plan_scripts.py",
    "test_killed_commands.py",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Marks these tests; files that need no image come first, while it is built, then long ones.

    Before pytest drops what `-m` and `-k` do not choose, so that they may choose by the mark.
    """
    ours = [item for item in items if HERE in Path(item.path).parents]
    for item in ours:
        item.add_marker(pytest.mark.cluster)
    later = {item.path for item in ours if "image" in item.fixturenames}
    rank = {name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda i: (i.path in later) * (1 + rank.get(i.path.name, len(LONG))))


def call(*args, timeout=2400):
    return subprocess.run(
        [*CLUSTER, *args], capture_output=True, text=True, timeout=timeout, check=False
    )


@pytest.fixture(scope="session")
def cluster(request):
    """The cluster, up and healthy: the answer of `cluster.py status --json`."""
    done = call("up")
    if done.returncode == 3:
        # CI says beforehand that this machine can: then a skip would hide a failure.
        if os.environ.get("LLEM_REQUIRE_CLUSTER") == "yes":
            pytest.fail(f"this machine can carry the cluster, yet: {done.stderr.strip()}")
        pytest.skip(f"no cluster here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    building = None
    if any("image" in item.fixturenames for item in request.session.items):
        # Tests that need none go on meanwhile; how it ended is for the fixture that waits for it.
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        building = subprocess.Popen([*CLUSTER, "image"], stdin=subprocess.DEVNULL, **quiet)
    yield json.loads(call("status", "--json").stdout)
    if building is not None:
        building.wait(2400)


@pytest.fixture(scope="session")
def image(cluster):
    """The CPU image with this checkout's llem, built by `llem image build`."""
    done = call("image")
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="session")
def vllm_image(cluster):
    """An image with vLLM's CPU build and this checkout's llem, where one can be had cheaply."""
    if named := os.environ.get("LLEM_VLLM_IMAGE"):
        return Path(named)
    wheels = os.environ.get("LLEM_VLLM_WHEELS")
    if not wheels:
        text = "LLEM_VLLM_IMAGE names an image, or LLEM_VLLM_WHEELS wheels to build one from"
        pytest.skip(f"no vLLM here: {text}")
    done = call("vllm-image", wheels, timeout=3600)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip().splitlines()[-1])


class Login:
    """The unprivileged user at the login node, where llem is installed without torch."""

    def __init__(self, program, home):
        self.program = program
        self.home = home

    def run(self, *args, check=True, timeout=900, env=None):
        """Run a program as the user, in the user's folder."""
        done = subprocess.run(
            ["runuser", "-u", USER, "--", *(str(a) for a in args)],
            cwd=self.home,
            env={"PATH": os.environ["PATH"], "HOME": str(self.home), "USER": USER, **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check:
            assert done.returncode == 0, f"{args}: {done.stdout}\n{done.stderr}"
        return done

    def llem(self, *args, **options):
        return self.run(self.program, *args, **options)

    def write(self, name, text):
        path = self.home / name
        path.write_text(text)
        shutil.chown(path, USER, USER)
        return path


def unmount_below(folder):
    """A session that was killed may have left a small disk behind."""
    for line in Path("/proc/mounts").read_text().splitlines():
        place = line.split()[1]
        if folder in Path(place).parents:
            subprocess.run(["umount", "--lazy", place], check=True)


@pytest.fixture(scope="session")
def login(cluster):
    done = call("login")
    assert done.returncode == 0, done.stderr
    # Of each process that runs tests beside another one, a folder of its own.
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    home = Path(pwd.getpwnam(USER).pw_dir) / (f"tests-{worker}" if worker else "tests")
    if home.exists():
        unmount_below(home)
        shutil.rmtree(home)
    home.mkdir()
    shutil.chown(home, USER, USER)
    return Login(done.stdout.strip().splitlines()[-1], home)


@pytest.fixture(scope="session")
def nvml(login, tmp_path_factory):
    """The stand-in NVML: a library whose true energy is known, where the user can read it."""
    sys.path.insert(0, str(HERE.parent / "nvml"))
    import build

    folder = Path("/var/tmp/llem-nvml")
    folder.mkdir(mode=0o755, exist_ok=True)
    return Path(build.build(folder))


def pytest_generate_tests(metafunc):
    """`LLEM_ALL_FAULTS=3`: whatever asks for `repeat` is run three times."""
    if "repeat" in metafunc.fixturenames:
        times = max(1, int(os.environ.get("LLEM_ALL_FAULTS") or 1))
        metafunc.parametrize("repeat", range(times), scope="module")
