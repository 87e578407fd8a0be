"""What ranks tell each other at each step, and when the host learns of it.

One all-reduce of two numbers carries the training loss and whether a rank was asked to stop, so
that every rank takes the same decision at the same step. On a GPU the host would wait for it:
there the numbers of a step are read some steps later, when they have long arrived.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llem.training.world import World

# Steps that a GPU may be ahead of what the host knows.
CUDA_LAG_STEPS = 2


@dataclass(frozen=True)
class Beat:
    """One finished step: this rank's loss, the mean loss of all ranks, how many must stop."""

    step: int
    t0_ns: int
    t1_ns: int
    loss: float
    loss_all: float
    grad_norm: float
    stopping: int


class Pulse:
    """A queue of steps under way, in order."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._cuda = world.device.type == "cuda"
        self._under_way: deque[tuple[int, int, Tensor, Any]] = deque()
        self._last_t1_ns = 0

    def send(self, step: int, *, t0_ns: int, loss: Tensor, grad_norm: Tensor, stop: bool) -> None:
        """Tell the others of a step that was launched at `t0_ns`."""
        if self._cuda:
            self._send_from_gpu(step, t0_ns, loss, grad_norm, stop)
            return
        own = loss.item()
        shared = [own, float(stop)]
        if self._world.grouped:
            shared = self._world.sum(torch.tensor(shared, dtype=torch.float64)).tolist()
        row = torch.tensor([*shared, own, grad_norm.item()], dtype=torch.float64)
        self._under_way.append((step, t0_ns, row, time.monotonic_ns()))

    def _send_from_gpu(
        self, step: int, t0_ns: int, loss: Tensor, grad_norm: Tensor, stop: bool
    ) -> None:
        own = torch.stack((loss.double(), grad_norm.double()))
        shared = torch.stack((own[0], torch.full_like(own[0], float(stop))))
        row = torch.cat((self._world.sum(shared), own))
        here = torch.empty(4, dtype=torch.float64, pin_memory=True)
        here.copy_(row, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        self._under_way.append((step, t0_ns, here, arrived))

    def receive(self, *, all_steps: bool = False) -> list[Beat]:
        """The steps that are known by now (`all_steps`: wait for every one), oldest first."""
        lag = CUDA_LAG_STEPS if self._cuda and not all_steps else 0
        beats = []
        while len(self._under_way) > lag:
            step, t0_ns, row, end = self._under_way.popleft()
            if self._cuda:
                end.synchronize()
                end = time.monotonic_ns()
            loss_sum, stopping, own, grad_norm = row.tolist()
            # The launch of a step may lie before the end of the one that the GPU is busy with.
            t0_ns = max(t0_ns, self._last_t1_ns)
            self._last_t1_ns = end
            beats.append(
                Beat(
                    step=step,
                    t0_ns=t0_ns,
                    t1_ns=end,
                    loss=own,
                    loss_all=loss_sum / self._world.world_size,
                    grad_norm=grad_norm,
                    stopping=round(stopping),
                )
            )
        return beats
