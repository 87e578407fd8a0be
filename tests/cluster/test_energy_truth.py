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
def home(login):
    """The user's folder with what a light element needs: itself, pynvml, a clock that is off."""
    import pynvml

    folder = login.home / "truth"
    tools = folder / "tools"
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
    return folder


def submit(login, home, nvml, name, cases, *, nodes=NODES, gpus=4):
    """A job that runs the cases at once."""
    python = Path(login.program).parent / "python"
    text = SCRIPT.format(library=nvml.parent, tools=home / "tools", python=python,
                         nodes=len(nodes), gpus=gpus)  # fmt: skip
    for case in cases:
        folder = home / case.run_id
        truth.prepare(case, folder, nodes, tasks=True)
        per_node = case.ranks_per_node if case.tasks else 1
        off = home / "tools" / "off" if case.skewed else ""
        text += f'case_ {folder} {per_node * len(nodes)} {per_node} "{off}" &\n'
    login.write(f"truth/{name}.sh", text + "wait\n")
    subprocess.run(["chown", "--recursive", "llem:", home], check=True)
    words = ["--partition=wide", f"--nodelist={','.join(nodes)}", f"--nodes={len(nodes)}",
             f"--gres=gpu:{gpus}", f"--mem={1750 * gpus}", f"--cpus-per-task={4 * gpus}",
             f"--output={home}/{name}.log", "--time=20", "--wait"]  # fmt: skip
    command = ["runuser", "-u", "llem", "--", "sbatch", *words, home / f"{name}.sh"]
    return subprocess.Popen(command, cwd=home, stdout=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def verdicts(login, home, nvml, tmp_path_factory):
    cases = truth.CASES + (truth.many() if MANY else ())
    for number in range(0, len(cases), AT_ONCE):
        job = submit(login, home, nvml, f"job-{number}", cases[number : number + AT_ONCE])
        assert job.wait(600) == 0, (home / f"job-{number}.log").read_text()
    found = {case.name: truth.judge(case, home / case.run_id) for case in cases}
    truth.write(list(found.values()), home / "truth.csv")
    print(truth.table(found.values()))
    return found


def test_every_case_is_within_half_a_percent_of_the_truth_or_says_why_not(verdicts):
    wrong = {name: v.faults for name, v in verdicts.items() if v.faults}
    assert not wrong


def test_a_clock_that_is_off_was_off(verdicts, home):
    """Else the case of skew has shown nothing."""
    (case,) = (c for c in truth.CASES if c.skewed)
    first, second = (
        read_node(home / case.run_id / "runs" / case.run_id / "attempt-0" / f"node-{n}.h5")
        for n in NODES
    )
    offsets = [
        int(r.clock["t_wall_ns"][0] - r.clock["t_mono_ns"][0]) / 1e9 for r in (first, second)
    ]
    assert offsets[1] - offsets[0] == pytest.approx(SKEW_S, abs=0.5)
    assert first.meta["boot_id"] != second.meta["boot_id"]


def test_two_jobs_on_one_node_each_pay_for_their_own_gpus(login, home, nvml, verdicts):
    both = [
        truth.Case(name=f"job {x}", gpus=truth.BURSTS, held=(0, 1), given=True)
        for x in ("one", "two")
    ]
    jobs = [submit(login, home, nvml, c.run_id, [c], nodes=NODES[:1], gpus=2) for c in both]
    assert [job.wait(300) for job in jobs] == [0, 0]
    held = []
    for case in both:
        path = home / case.run_id / "runs" / case.run_id / "attempt-0" / "node-n5.h5"
        held.append(tuple(sorted(int(d.uuid[-12:], 16) for d in read_node(path).devices)))
    assert sorted(held) == [(0, 1), (2, 3)]
    spans = []
    for case, gpus in zip(both, held, strict=True):
        verdict = truth.judge(replace(case, held=gpus), home / case.run_id)
        print(truth.table([verdict]))
        assert not verdict.faults
        steps = read_node(home / case.run_id / "runs" / case.run_id / "attempt-0" / "node-n5.h5")
        t = steps.devices[0].samples["t_ns"]
        spans.append((int(t[0]), int(t[-1])))
    # they ran at the same time
    assert max(a for a, _ in spans) < min(b for _, b in spans)
