"""The HDF5 schema of records: table layouts and codes, in one place.

Times are int64 nanoseconds: `t*_ns` of CLOCK_MONOTONIC on the host that wrote the file, which
`/clock` ties to the wall clock. A value that was not measured is NaN, and an event says why.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum, IntFlag

import numpy as np

SCHEMA = "llem-record-1"

# One row per optimiser step of one rank. `tokens_rank` are the tokens that this rank read, and no
# other in this step; `tokens_unique` those of them that no earlier step has read.
# `loss` is this rank's mean training loss in nats per token; e*_mj are the device counter's
# readings at the step's ends where they are cheap to take.
STEPS = np.dtype(
    [
        ("step", "<i8"),
        ("t0_ns", "<i8"),
        ("t1_ns", "<i8"),
        ("tokens_rank", "<i8"),
        ("tokens_unique", "<i8"),
        ("loss", "<f8"),
        ("grad_norm", "<f8"),
        ("lr", "<f8"),
        ("e0_mj", "<f8"),
        ("e1_mj", "<f8"),
        ("phase", "<u1"),
    ]
)

# One row per evaluation (rank 0 only): mean loss over the held-out tokens and its standard error.
EVALS = np.dtype(
    [
        ("step", "<i8"),
        ("t0_ns", "<i8"),
        ("t1_ns", "<i8"),
        ("loss", "<f8"),
        ("loss_se", "<f8"),
        ("tokens", "<i8"),
    ]
)

# One row for each time of a rank that no step accounts for: an evaluation, a checkpoint, the
# loading of a model. `step` is how many steps (of a served model: requests) were finished; e*_mj as
# in STEPS.
SPANS = np.dtype(
    [
        ("step", "<i8"),
        ("t0_ns", "<i8"),
        ("t1_ns", "<i8"),
        ("e0_mj", "<f8"),
        ("e1_mj", "<f8"),
        ("phase", "<u1"),
    ]
)

# One row per request that a model served, by the rank that began it (rank 0 of each replica).
# `request` counts the run's requests by their arrival, `prompt` is the number of its prompt,
# `batch` of the batch that it was served in. `t_start_ns` is when its batch began, t_first_ns and
# t_last_ns when its first and last token were known; 0 where that never came (`status` says why).
REQUESTS = np.dtype(
    [
        ("request", "<i8"),
        ("prompt", "<i8"),
        ("batch", "<i8"),
        ("tokens_in", "<i8"),
        ("tokens_out", "<i8"),
        ("t_arrival_ns", "<i8"),
        ("t_start_ns", "<i8"),
        ("t_first_ns", "<i8"),
        ("t_last_ns", "<i8"),
        ("status", "<u1"),
    ]
)

# One row per forward pass of a rank. `sequences` is how many rows the batch had, `live` how many of
# them belonged to requests that were not finished (of a beam search each request has several).
# `tokens_in` are tokens that it computed in live rows (no padding; guessed ones that were wrong are
# among them), `attended` the pairs of one of them and a token that it attended to, `tokens_out`
# tokens that it gave to requests, `context` the summed length of the live rows after it. The
# tokens that a forward gave are known at its `t1_ns`. e*_mj as in STEPS. `batch` of the warm-up is
# below 0.
FORWARDS = np.dtype(
    [
        ("forward", "<i8"),
        ("batch", "<i8"),
        ("t0_ns", "<i8"),
        ("t1_ns", "<i8"),
        ("sequences", "<i4"),
        ("tokens_in", "<i8"),
        ("tokens_out", "<i8"),
        ("context", "<i8"),
        ("e0_mj", "<f8"),
        ("e1_mj", "<f8"),
        ("phase", "<u1"),
        ("live", "<i4"),
        ("attended", "<i8"),
    ]
)

# One row per token that arrived, where forward passes are another process's (a server).
TOKENS = np.dtype([("request", "<i8"), ("index", "<i8"), ("t_ns", "<i8")])

# One row per step of a server's engine, as that tells it itself: `t_ns` is when its server had what
# the step made. `running` and `waiting` requests are there after it; `tokens_in` of prompts it
# computed, `tokens_cached` it found in its cache, in the step in which their prompt was done.
# `tokens_out` it made, `drafted` were guessed and `accepted` of these right; `preempted` requests
# lost their cache; `cache_used` is a share of all blocks.
ENGINE = np.dtype(
    [
        ("step", "<i8"),
        ("t_ns", "<i8"),
        ("running", "<i4"),
        ("waiting", "<i4"),
        ("tokens_in", "<i8"),
        ("tokens_cached", "<i8"),
        ("tokens_out", "<i8"),
        ("preempted", "<i4"),
        ("drafted", "<i4"),
        ("accepted", "<i4"),
        ("cache_used", "<f4"),
    ]
)

# One row per device and sample; `read_ns` is how long the reading took, in steps of 1024 ns.
SAMPLES = np.dtype(
    [
        ("t_ns", "<i8"),
        ("read_ns", "<i8"),
        ("energy_mj", "<f8"),
        ("power_mw", "<f8"),
        ("temperature_c", "<f4"),
        ("utilization", "<f4"),
        ("clock_mhz", "<f4"),
        ("throttle", "<u8"),
        ("flags", "<u2"),
    ]
)

CLOCK = np.dtype(
    [("t_mono_ns", "<i8"), ("t_wall_ns", "<i8"), ("peer_offset_ns", "<f8"), ("rtt_ns", "<f8")]
)

# Fixed-length text: HDF5's single-writer mode cannot grow variable-length strings.
EVENTS = np.dtype([("t_ns", "<i8"), ("code", "S32"), ("text", "S256")])

# Mean and standard deviation (mW) of a device's power while it was idle, from `t0_ns` to `t1_ns`,
# which may lie before the record's first sample. `context`: whether a process held a context on
# the device then (1, 0; -1 not known), since that alone raises its power.
BASELINE = np.dtype(
    [
        ("uuid", "S64"),
        ("power_idle_mw", "<f8"),
        ("samples", "<i8"),
        ("sd", "<f8"),
        ("t0_ns", "<i8"),
        ("t1_ns", "<i8"),
        ("context", "<i1"),
    ]
)

# Rows of one chunk. A flush writes the whole chunk that is being filled, and a table with one row
# takes the space of a chunk: tables that stay short have short ones.
CHUNK_ROWS = 1024
SHORT_CHUNK_ROWS = 64
LONG_TABLES = ("steps", "samples", "forwards", "tokens", "engine")

# What a rank's record holds, by the workload of its run.
RANK_TABLES = {
    "training": {"steps": STEPS, "evals": EVALS, "spans": SPANS},
    "inference": {
        "requests": REQUESTS,
        "forwards": FORWARDS,
        "tokens": TOKENS,
        "engine": ENGINE,
        "spans": SPANS,
    },
}


class Phase(IntEnum):
    """What a rank's time was spent on.

    Steps of a training are WARMUP, TRAIN or DECAY, its spans EVALUATION or CHECKPOINT. Forward
    passes of a served model are WARMUP, PREFILL or DECODE; its spans LOAD (the model), WARMUP,
    SETTLE (waiting: thermal floor) and SERVE (the measured window, from the first request's
    arrival to the last token).
    """

    WARMUP = 0
    TRAIN = 1
    DECAY = 2
    EVALUATION = 3
    CHECKPOINT = 4
    PREFILL = 5
    DECODE = 6
    LOAD = 7
    SETTLE = 8
    SERVE = 9


class RequestStatus(IntEnum):
    """How a request ended."""

    FINISHED = 0  # as many tokens as were asked for
    STOPPED = 1  # the model ended it with its own end token
    FAILED = 2  # its server refused it, or broke off
    LEFT = 3  # the job was ended before it was done


class SampleFlag(IntFlag):
    """What is to be known about one sample."""

    READ_FAILED = 1  # the meter could not be read; its values are NaN
    LATE = 2  # taken more than one interval after its time on the grid


# Where a device's energy lies; `contains` in its attributes names domains that must not be added.
DOMAINS = ("gpu", "module", "package", "dram", "node")

# How a device's energy was found, best first.
QUALITIES = ("counter", "integral", "model", "none")


def worst_quality(qualities: Iterable[str]) -> str:
    """The least of them, and that of what several make up; `none` where there is none."""
    found = set(qualities) or {"none"}
    return max(found, key=lambda q: QUALITIES.index(q) if q in QUALITIES else len(QUALITIES))
