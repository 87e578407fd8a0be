"""The energy of a run's row: gross, net, at the facility, its error, its waits, its carbon."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llem._numerals import percent
from llem.records import worst_quality
from llem.results.attempt import Attempt
from llem.results.carbon import CarbonSeries
from llem.results.energy.claim import Claim
from llem.results.energy.domains import ACCELERATORS, domains_of
from llem.results.energy.idle import GIVEN
from llem.results.ratio import BLOCK_S, LEAST_CLUSTERS, Clusters, ratio_of_sums
from llem.results.tables.observation import NAN

JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True, kw_only=True)
class LateOptions:
    """What is applied late. Idle power in watts: one number for each accelerator (where a run has
    none: for each device), or by UUID; without it the records' own baseline is used. Carbon
    intensity: g per kWh, or a series in time. None: not known, and what follows from it is NaN."""

    pue: float = 1.0
    idle_power_w: float | Mapping[str, float] | None = None
    price_per_kwh: float | None = None
    price_per_gpu_hour: float | None = None
    carbon_g_per_kwh: float | CarbonSeries | None = None
    peak_flops_per_gpu: float | None = None

    def __post_init__(self) -> None:
        if not self.pue >= 1.0:
            raise ValueError(f"pue {self.pue}: expected 1 or more")

    @property
    def carbon_series(self) -> CarbonSeries | None:
        given = self.carbon_g_per_kwh
        return given if isinstance(given, CarbonSeries) else None


def energy_columns(
    attempts: Sequence[Attempt], claims: Sequence[Sequence[Claim]], options: LateOptions
) -> dict[str, Any]:
    """The columns that follow from the claims alone, which are those of each attempt, divided."""
    reasons: list[str] = []
    for attempt in attempts:
        before = f"attempt {attempt.number}: " if len(attempts) > 1 else ""
        reasons += [before + reason for reason in attempt.energy_reasons]
    unknown = bool(reasons)
    every = [claim for of_attempt in claims for claim in of_attempt]
    reasons += [claim.reason for claim in every if claim.reason]
    reasons += [note for attempt in attempts for note in attempt.energy_notes]
    domains = list(dict.fromkeys(domains_of(of_attempt) for of_attempt in claims if of_attempt))
    if len(domains) > 1:
        reasons.append(f"attempts differ in what is counted: {', '.join(domains)}")
    # NaN in any device makes the sum NaN: a part is never given for the whole
    gross = NAN if unknown or not every else sum(claim.energy_j for claim in every)
    accelerators = any(claim.domain in ACCELERATORS for claim in every)
    idle = [idle_of(claim, options, accelerators=accelerators) for claim in every]
    idle_j = sum(watts * c.attributed_s for (watts, _), c in zip(idle, every, strict=True))
    carbon_g, carbon_reason = _carbon(gross, every, options)
    return {
        "energy_j": gross,
        "energy_net_j": gross - idle_j,
        "energy_facility_j": gross * options.pue,
        "energy_quality": worst_quality(c.quality for c in every) if gross == gross else "none",
        "energy_reason": "; ".join(dict.fromkeys(reasons)),
        "energy_domains": ", ".join(domains),
        "energy_seen_j": sum(c.seen_j for c in every) if every else NAN,
        "idle_source": "; ".join(dict.fromkeys(source for _, source in idle)),
        "wait_energy_j": _wait_j(attempts, claims, known=gross == gross),
        "carbon_g": carbon_g,
        "carbon_reason": carbon_reason,
        "devices": len({claim.key for claim in every}),
        "device_seconds": sum(claim.covered_s for claim in every),
        "device_coverage": min((claim.coverage for claim in every), default=0.0),
    }


def ratio_columns(
    attempts: Sequence[Attempt],
    claims: Sequence[Sequence[Claim]],
    *,
    energy_j: float,
    tokens: float,
    chosen: Attempt,
) -> dict[str, Any]:
    """Joules per token with its standard error, and its steady part in the `chosen` attempt.

    The error is that of the energy of steps; what an attempt uses once (its start, evaluations)
    is in the ratio, and does not vary with its tokens.
    """
    value = energy_j / tokens if tokens > 0 else NAN
    clusters = _clusters(attempts)
    se, what = NAN, f"too few: {LEAST_CLUSTERS} nodes, or blocks of {BLOCK_S:g} s, are needed"
    if clusters is not None and math.isfinite(value):
        found = ratio_of_sums(clusters.joules, clusters.tokens)
        undivided = sum(c.undivided_j for of in claims for c in of)
        own = energy_j / undivided if undivided > 0 else NAN
        se = found.se * float(clusters.tokens.sum()) * own / tokens
        what = f"{found.clusters} {clusters.what}" if math.isfinite(se) else "energy unknown"
    steady = chosen.steps.steady
    part = next((of for a, of in zip(attempts, claims, strict=True) if a is chosen), ())
    undivided = sum(c.undivided_j for c in part)
    own = sum(c.energy_j for c in part) / undivided if undivided > 0 else NAN
    tokens_steady = chosen.steps.steady_tokens
    return {
        "joules_per_token": value,
        "joules_per_token_se": se,
        "joules_per_token_clusters": what,
        "steady_from_step": steady.step,
        "steady_reason": steady.reason,
        "steady_joules_per_token": chosen.steps.steady_j * own / tokens_steady
        if tokens_steady > 0
        else NAN,
    }


def idle_of(claim: Claim, options: LateOptions, *, accelerators: bool) -> tuple[float, str]:
    """A device's idle power in watts, and where the figure is from; `accelerators`: whether the
    run has any."""
    idle = options.idle_power_w
    # One number is meant for the GPUs, not for what is beside them.
    beside = accelerators and claim.domain not in ACCELERATORS
    if idle is None or (beside and not isinstance(idle, Mapping)):
        return claim.idle_w, claim.idle_source
    if isinstance(idle, Mapping):
        if claim.uuid not in idle:
            return NAN, f"{claim.uuid}: not among those given"
        return idle[claim.uuid], GIVEN
    return float(idle), GIVEN


def _wait_j(
    attempts: Sequence[Attempt], claims: Sequence[Sequence[Claim]], *, known: bool
) -> float:
    for attempt in attempts:
        ranks = attempt.ranks
        alone = len(ranks.seen) == 1
        if len(ranks.seen) != attempt.expected_ranks or not (alone or ranks.comparable):
            return NAN
    if not known:
        return NAN
    return sum(claim.wait_j for of_attempt in claims for claim in of_attempt)


def _clusters(attempts: Sequence[Attempt]) -> Clusters | None:
    """Each node of each attempt where there are enough of them, else blocks of time."""
    for kind in ("nodes", "blocks"):
        found: list[Clusters] = [c for a in attempts if (c := getattr(a.steps, kind)) is not None]
        if sum(len(c.joules) for c in found) >= LEAST_CLUSTERS:
            what = "nodes and attempts" if kind == "nodes" else found[0].what
            return Clusters(
                joules=np.concatenate([c.joules for c in found]),
                tokens=np.concatenate([c.tokens for c in found]),
                what=what,
            )
    return None


def _carbon(energy_j: float, claims: Sequence[Claim], options: LateOptions) -> tuple[float, str]:
    given = options.carbon_g_per_kwh
    if given is None or math.isnan(energy_j):
        return NAN, ""
    if not isinstance(given, CarbonSeries):
        return given * energy_j * options.pue / JOULES_PER_KWH, ""
    total = 0.0
    blind_j = 0.0
    for claim in claims:
        # what was extrapolated at a window's edges, in proportion
        scale = claim.energy_j / claim.seen_j if claim.seen_j else 1.0
        if claim.pieces is None:
            continue
        known = np.isfinite(claim.pieces.cuts.carbon_g_per_kwh)
        joules = claim.pieces.energy_j * scale
        blind_j += float(joules[~known].sum())
        grams = joules[known] * claim.pieces.cuts.carbon_g_per_kwh[known]
        total += float(grams.sum()) / JOULES_PER_KWH
    if blind_j > 0 or not all(claim.pieces for claim in claims):
        share = blind_j / energy_j if energy_j > 0 else 1.0
        return (
            NAN,
            f"{given.source} says nothing of the time of {percent(share, places=1)} of the energy",
        )
    return total * options.pue, ""
