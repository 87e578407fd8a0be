"""The record that a sampler writes: opened for one attempt, sampled, closed.

A file that cannot be written any more (a full disk, a quota) ends the measuring of this attempt
with one line on stderr. It never ends the sampler, and never a training.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

from llem.energy.core import move_apart
from llem.energy.meters.baseline import BaselineRow, IdleWatch, contexts_on
from llem.energy.meters.choose import Chosen
from llem.energy.meters.meter import Device, Meter, MeterError, Reading
from llem.records import (
    RecordWriteError,
    RecordWriter,
    SampleFlag,
    host_meta,
    node_writer,
    samples_table,
)

CLOCK_INTERVAL_S = 60.0
# How long a reading took is kept to 1.024 microseconds: the ten bits below are noise, and would
# be a tenth of a sealed record.
READ_MASK_NS = ~0x3FF
# A slow source is looked at again after this part of its interval, so that none of its readings
# waits long; what it had told before is not written again.
SLOW_SHARE = 0.5

# The file is there already, cannot be made, or cannot be written any more.
WRITE_ERRORS = (OSError, RecordWriteError)


class Recorder:
    """Writes samples of the chosen devices into one record at a time."""

    def __init__(
        self,
        chosen: Chosen,
        *,
        interval_s: float,
        versions: Mapping[str, str] | None = None,
        held: Mapping[str, Any] | None = None,
        stderr: TextIO | None = None,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._chosen = chosen
        self._interval_s = interval_s
        self._versions = dict(versions or {})
        self._held = dict(held or {})
        self._stderr = stderr
        self._monotonic_ns = monotonic_ns
        self._writer: RecordWriter | None = None
        self._path: Path | None = None
        self._failing: set[str] = set()
        self._untold: list[tuple[str, str]] = []
        self._watch: IdleWatch | None = None
        self._baseline: tuple[list[BaselineRow], list[str]] = ([], [])
        self._slow: dict[str, tuple[int, int]] = {}
        self._clock_due_ns = 0
        self._rows = 0
        self.given_up = ""

    @property
    def path(self) -> Path | None:
        """The record that is open, if one is."""
        return self._path

    @property
    def recording(self) -> bool:
        """Whether samples are being written (false also after a write failed)."""
        return self._writer is not None

    def devices(self) -> list[dict[str, Any]]:
        """The chosen devices as a client is told of them."""
        return [{"uuid": d.uuid, **d.attrs()} for _, d in self._chosen.devices]

    def begin(self, path: str, meta: Mapping[str, Any]) -> None:
        """Open a new record and take the first sample. Raises one of WRITE_ERRORS."""
        chosen = self._chosen
        self.given_up = ""
        self._failing.clear()
        self._rows = 0
        self._slow.clear()
        self._writer = node_writer(
            path,
            meta={
                **meta,
                **host_meta(),
                **self._versions,
                **self._held,
                "interval_s": self._interval_s,
                # the ranks are there by now: one of them asks for this record
                "core": move_apart(),
                "meters": list(chosen.meters),
                "meter_reasons": "; ".join(chosen.reasons),
                "gpus_held": chosen.gpus_held,
                "gpus_measured": chosen.gpus_measured,
            },
            devices={device.uuid: device.attrs() for _, device in chosen.devices},
        )
        self._path = Path(path)
        self._clock_due_ns = self._monotonic_ns() + int(CLOCK_INTERVAL_S * 1e9)
        try:
            untold, self._untold = self._untold, []
            for code, text in (*chosen.events, *untold):
                self._writer.event(code, text)
            if self._watch is not None:
                self.end_watch()
            else:
                self._write_baseline(self._writer)
            self.sample()
            if self._writer is not None:
                self._writer.flush()
        except WRITE_ERRORS as error:
            self._give_up(error)
        if self.given_up:
            # Only `end` and `close` tell of a failure later on; here the caller still listens.
            self._path = None
            raise OSError(self.given_up)

    def watch(self) -> None:
        """From now on take every reading as one of idle devices, until `end_watch`."""
        self._watch = IdleWatch(contexts=contexts_on)

    @property
    def watching(self) -> IdleWatch | None:
        return self._watch

    def end_watch(self) -> list[str]:
        """Keep what was watched as the baseline of this record and of those to come."""
        if self._watch is None:
            return []
        found = self._watch.rows()
        self._watch = None
        # nothing new does not take the place of what was measured before
        if found[0] or not self._baseline[0]:
            self._baseline = found
        if self._writer is not None:
            try:
                self._write_baseline(self._writer)
            except WRITE_ERRORS as error:
                self._give_up(error)
        return found[1]

    def _write_baseline(self, writer: RecordWriter) -> None:
        rows, reasons = self._baseline
        for row in rows:
            writer.append("baseline", row)
        for reason in reasons:
            writer.event("baseline-none", reason)

    def sample(self, *, late: bool = False) -> None:
        """Read every device once, into the record that is open, if one is."""
        if self._writer is None:
            self._look()
            return
        try:
            for meter, device in self._chosen.devices:
                self._sample(self._writer, meter, device, late)
            now = self._monotonic_ns()
            if now >= self._clock_due_ns:
                self._writer.stamp_clock()
                self._clock_due_ns = now + int(CLOCK_INTERVAL_S * 1e9)
        except WRITE_ERRORS as error:
            self._give_up(error)

    def flush(self) -> int:
        """How many samples, of all devices, will now be found whatever happens to this process.

        Raises one of WRITE_ERRORS where nothing is recorded (any more).
        """
        if self._writer is None:
            raise OSError(self.given_up or "no record is open")
        try:
            self._writer.flush()
        except WRITE_ERRORS as error:
            self._give_up(error)
            raise OSError(self.given_up) from None
        return self._rows

    def event(self, code: str, text: str) -> None:
        """Write down that something happened: in the open record, else in the next one."""
        if self._writer is None:
            self._untold.append((code, text))
        else:
            try:
                self._writer.event(code, text)
            except WRITE_ERRORS as error:
                self._give_up(error)

    def mark(self, code: str, text: str, *, t_ns: int | None = None) -> None:
        """Take a sample, so that what happened lies between samples, and write the event down."""
        self.sample()
        if self._writer is None:
            return
        try:
            self._writer.event(code, text, t_ns=t_ns)
        except WRITE_ERRORS as error:
            self._give_up(error)

    def end(self, *, event: tuple[str, str] | None = None) -> str:
        """Take the last sample and close. Returns why measuring had ended early, else ''."""
        self.sample()
        if self._writer is not None:
            writer = self._writer
            try:
                if event is not None:
                    writer.event(*event)
                writer.stamp_clock()
                writer.close()
                self._writer = None
            except WRITE_ERRORS as error:
                self._give_up(error)
        self._path = None
        return self.given_up

    def _sample(self, writer: RecordWriter, meter: Meter, device: Device, late: bool) -> None:
        flags = SampleFlag.LATE if late else SampleFlag(0)
        start_ns = self._monotonic_ns()
        # A slow source: no row before its time, and each of its readings once.
        due_ns, known_ns = self._slow.get(device.uuid, (0, 0))
        if start_ns < due_ns:
            return
        try:
            reading = meter.read(device)
            read_ns = self._monotonic_ns() - start_ns
            if reading.t_ns and reading.t_ns == known_ns:
                return
            if device.uuid in self._failing:
                self._failing.discard(device.uuid)
                writer.event("meter-recovered", device.uuid)
        except MeterError as error:
            reading = Reading()
            read_ns = self._monotonic_ns() - start_ns
            flags |= SampleFlag.READ_FAILED
            if device.uuid not in self._failing:
                self._failing.add(device.uuid)
                writer.event("meter-failed", str(error))
        if self._watch is not None:
            self._watch.add(device, start_ns, reading)
        if device.counter and math.isnan(reading.energy_mj):
            flags |= SampleFlag.READ_FAILED
        if device.interval_s:
            due_ns = start_ns + int(device.interval_s * 1e9 * SLOW_SHARE)
            self._slow[device.uuid] = (due_ns, reading.t_ns)
        writer.append(
            samples_table(device.uuid),
            (
                reading.t_ns or start_ns,
                (reading.read_ns or read_ns) & READ_MASK_NS,
                reading.energy_mj,
                reading.power_mw,
                reading.temperature_c,
                reading.utilization,
                reading.clock_mhz,
                reading.throttle,
                int(flags),
            ),
        )
        self._rows += 1

    def _look(self) -> None:
        if self._watch is None:
            return
        for meter, device in self._chosen.devices:
            at_ns = self._monotonic_ns()
            try:
                self._watch.add(device, at_ns, meter.read(device))
            except MeterError:
                continue  # the record that follows will tell of it

    def _give_up(self, error: Exception) -> None:
        self.given_up = f"measuring ended: {error}"
        print(f"llem sampler: {self.given_up}", file=self._stderr or sys.stderr, flush=True)
        self._writer = None
