"""The newest samples of a node's record, also of one that is written just now.

For whoever watches: the ends of its tables are read, never the whole, and what cannot be read is
left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llem.records.reader import RecordError, opened, plain
from llem.records.schema import SAMPLES
from llem.records.writer import samples_table

# Rows that are looked at: a second or two.
ROWS = 16


@dataclass(frozen=True)
class Latest:
    """A device and its newest rows of `SAMPLES`, in the order of their times, one at least."""

    host: str
    uuid: str
    attrs: Mapping[str, Any]
    samples: NDArray[Any]

    @property
    def watts(self) -> float:
        """Power as the device tells it, else from its counter; NaN where neither does."""
        told = float(self.samples["power_mw"][-1]) / 1e3
        if np.isfinite(told) or len(self.samples) < 2:
            return told
        first, last = self.samples[0], self.samples[-1]
        took_s = float(last["t_ns"] - first["t_ns"]) / 1e9
        used_j = float(last["energy_mj"] - first["energy_mj"]) / 1e3
        return used_j / took_s if took_s > 0 and used_j >= 0 else float("nan")


def latest_samples(path: Path) -> list[Latest]:
    """What each device of the record showed last; nothing of a record that cannot be read."""
    found: list[Latest] = []
    try:
        with opened(path) as file:
            host = str(plain(file["meta"].attrs.get("host", "")))
            for uuid in file["devices"]:
                table = file[samples_table(uuid)]
                rows = np.asarray(table[max(0, len(table) - ROWS) :])
                # What is not on the disk yet reads as zeros.
                rows = rows[rows["t_ns"] > 0]
                if rows.dtype == SAMPLES and len(rows):
                    attrs = {key: plain(value) for key, value in
                             file[f"devices/{uuid}"].attrs.items()}  # fmt: skip
                    found.append(Latest(host, uuid, attrs, rows))
    except (RecordError, OSError, KeyError, RuntimeError, ValueError):
        return found
    return found
