"""A light element: what a job's sampler and ranks do around a training, without the training.

    python light.py sampler CASE.json      the node's sampler, with the case's environment
    python light.py ranks CASE.json        the ranks: records, window, end record; they sleep

It speaks to the real sampler through the real link, and writes what `llem.cluster.element` and the
training loop write, in their order: every node's record is begun, a barrier, the window, a barrier,
the records are ended. SLURM's variables say who a process is.

A case: {folder, run_id, hosts, ranks_per_node, tasks, window_s, step_s, fault, environ: {node:
{name: value or null}}, used: [GPU indices; none: those that SLURM gives]}. With `tasks` each rank
is a task of its own; else the one task on a node is all of its ranks, as a launcher is.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
import zlib
from pathlib import Path

import fake_nvml

POLL_S = 0.02
PATIENCE_S = 120.0
STEP_TOKENS = 1000


def main(role: str, case_file: str) -> int:
    case = json.loads(Path(case_file).read_text())
    node = os.environ["SLURMD_NODENAME"]
    for key, value in case["environ"][node].items():
        if value is None:
            os.environ.pop(key, None)
        else:
            os.environ[key] = value
    # A folder on the node and one to a case, which the sampler makes; a socket's path is short.
    name = (
        f"llem-light-{zlib.crc32(case['folder'].encode()):08x}-{os.environ['SLURM_JOB_ID']}-{node}"
    )
    socket = Path(tempfile.gettempdir()) / name / "s"
    if role == "sampler":
        from llem.energy.sampler import main as sampler_main

        status = sampler_main(["--socket", str(socket), "--linger", "60", "--term-grace", "30"])
        shutil.rmtree(socket.parent, ignore_errors=True)
        return status
    per_node = case["ranks_per_node"]
    local = int(os.environ["SLURM_LOCALID"])
    first = int(os.environ["SLURM_NODEID"]) * per_node
    if not case["tasks"]:
        import llem.energy
        import llem.records  # noqa: F401  # imported once for all that are forked

        children = []
        for other in range(1, per_node):
            if not (child := os.fork()):
                return Rank(case, node, first + other, other, socket).run()
            children.append(child)
        status = Rank(case, node, first, 0, socket).run()
        return max([status, *(os.waitstatus_to_exitcode(os.waitpid(c, 0)[1]) for c in children)])
    return Rank(case, node, first + local, local, socket).run()


class Rank:
    def __init__(self, case: dict, node: str, rank: int, local: int, socket: Path) -> None:
        self.case, self.node, self.rank, self.local = case, node, rank, local
        self.socket = socket
        self.world = len(case["hosts"]) * case["ranks_per_node"]
        self.attempt = Path(case["folder"]) / "runs" / case["run_id"] / "attempt-0"
        self.meeting = Path(case["folder"]) / "meet"

    def run(self) -> int:
        from llem.energy import SamplerLink
        from llem.energy.meters.held import expand_indices
        from llem.records import host_meta, rank_writer

        meta = {"run_id": self.case["run_id"], "attempt": 0, "node": self.node}
        self.attempt.mkdir(parents=True, exist_ok=True)
        self.meeting.mkdir(parents=True, exist_ok=True)
        link = SamplerLink(self.socket, timeout_s=PATIENCE_S) if self.local == 0 else None
        unmeasured = ""
        if link is not None:
            answer = link.begin(self.attempt / f"node-{self.node}.h5", meta)
            unmeasured = "" if answer.ok else answer.reason
        used = self.case["used"] or [*map(int, expand_indices(os.environ["SLURM_STEP_GPUS"]))]
        own = {
            **host_meta(),
            **meta,
            "rank": self.rank,
            "world": self.world,
            "device_uuid": fake_nvml.parent_uuid(self.node, used[self.local % len(used)]),
            "energy_reason": unmeasured,
        }
        with rank_writer(self.attempt / f"rank-{self.rank:05d}.h5", meta=own) as record:
            # ranks that compute end their steps together; these start together and sleep
            start_ns = self.barrier("begin")
            sleep_until(start_ns)
            t0_ns = time.monotonic_ns()
            started_ns = time.time_ns()
            steps = round(self.case["window_s"] / self.case["step_s"])
            before_ns = t0_ns
            for step in range(1, steps + 1):
                if self.rank == 0 and self.case["fault"] and step == steps // 2:
                    (Path(self.case["folder"]) / self.case["fault"]).touch()
                sleep_until(start_ns + round(step * self.case["step_s"] * 1e9))
                now_ns = time.monotonic_ns()
                nan = float("nan")
                row = (step, before_ns, now_ns, STEP_TOKENS, STEP_TOKENS, 2.0, 1.0, 1e-3, nan, nan)
                record.append("steps", (*row, 1))
                before_ns = now_ns
            if self.rank == 0:
                record.append("evals", (steps, before_ns, before_ns, 2.0, 0.01, STEP_TOKENS))
            t1_ns = time.monotonic_ns()
            ended_ns = time.time_ns()
            self.barrier("end")
        if link is not None:
            link.end()
            link.close()
        if self.rank == 0:
            host = host_meta()
            end = {
                "schema": "llem-end-1", "run_id": self.case["run_id"], "attempt": 0,
                "status": "completed", "reason": "", "step": steps, "steps": steps,
                "tokens": steps * self.world * STEP_TOKENS, "t0_ns": t0_ns, "t1_ns": t1_ns,
                "started_ns": started_ns, "ended_ns": ended_ns, "host": host["host"],
                "boot_id": host["boot_id"], "hosts": self.case["hosts"], "ranks": self.world,
            }  # fmt: skip
            (self.attempt / "end.json").write_text(json.dumps(end))
        self.barrier("left")
        return 0

    def barrier(self, name: str) -> int:
        """Wait for all ranks; the moment after it at which they go on, on the host's clock."""
        (self.meeting / f"{name}-{self.rank}").touch()
        go = self.meeting / f"{name}-go"
        deadline = time.monotonic() + PATIENCE_S
        while not go.exists():
            if time.monotonic() > deadline:
                raise TimeoutError(f"rank {self.rank} waited in vain at {name}")
            if self.rank == 0 and len(list(self.meeting.glob(f"{name}-*"))) == self.world:
                partial = self.meeting / f".{name}"
                partial.write_text(str(time.monotonic_ns() + 3 * int(POLL_S * 1e9)))
                partial.replace(go)
            time.sleep(POLL_S)
        return int(go.read_text())


def sleep_until(moment_ns: int) -> None:
    time.sleep(max(0, moment_ns - time.monotonic_ns()) / 1e9)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1], sys.argv[2]))
