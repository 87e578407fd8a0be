"""The truth matrix: cases of power, counters, device lists and ranks, each with what must come out.

A case is prepared for a pair of nodes (`prepare`: a campaign folder of one run, and the file that
`light.py` reads), run by whoever can (processes, or SLURM's steps), and judged (`judge`) by llem's
own aggregation against the exact integral of what the stand-in drew.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from fake_nvml import FakeGpus, instance_uuid, parent_uuid

from llem.records import read_node
from llem.results import aggregate
from llem.results.ranks.clock import HostClock

TOLERANCE = 0.005
STEP_S = 0.5
STALL_S = 0.1
GOES = 3
# The counter moves every 20 ms: at 400 W a window of 12 s is sure to 0.13 %, less what lies between
# two samples. One of 100 ms needs the longer one.
WINDOW_S = 12.0
LONG_WINDOW_S = 40.0

Environ = dict[str, str | None]
OF_SLURM = ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS", "SLURM_GPUS_ON_NODE")
NO_SLURM: Environ = dict.fromkeys(OF_SLURM)


@dataclass(frozen=True, kw_only=True)
class Case:
    """What a node's GPUs draw, how the job names them, who uses them, and what must come out.

    `held` are the GPUs of each node that the job holds; `given`: which these are is SLURM's to say.
    `quality` none: the energy must be NaN and the reason must hold `says`; each of the reasons may
    hold `may_say`. `skewed`: the second node is another machine, 5 s ahead.
    """

    name: str
    gpus: FakeGpus
    more: dict[str, object] = field(default_factory=dict)
    environ: Callable[[str], Environ] = lambda _node: {}
    held: Sequence[int] = (0, 1, 2, 3)
    used: Sequence[int] = ()
    ranks_per_gpu: int = 1
    tasks: bool = False
    given: bool = False
    window_s: float = WINDOW_S
    fault: str = ""
    quality: str = "counter"
    says: str = ""
    may_say: str = ""
    skewed: bool = False

    @property
    def run_id(self) -> str:
        return "".join(c if c.isalnum() else "-" for c in self.name)

    @property
    def ranks_per_node(self) -> int:
        return len(self.used or self.held) * self.ranks_per_gpu


def _four(**power: object) -> FakeGpus:
    """Four GPUs of 100 W and more, no two alike."""
    return FakeGpus(gpus=4, base_w=100.0, step_w=20.0, **power)  # type: ignore[arg-type]


CONSTANT = _four()
SQUARES = {p: _four(amp_w=300.0, period_s=p, shift_s=p / 4) for p in (0.1, 0.3, 0.5, 1.0, 2.0)}
BURSTS = _four(amp_w=400.0, burst_s=0.05, duty=0.4, shift_s=3.17)


def _indices(_node: str) -> Environ:
    return {**NO_SLURM, "CUDA_VISIBLE_DEVICES": "3,1"}


def _uuids(node: str) -> Environ:
    names = ",".join(parent_uuid(node, gpu) for gpu in (2, 0))
    return {**NO_SLURM, "CUDA_VISIBLE_DEVICES": names}


def _uuids_in_another_order(node: str) -> Environ:
    names = ",".join(parent_uuid(node, gpu) for gpu in (3, 2))
    return {"SLURM_STEP_GPUS": "0,1", "CUDA_VISIBLE_DEVICES": names}


def _all_instances(node: str) -> Environ:
    names = [instance_uuid(node, gpu, part) for gpu in (0, 1) for part in range(7)]
    return {"CUDA_VISIBLE_DEVICES": ",".join(names)}


def _one_instance(node: str) -> Environ:
    return {"CUDA_VISIBLE_DEVICES": instance_uuid(node, 1, 2)}


def _cgroup(_node: str) -> Environ:
    return {"SLURM_STEP_GPUS": "1,3", "CUDA_VISIBLE_DEVICES": "0,1"}


# Ten samples a second of a tenth of a second may see one height only: then the counter is right and
# the power beside it is not, which is said.
DISAGREES = {f"square {p:g} s": "and power (" for p in SQUARES if p < 0.2}

CASES: tuple[Case, ...] = (
    Case(name="constant", gpus=CONSTANT, tasks=True),
    *(Case(name=name, gpus=SQUARES[p], may_say=DISAGREES.get(name, ""))
      for p in SQUARES for name in [f"square {p:g} s"]),
    Case(name="bursts", gpus=BURSTS),
    Case(name="constant, two ranks on a GPU", gpus=CONSTANT, ranks_per_gpu=2, tasks=True),
    Case(name="bursts, two ranks on a GPU", gpus=BURSTS, ranks_per_gpu=2),
    Case(name="an idle GPU", gpus=BURSTS, used=(0, 1, 2), says="a GPU that no rank uses"),
    Case(name="listed by index", gpus=SQUARES[0.3], environ=_indices, held=(1, 3)),
    Case(name="listed by UUID", gpus=SQUARES[0.3], environ=_uuids, held=(0, 2)),
    Case(name="UUIDs against SLURM's order", gpus=BURSTS, environ=_uuids_in_another_order,
         held=(2, 3)),
    Case(name="renumbered by a cgroup", gpus=BURSTS, more={"visible": "1,3"}, environ=_cgroup,
         held=(1, 3)),
    Case(name="all MIG instances", gpus=BURSTS, more={"mig": 7}, environ=_all_instances,
         held=(0, 1)),
    Case(name="one MIG instance", gpus=BURSTS, more={"mig": 7}, environ=_one_instance, held=(1,),
         quality="none", says="MIG: the job holds 14 % of it, the whole was measured"),
    Case(name="counter every 100 ms, square", gpus=SQUARES[0.5], more={"energy_update_ms": 100},
         window_s=LONG_WINDOW_S),
    Case(name="counter every 100 ms, bursts", gpus=BURSTS, more={"energy_update_ms": 100},
         window_s=LONG_WINDOW_S),
    Case(name="500 us a call", gpus=BURSTS, more={"latency_us": 500}),
    Case(name="a counter that freezes", gpus=CONSTANT, fault="freeze", quality="integral",
         more={"faulty": 2}, says="counter stood still for"),
    Case(name="a counter that freezes, and no power", gpus=CONSTANT, fault="freeze",
         more={"no_power": 1, "faulty": 2}, quality="none", says="no power was read"),
    Case(name="a counter that starts again", gpus=BURSTS, fault="reset", more={"faulty": 1},
         says="counter reset 1 times, bridged by power"),
    Case(name="no counter, constant", gpus=CONSTANT, more={"no_energy": 1}, quality="integral",
         says="no energy counter"),
    Case(name="no counter, square 0.1 s", gpus=SQUARES[0.1], more={"no_energy": 1},
         quality="integral", says="average power is integrated instead"),
    Case(name="no counter and no power", gpus=CONSTANT, more={"no_energy": 1, "no_power": 1},
         quality="none", says="no energy counter"),
    Case(name="modules", gpus=_four(amp_w=300.0, period_s=0.5, module_w=150.0),
         more={"name": "NVIDIA GH200 480GB"}),
    Case(name="16 GPUs a node", gpus=FakeGpus(gpus=16, step_w=5.0, amp_w=100.0, period_s=0.7),
         environ=lambda _node: {**NO_SLURM, "CUDA_VISIBLE_DEVICES": None}, held=range(16),
         used=(0,), says="a GPU that no rank uses"),
    Case(name="5 s of clock skew", gpus=BURSTS, skewed=True),
)  # fmt: skip


def many() -> tuple[Case, ...]:
    """Every shape of power with 1 and 2 ranks on a GPU, both counters, with and without latency."""
    shapes = {"constant": CONSTANT, **{f"square {p:g} s": s for p, s in SQUARES.items()}}
    return tuple(
        Case(
            name=f"{name}, {ranks} a GPU, {period} ms, {latency} us",
            gpus=gpus,
            ranks_per_gpu=ranks,
            more={"energy_update_ms": period, "latency_us": latency},
            window_s=LONG_WINDOW_S if period > 20 else WINDOW_S,
            may_say=DISAGREES.get(name, ""),
        )
        for name, gpus in (shapes | {"bursts": BURSTS}).items()
        for ranks in (1, 2)
        for period in (20, 100)
        for latency in (0, 500)
    )


def prepare(case: Case, folder: Path, nodes: Sequence[str], *, tasks: bool = False) -> Path:
    """A campaign folder of one run, and in it the file for `light.py`, which is returned.

    With `tasks` whoever runs it starts a task for each rank, where the case wants that.
    """
    folder.mkdir(parents=True)
    steps = round(case.window_s / STEP_S)
    run = {
        "run_id": case.run_id, "params": 1000, "params_nonembedding": 1000, "seed": 1, "level": 0,
        "tokens": steps * 1000 * len(nodes) * case.ranks_per_node, "steps": steps, "flops": 1e9,
        "layout": {"nodes": len(nodes), "gpus_per_node": case.ranks_per_node},
        "workload": "training",
    }  # fmt: skip
    (folder / "plan.json").write_text(json.dumps({"runs": [run], "site": {}}))
    settings = case.gpus.settings(faults=folder, **case.more)
    values = {
        "folder": str(folder), "run_id": case.run_id, "hosts": list(nodes),
        "tasks": tasks and case.tasks, "ranks_per_node": case.ranks_per_node,
        "window_s": case.window_s, "step_s": STEP_S, "fault": case.fault,
        "used": [] if case.given else list(case.used or case.held),
        "environ": {node: {**settings, **case.environ(node)} for node in nodes},
    }  # fmt: skip
    path = folder / "case.json"
    path.write_text(json.dumps(values))
    return path


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What llem said of a case, and what was true. `error` is relative; NaN where llem says NaN."""

    case: str
    truth_j: float
    energy_j: float
    seen_j: float
    quality: str
    reason: str
    duration_s: float
    devices: int
    stalled_s: float
    faults: tuple[str, ...]

    @property
    def error(self) -> float:
        return self.energy_j / self.truth_j - 1 if self.truth_j else math.nan


def verdicts_of(
    cases: Sequence[Case], home: Path, run: Callable[[Sequence[Case], Path], None]
) -> dict[str, Verdict]:
    """Have the cases run into folders of `home`, side by side, and judge them.

    A machine with other work may stop a sampler for so long that its records hold less than a case
    asks for. Those that went wrong so, by their own samples' times, are run again, twice at most;
    one that is wrong without such an excuse stays wrong.
    """
    found: dict[str, Verdict] = {}
    left = list(cases)
    for go in range(GOES):
        folder = home / f"go-{go}"
        run(left, folder)
        found |= {case.name: judge(case, folder / case.run_id) for case in left}
        left = [c for c in left if found[c.name].faults and found[c.name].stalled_s > STALL_S]
        if not left:
            break
    return found


def judge(case: Case, folder: Path) -> Verdict:
    """Aggregate the case's folder and hold the row against the truth."""
    [row] = aggregate(folder).observations
    attempt = folder / "runs" / case.run_id / "attempt-0"
    end = json.loads((attempt / "end.json").read_text())
    truth_j = stalled_s = 0.0
    for path in sorted(attempt.glob("node-*.h5")):
        record = read_node(path)
        for device in record.devices:
            gaps_s = np.diff(device.samples["t_ns"]) / 1e9 - record.meta["interval_s"]
            edges_s = device.samples["read_ns"][[0, -1]] / 1e9
            stalled_s = max(stalled_s, float(gaps_s.max()), float(edges_s.max()))
        # The stand-in goes by the wall clock that its sampler had.
        clock = HostClock.of("", record.clock)
        t0_s, t1_s = (clock.wall_of(end[key]) / 1e9 for key in ("t0_ns", "t1_ns"))
        truth_j += sum(case.gpus.energy_j(gpu, t0_s, t1_s) for gpu in case.held)
    faults = []
    if case.quality == "none":
        if not math.isnan(row.energy_j):
            faults.append(f"{row.energy_j:.1f} J where none can be known")
    elif not abs(row.energy_j / truth_j - 1) <= TOLERANCE:
        faults.append(f"off by {row.energy_j / truth_j - 1:+.3%}")
    if row.energy_quality != case.quality:
        faults.append(f"quality {row.energy_quality}, not {case.quality}")
    if case.says not in row.energy_reason:
        faults.append(f"does not say {case.says!r}")
    told = [part for part in row.energy_reason.split("; ") if part]
    if not case.says and not all(case.may_say and case.may_say in part for part in told):
        faults.append("says something where nothing is to be said")
    expected = len(end["hosts"]) * len(case.held)
    if row.devices != expected:
        faults.append(f"{row.devices} devices, not {expected}")
    if row.status != "completed" or row.reason:
        faults.append(f"{row.status} {row.reason}")
    return Verdict(
        case=case.name, truth_j=truth_j, energy_j=row.energy_j, seen_j=row.energy_seen_j,
        quality=row.energy_quality, reason=row.energy_reason, duration_s=row.duration_s,
        devices=row.devices, stalled_s=stalled_s, faults=tuple(faults),
    )  # fmt: skip


def table(verdicts: Iterable[Verdict]) -> str:
    """The verdicts as lines to read."""
    lines = [f"{'case':38} {'truth J':>9} {'llem J':>9} {'error':>8}  quality   says"]
    for v in verdicts:
        error = "NaN" if math.isnan(v.error) else f"{v.error:+.3%}"
        lines.append(
            f"{v.case:38} {v.truth_j:9.1f} {v.energy_j:9.1f} {error:>8}  {v.quality:8}  "
            f"{v.reason[:90]}{'  <-- ' + '; '.join(v.faults) if v.faults else ''}"
        )
    return "\n".join(lines)


def write(verdicts: Sequence[Verdict], path: Path) -> None:
    """The verdicts as CSV."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(asdict(verdicts[0])))
        writer.writeheader()
        writer.writerows(asdict(v) for v in verdicts)
