"""What happens inside a job when it is interrupted: it goes on, to the same bits, at no one's hand.

All cells but the preempted one are at work at the same time: most of an interruption is waiting.
"""

import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import faults
from faults import Cell

# A job of higher priority drives others out.
pytestmark = pytest.mark.alone

SIZE = {"budget": "2.5e11 FLOP", "every": 40}
# The step after which a cell is disturbed: two checkpoints lie behind it.
STEP = 90
# The one that takes longest to disturb comes first.
DISTURB = {
    "limited": faults.shorten_limit,
    "usr1": lambda cell: faults.signal_job(cell, "USR1"),
    "term": lambda cell: faults.signal_job(cell, "TERM"),
    "requeued": faults.requeue,
    "killed": faults.kill_rank,
    "torn": faults.requeue_and_tear,
}
DISTURBED = [*DISTURB, "preempted"]


@pytest.fixture(scope="module")
def cells(login, image, nvml, repeat):
    """Every cell, at its end."""
    names = [*DISTURB, "undisturbed"]
    found = {
        name: Cell(login, f"{name}-{repeat}", image=image, nvml=nvml, **SIZE) for name in names
    }
    script = found["limited"].script
    script.write_text(re.sub("B:USR1@[0-9]+", "B:USR1@150", script.read_text()))
    for cell in found.values():
        cell.submit()
    faults.disturb(found, DISTURB, step=STEP)
    for cell in found.values():
        cell.settle()
    cell = found["preempted"] = Cell(login, f"preempted-{repeat}", image=image, nvml=nvml, **SIZE)
    cell.submit()
    cell.wait_for_step(STEP)
    faults.preempt(cell)
    cell.settle()
    faults.tell(login.home, found.values())
    return found


@pytest.mark.parametrize("name", DISTURBED)
def test_an_interrupted_run_ends_with_the_bits_of_the_undisturbed_one(cells, name):
    cell, undisturbed = cells[name], cells["undisturbed"]
    last = cell.ends[-1]
    assert last is not None and last["status"] == "completed", cell.log
    assert len(cell.attempts) >= 2
    assert last["loss"] == undisturbed.ends[-1]["loss"]
    # the same data in the same order: every step of every rank has the same loss
    for rank in (0, 1):
        assert np.array_equal(cell.steps(rank), undisturbed.steps(rank))


@pytest.mark.parametrize("name", DISTURBED)
def test_nothing_is_run_twice(cells, name):
    cell = cells[name]
    statuses = [end["status"] if end else "killed" for end in cell.ends]
    assert statuses.count("completed") == 1 and statuses[-1] == "completed", statuses
    assert len(statuses) == 2, (statuses, cell.log)
    first, second = cell.ends
    assert 0 < second["start_step"] <= ((first or {}).get("step") or second["start_step"])


CAUSES = {"usr1": "signal", "term": "signal", "limited": "time-limit", "preempted": "signal"}


@pytest.mark.parametrize(("name", "cause"), CAUSES.items())
def test_ranks_that_are_asked_to_leave_lose_no_step_and_say_why(cells, name, cause):
    first, second = cells[name].ends
    assert (first["status"], first["cause"]) == ("interrupted", cause), cells[name].log
    assert second["start_step"] == first["step"] >= STEP


def test_ranks_are_started_again_in_the_same_job_when_one_was_killed(cells):
    cell = cells["killed"]
    first = cell.ends[0]
    assert first is None or (first["status"], first["cause"]) == ("failed", "killed"), first
    assert "in this job" in cell.log
    assert "requeueing" not in cell.log
    assert cell.ends[-1]["start_step"] % SIZE["every"] == 0


def test_a_torn_checkpoint_is_skipped_for_the_one_before_it(cells):
    cell = cells["torn"]
    (said,) = [text for text in cell.events("checkpoint-skipped") if "state.pt" in text]
    assert re.search(r"step-0+\d+: state.pt has \d+ bytes of \d+", said)


@pytest.mark.parametrize("name", ["undisturbed", *DISTURBED])
def test_the_energy_of_all_attempts_is_counted(cells, name):
    cell = cells[name]
    assert cell.energy_j() == pytest.approx(cell.energy_used_j(), rel=0.02)


def test_nothing_is_left_behind(cells):
    for cell in cells.values():
        assert not cell.checkpoints
        assert not list((cell.folder / "jobs" / "leave").iterdir()), os.listdir(
            cell.folder / "jobs" / "leave"
        )
