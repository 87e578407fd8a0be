"""`llem aggregate --slurm`: a rehearsed campaign's records, reduced by jobs of the real cluster."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import faults
from farm_site import farm_site

from conftest import USER

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
    faults.wait_for(
        lambda: "llem-reduce-reduce PENDING" in jobs(login), what="job", timeout_s=faults.PATIENCE_S
    )
    [child] = Path(f"/proc/{call.pid}/task/{call.pid}/children").read_text().split()
    login.run("kill", f"-{signal.SIGINT.value}", child)
    _, said = call.communicate(timeout=300)
    assert call.returncode == 130 and "is cancelled" in said, said
    assert "llem-reduce-reduce" not in jobs(login)
    login.llem("aggregate", "later")
    assert tables(folder) == expected


class Held:
    """An array of one element that has reduced some runs, and is stopped in the middle of another:
    the first record of each of two runs is a pipe, which keeps its reader until it is let go."""

    def __init__(self, login, folder):
        self.login, self.folder = login, folder
        runs = [run["run_id"] for run in json.loads((folder / "plan.json").read_text())["runs"]]
        self.paths = [next(iter(sorted((folder / "runs" / name).rglob("rank-*.h5"))))
                      for name in (runs[1], runs[2])]  # fmt: skip
        for path in self.paths:
            login.run("mv", path, f"{path}.kept")
            login.run("mkfifo", path)
        self.call = subprocess.Popen(
            ["runuser", "-u", USER, "--", login.program, "aggregate", folder.name, "--slurm",
             "--elements", "1"],
            cwd=login.home, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
            env={"PATH": os.environ["PATH"], "HOME": str(login.home), "USER": USER},
        )  # fmt: skip
        # the first run is done: what is ready after some seconds is written with the next one
        release = self.put_back(self.paths[0])
        time.sleep(6.0)
        os.close(release)
        faults.wait_for(lambda: self.parts, what="a part", timeout_s=faults.PATIENCE_S)
        self.release = self.put_back(self.paths[1])

    @property
    def place(self):
        [place] = (self.folder / "results" / "reductions.cache.parts").iterdir()
        return place

    @property
    def parts(self):
        return sorted(self.place.glob("*.part"))

    @property
    def element(self):
        return f"{json.loads((self.place / 'job.json').read_text())['job_id']}_0"

    def put_back(self, path):
        """Put the record in the place of the pipe that somebody reads now; whoever does so waits
        until what is returned is closed."""
        found = []

        def reader():
            with contextlib.suppress(OSError):
                found.append(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
            return found

        faults.wait_for(reader, what=f"a reader of {path}", timeout_s=faults.PATIENCE_S)
        self.login.run("mv", f"{path}.kept", path)
        return found[0]

    def said(self):
        """What the call says in the end, after which its tables are there."""
        _, said = self.call.communicate(timeout=faults.PATIENCE_S)
        assert self.call.returncode == 0, said
        return said


def reducer_of(folder):
    """The process that reduces the campaign's records."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (path / "cmdline").read_bytes().split(b"\0")
            if b"llem.cluster.reducer" in words and (path / "cwd").resolve() == folder.resolve():
                found.append(int(path.name))
    return max(found)


# What takes a whole node drives others' jobs out of it as well.
@pytest.mark.parametrize("how", [pytest.param("preempted", marks=pytest.mark.alone), "requeued"])
def test_an_element_that_is_driven_out_goes_on_after_its_last_part(login, rehearsed, how):
    folder = rehearsed(how)
    expected = serial(login, folder)
    held = Held(login, folder)
    runs, job = len(list((folder / "runs").iterdir())), held.element
    first = Path(f"/proc/{reducer_of(folder)}")
    if how == "preempted":
        node = faults.show_job(job)["NodeList"]
        login.run("sbatch", "--partition=urgent", f"--nodelist={node}", "--exclusive",
                  "--output=/dev/null", "--wrap=sleep 1")  # fmt: skip
    else:
        login.run("scontrol", "requeue", job)
    faults.wait_for(
        lambda: int(faults.show_job(job)["Restarts"]) == 1, what=how, timeout_s=faults.PATIENCE_S
    )
    faults.wait_for(
        lambda: not first.exists(), what="the end of the first try", timeout_s=faults.PATIENCE_S
    )
    os.close(held.release)
    place = held.place
    faults.wait_for((place / "end-0.json").exists, what="the end", timeout_s=faults.PATIENCE_S)
    end = json.loads((place / "end-0.json").read_text())
    assert end["reduced"] == runs - 1 and not end["reason"], "the first run is not reduced again"
    assert "What it has not reduced" not in held.said()
    assert tables(folder) == expected


def test_what_an_element_has_reduced_before_it_is_killed_is_used(login, rehearsed):
    folder = rehearsed("killed")
    expected = serial(login, folder)
    held = Held(login, folder)
    [part] = held.parts
    kept = part.read_bytes().splitlines()[1:]
    os.kill(reducer_of(folder), signal.SIGKILL)
    os.close(held.release)
    said = held.said()
    assert "element 0 of job" in said and "What it has not reduced is reduced here" in said
    assert tables(folder) == expected
    cache = (folder / "results" / "reductions.cache").read_bytes().splitlines()
    assert kept and set(kept) <= set(cache)


def test_cancel_ends_an_array_whose_call_is_gone(login, rehearsed):
    folder = rehearsed("orphan", extra={"begin": "now+1hour"})
    expected = serial(login, folder)
    call = subprocess.Popen(
        ["runuser", "-u", USER, "--", login.program, "aggregate", "orphan", "--slurm"],
        cwd=login.home, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        env={"PATH": os.environ["PATH"], "HOME": str(login.home), "USER": USER},
    )  # fmt: skip
    faults.wait_for(
        lambda: "llem-reduce-reduce PENDING" in jobs(login), what="job", timeout_s=faults.PATIENCE_S
    )
    [place] = (folder / "results" / "reductions.cache.parts").iterdir()
    faults.wait_for((place / "job.json").exists, what="its number", timeout_s=faults.PATIENCE_S)
    [child] = Path(f"/proc/{call.pid}/task/{call.pid}/children").read_text().split()
    os.kill(int(child), signal.SIGKILL)
    call.wait(timeout=300)
    done = login.llem("cancel", "orphan")
    assert f"cancelled: {json.loads((place / 'job.json').read_text())['job_id']}" in done.stderr
    assert "llem-reduce-reduce" not in jobs(login)
    login.llem("aggregate", "orphan")
    assert tables(folder) == expected
