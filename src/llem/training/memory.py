"""Peak memory of one run on one rank, beyond what stood before its model was built.

On CUDA it is the most that torch's allocator gave to tensors at one time. On the CPU it is the
kernel's mark of the process's resident memory (VmHWM), set anew before the model is built, less
what was resident then and less the pages of mapped files (the token file, libraries) that came in
since. It so holds tensors, what the C allocator keeps of freed ones, and buffers of gloo and of the
mathematics library: what the kernel would have to find, and more than the tensors alone.
"""

from __future__ import annotations

import ctypes
import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from llem.training.world import World

PROCESS = Path("/proc/self")
NAMES = ("VmHWM", "VmRSS", "RssFile")


@dataclass(frozen=True, kw_only=True)
class Peak:
    """Bytes on this rank: `reserved` is what the allocator held in all, NaN on the CPU.

    NaN with a `reason` where it could not be measured.
    """

    bytes: float
    reserved: float = math.nan
    reason: str = ""

    def told(self) -> str:
        """The peak in a line, for the rank's record."""
        if self.reason:
            return f"peak unknown: {self.reason}"
        held = "" if math.isnan(self.reserved) else f", {self.reserved:.0f} held by the allocator"
        return f"peak {self.bytes:.0f} bytes{held}"


class PeakMemory:
    """Starts when it is made; `read` may be called at any time after."""

    def __init__(self, device: torch.device, *, process: Path = PROCESS) -> None:
        self._device = device
        self._process = process
        self._reason = ""
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._before = torch.cuda.memory_allocated(device)
            return
        # Some 70 MB that the first optimiser would bring in, and no part of the run.
        importlib.import_module("torch._dynamo")
        _trim()
        try:
            # 5 sets the high-water mark to what is resident now (proc(5)).
            (process / "clear_refs").write_text("5")
            self._status = read_status(process)
        except (OSError, KeyError, ValueError) as error:
            self._reason = f"the kernel's mark of peak memory cannot be reset: {error}"

    def begin_window(self) -> None:
        """From here on `read` tells the peak of what follows, still beyond what stood at the
        start: what is held already counts."""
        if self._reason:
            return
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            return
        try:
            (self._process / "clear_refs").write_text("5")
        except OSError as error:
            self._reason = f"the kernel's mark of peak memory cannot be reset: {error}"

    def read(self) -> Peak:
        """The peak since the start, or since the window's beginning."""
        if self._reason:
            return Peak(bytes=math.nan, reason=self._reason)
        if self._device.type == "cuda":
            return Peak(
                bytes=torch.cuda.max_memory_allocated(self._device) - self._before,
                reserved=torch.cuda.max_memory_reserved(self._device),
            )
        before, now = self._status, read_status(self._process)
        files = max(0, now["RssFile"] - before["RssFile"])
        return Peak(bytes=max(0, now["VmHWM"] - before["VmRSS"] - files))


def read_status(process: Path = PROCESS, names: Sequence[str] = NAMES) -> Mapping[str, int]:
    """What the kernel tells of a process under these names, in bytes (`/proc/<pid>/status`).

    Raises KeyError where one is not told, OSError where the process is gone.
    """
    found = {}
    for line in (process / "status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in names:
            found[name] = 1024 * int(value.split()[0])
    for name in names:
        if name not in found:
            raise KeyError(f"{process}/status tells no {name}")
    return found


def largest(peak: Peak, world: World) -> tuple[float, str]:
    """The largest peak of all ranks and why it is NaN, on every rank; called by all."""
    peaks = world.gather(torch.tensor([peak.bytes], dtype=torch.float64, device=world.device))
    values = [part.item() for part in peaks]
    if all(math.isfinite(value) for value in values):
        return max(values), ""
    reasons = world.gather_text(peak.reason)
    return math.nan, next((reason for reason in reasons if reason), "not measured on a rank")


def _trim() -> None:
    """Give back what the C allocator keeps of freed memory; another run's would hide this one's."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
