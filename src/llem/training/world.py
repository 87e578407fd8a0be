"""The ranks of one array element: who they are, what they compute on, how they agree.

One process executes several runs one after another, since imports dominate short runs: a world
and its process group live across runs, engines are built and torn down in between.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from importlib import metadata
from importlib.util import find_spec
from types import TracebackType
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from llem.errors import InputError, LlemError, UnavailableError

T = TypeVar("T")

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among its `world_size` peers. Use as a context manager, or `close` it.

    `grouped` says whether there is a process group (a lone rank without DeepSpeed needs none).
    """

    rank: int
    local_rank: int
    world_size: int
    zero_stage: int
    precision: str
    device: torch.device
    grouped: bool

    @property
    def main(self) -> bool:
        """Whether this is the rank that writes what is written once."""
        return self.rank == 0

    @property
    def device_uuid(self) -> str:
        """The GPU's name as the driver knows it, whatever its number here; "" for a CPU."""
        if self.device.type != "cuda":
            return ""
        uuid = str(getattr(torch.cuda.get_device_properties(self.device), "uuid", ""))
        return uuid if not uuid or uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"

    def barrier(self) -> None:
        if self.grouped:
            dist.barrier()

    def autocast(self) -> torch.autocast:
        """Matrix products in the world's precision; fp32 leaves everything as it is."""
        return torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"
        )

    def seed(self, value: int) -> None:
        """Set torch's generators of this rank's device and of the CPU.

        As `torch.manual_seed`, which without a GPU takes a millisecond to note who called it.
        """
        torch.default_generator.manual_seed(value)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(value)

    def sum(self, values: Tensor) -> Tensor:
        """Sum `values` over ranks, in place."""
        if self.grouped:
            dist.all_reduce(values)
        return values

    def gather(self, values: Tensor) -> list[Tensor]:
        """The `values` of all ranks, by rank; of one shape everywhere."""
        if not self.grouped:
            return [values]
        parts = [torch.empty_like(values) for _ in range(self.world_size)]
        dist.all_gather(parts, values)
        return parts

    def gather_text(self, text: str | None) -> list[str | None]:
        """The `text` of all ranks, by rank."""
        texts: list[str | None] = [text] * self.world_size
        if self.grouped:
            dist.all_gather_object(texts, text)
        return texts

    def first(self, function: Callable[[], T]) -> T:
        """What `function` returns on rank 0, on every rank; the error of llem that it raised too.

        Files are looked at by one rank only: what others would see on a parallel file system a
        moment later can differ, and ranks that disagree wait for each other for ever.
        """
        told: list[T | LlemError | None] = [None]
        if self.main:
            try:
                told[0] = function()
            except LlemError as error:
                told[0] = error
        if self.grouped:
            dist.broadcast_object_list(told, src=0)
        if isinstance(told[0], LlemError):
            raise told[0]
        return told[0]  # type: ignore[return-value]

    def close(self) -> None:
        """Leave the process group; safe to call twice."""
        if self.grouped and dist.is_initialized():
            dist.destroy_process_group()

    def __enter__(self) -> World:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # After an error the peers may wait elsewhere: leave without them.
        self.close()


def start_world(
    *,
    rank: int = 0,
    local_rank: int = 0,
    world_size: int = 1,
    master_addr: str = "127.0.0.1",
    master_port: int = 29500,
    zero_stage: int = 0,
    precision: str = "fp32",
    timeout_s: float = 600.0,
) -> World:
    """Meet the other ranks at `master_addr:master_port`; call once in a process.

    CUDA and NCCL where there is a GPU, else the CPU and gloo. `zero_stage` >= 1 makes runs train
    with accelerate and DeepSpeed. Raises InputError for an impossible call, UnavailableError
    where DeepSpeed is asked for and absent or the ranks do not meet within `timeout_s`.
    """
    if precision not in PRECISIONS:
        raise InputError("precision", [f"{precision!r} is none of {', '.join(PRECISIONS)}"])
    if not 0 <= rank < world_size:
        raise InputError("rank", [f"{rank} is not among the ranks 0..{world_size - 1}"])
    if torch.cuda.is_available():
        # SLURM may show each task only its own GPU, which then is number 0.
        device = torch.device("cuda", local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
        backend = "nccl"
    else:
        device = torch.device("cpu")
        backend = "gloo"
    # accelerate and DeepSpeed read who they are from here, and LOCAL_RANK as the GPU's number.
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(local_rank if device.index is None else device.index),
        WORLD_SIZE=str(world_size),
        MASTER_ADDR=master_addr,
        MASTER_PORT=str(master_port),
    )
    if zero_stage:
        _require_deepspeed(device)
    grouped = world_size > 1 or zero_stage > 0
    if grouped:
        try:
            dist.init_process_group(
                backend,
                init_method=f"tcp://{master_addr}:{master_port}",
                rank=rank,
                world_size=world_size,
                timeout=timedelta(seconds=timeout_s),
                device_id=device if device.type == "cuda" else None,
            )
        except (RuntimeError, ValueError, OSError) as error:
            said = (str(error).splitlines() or [type(error).__name__])[0]
            raise UnavailableError(
                f"rank {rank} of {world_size} did not meet the others at "
                f"{master_addr}:{master_port}: {said}",
                remedy="see the log of rank 0 and whether every node resolves that address",
            ) from error
    return World(
        rank=rank,
        local_rank=local_rank,
        world_size=world_size,
        zero_stage=zero_stage,
        precision=precision,
        device=device,
        grouped=grouped,
    )


def _require_deepspeed(device: torch.device) -> None:
    """Raise UnavailableError unless accelerate and DeepSpeed are installed; import neither."""
    missing = [n for n in ("accelerate", "deepspeed") if find_spec(n) is None]
    if missing:
        raise UnavailableError(
            f"the layout asks for ZeRO, which needs {' and '.join(missing)}",
            remedy="pip install 'llem[train,deepspeed]', or set layout zero_stage: 0",
        )
    if device.type == "cpu":
        # Read when DeepSpeed is imported; it would look for a GPU's toolchain otherwise.
        os.environ["DS_ACCELERATOR"] = "cpu"


def versions() -> dict[str, str]:
    """Versions of what a result depends on, by name; absent packages are left out."""
    found = {"python": platform.python_version()}
    for name in ("llem", "torch", "accelerate", "deepspeed", "numpy", "h5py"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    # Of a checkout that was never installed there is no metadata.
    from llem._version import __version__

    return {**found, "llem": __version__}
