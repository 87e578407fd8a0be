"""Energy against a known truth, on two nodes of four GPUs under the real SLURM.

The cases are those of tests/nvml/truth.py. One job holds both nodes, and all cases run in it side
by side, each as two steps: the sampler, one to a node, and its ranks. `LLEM_ENERGY_TRUTH=many` adds
the whole product of shapes, ranks, counters and latencies, for some minutes.
"""

import os
import shutil
import subprocess
import sys
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from llem.records import read_node

HERE = Path(__file__).parent
NVML = HERE.parent / "nvml"
sys.path.insert(0, str(NVML))
import truth  # noqa: E402

NODES = ("n5", "n6")
MANY = os.environ.get("LLEM_ENERGY_TRUTH") == "many"
# What sleeps side by side without keeping samplers from their time.
AT_ONCE = 28
SKEW_S = 5

SCRIPT = """\
#!/bin/bash
export LD_LIBRARY_PATH={library} PYTHONPATH={tools} OMP_NUM_THREADS=1
case_() {{
  srun --overlap --nodes={nodes} --ntasks={nodes} --ntasks-per-node=1 --gres=gpu:{gpus} --mem=0 \
    $4 {python} {tools}/light.py sampler "$1/case.json" &
  local sampler=$!
  srun --overlap --nodes={nodes} --ntasks=$2 --ntasks-per-node=$3 --gres=gpu:{gpus} --mem=0 \
    $4 {python} {tools}/light.py ranks "$1/case.json"
  local status=$?
  kill -TERM $sampler
  wait $sampler
  echo "$1 $status"
}}
"""

# The second node is another machine whose clock is ahead: its boot id differs, and its wall clock.
OFF = """\
#!/bin/bash
[ "$SLURM_NODEID" = 1 ] || exec "$@"
export CLOCK_OFF_S={skew}
exec unshare -rm bash -c 'mount --bind {boot_id} /proc/sys/kernel/random/boot_id &&
  export LD_PRELOAD={library} && exec "$@"' off "$@"
"""


@pytest.fixture(scope="module")
def tools(login):
    """A folder of what a light element needs: itself, pynvml, a clock that is off."""
    import pynvml

    tools = login.home / "truth" / "tools"
    tools.mkdir(parents=True)
    for path in (NVML / "light.py", NVML / "fake_nvml.py", Path(pynvml.__file__)):
        shutil.copy(path, tools)
    library, boot_id = tools / "clock_off.so", tools / "boot_id"
    command = ["gcc", "-O2", "-shared", "-fPIC", "-o", library, HERE / "clock_off.c"]
    subprocess.run(command, check=True)
    boot_id.write_text(f"{uuid.uuid4()}\n")
    off = tools / "off"
    off.write_text(OFF.format(skew=SKEW_S, boot_id=boot_id, library=library))
    off.chmod(0o755)
    return tools


def submit(login, tools, nvml, home, cases, *, nodes=NODES, gpus=4):
    """A job that runs the cases at once, in folders of `home`."""
    python = Path(login.program).parent / "python"
    text = SCRIPT.format(library=nvml.parent, tools=tools, python=python, nodes=len(nodes),
                         gpus=gpus)  # fmt: skip
    for case in cases:
        folder = home / case.run_id
        truth.prepare(case, folder, nodes, tasks=True)
        per_node = case.ranks_per_node if case.tasks else 1
        off = tools / "off" if case.skewed else ""
        text += f'case_ {folder} {per_node * len(nodes)} {per_node} "{off}" &\n'
    script = home / f"{cases[0].run_id}.sh"
    script.write_text(text + "wait\n")
    subprocess.run(["chown", "--recursive", "llem:", home], check=True)
    words = ["--partition=wide", f"--nodelist={','.join(nodes)}", f"--nodes={len(nodes)}",
             f"--gres=gpu:{gpus}", f"--mem={1750 * gpus}", f"--cpus-per-task={4 * gpus}",
             f"--output={script.with_suffix('.log')}", "--time=20", "--wait"]  # fmt: skip
    command = ["runuser", "-u", "llem", "--", "sbatch", *words, script]
    return subprocess.Popen(command, cwd=home, stdout=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def verdicts(login, tools, nvml):
    def run(cases, home):
        for number in range(0, len(cases), AT_ONCE):
            some = cases[number : number + AT_ONCE]
            job = submit(login, tools, nvml, home, some)
            log = home / f"{some[0].run_id}.log"
            assert job.wait(600) == 0, log.read_text() if log.exists() else "no log"

    cases = truth.CASES + (truth.many() if MANY else ())
    found = truth.verdicts_of(cases, tools.parent, run)
    truth.write(list(found.values()), tools.parent / "truth.csv")
    print(truth.table(found.values()))
    return found


def test_every_case_is_within_half_a_percent_of_the_truth_or_says_why_not(verdicts):
    wrong = {name: v.faults for name, v in verdicts.items() if v.faults}
    assert not wrong


def test_a_clock_that_is_off_was_off(verdicts, tools):
    """Else the case of skew has shown nothing."""
    (case,) = (c for c in truth.CASES if c.skewed)
    first, second = (node_record(tools.parent / "go-0" / case.run_id, node) for node in NODES)
    offsets = [
        int(r.clock["t_wall_ns"][0] - r.clock["t_mono_ns"][0]) / 1e9 for r in (first, second)
    ]
    assert offsets[1] - offsets[0] == pytest.approx(SKEW_S, abs=0.5)
    assert first.meta["boot_id"] != second.meta["boot_id"]


def test_two_jobs_on_one_node_each_pay_for_their_own_gpus(login, tools, nvml, verdicts):
    both = {
        tools.parent / name: truth.Case(name="a job", gpus=truth.BURSTS, held=(0, 1), given=True)
        for name in ("one", "two")
    }
    jobs = [
        submit(login, tools, nvml, home, [case], nodes=NODES[:1], gpus=2)
        for home, case in both.items()
    ]
    assert [job.wait(300) for job in jobs] == [0, 0]
    held, spans = [], []
    for home, case in both.items():
        record = node_record(home / case.run_id, NODES[0])
        held.append(tuple(sorted(int(d.uuid[-12:], 16) for d in record.devices)))
        verdict = truth.judge(replace(case, held=held[-1]), home / case.run_id)
        print(truth.table([verdict]))
        assert not verdict.faults
        times = record.devices[0].samples["t_ns"]
        spans.append((int(times[0]), int(times[-1])))
    assert sorted(held) == [(0, 1), (2, 3)]
    # they ran at the same time
    assert max(a for a, _ in spans) < min(b for _, b in spans)


def node_record(folder, node):
    (path,) = folder.glob(f"runs/*/attempt-0/node-{node}.h5")
    return read_node(path)
