"""The order in which the files of a mixture take turns: exact, and known at any place at once.

Among the first n windows a file of weight w (of the sum W of all) has floor(n w / W) or
ceil(n w / W): its j-th window falls into the places floor(j W / w) .. ceil((j + 1) W / w) - 1.
Taking always the file whose place ends first keeps to all of these (earliest deadline first on
one processor; the condition is the "P-fairness" of Baruah et al. 1996, Algorithmica 15). After W
windows all files are even, and the same order begins again.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Integers = NDArray[np.int64]


class MixtureOrder:
    """Which file each place of the endless sequence of windows is read from."""

    def __init__(self, weights: Sequence[int]) -> None:
        """`weights` are whole numbers above zero without a common divisor."""
        self._weights = np.array(weights, dtype=np.int64)
        self._period = whole = sum(weights)
        self._files = np.empty(whole, dtype=np.int64)
        self._before = np.empty(whole, dtype=np.int64)
        done = [0] * len(weights)
        # When the next window of a file may be read, and by when it must be.
        coming = [(0, file) for file in range(len(weights))]
        due: list[tuple[int, int]] = []
        for place in range(whole):
            while coming and coming[0][0] <= place:
                _, file = heapq.heappop(coming)
                heapq.heappush(due, (-(-(done[file] + 1) * whole // weights[file]), file))
            _, file = heapq.heappop(due)
            self._files[place], self._before[place] = file, done[file]
            done[file] += 1
            if done[file] < weights[file]:
                heapq.heappush(coming, (done[file] * whole // weights[file], file))

    def __call__(self, places: ArrayLike) -> tuple[Integers, Integers]:
        """The file at each of `places`, and how many of its windows came before."""
        periods, within = np.divmod(np.asarray(places, dtype=np.int64), self._period)
        files: Integers = self._files[within]
        return files, periods * self._weights[files] + self._before[within]
