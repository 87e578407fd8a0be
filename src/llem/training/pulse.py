"""What ranks tell each other at each step, and when the host learns of it.

One all-reduce of two numbers carries the training loss and whether a rank was asked to stop, so
that every rank takes the same decision at the same step. On a GPU the host would wait for it:
there the numbers of a step are read some steps later, when they have long arrived.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from llem.training.world import World

# Steps that a GPU may be ahead of what the host knows.
CUDA_LAG_STEPS = 2


class Counter(Protocol):
    """A device's energy counter, cheap to read (`llem.energy.StepCounter`).

    `uuid` names the device; `reason` says why there is nothing to read (any more), else "".
    """

    uuid: str
    reason: str

    def read(self) -> float:
        """The counter in mJ; NaN where it is not read."""


class NoCounter:
    """Of a rank that has no counter to read."""

    uuid = ""
    reason = "no counter was given"

    def read(self) -> float:
        return math.nan


@dataclass(frozen=True)
class Beat:
    """One finished step: this rank's loss, the mean loss of all ranks, how many must stop.

    e*_mj are what `read_mj` of its pulse gave at the step's ends.
    """

    step: int
    t0_ns: int
    t1_ns: int
    e0_mj: float
    e1_mj: float
    loss: float
    loss_all: float
    grad_norm: float
    stopping: int


class Pulse:
    """A queue of steps under way, in order. `read_mj` reads the device's energy counter."""

    def __init__(self, world: World, *, read_mj: Callable[[], float]) -> None:
        self._world = world
        self._read_mj = read_mj
        self._cuda = world.device.type == "cuda"
        self._under_way: deque[tuple[int, int, float, Tensor, Any]] = deque()
        self._last: tuple[int, float] = (0, math.nan)

    def start(self) -> tuple[int, float]:
        """The time and the counter now, where a step is about to be launched."""
        return time.monotonic_ns(), self._read_mj()

    def send(
        self, step: int, *, began: tuple[int, float], loss: Tensor, grad_norm: Tensor, stop: bool
    ) -> None:
        """Tell the others of a step; `began` is from `start`."""
        if self._cuda:
            self._send_from_gpu(step, began, loss, grad_norm, stop)
            return
        own = loss.item()
        shared = [own, float(stop)]
        if self._world.grouped:
            shared = self._world.sum(torch.tensor(shared, dtype=torch.float64)).tolist()
        row = torch.tensor([*shared, own, grad_norm.item()], dtype=torch.float64)
        self._under_way.append((step, *began, row, (time.monotonic_ns(), self._read_mj())))

    def _send_from_gpu(
        self, step: int, began: tuple[int, float], loss: Tensor, grad_norm: Tensor, stop: bool
    ) -> None:
        own = torch.stack((loss.double(), grad_norm.double()))
        shared = torch.stack((own[0], torch.full_like(own[0], float(stop))))
        row = torch.cat((self._world.sum(shared), own))
        here = torch.empty(4, dtype=torch.float64, pin_memory=True)
        here.copy_(row, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        self._under_way.append((step, *began, here, arrived))

    def receive(self, *, all_steps: bool = False) -> list[Beat]:
        """The steps that are known by now (`all_steps`: wait for every one), oldest first."""
        lag = CUDA_LAG_STEPS if self._cuda and not all_steps else 0
        beats = []
        while len(self._under_way) > lag:
            step, t0_ns, e0_mj, row, end = self._under_way.popleft()
            if self._cuda:
                # the wait for the step's numbers is there anyway: the counter costs none more
                end.synchronize()
                end = time.monotonic_ns(), self._read_mj()
            loss_sum, stopping, own, grad_norm = row.tolist()
            # The launch of a step may lie before the end of the one that the GPU is busy with.
            if t0_ns < self._last[0]:
                t0_ns, e0_mj = self._last
            self._last = end
            beats.append(
                Beat(
                    step=step,
                    t0_ns=t0_ns,
                    t1_ns=end[0],
                    e0_mj=e0_mj,
                    e1_mj=end[1],
                    loss=own,
                    loss_all=loss_sum / self._world.world_size,
                    grad_norm=grad_norm,
                    stopping=round(stopping),
                )
            )
        return beats
