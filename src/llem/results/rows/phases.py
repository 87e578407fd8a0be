"""Energy by phase, and by device: one row for each phase or device of each attempt.

The rows of an attempt add up to its energy: every moment of its window is in exactly one phase.
`startup` is the time before the first step, `rest` what no step, evaluation or checkpoint holds.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from llem.records import worst_quality
from llem.results.attempt import Attempt
from llem.results.energy.claim import Claim
from llem.results.energy.domains import ACCELERATORS
from llem.results.energy.slowdown import slowed_columns
from llem.results.ranks.timeline import PHASES, REST
from llem.results.rows.energy import LateOptions, idle_of
from llem.results.steps import PhaseTime
from llem.results.tables.observation import NAN


@dataclass(frozen=True, kw_only=True)
class PhaseEnergy:
    """One phase of one attempt. `energy_j` is from the samples of all devices; `stamped_j` is from
    the ranks' stamps, of those devices alone that have them, and `stamped_sampled_j` the samples'
    word on the same devices."""

    run_id: str
    attempt: int
    phase: str
    duration_s: float
    steps: int
    tokens: int
    energy_j: float
    joules_per_token: float
    stamped_j: float
    stamped_sampled_j: float
    energy_quality: str


@dataclass(frozen=True, kw_only=True)
class DeviceRow:
    """One device in one attempt; NaN with a reason where its energy is not known.

    `slowed_s` and `capped_s` are the seconds in which it ran slower for its heat or supply, and at
    its power limit, by its own word; NaN where it does not tell.
    """

    run_id: str
    attempt: int
    job: str
    host: str
    uuid: str
    name: str
    domain: str
    source: str
    quality: str
    energy_j: float
    wait_energy_j: float
    idle_w: float
    idle_source: str
    duration_s: float
    coverage: float
    slowed_s: float = NAN
    capped_s: float = NAN
    reason: str


def phase_energy(run_id: str, attempt: Attempt, claims: Sequence[Claim]) -> list[PhaseEnergy]:
    """The phases of an attempt in the order of `PHASES`; `claims` are its own, divided."""
    joules: dict[str, float] = defaultdict(float)
    stamped: dict[str, float] = defaultdict(float)
    known = bool(claims) and not attempt.energy_reasons
    for claim in claims:
        seen = claim.pieces.by_phase() if claim.pieces is not None else {}
        for phase, energy_j in seen.items():
            joules[phase] += energy_j
            if claim.key in attempt.steps.stamped:
                stamped[phase] += energy_j
        # NaN where unknown; else what was extrapolated at the window's edges
        joules[REST] += claim.energy_j - sum(seen.values())
        known = known and math.isfinite(claim.energy_j)
    quality = worst_quality(c.quality for c in claims) if known else "none"
    rows = []
    for phase in PHASES:
        time = attempt.steps.phases.get(phase, PhaseTime(duration_s=0.0))
        if not time.duration_s and abs(joules[phase]) < 1e-9:
            continue
        energy_j = joules[phase] if known else NAN
        rows.append(
            PhaseEnergy(
                run_id=run_id,
                attempt=attempt.number,
                phase=phase,
                duration_s=time.duration_s,
                steps=time.steps,
                tokens=time.tokens,
                energy_j=energy_j,
                joules_per_token=energy_j / time.tokens if time.tokens else NAN,
                stamped_j=time.stamped_j,
                stamped_sampled_j=stamped[phase] if math.isfinite(time.stamped_j) else NAN,
                energy_quality=quality,
            )
        )
    return rows


def device_rows(
    run_id: str, attempt: Attempt, claims: Sequence[Claim], options: LateOptions
) -> list[DeviceRow]:
    """The devices of an attempt."""
    rows = []
    accelerators = any(claim.domain in ACCELERATORS for claim in claims)
    for claim in claims:
        idle_w, idle_source = idle_of(claim, options, accelerators=accelerators)
        rows.append(
            DeviceRow(
                run_id=run_id,
                attempt=attempt.number,
                job=claim.job,
                host=claim.host,
                uuid=claim.uuid,
                name=claim.name,
                domain=claim.domain,
                source=claim.source,
                quality=claim.quality if math.isfinite(claim.energy_j) else "none",
                energy_j=claim.energy_j,
                wait_energy_j=claim.wait_j,
                idle_w=idle_w,
                idle_source=idle_source,
                duration_s=claim.duration_s,
                coverage=claim.coverage,
                **slowed_columns([claim]),
                reason=claim.reason,
            )
        )
    return rows
