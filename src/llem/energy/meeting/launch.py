"""How this process was launched: its rank, who else is on this node, and what tells launches apart.

A pure reading of the environment. Launchers nest (srun starts torchrun, which starts ranks), and
each leaves its variables to what it starts: the innermost that can be told is taken.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

# Innermost first: (launcher, rank, world, local rank, local world, nodes). A launcher is there
# where its rank and local rank are both set; what it does not tell is None.
_LAUNCHERS: tuple[tuple[str, str, str, str, str | None, str | None], ...] = (
    ("mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK",
     "OMPI_COMM_WORLD_LOCAL_SIZE", None),
    ("mpiexec", "PALS_RANKID", "PALS_SIZE", "PALS_LOCAL_RANKID", "PALS_LOCAL_SIZE", None),
    ("mpiexec", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS", None),
    ("mpiexec", "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK",
     "MV2_COMM_WORLD_LOCAL_SIZE", None),
)  # fmt: skip
_TORCHRUN = ("torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE")
# deepspeed's launcher, and scripts that set torch's variables by hand.
_PLAIN = ("env", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "CROSS_SIZE")

# What differs between two launches on one node, for launchers that tell.
_KEYS = ("SLURM_JOB_ID", "SLURM_STEP_ID", "TORCHELASTIC_RUN_ID", "PMIX_NAMESPACE",
         "OMPI_MCA_ess_base_jobid", "PALS_APID", "PMI_JOBID", "MASTER_ADDR",
         "MASTER_PORT")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Launch:
    """This process among those that were launched together; alone where nothing says otherwise.

    `local_world` processes run on this node, None where the launcher does not say; `nodes` is
    None where there are several and it is not known how many. `key` is the same for all
    processes of one launch, and no other on this node. `restart` counts earlier tries ("" for
    the first) of a requeued job or of ranks that torchrun started again.
    """

    launcher: str = ""
    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int | None = 1
    nodes: int | None = 1
    node: str = ""
    key: str = ""
    restart: str = ""

    @property
    def shared(self) -> bool:
        """Whether other processes of this launch may be on this node."""
        return self.local_world != 1

    @property
    def several_nodes(self) -> bool:
        return self.nodes != 1

    @property
    def name(self) -> str:
        """What this process is called in the record."""
        return f"rank {self.rank}" if self.launcher else "process"

    def record_path(self, path: Path) -> Path:
        """Where the record of this node lies: `path` itself on one node, at the first try.

        Else `run.h5` becomes `run.node-<node>.h5`, `run.restart-1.h5`, or both.
        """
        parts = [f".restart-{self.restart}"] if self.restart else []
        parts += [f".node-{self.node}"] if self.several_nodes else []
        suffix = path.suffix or ".h5"
        stem = path.name.removesuffix(path.suffix) if path.suffix else path.name
        return path.with_name(f"{stem}{''.join(parts)}{suffix}") if parts else path


def find_launch(environ: Mapping[str, str], *, host: str | None = None) -> Launch:
    """Read the environment of a launched process. Never raises: what makes no sense is ignored."""
    node = environ.get("SLURMD_NODENAME") or (host or socket.gethostname()).partition(".")[0]
    restart = _restart(environ)
    key = "|".join(f"{name}={environ[name]}" for name in _KEYS if environ.get(name))
    step = _srun(environ)
    found = None
    if "TORCHELASTIC_RUN_ID" in environ:
        found = _by_names(environ, *_TORCHRUN)
    for names in _LAUNCHERS:
        found = found or _by_names(environ, *names)
    if found is None and (step is None or step.local_world == 1):
        # A wrapper under srun often sets torch's names: then srun knows better
        found = _by_names(environ, *_PLAIN)
    found = found or step or Launch()
    return replace(found, node=node, key=key if found.launcher else "", restart=restart)


def _by_names(
    environ: Mapping[str, str],
    launcher: str,
    rank: str,
    world: str,
    local_rank: str,
    local_world: str | None,
    nodes: str | None,
) -> Launch | None:
    found = {name: _number(environ, name) for name in (rank, world, local_rank, local_world, nodes)}
    here, total, local = found[rank], found[world], found[local_rank]
    if here is None or local is None:
        return None
    total = max(total or 1, here + 1)
    size = found[local_world] or (1 if total == 1 else None)
    count = found[nodes] or (1 if size == total else None)
    return Launch(
        launcher=launcher, rank=here, world=total, local_rank=local, local_world=size, nodes=count
    )


def _srun(environ: Mapping[str, str]) -> Launch | None:
    """A task of a step. The batch script is none, though it has a rank: it runs once."""
    rank, local = _number(environ, "SLURM_PROCID"), _number(environ, "SLURM_LOCALID")
    if not environ.get("SLURM_STEP_ID", "").isdigit() or rank is None or local is None:
        return None
    world = _number(environ, "SLURM_STEP_NUM_TASKS") or _number(environ, "SLURM_NTASKS") or rank + 1
    nodes = _number(environ, "SLURM_STEP_NUM_NODES") or _number(environ, "SLURM_NNODES")
    counts = environ.get("SLURM_STEP_TASKS_PER_NODE") or environ.get("SLURM_TASKS_PER_NODE", "")
    by_node = expand_tasks(counts)
    number = _number(environ, "SLURM_NODEID")
    size = by_node[number] if number is not None and number < len(by_node) else None
    if size is None and (world == 1 or nodes == world):
        size = 1
    return Launch(
        launcher="srun", rank=rank, world=world, local_rank=local, local_world=size,
        nodes=nodes or len(by_node) or None,
    )  # fmt: skip


def expand_tasks(text: str) -> list[int]:
    """SLURM's tasks of each node: `2(x3),1` -> [2, 2, 2, 1]. [] where it is no such list."""
    found: list[int] = []
    for part in filter(None, text.split(",")):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if match is None:
            return []
        found += [int(match[1])] * int(match[2] or 1)
    return found


def _restart(environ: Mapping[str, str]) -> str:
    """`` at the first try, `1` in a job that was requeued once, `0-2` after torchrun's second."""
    job = _number(environ, "SLURM_RESTART_COUNT") or 0
    ranks = _number(environ, "TORCHELASTIC_RESTART_COUNT") or 0
    if ranks:
        return f"{job}-{ranks}"
    return str(job) if job else ""


def _number(environ: Mapping[str, str], name: str | None) -> int | None:
    text = environ.get(name, "") if name else ""
    return int(text) if text.isdigit() else None
