"""`llem aggregate --slurm`: a rehearsed campaign's records, reduced by jobs of the real cluster."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from conftest import USER
from farm_site import farm_site

CAMPAIGN = """\
name: reduce
target: 4e11 FLOP
budget: 1.5e11 FLOP
model: {vocabulary: 256, context: 128}
data: {builtin: python-sources, evaluation_tokens: 32768}
grid: {levels: 2, sizes: 4, ratio: 3, span: 0.4}
training: {precision: fp32, rule: small, batch_tokens: 1024}
layout: {nodes: 2, gpus_per_node: 2}
"""
LIMITS = {"array_size": 1001, "time": "10m"}


@pytest.fixture(scope="module")
def rehearsed(login):
    """Rehearse the campaign for a site of the farm; gives the folder, its files a minute old."""

    def rehearsed(name, image=None, **site):
        login.write(f"{name}.yaml", CAMPAIGN + farm_site(image, None, limits=LIMITS, **site))
        options = ("--instant", "--failures", "off", "--out", name)
        login.llem("rehearse", f"{name}.yaml", *options, check=False)
        folder = login.home / name
        login.run("rm", "-rf", folder / "results")
        login.run("find", folder, "-type", "f", "-exec", "touch", "-d", "1 minute ago", "{}", "+")
        return folder

    return rehearsed


def tables(folder):
    return {path.name: path.read_bytes() for path in sorted((folder / "results").glob("*.csv"))}


def serial(login, folder):
    """The tables of one process that reads everything here; no cache is left."""
    login.llem("aggregate", folder.name, "--no-cache", "--workers", "1")
    found = tables(folder)
    assert len(found) == 5
    login.run("rm", "-rf", folder / "results")
    return found


def jobs(login):
    return login.run("squeue", "--noheader", "--format=%j %T").stdout


def test_jobs_in_the_image_reduce_the_runs_and_the_tables_are_the_same_to_the_byte(
    login, rehearsed, image
):
    folder = rehearsed("reduce", image)
    expected = serial(login, folder)
    done = login.llem("aggregate", "reduce", "--slurm", "--elements", "3", "--json")
    assert "What it has not reduced" not in done.stderr, done.stderr
    assert len(json.loads(done.stdout)["observations"]) == len(list((folder / "runs").iterdir()))
    assert tables(folder) == expected
    # from the cache: nothing is submitted a second time
    again = login.llem("aggregate", "reduce", "--slurm")
    assert "no job is needed" in again.stderr
    assert tables(folder) == expected
    assert len(list((folder / "jobs" / "logs").glob("*-reduce-*"))) == 3


def test_elements_that_fail_are_named_and_their_runs_are_reduced_here(login, rehearsed):
    login.write("torn.sif", "no image")
    folder = rehearsed("torn", login.home / "torn.sif")
    expected = serial(login, folder)
    done = login.llem("aggregate", "torn", "--slurm")
    assert "element 0 of job " in done.stderr
    assert "container-missing" in done.stderr and "image verify" in done.stderr, done.stderr
    assert tables(folder) == expected


def test_an_interrupted_call_cancels_its_array(login, rehearsed):
    folder = rehearsed("later", extra={"begin": "now+1hour"})
    expected = serial(login, folder)
    call = subprocess.Popen(
        ["runuser", "-u", USER, "--", login.program, "aggregate", "later", "--slurm"],
        cwd=login.home, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        env={"PATH": os.environ["PATH"], "HOME": str(login.home), "USER": USER},
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while "llem-reduce-reduce" not in jobs(login) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert "llem-reduce-reduce PENDING" in jobs(login)
    [child] = Path(f"/proc/{call.pid}/task/{call.pid}/children").read_text().split()
    login.run("kill", f"-{signal.SIGINT.value}", child)
    _, said = call.communicate(timeout=60)
    assert call.returncode == 130 and "is cancelled" in said, said
    assert "llem-reduce-reduce" not in jobs(login)
    login.llem("aggregate", "later")
    assert tables(folder) == expected
