"""One small campaign on the test cluster, and the ways in which a cluster misbehaves towards it.

A `Cell` is a campaign of one run (two nodes, one rank each) in a folder of its own: the same plan
in every cell, so that the undisturbed cell tells the others' losses to the bit. Faults are
functions of a cell; what comes of one is awaited with `Cell.settle`. What a fault takes away from
the cluster itself is brought back by whoever called it, with `mend`.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import daemons
import farm
import numpy as np
from farm_site import farm_site

from llem.records import read_node, read_rank

HERE = Path(__file__).parent
# Of each stand-in GPU, constant.
GPU_W = 250.0
POLL_S = 0.3
# For what comes by itself, on a machine that may be busy with much else.
PATIENCE_S = 600.0

CAMPAIGN = """\
name: faults
target: 4e11 FLOP
budget: {budget}
model: {{vocabulary: 256, context: 128}}
data: {{builtin: python-sources, evaluation_tokens: 32768}}
grid: {{levels: 1, sizes: 1}}
training: {{precision: fp32, rule: small, batch_tokens: 1024, checkpoint_every: {every}}}
layout: {{nodes: 2, gpus_per_node: 1, zero_stage: 0}}
"""


class Cell:
    """One campaign of one run, from its plan to its end."""

    def __init__(self, login: Any, name: str, *, image: Path, nvml: Path, budget: str, every: int):
        self.login = login
        self.name = name
        self.folder = login.home / name
        site = farm_site(
            image, nvml, gpus_per_node=1, gpu={"name": "cpu", "power_w": 250},
            limits={"time": "30m"}, binds=os.environ.get("LLEM_TEST_BINDS", "").split(),
        )  # fmt: skip
        text = CAMPAIGN.format(budget=budget, every=every) + site
        login.write(f"{name}.yaml", text)
        login.llem("plan", f"{name}.yaml", "--out", name)
        plan = json.loads((self.folder / "plan.json").read_text())
        (self.run,) = plan["runs"]
        (self.array,) = plan["arrays"]
        self.resubmits = 0

    @property
    def script(self) -> Path:
        return self.folder / "jobs" / f"{self.array['name']}.sbatch"

    def submit(self) -> None:
        told = self.login.llem("submit", self.name, "--no-finish", "--json")
        [self.job] = json.loads(told.stdout)["new"][self.array["name"]]

    @property
    def attempts(self) -> list[Path]:
        found = (self.folder / "runs" / self.run["run_id"]).glob("attempt-*")
        return sorted(found, key=lambda path: int(path.name[8:]))

    @property
    def ends(self) -> list[dict[str, Any] | None]:
        """The end record of each attempt; None for one that was killed, or is at work."""
        return [read_json(attempt / "end.json") for attempt in self.attempts]

    @property
    def checkpoints(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        folder = self.folder / "runs" / self.run["run_id"] / "checkpoints"
        return sorted(path.parent for path in folder.glob("step-*/complete.json"))

    @property
    def step(self) -> int:
        """The last step that the newest attempt told of; 0 before."""
        told = read_json(self.attempts[-1] / "progress.json") if self.attempts else None
        return int(told["step"]) if told else 0

    @property
    def log(self) -> str:
        logs = sorted((self.folder / "jobs" / "logs").iterdir())
        return "\n".join(path.read_text(errors="replace") for path in logs)

    @property
    def element(self) -> str:
        """The job id of the one element, as its ranks know it."""
        return show_job(f"{self.job}_0")["JobId"]

    def settled(self) -> bool:
        """Whether the scheduler holds nothing of it any more."""
        asked = ["squeue", "--noheader", "--jobs", self.job, "--format", "%T"]
        done = subprocess.run(asked, capture_output=True, text=True, check=False)
        return "Invalid job id" in done.stderr or not done.stdout.strip()

    def resubmit(self) -> None:
        """The one step by hand that a fault may need."""
        told = self.login.llem("resubmit", self.name, "--no-finish", "--json")
        [self.job] = json.loads(told.stdout)["new"][self.array["name"]]
        self.resubmits += 1

    @property
    def completed(self) -> bool:
        last = self.ends[-1] if self.ends else None
        return last is not None and last["status"] == "completed"

    def settle(self, *, timeout_s: float = PATIENCE_S) -> None:
        wait_for(
            self.settled,
            what=f"{self.name}: the job's end",
            timeout_s=timeout_s,
            told=lambda: self.log,
        )

    def wait_for_step(self, step: int, *, timeout_s: float = PATIENCE_S) -> None:
        wait_for(lambda: self.step >= step, what=f"{self.name}: step {step}", timeout_s=timeout_s,
                 told=lambda: self.log)  # fmt: skip

    def steps(self, rank: int) -> Any:
        """This rank's loss at each step, of the last attempt that did the step."""
        table: dict[int, float] = {}
        for attempt in self.attempts:
            path = attempt / f"rank-{rank:05d}.h5"
            if path.exists():
                record = read_rank(path)
                table |= zip(
                    record.steps["step"].tolist(), record.steps["loss"].tolist(), strict=True
                )
        return np.array([table[step] for step in sorted(table)])

    def told(self) -> dict[str, Any]:
        """What became of it, in figures: one line of the table of faults."""
        done = 0
        for attempt in self.attempts:
            path = attempt / "rank-00000.h5"
            done += len(read_rank(path).steps) if path.exists() else 0
        begun = [read_json(attempt / "begin.json") for attempt in self.attempts]
        last = self.ends[-1]
        return {
            "cell": self.name,
            "ends": [f"{end['status']} {end['cause']}".strip() if end else "killed"
                     for end in self.ends],
            "resubmits": self.resubmits,
            "steps_recorded": done,
            "steps_done_again": done - len(self.steps(0)),
            "seconds_in_all": round(last["ended_ns"] / 1e9 - begun[0]["started_ns"] / 1e9, 1)
            if last and begun[0] else None,
            "loss": last["loss"] if last else None,
        }  # fmt: skip

    def events(self, code: str) -> list[str]:
        """The texts of all events of this name in rank 0's records."""
        found = []
        for attempt in self.attempts:
            path = attempt / "rank-00000.h5"
            if path.exists():
                rows = read_rank(path).events
                found += [row["text"].decode() for row in rows if row["code"] == code.encode()]
        return found

    def energy_j(self) -> float:
        """Joules of the run as llem aggregates them."""
        self.login.llem("aggregate", self.name)
        with open(self.folder / "results" / "observations.csv", newline="") as file:
            (row,) = csv.DictReader(file)
        return float(row["energy_j"])

    def energy_used_j(self) -> float:
        """Joules by what the stand-in GPUs draw: power times the time of every attempt and node."""
        total_ns = 0
        for attempt, end in zip(self.attempts, self.ends, strict=True):
            for path in attempt.glob("node-*.h5"):
                record = read_node(path)
                if end is not None and end["t0_ns"] is not None and record.closed:
                    total_ns += end["t1_ns"] - end["t0_ns"]
                else:
                    for device in record.devices:
                        total_ns += int(device.samples["t_ns"][-1] - device.samples["t_ns"][0])
        return GPU_W * total_ns / 1e9

    def ranks(self) -> list[int]:
        """Process ids of the ranks now at work (of their Python, not of what contains them)."""
        return [
            pid
            for pid, words in processes(f"SLURM_JOB_ID={self.element}")
            if b"python" in words[0]
            and b"llem.cluster.element" in words
            and b"--sampler" not in words
        ]


def processes(variable: str = "") -> Iterator[tuple[int, list[bytes]]]:
    """Processes with their command lines: all, or those with `NAME=value` in their environment."""
    for path in Path("/proc").iterdir():
        if not path.name.isdigit():
            continue
        try:
            words = (path / "cmdline").read_bytes().split(b"\0")
            environ = (path / "environ").read_bytes().split(b"\0") if variable else []
        except OSError:
            continue
        if not variable or variable.encode() in environ:
            yield int(path.name), words


def disturb(
    cells: Mapping[str, Cell], how: Mapping[str, Callable[[Cell], Any]], *, step: int
) -> None:
    """Each of these faults to its cell when that has come to the step.

    Side by side: some wait for what they did, and a cell that waits for another's would end first.
    """

    def one(name: str) -> None:
        cells[name].wait_for_step(step)
        how[name](cells[name])

    with ThreadPoolExecutor(len(how)) as pool:
        for done in [pool.submit(one, name) for name in how]:
            done.result()


def tell(home: Path, cells: Iterable[Cell]) -> None:
    """Append each cell's line to `faults.jsonl` in the login user's folder."""
    with open(home / "faults.jsonl", "a") as file:
        file.writelines(json.dumps(cell.told()) + "\n" for cell in cells)


def wait_for(
    ready: Callable[[], bool], *, what: str, timeout_s: float, told: Callable[[], str] = str
) -> None:
    deadline = time.monotonic() + timeout_s
    while not ready():
        assert time.monotonic() < deadline, f"{what} did not come in {timeout_s:g} s\n{told()}"
        time.sleep(POLL_S)


def show_job(job: str) -> dict[str, str]:
    """`scontrol show job` as a mapping."""
    text = scontrol("show", "job", job, "--oneliner")
    return dict(word.split("=", 1) for word in text.split() if "=" in word)


def scontrol(*words: str) -> str:
    return subprocess.run(["scontrol", *words], capture_output=True, text=True, check=True).stdout


def read_json(path: Path) -> dict[str, Any] | None:
    try:
        values: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return values


def signal_job(cell: Cell, name: str) -> None:
    """`scancel --signal=NAME JOB`: every process of every step of the job, but not its script."""
    cell.login.run("scancel", f"--signal={name}", cell.element)


def requeue(cell: Cell) -> None:
    cell.login.run("scontrol", "requeue", cell.element)


def shorten_limit(cell: Cell) -> None:
    """A time limit so near that SLURM warns the script; the ranks are stopped until it has.

    SLURM looks every 30 s, which is longer than the run: its ranks stand still as they would in a
    slow file system. The next job has its old limit again, or it would be warned in turn.
    """
    job = cell.element
    stopped = cell.ranks()
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    minutes, seconds = map(int, show_job(job)["RunTime"].split(":")[1:])
    scontrol("update", f"JobId={job}", f"TimeLimit={minutes + (seconds > 20) + 1}")
    try:
        wait_for(
            (cell.folder / "jobs" / "leave" / f"{job}-0").exists,
            what="the warning", timeout_s=PATIENCE_S, told=lambda: cell.log,
        )  # fmt: skip
    finally:
        scontrol("update", f"JobId={job}", "TimeLimit=30")
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)


def preempt(cell: Cell) -> str:
    """A job of higher priority on the nodes where the cell is at work; its id."""
    nodes = show_job(cell.element)["NodeList"]
    where = ["--partition=urgent", f"--nodelist={nodes}", "--nodes=2", "--exclusive"]
    what = ["--output=/dev/null", "--wrap=sleep 1"]
    return cell.login.run("sbatch", "--parsable", *where, *what).stdout.strip()


def kill_rank(cell: Cell) -> None:
    """SIGKILL to the last rank, as the kernel does where memory runs out."""
    os.kill(cell.ranks()[-1], signal.SIGKILL)


def requeue_and_tear(cell: Cell) -> None:
    """Requeue, and cut the newest checkpoint's weights in half before it starts again."""
    job = cell.element
    requeue(cell)
    wait_for(
        lambda: show_job(job)["JobState"] == "PENDING" and not cell.ranks(),
        what="the requeued job", timeout_s=PATIENCE_S, told=lambda: cell.log,
    )  # fmt: skip
    state = cell.checkpoints[-1] / "state.pt"
    os.truncate(state, state.stat().st_size // 2)


def kill_stepd(cell: Cell, *, rank: int) -> None:
    """SIGKILL to the slurmstepd that watches a rank, which goes on without it and without a log."""
    (pid,) = (pid for pid in cell.ranks() if environ(pid)["SLURM_PROCID"] == str(rank))
    os.kill(stepd_of(pid), signal.SIGKILL)


def kill_stepd_of_script(cell: Cell) -> None:
    """SIGKILL to the slurmstepd of the batch script, which goes on: nobody hears of its end."""
    os.kill(stepd_of(script_of(cell)), signal.SIGKILL)


def stepd_of(pid: int) -> int:
    """The slurmstepd that watches a process."""
    while not Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"slurmstepd:"):
        # proc_pid_stat(5): field 4, the parent; the name in field 2 may hold spaces
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        assert pid > 1
    return pid


def environ(pid: int) -> dict[str, str]:
    words = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    return dict(word.split("=", 1) for word in words if "=" in word)


def wait_less(cell: Cell) -> None:
    """The script gives a silent rank seconds, not a minute, once another one has ended."""
    text = cell.script.read_text()
    assert "--wait=60" in text
    cell.script.write_text(text.replace("--wait=60", "--wait=5"))


def kill_script(cell: Cell) -> None:
    """SIGKILL to the job's batch script."""
    os.kill(script_of(cell), signal.SIGKILL)


def script_of(cell: Cell) -> int:
    """The process of the job's batch script."""
    found = [
        pid
        for pid, words in processes(f"SLURM_JOB_ID={cell.element}")
        if any(word.endswith(b"/slurm_script") for word in words)
    ]
    return min(found)


def take_node_down(cell: Cell) -> None:
    """SIGKILL to the slurmd of the cell's last node, which is then set DOWN; its ranks go on."""
    node = show_hostnames(show_job(cell.element)["NodeList"])[-1]
    os.kill(daemon(f"slurmd.{node}").pid, signal.SIGKILL)
    scontrol("update", f"NodeName={node}", "State=DOWN", "Reason=test of a fault")


def show_hostnames(nodes: str) -> list[str]:
    return scontrol("show", "hostnames", nodes).split()


def restart_controller(cell: Cell) -> dict[str, Any]:
    """slurmctld is gone for a while; what `llem status` says meanwhile."""
    daemons.stop(daemon("slurmctld"))
    told = cell.login.llem("status", cell.name, "--json")
    daemons.ensure(daemon("slurmctld"))
    values: dict[str, Any] = json.loads(told.stdout)
    return values


def stop_accounting(cell: Cell) -> None:
    daemons.stop(daemon("slurmdbd"))


def mend() -> None:
    """Bring back whatever a fault took from the cluster."""
    here = farm.this_farm()
    for one in daemons.farm_daemons(here):
        daemons.ensure(one)
    farm.resume_nodes(here)


def daemon(name: str) -> daemons.Daemon:
    return next(one for one in daemons.farm_daemons(farm.this_farm()) if one.name == name)


def mount_small(folder: Path, *, mebibytes: int) -> None:
    """An empty disk of that size in the place of a folder."""
    folder.mkdir(exist_ok=True)
    owner = folder.parent.stat()
    options = f"size={mebibytes}m,uid={owner.st_uid},gid={owner.st_gid},mode=755"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)


def enlarge(folder: Path, *, mebibytes: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={mebibytes}m", folder], check=True)


def fill_disk(cell: Cell) -> None:
    """Something else takes all that is left of the disk under the cell's runs."""
    with (
        open(cell.folder / "runs" / "ballast", "wb", buffering=0) as file,
        contextlib.suppress(OSError),
    ):
        while True:
            file.write(bytes(4096))


def set_clock_off(cell: Cell, *, seconds: int) -> None:
    """The wall clock of the job's last node differs, and nothing says that it is the same machine.

    All test nodes share a host. So that node's processes are started with a library which moves
    their wall clock alone (of ranks and sampler), and with the boot id of another machine.
    """
    source, library = HERE / "clock_off.c", cell.folder / "jobs" / "clock_off.so"
    subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-o", library, source], check=True)
    boot_id = cell.folder / "jobs" / "boot_id"
    boot_id.write_text(f"{uuid.uuid4()}\n")
    wrapper = cell.folder / "jobs" / "off"
    wrapper.write_text(
        f"""\
#!/bin/bash
if [ "$SLURM_NODEID" = 1 ]; then
  export APPTAINER_BIND={boot_id}:/proc/sys/kernel/random/boot_id
  export APPTAINERENV_LD_PRELOAD={library} APPTAINERENV_CLOCK_OFF_S={seconds}
fi
exec "$@"
"""
    )
    wrapper.chmod(0o755)
    text = cell.script.read_text()
    assert text.count("LLEM=(") == 1
    cell.script.write_text(text.replace("LLEM=(", "LLEM=(jobs/off "))
