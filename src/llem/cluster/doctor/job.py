"""`llem doctor --job`: one small job that looks at nodes from inside the image."""

from __future__ import annotations

import fcntl
import json
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from llem.campaign import Site
from llem.cluster.check import FAIL, Check, at
from llem.cluster.disk.files import write_json, write_text
from llem.cluster.doctor.node import job_rows, parse_host
from llem.cluster.render import render_doctor
from llem.cluster.scheduler import slurm
from llem.cluster.scheduler.facts import ACTIVE, ElementState
from llem.cluster.scheduler.gate import run_program
from llem.errors import ClusterError, LlemError

# The clock's bounds are as far apart as polls; a job that waits for long is looked for less often.
POLL_S, LATE_POLL_S = 0.1, 1.0
ASK_S, LATE_ASK_S = 3.0, 15.0
LATE_S = 60.0
# After the job has left the queue, its last files may still be on their way.
LINGER_S = 5.0
LAST_LINES = 5


def examine_job(
    site: Site,
    *,
    folder: Path,
    nodes: int | None = None,
    wait_s: float = 600.0,
    say: Callable[[str], None] | None = None,
) -> list[Check]:
    """Submit the job, talk with it through `folder`, and tell what it saw.

    Nothing is left in `folder`. `nodes` is two where a job may take two. `say` is called with a
    line of progress. Raises InputError where no script can be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        dir=folder, prefix=".llem-doctor-", ignore_cleanup_errors=True
    ) as name:
        scratch = Path(name).resolve()
        talk = Talk(site, scratch, nodes or min(2, site.nodes))
        try:
            job_id = talk.submit()
        except LlemError as error:
            return [Check("job", FAIL, error.message, error.remedy or "see the rows above")]
        if say is not None:
            say(f"job {job_id} is submitted; waiting up to {wait_s:.0f} s for it")
        try:
            problem = talk.wait(job_id, wait_s)
        finally:
            talk.end(job_id)
        return talk.rows(job_id, problem)


class Talk:
    """The login node's side: answers pings, holds the lock, collects facts."""

    def __init__(self, site: Site, scratch: Path, nodes: int) -> None:
        self.site = site
        self.scratch = scratch
        self.nodes = nodes
        self.answered: set[str] = set()

    def submit(self) -> str:
        """Write the script and what the probe is asked, and sbatch. Raises ClusterError."""
        (self.scratch / "jobs" / "logs").mkdir(parents=True)
        asked = {
            "environment": dict(self.site.environment),
            "overlap": self.site.overlap,
            "gpus": self.site.gpu.name != "cpu",
        }
        write_json(self.scratch / "site.json", asked)
        script = self.scratch / "doctor.sbatch"
        write_text(script, render_doctor(self.site, nodes=self.nodes))
        return slurm.submit_script(script, cwd=self.scratch)

    def wait(self, job_id: str, wait_s: float) -> str:
        """Until the script has written its last file; what went wrong, else empty."""
        start = asked = time.monotonic()
        gone: float | None = None
        state = ""
        with open(self.scratch / "lock", "w") as lock:
            # Where it is refused, the row on locks tells.
            with suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            while not (self.scratch / "done").exists():
                self._answer()
                now = time.monotonic()
                if gone is not None and now - gone > LINGER_S:
                    return "the job ended before its end: the log's last lines follow"
                if now - start > wait_s:
                    return f"no end within {wait_s:.0f} s ({state or 'no state'})"
                late = now - start > LATE_S and "RUNNING" not in state
                if gone is None and now - asked > (LATE_ASK_S if late else ASK_S):
                    asked = now
                    held = [s for s in _held(job_id) if s.meaning in ACTIVE]
                    state = ", ".join(f"{s.state} {s.reason}" for s in held)
                    gone = None if held else now
                time.sleep(LATE_POLL_S if late else POLL_S)
        return ""

    def end(self, job_id: str) -> None:
        """No job of the doctor's outlives it."""
        if not (self.scratch / "done").exists():
            # It may have ended by itself.
            with suppress(LlemError):
                slurm.cancel([job_id])

    def rows(self, job_id: str, problem: str) -> list[Check]:
        """All that the job told, and what it did not."""
        nodes = self._facts("node-*.json")
        ranks = sorted(self._facts("rank-*.json"), key=lambda rank: rank["task"])
        path = self.scratch / "host.txt"
        host = parse_host(path.read_text()) if path.exists() else {}
        expected = self.nodes * self.site.gpus_per_node
        rows = []
        if problem or len(nodes) < self.nodes or len(ranks) < expected:
            told = f"{len(nodes)} of {self.nodes} nodes and {len(ranks)} of {expected} ranks told"
            last = " / ".join(self._log()) or _why(job_id)
            rows = at(f"job {job_id}", [Check("job", FAIL, problem or told, last)])
        return rows + job_rows(self.site, host=host, nodes=nodes, ranks=ranks)

    def _answer(self) -> None:
        for ping in self.scratch.glob("ping-*.json"):
            node = ping.stem.removeprefix("ping-")
            if node not in self.answered:
                seen = time.time()
                self.answered.add(node)
                write_json(self.scratch / f"pong-{node}.json", {"seen": seen, "sent": time.time()})

    def _facts(self, pattern: str) -> list[dict[str, Any]]:
        return [json.loads(path.read_text()) for path in sorted(self.scratch.glob(pattern))]

    def _log(self) -> list[str]:
        lines = [
            line.strip()
            for path in sorted((self.scratch / "jobs" / "logs").iterdir())
            for line in path.read_text(errors="replace").splitlines()
            if line.strip()
        ]
        return lines[-LAST_LINES:]


def _held(job_id: str) -> list[ElementState]:
    try:
        return slurm.query([job_id])
    except LlemError:
        # One question that was not answered says nothing of the job.
        return [ElementState(job_id, None, "PENDING", "the scheduler did not answer")]


def _why(job_id: str) -> str:
    """The scheduler's own account of a job that left no log."""
    try:
        text = run_program(["scontrol", "show", "job", job_id, "--oneliner"])
    except (ClusterError, LlemError):
        return "llem doctor --job again; a full partition takes longer: --wait"
    words = dict(w.split("=", 1) for w in text.split() if "=" in w)
    return f"{words.get('JobState', '')} {words.get('Reason', '')}".strip()
