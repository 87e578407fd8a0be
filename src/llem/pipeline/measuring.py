"""Measure one script and read the result where it ends: `with llem.measure("run.h5") as m: ...`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llem.energy import Measurement
from llem.energy import measure as _measure
from llem.errors import LlemError, UnavailableError
from llem.records import RecordError
from llem.results import DeviceEnergy, NodeEnergy, PhaseTotal, device_energies


class Measured:
    """A measurement, with its energy: of this process' node, by the record, read when asked.

    Inside the block, or while other processes of the node still measure, it is what has been
    recorded so far. What other nodes used is in their records: `llem energy` adds them up.
    """

    def __init__(self, measurement: Measurement) -> None:
        self._measurement = measurement
        self._t0_ns = time.monotonic_ns()
        self._t1_ns: int | None = None
        self._read: NodeEnergy | None = None

    @property
    def path(self) -> Path:
        """The record of this node."""
        return self._measurement.path

    @property
    def reasons(self) -> tuple[str, ...]:
        """What is not measured, and why."""
        return self._measurement.reasons

    @property
    def notes(self) -> tuple[str, ...]:
        """Of these, what came about since the beginning."""
        return tuple(self._measurement.notes)

    @property
    def last(self) -> bool:
        """Whether this was the last process of its node: the record is then complete."""
        return self._measurement.closed

    @property
    def lost(self) -> bool:
        """Whether measuring ended before this process did (or had ended before it began)."""
        return self._t1_ns is not None and not self._measurement.ended

    def mark(self, name: str) -> None:
        """What follows is called `name`, until the next mark or the end."""
        self._measurement.mark(name)

    def phase(self, name: str) -> contextlib.AbstractContextManager[None]:
        """`with m.phase("evaluation"): ...`; the innermost phase counts."""
        return self._measurement.phase(name)

    @property
    def energy_j(self) -> float:
        """Joules of all devices of the node; NaN where a part of them is not known."""
        return self.result.energy_j

    @property
    def duration_s(self) -> float:
        """Seconds from the first process' begin to the last one's end."""
        return self.result.duration_s

    @property
    def mean_power_w(self) -> float:
        """Energy by time."""
        seconds = self.duration_s
        return self.energy_j / seconds if seconds > 0 else float("nan")

    @property
    def devices(self) -> tuple[DeviceEnergy, ...]:
        """Each device with its energy, quality, coverage and reason."""
        return self.result.devices

    @property
    def phases(self) -> tuple[PhaseTotal, ...]:
        """Energy by marked phase; () where nothing was marked."""
        return self.result.phases

    @property
    def result(self) -> NodeEnergy:
        """All of it, read from the record. Raises UnavailableError where it cannot be read."""
        if self._read is not None:
            return self._read
        if not self._measurement.measured:
            raise UnavailableError("; ".join(self.reasons))
        # A sampler that died wrote no end: then this process knows how much is missing.
        window = (self._t0_ns, self._t1_ns) if self.lost and self._t1_ns is not None else None
        try:
            found = device_energies(self.path, window_ns=window)
        except (LlemError, RecordError) as error:
            raise UnavailableError(f"the energy cannot be read: {error}") from None
        if self.last or self.lost:
            self._read = found
        return found


@contextlib.contextmanager
def measure(
    path: str | Path,
    *,
    interval_s: float = 0.1,
    meters: str = "auto",
    meta: Mapping[str, Any] | None = None,
) -> Iterator[Measured]:
    """Measure this node's devices into a new record while the block runs.

        with llem.measure("run.h5") as m:
            with m.phase("training"):
                train()
        print(m.energy_j, m.duration_s, m.devices)

    Every rank under srun, torchrun or mpirun may do so: one process of each node samples. On
    several nodes the records are `run.node-<node>.h5`. `meters` names some (`nvml,rapl`), where
    not all are wanted. Raises InputError where the record is
    there already, UnavailableError where measuring cannot begin.
    """
    with _measure(path, interval_s=interval_s, meters=meters, meta=meta) as measurement:
        measured = Measured(measurement)
        try:
            yield measured
        finally:
            measured._t1_ns = time.monotonic_ns()
