"""Whether this job has the whole node: what a node-wide counter says of it depends on that.

Packages, memory and whole nodes are counted for all who run there. A job that holds the node may
call that its own; one that shares it may not. Evidence, best first:

1. no SLURM job: the machine is its user's own
2. the job asked for the node alone (`exclusive`: the site's `extra: {exclusive: true}`)
3. the cgroup of the job: which hardware threads it may use, of those that are online
4. SLURM_JOB_CPUS_PER_NODE against the machine. SLURM counts cores or threads, as its
   configuration says: as many CPUs as cores, fewer than threads, may be all or half of the node

A node that SLURM gives to several jobs at once although one holds all its CPUs (OverSubscribe)
cannot be told from here; llem's own jobs on it are divided late, where their windows overlap.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llem.energy.meters.held import expand_indices

YES, NO, UNKNOWN = "yes", "no", "unknown"
COUNTS = re.compile(r"(\d+)(?:\(x(\d+)\))?")


@dataclass(frozen=True, kw_only=True)
class NodeHeld:
    """`exclusive` is yes, no or unknown; `share` the job's part of the node's CPUs (0 to 1)."""

    exclusive: str
    share: float
    reason: str

    def meta(self) -> dict[str, Any]:
        """For the meta of a node's record."""
        return {
            "node_exclusive": self.exclusive,
            "node_share": self.share,
            "node_exclusive_reason": self.reason,
        }


def node_held(
    environ: Mapping[str, str] = os.environ,
    *,
    exclusive: bool = False,
    proc: Path = Path("/proc"),
    sys: Path = Path("/sys"),
) -> NodeHeld:
    """What this job holds of the node that this process is on."""
    job = environ.get("SLURM_JOB_ID", "")
    if not job:
        return NodeHeld(exclusive=YES, share=1.0, reason="no SLURM job: all of this machine")
    if exclusive:
        return NodeHeld(exclusive=YES, share=1.0, reason="the job asked for whole nodes")
    online = _listed(sys / "devices/system/cpu/online") or set(range(os.cpu_count() or 1))
    threads = len(online)
    mine = _cgroup_cpus(job, proc, sys)
    if mine is not None:
        return _of(len(mine & online), threads, threads, "by the job's cgroup")
    told = cpus_here(environ)
    if told is None:
        text = "SLURM_JOB_CPUS_PER_NODE does not say how many CPUs this job has here"
        return NodeHeld(exclusive=UNKNOWN, share=float("nan"), reason=text)
    return _of(told, threads, _cores(sys, online), "by SLURM_JOB_CPUS_PER_NODE")


def cpus_here(environ: Mapping[str, str]) -> int | None:
    """The job's CPUs on this node: `48(x2),24` and SLURM_NODEID; None where that is not told."""
    counts: list[int] = []
    for part in environ.get("SLURM_JOB_CPUS_PER_NODE", "").split(","):
        match = COUNTS.fullmatch(part.strip())
        if match is None:
            return None
        counts += [int(match[1])] * int(match[2] or 1)
    node = environ.get("SLURM_NODEID", "0")
    if len(set(counts)) == 1:
        return counts[0]
    return counts[int(node)] if node.isdigit() and int(node) < len(counts) else None


def _of(held: int, threads: int, cores: int, how: str) -> NodeHeld:
    share = min(1.0, held / threads)
    text = f"{held} of {threads} CPUs, {how}"
    if held >= threads:
        return NodeHeld(exclusive=YES, share=1.0, reason=text)
    if held == cores:
        text += f": all {cores} cores, or half of the threads, as SLURM counts here"
        return NodeHeld(exclusive=UNKNOWN, share=share, reason=text)
    return NodeHeld(exclusive=NO, share=share, reason=text)


def _cgroup_cpus(job: str, proc: Path, sys: Path) -> set[int] | None:
    """The threads that the job's cgroup allows (v2, and v1's cpuset); None where not told."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        names = [part for part in path.split("/") if part]
        if f"job_{job}" not in names or controllers not in ("", "cpuset"):
            continue
        top = sys / "fs" / "cgroup" / ("cpuset" if controllers else ".")
        folder = top.joinpath(*names[: names.index(f"job_{job}") + 1])
        # Not the effective ones: where SLURM constrains no cores those are the whole machine's.
        if found := _listed(folder / "cpuset.cpus"):
            return found
    return None


def _listed(path: Path) -> set[int]:
    """`0-3,8` in a file; empty where it cannot be read."""
    try:
        text = path.read_text().strip()
    except OSError:
        return set()
    return {int(index) for index in expand_indices(text) if index.isdigit()}


def _cores(sys: Path, online: set[int]) -> int:
    """Physical cores among the online threads; all of them where the topology is not told."""
    cores: set[tuple[str, str]] = set()
    for cpu in online:
        topology = sys / "devices/system/cpu" / f"cpu{cpu}" / "topology"
        try:
            package = (topology / "physical_package_id").read_text().strip()
            cores.add((package, (topology / "core_id").read_text().strip()))
        except OSError:
            return len(online)
    return len(cores)
