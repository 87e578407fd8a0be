"""Ties the monotonic clocks of several hosts together, by the clock stamps in their records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class HostClock:
    """One host's monotonic clock against its wall clock; int64 nanoseconds.

    `boot_id` names the monotonic clock: two records with one boot id can be compared directly.
    `compared`: the wall clock is that of rank 0's host, by a comparison over the network,
    which found this one's own to be ahead by `off_ns`.
    """

    boot_id: str
    mono_ns: NDArray[np.int64]
    wall_ns: NDArray[np.int64]
    compared: bool = False
    off_ns: int = 0

    @classmethod
    def of(cls, boot_id: str, table: NDArray[Any]) -> HostClock:
        """From a record's `/clock`; what was measured against rank 0's host is applied."""
        table = table[np.argsort(table["t_mono_ns"], kind="stable")]
        wall_ns = table["t_wall_ns"]
        measured = np.isfinite(table["peer_offset_ns"])
        if measured.any():
            # a wall clock may be set meanwhile: only stamps at which it was compared are used
            table, wall_ns = table[measured], wall_ns[measured]
            offsets = np.rint(table["peer_offset_ns"]).astype(np.int64)
            off_ns = -int(np.median(offsets))
            return cls(boot_id, table["t_mono_ns"], wall_ns + offsets, True, off_ns)
        return cls(boot_id, table["t_mono_ns"], wall_ns)

    def wall_of(self, mono_ns: int) -> int:
        return mono_ns + self._offset(mono_ns)

    def mono_of(self, wall_ns: int) -> int:
        # The offset moves by parts per million: at the first guess it is as good as exact.
        return wall_ns - self._offset(wall_ns - self._offset(int(self.mono_ns[0])))

    def _offset(self, mono_ns: int) -> int:
        """Wall minus monotonic, interpolated; integers first, since a float has no room for ns."""
        first = int(self.mono_ns[0])
        base = int(self.wall_ns[0]) - first
        offsets = (self.wall_ns - self.mono_ns - base).astype(float)
        return base + round(
            float(np.interp(mono_ns - first, (self.mono_ns - first).astype(float), offsets))
        )


def translate(mono_ns: int, here: HostClock, there: HostClock) -> int:
    """A moment of one host's monotonic clock on another's."""
    if here.boot_id == there.boot_id:
        return mono_ns
    return there.mono_of(here.wall_of(mono_ns))


def shift_ns(mono_ns: int, here: HostClock, there: HostClock) -> int:
    """What is to be added to a moment of one host's monotonic clock to have another's."""
    return translate(mono_ns, here, there) - mono_ns
