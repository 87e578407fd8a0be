"""`llem aggregate --slurm` of a rehearsed campaign, with a stand-in for the scheduler."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from llem.cluster import reducing
from llem.errors import ClusterError, InputError
from llem.pipeline import aggregate_campaign, rehearse
from llem.rehearsal import Failures, World, planted

# Every element is a process that imports llem.
pytestmark = pytest.mark.slow

# Runs the elements of an array at once, one after the other; `lose` names those that it does not.
PROGRAMS = {
    "sbatch": """\
for script; do :; done
here=$(dirname "$0")
[ ! -e "$here/refuse" ] || { echo 'sbatch: error: Batch job submission failed: no' >&2; exit 1; }
echo 77 >> "$here/submitted"
last=$(sed -n 's/^#SBATCH --array=0-//p' "$script")
name=$(sed -n 's/^#SBATCH --job-name=//p' "$script")
export SLURM_SUBMIT_DIR=$PWD SLURM_JOB_ID=77
for SLURM_ARRAY_TASK_ID in $(seq 0 "$last"); do
  export SLURM_ARRAY_TASK_ID
  grep -qx "$SLURM_ARRAY_TASK_ID" "$here/lose" 2>/dev/null && continue
  bash "$script" > "jobs/logs/$name-77_$SLURM_ARRAY_TASK_ID.log" 2>&1
done
echo 77
""",
    "srun": 'while case $1 in --*) true;; *) false;; esac; do shift; done; exec "$@"\n',
    "squeue": 'cat "$(dirname "$0")/held" 2>/dev/null; true\n',
    "scancel": 'echo "$@" >> "$(dirname "$0")/cancelled"\n',
}
PENDING = "77|{}|PENDING|0:00|1:00|N/A|0||Priority"


@pytest.fixture(scope="module")
def folder(gpu_plan, tmp_path_factory):
    world = World(plan=gpu_plan, planted=planted("chinchilla"), failures=Failures())
    out = tmp_path_factory.mktemp("by-jobs") / "out"
    played = rehearse(world, out=out, interval_s=5.0).folder
    then = time.time() - 60
    for path in out.rglob("*.*"):
        os.utime(path, (then, then))
    return played


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    here = tmp_path / "bin"
    here.mkdir()
    for name, text in PROGRAMS.items():
        (here / name).write_text(f"#!/bin/bash\n{text}")
        (here / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{here}:{os.environ['PATH']}")
    source = Path(reducing.__file__).parents[2]
    monkeypatch.setenv("PYTHONPATH", f"{source}:{os.environ.get('PYTHONPATH', '')}")
    # two elements, of few bytes
    monkeypatch.setattr(reducing, "ELEMENT_BYTES", 1)
    monkeypatch.setattr(reducing, "MOST_ELEMENTS", 2)
    monkeypatch.setattr(reducing, "LINGER_S", 0.0)
    monkeypatch.setattr(reducing, "POLL_S", 0.05)
    return here


@pytest.fixture
def serial(folder):
    """The tables that one process gives, by name; nothing is left of them."""
    aggregate_campaign(folder, cached=False)
    return tables(folder)


def tables(folder):
    found = {path.name: path.read_bytes() for path in folder.results.glob("*.csv")}
    for path in folder.results.iterdir():
        path.unlink() if path.is_file() else shutil.rmtree(path)
    return found


def test_an_array_reduces_all_runs_and_the_tables_are_those_of_one_process(folder, slurm, serial):
    said, seen = [], []
    done = aggregate_campaign(folder, slurm=True, say=said.append,
                              progress=lambda *a: seen.append(a))  # fmt: skip
    count = len(done.observations)
    assert done.problems == () and seen == [(count, count)]
    assert f"job 77: {count} runs" in said[0] and "2 elements" in said[0]
    logs = list(folder.logs.glob("*reduce-77_*.log"))
    assert len(logs) == 2 and not any(path.read_text() for path in logs)
    # from the cache alone now, and no job is needed
    again = aggregate_campaign(folder, slurm=True, say=said.append)
    assert again.observations == done.observations or repr(again) == repr(done)
    assert said[-1] == f"no job is needed: all {count} runs are reduced"
    assert (slurm / "submitted").read_text() == "77\n"
    assert not (folder.results / "reductions.cache.parts").exists()
    assert tables(folder) == serial


def test_an_element_that_left_nothing_is_named_and_its_runs_are_reduced_here(folder, slurm, serial):
    (slurm / "lose").write_text("1\n")
    for log in folder.logs.glob("*reduce*"):
        log.unlink()
    done = aggregate_campaign(folder, slurm=True)
    [text] = done.problems
    assert text.startswith("element 1 of job 77, ") and "filesystem that they share" in text
    assert text.endswith("What it has not reduced is reduced here")
    assert tables(folder) == serial


def test_an_image_with_another_llem_is_refused_with_what_to_do(folder, slurm, serial, monkeypatch):
    monkeypatch.setattr(reducing, "reducer_version", lambda: "0" * 32)
    done = aggregate_campaign(folder, slurm=True)
    assert len(done.problems) == 2
    assert "another than that which asked" in done.problems[0]
    assert "llem image build" in done.problems[0]
    assert tables(folder) == serial


def test_an_interrupted_wait_cancels_its_array_and_keeps_what_was_reduced(folder, slurm, serial):
    (slurm / "lose").write_text("1\n")
    (slurm / "held").write_text(PENDING.format(1).replace("Priority", "JobHeldUser") + "\n")

    def interrupt(done, total):
        assert 0 < done < total
        raise KeyboardInterrupt

    said = []
    with pytest.raises(KeyboardInterrupt):
        aggregate_campaign(folder, slurm=True, say=said.append, progress=interrupt)
    assert (slurm / "cancelled").read_text() == "77\n"
    assert said[1:] == [
        "job 77 will not start by itself: JobHeldUser: `scontrol release` it",
        "job 77 is cancelled; what it has reduced is kept",
    ]
    # cancelled, it works no more
    (slurm / "held").unlink()
    steps = []
    aggregate_campaign(folder, progress=lambda *a: steps.append(a))
    assert len(steps) < steps[-1][1], "an ordinary call takes what the array has done"
    assert tables(folder) == serial


def test_a_second_call_waits_for_the_first_ones_array_and_submits_no_run_twice(
    folder, slurm, serial, monkeypatch
):
    (slurm / "lose").write_text("1\n")
    (slurm / "held").write_text(PENDING.format(1) + "\n")
    asked = []

    def leave(_seconds):
        # the first call, killed while it waits: its array is left
        asked.append(1)
        raise SystemExit

    with monkeypatch.context() as patch:
        # its own pause alone: a busy machine has subprocess sleep as well
        patch.setattr(reducing, "time", SimpleNamespace(**{**vars(time), "sleep": leave}))
        patch.setattr(reducing.slurm, "cancel", lambda jobs: None)
        with pytest.raises(SystemExit):
            aggregate_campaign(folder, slurm=True)
    said = []

    def ended(done, total):
        (slurm / "held").unlink(missing_ok=True)

    done = aggregate_campaign(folder, slurm=True, say=said.append, progress=ended)
    assert said[0].startswith("job 77 of another call reduces")
    assert (slurm / "submitted").read_text() == "77\n"
    assert [text for text in done.problems if "element 1 of job 77" in text]
    assert tables(folder) == serial


def test_a_refused_submission_leaves_nothing_behind(folder, slurm):
    (slurm / "refuse").touch()
    with pytest.raises(ClusterError, match="Batch job submission failed"):
        aggregate_campaign(folder, slurm=True)
    assert not list(folder.results.glob("reductions.cache.parts/*"))


def test_a_site_without_slurm_is_told(folder):
    here = folder.load_plan()
    local = replace(here, site=here.site.model_copy(update={"executor": "local"}))
    with pytest.raises(InputError, match="has no SLURM"):
        reducing.reduce_by_jobs(folder, local, cache=folder.results / "c", carbon=None, say=print)
