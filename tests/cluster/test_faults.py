"""What happens to a campaign when the cluster fails it: it ends complete, and nothing is lost.

With `test_interruptions.py` this is the matrix of faults. `LLEM_ALL_FAULTS=3` runs every cell of
both three times (`python3 dev.py faults`); without it, those that are quick, once.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import faults
from faults import Cell

# The controller goes away, and nodes.
pytestmark = pytest.mark.alone

SIZE = {"budget": "4e11 FLOP", "every": 40}
# The step after which a cell is disturbed: two checkpoints lie behind it.
STEP = 90
CLOCK_OFF_S = 5
DISK_MIB = 24

# These leave the nodes to each other, and are at work side by side.
TOGETHER = {
    "stepd": lambda cell: faults.kill_stepd(cell, rank=0),
    "stepd-of-peer": lambda cell: faults.kill_stepd(cell, rank=1),
    "stepd-of-script": faults.kill_stepd_of_script,
    "script": faults.kill_script,
    "disk": faults.fill_disk,
    "clock": lambda cell: None,
}
# These take a part of the cluster away.
ALONE = {
    "node": faults.take_node_down,
    "controller": faults.restart_controller,
    "accounting": faults.stop_accounting,
}
FAULTS = [*TOGETHER, *ALONE]
# Faults after which `llem resubmit` is allowed to be needed.
BY_HAND = {"script", "disk"}
# Faults that the run does not feel.
UNFELT = {"stepd", "stepd-of-peer", "stepd-of-script", "clock", "controller", "accounting"}
QUICK = {"script", "disk", "controller"}


def chosen(names):
    """All cells where every fault was asked for; else those that are quick, and why not others."""
    everything = os.environ.get("LLEM_ALL_FAULTS")
    skip = pytest.mark.skipif(not everything, reason="LLEM_ALL_FAULTS=1 runs it")
    return [name if name in QUICK else pytest.param(name, marks=skip) for name in names]


class Cells:
    """The cells, each run when it is first asked for; what happened in them beside their files."""

    def __init__(self, login, image, nvml, repeat):
        self.make = lambda name: Cell(
            login, f"fault-{name}-{repeat}", image=image, nvml=nvml, **SIZE
        )
        self.ready = {}
        self.said = {}

    def together(self, names):
        found = {name: self.make(name) for name in ("undisturbed", *names)}
        if "disk" in found:
            faults.mount_small(found["disk"].folder / "runs", mebibytes=DISK_MIB)
        if "clock" in found:
            faults.set_clock_off(found["clock"], seconds=CLOCK_OFF_S)
        for name in set(found) & {"stepd", "stepd-of-peer"}:
            faults.wait_less(found[name])
        for cell in found.values():
            cell.submit()
        faults.disturb(found, {name: TOGETHER[name] for name in names}, step=STEP)
        for name, cell in found.items():
            cell.settle()
            if name == "disk":
                self.said[name] = json.loads(cell.login.llem("status", cell.name, "--json").stdout)
                faults.enlarge(cell.folder / "runs", mebibytes=10 * DISK_MIB)
            if name in BY_HAND and not cell.completed:
                cell.resubmit()
        for name, cell in found.items():
            if name in BY_HAND:
                cell.settle()
        self.ready |= found

    def alone(self, name):
        cell = self.make(name)
        cell.submit()
        try:
            cell.wait_for_step(STEP)
            self.said[name] = ALONE[name](cell)
            cell.settle()
            if name == "accounting":
                told = cell.login.llem("status", cell.name, "--json")
                self.said[name] = json.loads(told.stdout)
        finally:
            faults.mend()
        self.ready[name] = cell

    def __getitem__(self, name):
        if name in ALONE and name not in self.ready:
            self.alone(name)
        return self.ready[name]


@pytest.fixture(scope="module")
def cells(login, image, nvml, repeat):
    cells = Cells(login, image, nvml, repeat)
    everything = os.environ.get("LLEM_ALL_FAULTS")
    disk = login.home / f"disk-{repeat}" / "runs"
    try:
        cells.together([name for name in TOGETHER if everything or name in QUICK])
        yield cells
        faults.tell(login.home, cells.ready.values())
    finally:
        faults.mend()
        if disk.is_mount():
            subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.mark.parametrize("name", chosen(FAULTS))
def test_the_run_ends_with_the_bits_of_the_undisturbed_one(cells, name):
    cell, undisturbed = cells[name], cells["undisturbed"]
    assert cell.completed, cell.log
    assert cell.resubmits == (name in BY_HAND), cell.log
    assert cell.ends[-1]["loss"] == undisturbed.ends[-1]["loss"]
    # the same data in the same order: every step of every rank has the same loss
    for rank in (0, 1):
        assert np.array_equal(cell.steps(rank), undisturbed.steps(rank))


@pytest.mark.parametrize("name", chosen(FAULTS))
def test_nothing_is_run_twice(cells, name):
    cell = cells[name]
    statuses = [end["status"] if end else "killed" for end in cell.ends]
    assert statuses.count("completed") == 1 and statuses[-1] == "completed", statuses
    assert len(statuses) == (1 if name in UNFELT else 2), (statuses, cell.log)
    # each attempt begins at a checkpoint that one before it left
    starts = [end["start_step"] for end in cell.ends if end]
    assert name in UNFELT or starts[-1] >= STEP // SIZE["every"] * SIZE["every"], cell.log


@pytest.mark.parametrize("name", chosen(FAULTS))
def test_the_energy_of_all_attempts_is_counted(cells, name):
    cell = cells[name]
    assert cell.energy_j() == pytest.approx(cell.energy_used_j(), rel=0.02)


@pytest.mark.parametrize("name", chosen(["disk"]))
def test_a_full_disk_is_named_and_waits_for_a_person(cells, name):
    (run,) = cells.said[name]["runs"]
    assert run["status"] != "completed"
    assert run["cause"]["name"] == "disk-full", cells[name].log
    assert run["cause"]["retry"] == "fix"


@pytest.mark.parametrize("name", chosen(["controller"]))
def test_the_state_is_told_while_the_controller_is_away(cells, name):
    cell = cells[name]
    assert cell.completed
    said = cells.said[name]
    assert said["active"] and not said["settled"]
    assert said["scheduler"]["problem"]


@pytest.mark.parametrize("name", chosen(["accounting"]))
def test_a_campaign_needs_no_accounting(cells, name):
    assert cells[name].completed
    assert cells.said[name]["settled"]


@pytest.mark.parametrize("name", chosen(["node"]))
def test_another_try_goes_to_other_nodes(cells, name):
    first, last = (json.loads((a / "begin.json").read_text()) for a in cells[name].attempts)
    assert first["hosts"][-1] not in last["hosts"]
    assert last["restart_count"] == 1


@pytest.mark.parametrize("name", chosen(["clock"]))
def test_a_node_whose_clock_is_off_is_aligned_by_its_steps(cells, name):
    cell = cells[name]
    told = json.loads(cell.login.llem("aggregate", cell.name, "--json").stdout)
    (said,) = [text for text in told["problems"] if "wall clock" in text]
    assert f"{CLOCK_OFF_S:+d}" in said.replace("-", "+")
