"""The truth matrix without SLURM: two pretended nodes of processes; sampler, records, aggregation.

The same cases run under the real SLURM in tests/cluster/test_energy_truth.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

NVML = Path(__file__).parents[2] / "nvml"
NODES = ("one", "two")
PATIENCE_S = 180

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def truth():
    sys.path.insert(0, str(NVML))
    import truth

    yield truth
    sys.path.remove(str(NVML))


@pytest.fixture(scope="module")
def verdicts(truth, nvml_library, plain_environ, tmp_path_factory):
    """All cases at once: what they do is mostly to sleep."""

    def run(cases, home):
        started = []
        try:
            for number, case in enumerate(cases):
                folder = home / case.run_id
                started += start(truth, case, folder, number, nvml_library, plain_environ)
            for process, role in started:
                assert process.wait(PATIENCE_S) == 0, role
        finally:
            for process, _ in started:
                process.kill()

    cases = [case for case in truth.CASES if not case.skewed]
    found = truth.verdicts_of(cases, tmp_path_factory.mktemp("truth"), run)
    print(truth.table(found.values()))
    return found


def start(truth, case, folder, number, library, environ):
    """A sampler and a launcher of ranks for each node."""
    file = truth.prepare(case, folder, NODES)
    for index, node in enumerate(NODES):
        of_slurm = {
            "SLURMD_NODENAME": node, "SLURM_NODEID": str(index), "SLURM_LOCALID": "0",
            "SLURM_JOB_ID": f"{os.getpid()}{number}", "LD_LIBRARY_PATH": str(library.parent),
            "SLURM_STEP_GPUS": ",".join(map(str, case.held)),
        }  # fmt: skip
        for role in ("sampler", "ranks"):
            log = (folder / f"{role}-{node}.log").open("wb")
            command = [sys.executable, str(NVML / "light.py"), role, str(file)]
            with log:
                process = subprocess.Popen(command, env={**environ, **of_slurm}, stderr=log)
            yield process, f"{case.name}: {role} of {node}: see {folder}"


def test_every_case_is_within_half_a_percent_of_the_truth_or_says_why_not(verdicts):
    wrong = {name: v.faults for name, v in verdicts.items() if v.faults}
    assert not wrong


def test_what_cannot_be_attributed_is_still_seen(verdicts):
    """A MIG instance's GPU was measured: only whose joules they are is not known."""
    v = verdicts["one MIG instance"]
    assert v.seen_j == pytest.approx(v.truth_j, rel=0.005)
