"""Measure a program or a part of one: `with llem.energy.measure("run.h5"): ...`.

Under srun, torchrun, mpirun and their like every rank may measure: one process of each node
samples for all of them, from the first one's begin to the last one's end.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from llem.energy.meeting.launch import Launch, find_launch
from llem.energy.meeting.link import Answer, SamplerLink, SamplerProcess, start_sampler
from llem.energy.meeting.rendezvous import PATIENT, Rendezvous
from llem.energy.meters.choose import AUTO, parse_meters
from llem.errors import InputError, UnavailableError

# What a sampler was started for may go on longer than the process that started it.
_left: list[SamplerProcess] = []
LONGEST_NAME = 200
ENDED_BEFORE = "the record of this node had ended before this process began: it is not measured"


class Measurement:
    """What is being measured: where the record is, and marks inside it.

    path       the record of this node (see `Launch.record_path`)
    sensors    the devices that are sampled, as the sampler tells of them
    measured   false where the record of this node had ended before this process began
    closed     whether the record has been closed; others of this node may still measure after
               this process has ended
    ended      whether this process' end has been recorded; false where the sampler had died
    reasons    what is not measured, and why: the meters' reasons, which the sampler has written to
               standard error as well, and `notes`, what came about since
    """

    def __init__(self, path: Path, launch: Launch, link: SamplerLink, answer: Answer) -> None:
        self.path = path
        self.launch = launch
        self.measured = answer.ok
        self.closed = self.ended = False
        self.sensors = answer.devices
        self._reasons_of_meters = answer.reasons
        self.notes = [] if answer.ok else [answer.reason]
        self._link = link
        self._pid = os.getpid()
        self._lock = threading.Lock()

    @property
    def reasons(self) -> tuple[str, ...]:
        return (*self._reasons_of_meters, *self.notes)

    def mark(self, name: str) -> None:
        """What follows is called `name`, until the next mark or the end. Never fails or waits.

        Energy by these names is told late (`llem energy`). It takes a sample: not for every step.
        """
        self._mark("mark", name)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What is inside is called `name`; phases may lie in others, and the innermost counts."""
        self._mark("phase", name)
        try:
            yield
        finally:
            self._mark("phase-end", name)

    def _mark(self, code: str, name: str) -> None:
        if not name or not name.isprintable() or len(name.encode()) > LONGEST_NAME:
            raise InputError(
                "the call", [f"{name!r} is no name of a phase: 1 to {LONGEST_NAME} bytes of text"]
            )
        if self.measured and os.getpid() == self._pid:
            with self._lock:
                self._noted(self._link.mark(code, f"{self.launch.name}: {name}"))

    def _end(self) -> None:
        # a child that was forked inside the block shares the connection, not the measuring
        if self.measured and os.getpid() == self._pid:
            with self._lock:
                answer = self._link.end()
                self.ended, self.closed = answer.ok, answer.closed
                self._noted(answer.reason)

    def _noted(self, reason: str) -> None:
        if reason and reason not in self.notes:
            self.notes.append(reason)


@contextlib.contextmanager
def measure(
    path: str | Path,
    *,
    interval_s: float = 0.1,
    meters: str = AUTO,
    meta: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Iterator[Measurement]:
    """Sample this node's devices into a new record while the block runs.

    `meters` names some of them (`nvml,rapl`, see `llem.energy.meters.choose`) where not all are
    wanted. A process of its own does it, so the block is not slowed and cannot delay a sample.
    Raises InputError where the record is there already and UnavailableError where it cannot begin
    for another reason. Where measuring ends early, the record and `reasons` say so; the block's own
    result is never lost to it.
    """
    options = _options(meters)
    launch = find_launch(environ)
    record = launch.record_path(Path(path).absolute())
    told = {"command": sys.argv, **_told(launch, environ), **(meta or {})}
    opened = _together if launch.shared else _alone
    with opened(
        record, launch, interval_s=interval_s, options=options, meta=told, environ=environ
    ) as measurement:
        if (nodes := environ.get("SLURM_NNODES", "1")) != "1" and not launch.launcher:
            measurement._noted(f"one of the job's {nodes} nodes is measured: srun measures on each")
        try:
            yield measurement
        finally:
            measurement._end()


def _options(meters: str) -> tuple[str, ...]:
    try:
        parse_meters(meters)
    except ValueError as error:
        raise InputError("meters", [str(error)]) from None
    return (*PATIENT, "--meters", meters)


def _told(launch: Launch, environ: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "launcher": launch.launcher or "none",
        "launch": launch.key,
        "restart": launch.restart,
        "node": launch.node,
        "world": launch.world,
        "local_world": launch.local_world or 0,
        "nodes": launch.nodes or 0,
    }
    for name, variable in (("job_id", "SLURM_JOB_ID"), ("step_id", "SLURM_STEP_ID")):
        if environ.get(variable):
            found[name] = environ[variable]
    return found


@contextlib.contextmanager
def _alone(
    record: Path, launch: Launch, *, interval_s: float, options: tuple[str, ...],
    meta: Mapping[str, Any], environ: Mapping[str, str],
) -> Iterator[Measurement]:  # fmt: skip
    with (
        tempfile.TemporaryDirectory(prefix="llem-") as folder,
        start_sampler(
            Path(folder) / "sampler.sock", interval_s=interval_s, options=options, environ=environ
        ) as sampler,
        sampler.link() as link,
    ):
        answer = link.begin(record, meta, who=launch.name)
        if not answer.ok:
            raise _refused(record, answer.reason)
        yield Measurement(record, launch, link, answer)


@contextlib.contextmanager
def _together(
    record: Path, launch: Launch, *, interval_s: float, options: tuple[str, ...],
    meta: Mapping[str, Any], environ: Mapping[str, str],
) -> Iterator[Measurement]:  # fmt: skip
    place = Rendezvous(record, launch)
    sampler: SamplerProcess | None = None
    try:
        place.tell_gpus(environ)
        with place.first() as first:
            if first:
                sampler = place.start(interval_s=interval_s, options=options, environ=environ)
            link = sampler.link() if sampler is not None else place.link()
            answer = link.begin(record, meta, who=launch.name, expected=launch.local_world)
    except OSError as error:
        raise UnavailableError(f"energy is not measured: {error}") from None
    ended = False
    try:
        if not answer.ok:
            ended = True
            if not _ended_before(record, launch):
                raise _refused(record, answer.reason)
            answer = replace(answer, reason=ENDED_BEFORE)
        measurement = Measurement(record, launch, link, answer)
        try:
            yield measurement
        finally:
            ended = ended or measurement.closed
            if measurement.closed:
                link.stop()
                place.clear()
    finally:
        link.close()
        if sampler is not None:
            _leave(sampler, ended=ended)


def _leave(sampler: SamplerProcess, *, ended: bool) -> None:
    """Wait for a sampler that is done; one that still measures for others stays."""
    _left[:] = [other for other in _left if other.process.poll() is None]
    if ended:
        sampler.stop()
    else:
        _left.append(sampler)


def _refused(record: Path, reason: str) -> InputError | UnavailableError:
    if record.exists() and "exists" in reason:
        return InputError(str(record), ["exists already; records are never overwritten"])
    return UnavailableError(f"energy is not measured: {reason}")


def _ended_before(record: Path, launch: Launch) -> bool:
    """Whether the others of this launch have begun and ended this record without this process."""
    from llem.records import RecordError, read_node

    try:
        found = read_node(record)
    except RecordError:
        return False
    begun = {e["text"].decode() for e in found.events if e["code"] == b"begin"}
    same = found.meta.get("launch") == launch.key and found.meta.get("restart") == launch.restart
    return same and launch.name not in begun
