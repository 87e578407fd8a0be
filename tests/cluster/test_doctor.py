"""`llem doctor --job` on the real cluster: nodes seen from inside the image, by a job."""

import json
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from farm_site import farm_profile

# Two nodes are to be free, for it is told how soon the answer comes.
pytestmark = pytest.mark.alone

LIMITS = {"array_size": 1001, "submit": 1000, "time": "30m"}


@pytest.fixture
def doctor(login, image, nvml):
    """Call `llem doctor --job --json` for the farm with changes to its profile."""

    def doctor(*options, status=0, image=image, **changes):
        text = farm_profile(image, nvml, limits=LIMITS, **changes)
        login.run("mkdir", "-p", login.home / "config" / "llem" / "sites")
        login.write("config/llem/sites/farm.yaml", text)
        env = {"XDG_CONFIG_HOME": str(login.home / "config")}
        done = login.llem(
            "doctor", "--site", "farm", "--job", "--json", *options, env=env, check=False
        )
        assert done.returncode == status, f"{done.stdout}\n{done.stderr}"
        return {(c["where"], c["name"]): c for c in json.loads(done.stdout)["checks"]}

    return doctor


def test_the_job_finds_two_nodes_in_order_from_inside_the_image(login, doctor, image):
    start = time.monotonic()
    checks = doctor()
    took = time.monotonic() - start
    nodes = sorted({where for where, _ in checks if where.startswith("n")})
    assert len(nodes) == 2
    for node in nodes:
        for name in ("image", "training", "energy", "locks", "locks across nodes", "clock"):
            assert checks[node, name]["state"] == "ok", checks[node, name]
        assert image.name in checks[node, "image"]["seen"]
        assert "counter" in checks[node, "energy"]["seen"]
        for name in ("HDF5 records", "write, fsync, rename", "free space", "home"):
            assert checks[node, name]["state"] == "ok", checks[node, name]
        # The farm binds no task to CPUs, and that is told.
        assert checks[node, "CPUs"]["state"] == "warn"
    met = checks["between ranks", "rendezvous"]
    assert met["state"] == "ok" and met["seen"].startswith("4 ranks on 2 node(s) met at n")
    assert not list(login.home.glob(".llem-doctor-*")), "nothing stays behind"
    assert took < 40, f"{took:.0f} s"


def test_an_image_that_does_not_start_is_told_with_the_logs_last_lines(login, doctor):
    login.write("torn.sif", "no image")
    checks = doctor("--nodes", "1", status=1, image=login.home / "torn.sif")
    (told,) = [c for (where, name), c in checks.items() if name == "job"]
    assert told["state"] == "fail"
    assert "FATAL" in told["remedy"] or "format" in told["remedy"], told
    # What the node says outside of the image is there all the same.
    assert any(name == "container" and where.startswith("n") for where, name in checks)


def test_a_job_that_does_not_start_in_time_is_told_and_cancelled(login, doctor):
    checks = doctor("--wait", "4", status=1, extra={"begin": "now+1hour"})
    (told,) = [c for (_, name), c in checks.items() if name == "job"]
    assert "no end within 4 s" in told["seen"]
    assert "llem-doctor" not in login.run("squeue", "--noheader", "--format=%j").stdout


def test_a_partition_that_is_not_there_is_told_before_the_job_is(doctor):
    checks = doctor(status=1, partition="gppu")
    assert checks["here", "partition"]["remedy"] == "did you mean 'gpu'?"
    assert "invalid partition" in checks["here", "job"]["seen"]
