"""`llem measure` under srun on several nodes, against the stand-in GPUs whose energy is known."""

import importlib.util
import json
import shutil
import time

import pytest

from llem.records import read_node
from llem.results import device_energies

GPUS, BASE_W, STEP_W = 2, 200.0, 50.0
# What each GPU draws for as long as it is measured.
TRUE_W = sum(BASE_W + i * STEP_W for i in range(GPUS))


@pytest.fixture
def srun(login, nvml):
    """Runs `srun` as the user with stand-in GPUs on every node."""
    # a login node has no meters: NVML's own module is lent to it, as `llem[energy]` installs it
    spec = importlib.util.find_spec("pynvml")
    if spec is None or spec.origin is None:
        pytest.skip("nvidia-ml-py is not installed here")
    modules = nvml.parent / "python"
    modules.mkdir(mode=0o755, exist_ok=True)
    shutil.copyfile(spec.origin, modules / "pynvml.py")

    def call(*words, **options):
        gpus = {
            "PYTHONPATH": str(modules),
            "LD_LIBRARY_PATH": str(nvml.parent),
            "FAKE_NVML_GPUS": str(GPUS),
            "FAKE_NVML_BASE_W": str(BASE_W),
            "FAKE_NVML_STEP_W": str(STEP_W),
        }
        return login.run("srun", "--time=2", *words, env=gpus, **options)

    return call


def test_one_process_of_each_node_samples_for_all_its_ranks(srun, login):
    done = srun("-N2", "--ntasks-per-node=2", login.program, "measure", "--out", "run.h5", "--",
                "sh", "-c", "sleep $((3 + SLURM_PROCID))")  # fmt: skip
    records = sorted(login.home.glob("run.node-*.h5"))
    assert len(records) == 2 and not (login.home / "run.h5").exists()
    for path in records:
        record = read_node(path)
        assert record.closed and len(record.devices) == GPUS
        codes = [e["code"] for e in record.events]
        assert codes.count(b"begin") == codes.count(b"end") == 2
        found = device_energies(path)
        assert found.energy_j == pytest.approx(TRUE_W * found.duration_s, rel=0.005)
        # from the first rank's begin to the last one's end, whenever SLURM had them start
        told_ns = [e["t_ns"] for e in record.events if e["code"] in (b"begin", b"end")]
        assert found.duration_s == pytest.approx((max(told_ns) - min(told_ns)) / 1e9, abs=0.1)
    # ranks 1 and 3 sleep for 4 and 6 s
    times = sorted(device_energies(path).duration_s for path in records)
    assert times[0] > 4.0 and times[1] > 6.0
    assert done.stderr.count(" J in ") + done.stderr.count("kJ in ") == 2
    told = json.loads(login.llem("energy", "run.h5", "--json").stdout)
    assert told["energy_j"] == pytest.approx(sum(device_energies(p).energy_j for p in records))
    assert len(told["devices"]) == 2 * GPUS


def test_on_one_node_the_record_is_the_path_asked_for_and_the_status_the_commands(srun, login):
    done = srun("-N1", "-n2", login.program, "measure", "--out", "one.h5", "--", "sh", "-c",
                "sleep 1; exit $((4 + SLURM_PROCID))", check=False)  # fmt: skip
    assert done.returncode == 5, done.stderr
    assert device_energies(login.home / "one.h5").energy_j > 0
    assert list(login.home.glob("one*.h5")) == [login.home / "one.h5"]


COUNTS = """
import signal, sys, time
from pathlib import Path
out = Path(sys.argv[1])
def heard(number, frame):
    with out.open("a") as file:
        file.write(f"{signal.Signals(number).name}\\n")
signal.signal(signal.SIGUSR1, heard)
signal.signal(signal.SIGTERM, lambda *_: (heard(signal.SIGTERM, None), sys.exit(0)))
out.write_text("")
end = time.monotonic() + 60
while time.monotonic() < end:
    time.sleep(0.05)
"""


def test_a_signal_to_the_step_reaches_the_command_once_and_the_record_is_closed(login, nvml):
    program = login.write("counts.py", COUNTS)
    script = login.write(
        "counts.sbatch",
        "#!/bin/sh\n#SBATCH --time=2 --output=counts.log\n"
        f"srun {login.program} measure --out signals.h5 -- python3 {program} heard.txt\n",
    )
    job = login.run("sbatch", "--parsable", script).stdout.strip()
    heard = login.home / "heard.txt"
    _wait(heard.exists)
    login.run("scancel", "--signal=USR1", f"{job}.0")
    _wait(lambda: "SIGUSR1" in heard.read_text())
    login.run("scancel", "--signal=TERM", f"{job}.0")
    _wait(lambda: login.run("squeue", "-h", "-j", job, check=False).stdout == "")
    assert heard.read_text().split() == ["SIGUSR1", "SIGTERM"]
    record = read_node(login.home / "signals.h5")
    assert record.closed and [e["code"] for e in record.events][-1] == b"end"


def _wait(condition, seconds=300):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)
