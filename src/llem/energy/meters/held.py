"""Which GPUs of this node the job holds: a pure reading of the environment.

NVML does not know CUDA_VISIBLE_DEVICES. With constrained device cgroups it shows only the job's
GPUs, counted from 0 again, while SLURM's variables keep the node's own numbers. So a list of
indices is trusted as such only where NVML shows more GPUs than the list names; and a list of UUIDs
that is as long is trusted before it, for a name is a name in any order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llem._numerals import percent

# The step's variable is set on every node by its daemon; the job's comes from the batch script
# and is therefore only right on the first node. A task's own CUDA list comes last: with
# --gpus-per-task it names one GPU of many, and those that idle are paid for as well.
INDEX_VARIABLES = ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS")
CUDA_VARIABLE = "CUDA_VISIBLE_DEVICES"
NONE_HELD = frozenset({"", "-1", "none", "void", "NoDevFiles"})


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One GPU that NVML shows: its UUID, and its MIG instances with their share of it."""

    uuid: str
    instances: Mapping[str, float]
    mig: bool = False


@dataclass(frozen=True, kw_only=True)
class Held:
    """The GPUs that the job holds: UUID of the physical GPU -> share of it; and what was odd."""

    shares: Mapping[str, float]
    reasons: tuple[str, ...] = ()


def expected_gpus(environ: Mapping[str, str]) -> int | None:
    """How many GPUs the environment gives this job on this node; None where it does not say.

    With MIG the variables count instances, so the answer is 1: at least one GPU.
    """
    if any(_is_mig(entry) for entry in _cuda_entries(environ.get(CUDA_VARIABLE, ""))):
        return 1
    for variable in INDEX_VARIABLES:
        if environ.get(variable):
            return len(expand_indices(environ[variable]))
    on_node = environ.get("SLURM_GPUS_ON_NODE", "")
    if on_node.isdigit():
        return int(on_node)
    if CUDA_VARIABLE in environ:
        return len(_cuda_entries(environ[CUDA_VARIABLE]))
    return None


def held_gpus(shown: Sequence[Shown], environ: Mapping[str, str]) -> Held:
    """Which of the shown GPUs the job holds, by SLURM's and CUDA's variables, else all of them."""
    cuda = environ.get(CUDA_VARIABLE)
    entries = _cuda_entries(cuda) if cuda is not None else []
    if any(_is_mig(entry) for entry in entries):
        return _by_entries(shown, entries)  # SLURM counts instances: only their names are sure
    for variable in INDEX_VARIABLES:
        if environ.get(variable):
            indices = expand_indices(environ[variable])
            named = all(_is_uuid(entry) for entry in entries)
            if entries and named and len(entries) >= len(indices):
                return _by_entries(shown, entries)
            return _by_indices(shown, indices, variable)
    if cuda is not None:
        return _by_entries(shown, entries)
    return _shares(shown, ())


def expand_indices(text: str) -> list[str]:
    """`0,2-3` -> ['0', '2', '3']; what is no number is kept as it stands."""
    indices: list[str] = []
    for part in (p.strip() for p in text.split(",")):
        first, dash, last = part.partition("-")
        if dash and first.isdigit() and last.isdigit():
            indices += [str(i) for i in range(int(first), int(last) + 1)]
        elif part:
            indices.append(part)
    return indices


def _is_mig(entry: str) -> bool:
    return entry.upper().startswith("MIG-")


def _is_uuid(entry: str) -> bool:
    return entry.upper().startswith("GPU-")


def _cuda_entries(text: str) -> list[str]:
    entries = [entry.strip() for entry in text.split(",")]
    # CUDA ignores everything from the first invalid entry on
    for position, entry in enumerate(entries):
        if entry in NONE_HELD:
            return entries[:position]
    return entries


def _by_indices(shown: Sequence[Shown], indices: Sequence[str], variable: str) -> Held:
    listed = f"{variable}={','.join(indices)}"
    if not all(index.isdigit() for index in indices):
        return _by_entries(shown, indices)
    if len(shown) <= len(indices):
        short = len(shown) < len(indices)
        return _shares(shown, (f"{listed}, but NVML shows {len(shown)} GPUs",) if short else ())
    chosen = [int(index) for index in indices]
    if max(chosen) >= len(shown):
        # renumbered by the cgroup of a job that holds more GPUs than this step
        return _shares(
            shown, (f"{listed} are not NVML's indices: all {len(shown)} shown are taken",)
        )
    return _shares([shown[i] for i in chosen], ())


def _by_entries(shown: Sequence[Shown], entries: Sequence[str]) -> Held:
    shares: dict[str, float] = {}
    reasons: list[str] = []
    for entry in entries:
        found = _find(shown, entry)
        if found is None:
            reasons.append(f"{CUDA_VARIABLE} names {entry}, which NVML does not show")
            continue
        uuid, share = found
        shares[uuid] = shares.get(uuid, 0.0) + share
    # seven sevenths are the whole, whatever floats make of them
    held = {uuid: 1.0 if share > 1 - 1e-9 else share for uuid, share in shares.items()}
    return Held(shares=held, reasons=tuple(reasons) + _partial(held))


def _find(shown: Sequence[Shown], entry: str) -> tuple[str, float] | None:
    if entry.isdigit():
        gpu = shown[int(entry)] if int(entry) < len(shown) else None
        return (gpu.uuid, _whole(gpu)) if gpu else None
    wanted = entry.lower()
    for gpu in shown:
        for instance, share in gpu.instances.items():
            if instance.lower().startswith(wanted):
                return gpu.uuid, share
        # MIG-GPU-<uuid>/<gpu instance>/<compute instance>: the form of drivers before R470
        if wanted.startswith(f"mig-{gpu.uuid.lower()}/"):
            return gpu.uuid, math.nan
    matches = [gpu for gpu in shown if gpu.uuid.lower().startswith(wanted)]
    return (matches[0].uuid, _whole(matches[0])) if len(matches) == 1 else None


def _whole(gpu: Shown) -> float:
    return math.nan if gpu.mig else 1.0


def _shares(gpus: Sequence[Shown], reasons: tuple[str, ...]) -> Held:
    shares = {gpu.uuid: _whole(gpu) for gpu in gpus}
    return Held(shares=shares, reasons=reasons + _partial(shares))


def _partial(shares: Mapping[str, float]) -> tuple[str, ...]:
    return tuple(
        f"{uuid}: MIG: the job holds "
        + (f"{percent(share, places=0)} of it" if share == share else "an unknown part of it")
        + "; NVML measures the whole GPU only"
        for uuid, share in shares.items()
        if share != 1.0  # NaN as well
    )
