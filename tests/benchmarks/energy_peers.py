"""llem's joules beside those of zeus, codecarbon and perun, against a truth that is known.

    python3 -m venv /tmp/peers && /tmp/peers/bin/pip install zeus codecarbon 'perun[nvidia]'
    python tests/benchmarks/energy_peers.py --peers /tmp/peers

Every tool, unmodified, measures the same block, a sleep, on the stand-in NVML (tests/nvml) in the
way that its documentation shows first. The truth is the exact integral over the block, between two
readings of the wall clock in it. Each tool runs in a process of its own, the tools of one case at
the same time. What counts is the GPUs' part of what the tool says, summed over the processes that
said it, for that is what their user would do:

    llem        `with llem.energy.measure(FILE)`; the record's joules in the block's window, as
                those of a run are what its devices used in the window that its ranks stamp
    zeus        ZeusMonitor().begin_window / end_window, total_energy
    codecarbon  EmissionsTracker start / stop, gpu_energy
    perun       `perun monitor SCRIPT`, gpu_energy; scaled to the block by the runtime that it tells

Exit status 1 where llem is further than half a percent from the truth, or gives joules where none
can be known.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "nvml"))
from build import build
from fake_nvml import FakeGpus, instance_uuid, parent_uuid

TOLERANCE = 0.005
NODE = "node"

BLOCK = """
import json, os, sys, time
def block():
    t0 = time.time()
    time.sleep(float(os.environ["WINDOW_S"]))
    return t0, time.time()
def tell(t0, t1, joules, said=""):
    with open(sys.argv[1] + ".told", "w") as file:
        json.dump([t0, t1, joules, said], file)
"""
LLEM = """
import llem.energy
with llem.energy.measure(sys.argv[1] + ".h5"):
    t0, t1 = block()
tell(t0, t1, None)
"""
ZEUS = """
from zeus.monitor import ZeusMonitor
monitor = ZeusMonitor()
monitor.begin_window("block", sync_execution=False)
t0, t1 = block()
measured = monitor.end_window("block", sync_execution=False)
tell(t0, t1, measured.total_energy)
"""
CODECARBON = """
from codecarbon import EmissionsTracker
tracker = EmissionsTracker(save_to_file=False, log_level="error", measure_power_secs=1,
                           allow_multiple_runs=True)
tracker.start()
t0, t1 = block()
tracker.stop()
tell(t0, t1, tracker.final_emissions_data.gpu_energy * 3.6e6)
"""
PERUN = """
tell(*block(), None)
"""
TOOLS = {"llem": LLEM, "zeus": ZEUS, "codecarbon": CODECARBON, "perun": PERUN}


@dataclass(frozen=True, kw_only=True)
class Case:
    """`held` are the GPUs whose energy is asked for; `known` false: nobody can tell it."""

    name: str
    gpus: FakeGpus
    held: tuple[int, ...]
    more: Mapping[str, object] = field(default_factory=dict)
    cuda: str = ""
    processes: int = 1
    known: bool = True


FOUR = {"gpus": 4, "base_w": 100.0, "step_w": 20.0}
SQUARE = FakeGpus(amp_w=300.0, period_s=0.5, shift_s=0.125, **FOUR)
BURSTS = FakeGpus(amp_w=400.0, burst_s=0.05, duty=0.4, shift_s=3.17, **FOUR)
ALL = (0, 1, 2, 3)
CASES = (
    Case(name="constant", gpus=FakeGpus(**FOUR), held=ALL),
    Case(name="square 0.2 s", gpus=FakeGpus(amp_w=300.0, period_s=0.2, shift_s=0.05, **FOUR),
         held=ALL),
    Case(name="square 0.5 s", gpus=SQUARE, held=ALL),
    Case(name="bursts", gpus=BURSTS, held=ALL),
    Case(name="bursts, counter every 100 ms", gpus=BURSTS, held=ALL,
         more={"energy_update_ms": 100}),
    Case(name="two of four GPUs, by UUID", gpus=SQUARE, held=(0, 2),
         cuda=f"{parent_uuid(NODE, 2)},{parent_uuid(NODE, 0)}"),
    Case(name="two of four GPUs, by index", gpus=SQUARE, held=(1, 3), cuda="1,3"),
    Case(name="one MIG instance of seven", gpus=SQUARE, held=(1,), more={"mig": 7},
         cuda=instance_uuid(NODE, 1, 2), known=False),
    Case(name="no counter", gpus=SQUARE, held=ALL, more={"no_energy": 1}),
    Case(name="no counter and no power", gpus=SQUARE, held=ALL, known=False,
         more={"no_energy": 1, "no_power": 1}),
    Case(name="two processes on one GPU", gpus=SQUARE, held=(0,), cuda="0", processes=2),
    Case(name="modules (GH200)", gpus=FakeGpus(amp_w=300.0, period_s=0.5, module_w=150.0, **FOUR),
         held=ALL, more={"name": "NVIDIA GH200 480GB"}),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a tool said of a case: relative error; NaN with why, where it gave no number."""

    error: float
    joules: float
    said: str


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", type=Path, required=True, help="the peers' environment")
    parser.add_argument("--window", type=float, default=10.03, help="seconds of a block")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    options = parser.parse_args()
    cases = [case for case in CASES if options.only in case.name]
    with tempfile.TemporaryDirectory() as place:
        library = build(Path(place) / "nvml")
        rows: list[tuple[Case, dict[str, Told]]] = []
        for number, case in enumerate(cases):
            folder = Path(place) / str(number)
            rows.append((case, measure(case, folder, library, options)))
            print(line(*rows[-1]), flush=True)
    print()
    print(markdown(rows, options))
    wrong = [case.name for case, told in rows if not is_right(case, told["llem"])]
    if wrong:
        print(f"llem is wrong: {', '.join(wrong)}")
    return 1 if wrong else 0


def measure(
    case: Case, folder: Path, library: Path, options: argparse.Namespace
) -> dict[str, Told]:
    folder.mkdir()
    environ = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "CUDA_"))},
        **case.gpus.environ(library, node=NODE, **case.more),
        # codecarbon looks for nvidia-smi
        "PATH": f"{library.parent}:{os.environ['PATH']}",
        "WINDOW_S": str(options.window),
        "OMP_NUM_THREADS": "1",
    }
    if case.cuda:
        environ["CUDA_VISIBLE_DEVICES"] = case.cuda
    with ThreadPoolExecutor(len(TOOLS)) as pool:
        asked = {
            tool: pool.submit(ask, tool, case, folder / tool, environ, options.peers)
            for tool in TOOLS
        }
        return {tool: answer.result() for tool, answer in asked.items()}


def ask(tool: str, case: Case, folder: Path, environ: Mapping[str, str], peers: Path) -> Told:
    """Run the tool in each of the case's processes, and add up what they say."""
    folder.mkdir()
    script = folder / "work.py"
    script.write_text(BLOCK + TOOLS[tool])
    names = [folder / f"node-{i}" for i in range(case.processes)]
    python = sys.executable if tool == "llem" else str(peers / "bin" / "python")
    running = []
    for name in names:
        command = [python, str(script), str(name)]
        if tool == "perun":
            out = ["--data_out", str(name), "--format", "json", "--sampling_period", "0.1"]
            command = [str(peers / "bin" / "perun"), "monitor", *out, str(script), str(name)]
        running.append(
            subprocess.Popen(command, cwd=folder, env=environ, stdout=subprocess.DEVNULL,
                             stderr=subprocess.PIPE, text=True)
        )  # fmt: skip
    errors = [process.communicate()[1] for process in running]
    for process, error in zip(running, errors, strict=True):
        if process.returncode:
            why = (error.strip().splitlines() or ["no word"])[-1]
            return Told(error=math.nan, joules=math.nan, said=f"fails: {why}")
    told = [json.loads(Path(f"{name}.told").read_text()) for name in names]
    joules, said = READERS[tool](names, told)
    # processes that measure one GPU at the same time have used it once
    t0_s, t1_s = min(t[0] for t in told), max(t[1] for t in told)
    truth = sum(case.gpus.energy_j(gpu, t0_s, t1_s) for gpu in case.held)
    return Told(error=joules / truth - 1, joules=joules, said=said)


def read_llem(names: list[Path], told: list[Any]) -> tuple[float, str]:
    from llem.records import read_node
    from llem.results.energy.claims import claim_devices, countable, divide_shared, read_series
    from llem.results.ranks.clock import HostClock

    claims = []
    for name, (t0_s, t1_s, *_) in zip(names, told, strict=True):
        record = read_node(Path(f"{name}.h5"))
        clock = HostClock.of("", record.clock)
        window = clock.mono_of(round(t0_s * 1e9)), clock.mono_of(round(t1_s * 1e9))
        claims += countable(claim_devices(record, owner=name.name, window=window))
    divided = divide_shared(claims, read_series)
    said = min((claim.reason for claim in divided if claim.reason), default="")
    return sum(claim.energy_j for claim in divided), said


def read_sum(_names: list[Path], told: list[Any]) -> tuple[float, str]:
    return sum(joules for _, _, joules, _ in told), ""


def read_perun(names: list[Path], told: list[Any]) -> tuple[float, str]:
    total = 0.0
    for name, (t0_s, t1_s, *_) in zip(names, told, strict=True):
        (path,) = name.glob("*.json")
        metrics = json.loads(path.read_text())["metrics"]
        if "gpu_energy" not in metrics:
            return math.nan, "no gpu_energy"
        total += metrics["gpu_energy"]["sum"] * (t1_s - t0_s) / metrics["runtime"]["sum"]
    return total, ""


# The files' names, and of each process (t0, t1, joules, words) -> joules and words.
Reader = Callable[[list[Path], list[Any]], tuple[float, str]]
READERS: Mapping[str, Reader] = {
    "llem": read_llem, "zeus": read_sum, "codecarbon": read_sum, "perun": read_perun,
}  # fmt: skip


def is_right(case: Case, told: Told) -> bool:
    return abs(told.error) <= TOLERANCE if case.known else math.isnan(told.joules)


def cell(case: Case, told: Told) -> str:
    if math.isnan(told.joules):
        return "NaN" if not told.said.startswith("fails") else "fails"
    if not case.known:
        return f"{told.joules:.0f} J"
    return f"{told.error:+.2%}" if told.joules else "0 J"


def line(case: Case, told: Mapping[str, Told]) -> str:
    words = "  ".join(f"{tool} {cell(case, t)}" for tool, t in told.items())
    said = "; ".join(f"{tool}: {t.said[:140]}" for tool, t in told.items() if t.said)
    return f"{case.name:32} {words}\n    {said}" if said else f"{case.name:32} {words}"


def markdown(rows: list[tuple[Case, dict[str, Told]]], options: argparse.Namespace) -> str:
    """The table of docs/energy_truth.md."""
    lines = [
        f"{date.today()}, blocks of {options.window:g} s; {versions(options.peers)}",
        "",
        "| case | " + " | ".join(TOOLS) + " |",
        "|---|" + "---|" * len(TOOLS),
    ]
    for case, told in rows:
        cells = " | ".join(cell(case, told[tool]) for tool in TOOLS)
        lines.append(f"| {case.name} | {cells} |")
    return "\n".join(lines)


def versions(peers: Path) -> str:
    ask = (
        "from importlib.metadata import version as v; print(', '.join(f'{n} {v(n)}' for n in (%s)))"
    )
    names = "'zeus', 'codecarbon', 'perun', 'nvidia-ml-py'"
    done = subprocess.run(
        [peers / "bin" / "python", "-c", ask % names], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
