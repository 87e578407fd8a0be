"""Peak memory of a server: of all its processes together, since the model is in none of ours.

On the CPU it is the sum of the kernel's marks of resident memory (VmHWM) over the processes that
still run, less the pages of mapped files, and shared memory counted once. Peaks of several
processes need not have come at one time: the sum is what they could have needed. Interpreters and
what their libraries allocate are in it. On CUDA it is what the replica's fullest device holds more
than before the server was started: a server keeps what it took for weights and cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import torch

from llem.training.memory import Peak, read_status

PROC = Path("/proc")
NAMES = ("VmHWM", "RssFile", "RssShmem")


class ServerMemory:
    """As `llem.training.memory.PeakMemory`, of the processes that `processes` names when asked;
    `devices` are the numbers of the GPUs that the server has."""

    def __init__(
        self,
        processes: Callable[[], Sequence[int]],
        device: torch.device,
        *,
        devices: Sequence[int] = (),
        proc: Path = PROC,
    ) -> None:
        self._processes = processes
        self._proc = proc
        self._devices = list(devices) if device.type == "cuda" else []
        self._cuda = device.type == "cuda"
        self._before = [_used(i) for i in self._devices]

    def begin_window(self) -> None:
        """From here on `read` tells the peak of what follows; what is held already counts."""
        for pid in self._processes():
            # One that ended meanwhile has no peak; one that cannot be reset keeps an older one.
            with suppress(OSError):
                (self._proc / str(pid) / "clear_refs").write_text("5")

    def read(self) -> Peak:
        if self._cuda:
            held = [_used(i) - b for i, b in zip(self._devices, self._before, strict=True)]
            return Peak(bytes=max(held, default=math.nan), reason="" if held else "no device")
        found = []
        for pid in self._processes():
            with suppress(OSError, KeyError):  # it ended meanwhile, and has no memory any more
                found.append(read_status(self._proc / str(pid), NAMES))
        if not found:
            return Peak(bytes=math.nan, reason="no process of the server runs")
        own = sum(m["VmHWM"] - m["RssFile"] - m["RssShmem"] for m in found)
        return Peak(bytes=max(0, own) + max(m["RssShmem"] for m in found))


def _used(device: int) -> int:
    free, total = torch.cuda.mem_get_info(device)
    return int(total - free)
