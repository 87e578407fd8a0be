"""Which requests are served together, and when a batch may begin.

static    batch_size requests in the order of their arrival, once the last of them is there
sorted    once batch_size requests wait (or all that are left): the oldest of them and those
          whose prompts are nearest to its in length, so that little is padded
dynamic   those that have arrived, up to batch_size and, where set, batch_tokens with their
          padding; begun when full, or when the oldest has waited wait_s
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import nsmallest
from typing import Any

from llem.serving.requests import Request


@dataclass(frozen=True, kw_only=True)
class Batching:
    """How requests become batches; see the module. `batch_tokens` 0: no such limit."""

    kind: str = "static"
    batch_size: int = 1
    batch_tokens: int = 0
    wait_s: float = 0.0

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Batching:
        """From the effective options of a backend; what is not there has its default."""
        return cls(
            kind=str(options.get("batching") or "static"),
            batch_size=int(options.get("batch_size") or 1),
            batch_tokens=int(options.get("batch_tokens") or 0),
            wait_s=float(options.get("wait_s") or 0.0),
        )


class Queue:
    """Requests by arrival, and the batch that begins next. Knows no clock: it is told the time."""

    def __init__(self, requests: Sequence[Request], batching: Batching) -> None:
        self._left = sorted(requests, key=lambda r: (r.arrival_s, r.number))
        self._batching = batching

    def __len__(self) -> int:
        return len(self._left)

    def take(self, now_s: float) -> list[Request] | float:
        """The next batch, or until when to wait for one. Call it while requests are left."""
        size = min(self._batching.batch_size, len(self._left))
        arrived = self._arrived(now_s)
        if self._batching.kind == "dynamic":
            return self._dynamic(arrived, size, now_s)
        if arrived < size:
            return self._left[size - 1].arrival_s
        chosen = list(range(size))
        if self._batching.kind == "sorted":
            wanted = len(self._left[0].tokens)
            nearest = nsmallest(
                size - 1, range(1, arrived), key=lambda i: abs(len(self._left[i].tokens) - wanted)
            )
            chosen = [0, *sorted(nearest)]
        return self._remove(chosen)

    def rest(self) -> list[Request]:
        """What is left; the queue is empty then."""
        return self._remove(list(range(len(self._left))))

    def drop(self, batch: Sequence[Request]) -> None:
        """Take out what another rank's queue gave."""
        gone = {request.number for request in batch}
        self._left = [request for request in self._left if request.number not in gone]

    def _arrived(self, now_s: float) -> int:
        return bisect_right(self._left, now_s, key=lambda request: request.arrival_s)

    def _dynamic(self, arrived: int, size: int, now_s: float) -> list[Request] | float:
        if not arrived:
            return self._left[0].arrival_s
        fits = self._fits(min(arrived, size))
        until_s = self._left[0].arrival_s + self._batching.wait_s
        # More could still come in: it is not full, and somebody may come before the oldest leaves.
        if fits == arrived < size and now_s < until_s:
            return min(until_s, self._left[arrived].arrival_s)
        return self._remove(list(range(fits)))

    def _fits(self, count: int) -> int:
        """How many of the first `count` fit in batch_tokens; one always does."""
        if not self._batching.batch_tokens:
            return count
        longest = 0
        for i, request in enumerate(self._left[:count]):
            longest = max(longest, len(request.tokens) + request.output_tokens)
            if i and longest * (i + 1) > self._batching.batch_tokens:
                return i
        return count

    def _remove(self, chosen: list[int]) -> list[Request]:
        batch = [self._left[i] for i in chosen]
        for i in reversed(chosen):
            del self._left[i]
        return batch
