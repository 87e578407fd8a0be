"""Writes an attempt's records: the files of real ranks and samplers, through the same writer.

What tells them apart is one attribute, `rehearsal` in `/meta`: the planted law and the seed.
"""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llem._version import __version__
from llem.records import RecordWriter, node_writer, rank_writer, samples_table
from llem.records.schema import BASELINE, CLOCK, EVALS, EVENTS, Phase
from llem.rehearsal.course import Attempt
from llem.rehearsal.curve import ALIKE, TOKEN_SD, held_out_loss
from llem.rehearsal.fleet import Node
from llem.rehearsal.measure import CLOSED_S, OPENED_S, Measured
from llem.rehearsal.world import World

# When a rehearsal begins by the wall clock: always the same moment (2026-01-05 08:00 UTC), so that
# the same seed gives the same bytes.
START_NS = 1_767_600_000 * 1_000_000_000
# Idle power is watched so long before a run, at the sampler's interval.
WATCHED_S = 5.0
# Wall clocks of nodes are compared over the network with an error of this, and a round trip.
COMPARED_SD_S, ROUND_TRIP_NS = 2e-5, 6e4
PID, PID_SPACE = 4242, "rehearsal"


def wall_ns(t_s: float) -> int:
    """Campaign seconds by the true wall clock."""
    return START_NS + round(t_s * 1e9)


def evaluation_loss_se(run: Any) -> float:
    """Standard error of the held-out loss, from how many tokens there are."""
    tokens = int(getattr(run.data, "evaluation_tokens", 0) or 0)
    return TOKEN_SD * math.sqrt(ALIKE / tokens) if tokens else math.nan


def evaluations_of(world: World, attempt: Attempt) -> list[tuple[int, float]]:
    """(step, held-out loss) of the attempt's evaluations, the last one's as its end tells."""
    final = world.fate(attempt.run).loss
    return [
        (b.last, held_out_loss(world.planted, attempt.run, step=b.last, final=final))
        for b in attempt.blocks
        if b.phase == Phase.EVALUATION
    ]


def write_attempt(
    folder: Path, measured: Measured, *, campaign: str, digest: str, mark: Mapping[str, Any]
) -> None:
    """The records of every rank and node of an attempt, in its folder."""
    shared = _shared_meta(measured, campaign=campaign, digest=digest, mark=mark)
    for rank in range(measured.attempt.run.layout.ranks):
        _write_rank(folder / f"rank-{rank:05d}.h5", measured, rank, shared)
    for place, node in enumerate(measured.attempt.nodes):
        _write_node(folder / f"node-{node.name}.h5", measured, place, shared)


def _shared_meta(
    measured: Measured, *, campaign: str, digest: str, mark: Mapping[str, Any]
) -> dict[str, Any]:
    attempt, slurm = measured.attempt, measured.world.plan.site.executor == "slurm"
    return {
        "run_id": attempt.run.run_id,
        "attempt": attempt.number,
        "campaign": campaign,
        "plan": digest,
        "array": attempt.array,
        "element": attempt.element,
        "job_id": f"{attempt.job_id}_{attempt.element}" if slurm else "",
        "array_job_id": attempt.job_id if slurm else "",
        "restart_count": attempt.restart,
        "job_started_ns": wall_ns(attempt.began_s),
        "image_digest": "",
        "rehearsal": json.dumps(dict(mark)),
    }


def _host(node: Node) -> dict[str, Any]:
    return {"host": node.name, "boot_id": node.boot_id, "pid": PID, "pid_space": PID_SPACE}


def _clock(node: Node, t_s: float) -> tuple[int, int]:
    return node.mono_ns(t_s), wall_ns(t_s + node.off_s)


def _write_rank(path: Path, measured: Measured, rank: int, shared: Mapping[str, Any]) -> None:
    attempt, world = measured.attempt, measured.world
    place, node, board = measured.board_of(rank)
    until_s = attempt.t1_s if attempt.status == "killed" else math.inf
    opened_s = attempt.t0_s + 0.02
    device = board.device()
    meta = {
        **_host(node),
        "run_id": attempt.run.run_id,
        "rank": rank,
        "local_rank": rank % measured.ranks_of_node,
        "world_size": attempt.run.layout.ranks,
        "device": "cpu" if board.package else board.name,
        "threads": world.plan.site.cpus_per_rank,
        "versions": _versions(),
        "steps_planned": attempt.run.steps,
        "device_uuid": "" if board.package else device.uuid,
        **shared,
        "node": node.name,
        "energy_reason": "",
    }
    writer = rank_writer(path, meta=meta, clock=lambda: _clock(node, opened_s))
    counter = "no counter of a GPU" if board.package else f"the energy counter of {board.uuid}"
    events = [(opened_s, "stamps", counter)]
    if attempt.start_step:
        text = f"after step {attempt.start_step}, from step-{attempt.start_step:09d}"
        events.append((opened_s, "resume", text))
    events += [
        (b.t1_s, "fork", f"after step {b.last}, for run {b.fork}")
        if b.fork
        else (b.t1_s, "checkpoint", f"after step {b.last}, in {b.t1_s - b.t0_s:.3f} s")
        for b in attempt.blocks
        if b.phase == Phase.CHECKPOINT
    ]
    told = dict(evaluations_of(world, attempt))
    if attempt.status != "killed":
        peak = f"peak {peak_memory(measured):.0f} bytes"
        events += [(attempt.t1_s - 0.05, "memory", peak)]
        events += [(attempt.t1_s - 0.04, attempt.status, attempt.reason)]
    writer.extend("steps", measured.steps(rank))
    spans = measured.spans(rank)
    writer.extend("spans", spans)
    if rank == 0:
        writer.extend("evals", _evals(measured, spans, told))
    compared = _compared(measured, place, rank)
    at_s = attempt.t1_s - 0.03
    _close(writer, node, attempt, events, clocks=compared, until_s=until_s, at_s=at_s)


def _evals(measured: Measured, spans: NDArray[Any], told: Mapping[int, float]) -> NDArray[Any]:
    run = measured.attempt.run
    own = spans[spans["phase"] == int(Phase.EVALUATION)]
    table = np.zeros(len(own), dtype=EVALS)
    for name in ("step", "t0_ns", "t1_ns"):
        table[name] = own[name]
    table["loss"] = [told[int(step)] for step in own["step"]]
    table["loss_se"] = evaluation_loss_se(run)
    table["tokens"] = int(getattr(run.data, "evaluation_tokens", 0) or 0)
    return table


def _compared(measured: Measured, place: int, rank: int) -> list[tuple[float, float, float]]:
    """(moment, rank 0's wall clock less this one's, round trip) where nodes were compared."""
    attempt = measured.attempt
    if place == 0 or rank % measured.ranks_of_node:
        return []
    rng = measured.rng(6, place)
    off_s = attempt.nodes[0].off_s - attempt.nodes[place].off_s
    return [
        (t, (off_s + COMPARED_SD_S * float(rng.normal())) * 1e9,
         ROUND_TRIP_NS * float(rng.uniform(1.0, 2.0)))
        for t in (attempt.t0_s + 0.04, attempt.t1_s - 0.035)
    ]  # fmt: skip


def _write_node(path: Path, measured: Measured, place: int, shared: Mapping[str, Any]) -> None:
    attempt, node = measured.attempt, measured.attempt.nodes[place]
    boards = attempt.boards[place]
    devices = {b.uuid: b.device().attrs() for b in boards}
    gpus = not boards[0].package
    opened_s, closed_s = attempt.t0_s - OPENED_S, attempt.t1_s + CLOSED_S
    until_s = attempt.t1_s if attempt.status == "killed" else math.inf
    meta = {
        **shared,
        "node": node.name,
        **_host(node),
        **({"driver": "rehearsed", "nvml": "rehearsed"} if gpus else {}),
        "node_exclusive": "yes",
        "node_share": 1.0,
        "node_exclusive_reason": "the rehearsal gives each element its own devices",
        "interval_s": measured.interval_s,
        "core": "any: rehearsed",
        "meters": ["nvml" if gpus else "rapl"],
        "meter_reasons": "",
        "gpus_held": len(boards) if gpus else -1,
        "gpus_measured": len(boards) if gpus else 0,
    }
    writer = node_writer(path, meta=meta, devices=devices, clock=lambda: _clock(node, opened_s))
    if gpus:
        rows = [
            (b.uuid.encode(), 1e3 * b.idle_w, max(1, round(WATCHED_S / measured.interval_s)),
             2e1 * b.idle_w, node.mono_ns(opened_s - WATCHED_S), node.mono_ns(opened_s), 0)
            for b in boards
        ]  # fmt: skip
        writer.extend("baseline", np.array(rows, dtype=BASELINE))
    for board in boards:
        writer.extend(samples_table(board.uuid), measured.samples(place, board))
    stamps = [(t, math.nan, math.nan) for t in np.arange(opened_s + 60, closed_s, 60.0)]
    events = []
    if (fault := measured.meter_faults[place]) is not None and fault.kind == "silent":
        events = [(fault.at_s, "meter-failed", f"{boards[fault.index].uuid}: GPU is lost")]
    _close(writer, node, attempt, events, clocks=stamps, until_s=until_s, at_s=closed_s)


def _close(
    writer: RecordWriter,
    node: Node,
    attempt: Attempt,
    events: Sequence[tuple[float, str, str]],
    *,
    clocks: Sequence[tuple[float, float, float]],
    until_s: float,
    at_s: float,
) -> None:
    """Events and clock stamps up to a moment; closed, or left as a killed process leaves it."""
    rows = [
        (node.mono_ns(t), code.encode()[:32], text.encode()[:256])
        for t, code, text in events
        if t <= until_s
    ]
    writer.extend("events", np.array(rows, dtype=EVENTS))
    last = [] if attempt.status == "killed" else [(at_s, math.nan, math.nan)]
    stamps = [(*_clock(node, t), off, trip) for t, off, trip in [*clocks, *last] if t <= until_s]
    writer.extend("clock", np.array(stamps, dtype=CLOCK))
    if attempt.status == "killed":
        writer.leave()
    else:
        writer.close()


def peak_memory(measured: Measured) -> float:
    """Bytes of the fullest rank's tensors: the plan's figure, off by as much as it usually is."""
    error = 0.03 * float(measured.rng(7).normal())
    return float(round(measured.attempt.run.predicted.memory_bytes * math.exp(error)))


@lru_cache(maxsize=1)
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "llem": __version__}
    for name in ("numpy", "h5py"):
        found[name] = metadata.version(name)
    return found
