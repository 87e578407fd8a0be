"""The ranks that hold one copy of the model together, and how they agree.

Ranks next to each other make a replica; replicas share a run's requests and do not speak with
each other while they serve.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from llem.errors import Fault, InputError, LlemError
from llem.serving.requests import Request
from llem.training.world import World

T = TypeVar("T")


class Replica:
    """This rank's replica: `index` of `count`, on `ranks`; `lead` is the one that decides.

    Made by every rank of `world` at the same time. Raises InputError where the ranks cannot be
    divided so.
    """

    def __init__(self, world: World, *, ranks: int) -> None:
        if ranks < 1 or world.world_size % ranks:
            text = f"{world.world_size} rank(s) cannot be divided into replicas of {ranks}"
            raise InputError("options", [Fault("options.tensor_parallel", text)])
        self.world = world
        self.size = ranks
        self.count = world.world_size // ranks
        self.index = world.rank // ranks
        self.lead = world.rank % ranks == 0
        self._first = self.index * ranks
        self._group: Any = None
        if ranks > 1 and self.count > 1:
            import torch.distributed as dist

            groups = [
                dist.new_group(list(range(i * ranks, (i + 1) * ranks))) for i in range(self.count)
            ]
            self._group = groups[self.index]

    @property
    def alone(self) -> bool:
        """Whether one rank holds the whole model: it has nobody to agree with."""
        return self.size == 1

    @property
    def group(self) -> Any:
        """The process group of this replica; None is that of all ranks."""
        return self._group

    def first(self, function: Callable[[], T]) -> T:
        """What `function` returns on the lead, on every rank of the replica; an error of llem
        too."""
        if self.alone:
            return function()
        import torch.distributed as dist

        told: list[Any] = [None]
        if self.lead:
            try:
                told[0] = function()
            except LlemError as error:
                told[0] = error
        dist.broadcast_object_list(told, src=self._first, group=self._group)
        if isinstance(told[0], LlemError):
            raise told[0]
        found: T = told[0]
        return found

    def broadcast(self, values: Any) -> Any:
        """A tensor of the lead's, in place on every rank of the replica."""
        if not self.alone:
            import torch.distributed as dist

            dist.broadcast(values, src=self._first, group=self._group)
        return values

    def share(self, requests: Sequence[Request]) -> list[Request]:
        """This replica's part: every `count`-th request, so that arrivals are spread alike."""
        return list(requests[self.index :: self.count])
