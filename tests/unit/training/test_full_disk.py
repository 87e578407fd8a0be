"""A disk that fills up costs what was to be written on it, never the training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llem.campaign import Run
from llem.records import read_rank

pytest.importorskip("torch")
pytest.importorskip("accelerate")

pytestmark = [pytest.mark.train, pytest.mark.slow]

MakeRun = Callable[..., Run]

# The disk is full from step `full` on until step `free`; the run is asked to stop at `stop`.
SCRIPT = """
import json, os, sys
from pathlib import Path
from llem.campaign import Run
from llem.records import read_rank
from llem.records import read_rank
from llem.training import find_checkpoint, start_world, train

task = json.loads(Path(sys.argv[1]).read_text())
disk, polls = Path(task["disk"]), iter(range(1, 10**9))

def fill():
    with open(disk / "filler", "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass

def poll():
    step = next(polls)
    if step == task["full"]:
        fill()
    if step == task["free"]:
        (disk / "filler").unlink()
    return "told to" if step == task["stop"] else None

run = Run.from_dict(task["run"])
with start_world() as world:
    outcome = train(run, attempt_dir=task["attempt"], checkpoints_dir=task["checkpoints"],
                    world=world, meta={}, should_stop=poll)
whole = find_checkpoint(task["checkpoints"], run_id=run.run_id).checkpoint
print(json.dumps({
    **outcome.to_dict(),
    "events": [[e["code"].decode(), e["text"].decode()]
               for e in read_rank(Path(task["attempt"]) / "rank-00000.h5").events],
    "files": sorted(path.name for path in Path(task["checkpoints"]).glob("*")),
    "whole": whole.step if whole else None,
}), flush=True)
"""


@pytest.fixture
def train_on_small_disk(tmp_path: Path) -> Callable[..., Any]:
    """Train with a tmpfs of 1 MB at `disk`; skips where a process may not mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f'mount -t tmpfs -o size=1m none {disk} && exec "$@"'
    prefix = ["unshare", "-rm", "sh", "-c", mount, "sh"]
    if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no user namespaces here")

    def train(run: Run, *, full: int, free: int = 0, stop: int = 0, on_disk: str) -> Any:
        folders = {"attempt": tmp_path / "attempt", "checkpoints": tmp_path / "checkpoints"}
        folders[on_disk] = disk / on_disk
        task = {"run": run.to_dict(), "disk": str(disk), "full": full, "free": free, "stop": stop,
                **{name: str(path) for name, path in folders.items()}}  # fmt: skip
        (tmp_path / "task.json").write_text(json.dumps(task))
        source = Path(sys.modules["llem"].__file__ or "").parents[1]
        done = subprocess.run(
            [*prefix, sys.executable, "-c", SCRIPT, str(tmp_path / "task.json")],
            env={**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"},
            capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1]), done.stderr

    return train


def test_a_periodic_checkpoint_that_does_not_fit_is_tried_again_at_the_next(
    make_run: MakeRun, train_on_small_disk: Callable[..., Any]
) -> None:
    run = make_run(checkpoint_steps=5)
    found, _ = train_on_small_disk(run, full=6, free=17, on_disk="checkpoints")
    codes = [code for code, _ in found["events"] if code.startswith("checkpoint")]
    assert codes == ["checkpoint", *["checkpoint-failed"] * 2, "checkpoint", "checkpoint"]
    failed = [text for code, text in found["events"] if code == "checkpoint-failed"]
    assert failed[0].startswith("after step 10: ")
    assert (found["status"], found["whole"], found["record"]) == ("completed", 25, "")
    assert found["files"] == ["step-000000020", "step-000000025"]


def test_asked_to_stop_on_a_full_disk_it_leaves_with_the_checkpoint_before(
    make_run: MakeRun, train_on_small_disk: Callable[..., Any]
) -> None:
    run = make_run(checkpoint_steps=5)
    found, _ = train_on_small_disk(run, full=6, stop=8, on_disk="checkpoints")
    assert found["status"] == "interrupted"
    assert found["reason"].startswith("told to; its checkpoint could not be written: ")
    assert (found["step"], found["whole"]) == (8, 5)
    assert found["checkpoint"].endswith("step-000000005")
    assert found["files"] == ["step-000000005"]


def test_measuring_ends_on_a_full_disk_and_the_training_does_not(
    make_run: MakeRun, train_on_small_disk: Callable[..., Any], train_alone: Callable[..., Any]
) -> None:
    run = make_run(steps=60)
    found, told = train_on_small_disk(run, full=6, on_disk="attempt")
    assert found["status"] == "completed"
    assert found["loss"] == train_alone(run, "elsewhere").loss
    assert found["record"] == "rank 0: record incomplete: disk full"
    assert "record incomplete: disk full; the training goes on" in told


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs that no checkpoint fits on, for processes that are not this one's children only."""
    disk = tmp_path / "tiny"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a tmpfs")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize(("zero_stage", "sharding"), [(0, "zero"), (2, "zero"), (0, "fsdp2")])
def test_no_rank_waits_for_one_whose_checkpoint_does_not_fit(
    make_run: MakeRun, run_ranks: Callable[..., Any], tiny_disk: Path, zero_stage: int,
    sharding: str, tmp_path: Path,
) -> None:  # fmt: skip
    if zero_stage:
        pytest.importorskip("deepspeed")
    run = make_run(ranks=2, zero_stage=zero_stage, sharding=sharding, checkpoint_steps=10)
    task = {"name": "full", "run": run.to_dict(), "attempt": str(tmp_path / "attempt"),
            "checkpoints": str(tiny_disk / "checkpoints")}  # fmt: skip
    results = run_ranks([task], ranks=2, folder=tmp_path / "job", zero_stage=zero_stage)
    assert [outcome["status"] for outcome in results["full"]] == ["completed"] * 2
    for rank in (0, 1):
        record = read_rank(tmp_path / "attempt" / f"rank-{rank:05d}.h5")
        codes = [event["code"].decode() for event in record.events]
        assert codes.count("checkpoint-failed") == 2
    assert list((tiny_disk / "checkpoints").iterdir()) == []
