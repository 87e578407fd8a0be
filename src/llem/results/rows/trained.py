"""One run's attempts, reduced and divided, as one row; late options come in here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llem.results.attempt import Attempt
from llem.results.energy.claim import Claim
from llem.results.rows.energy import JOULES_PER_KWH, LateOptions, energy_columns, ratio_columns
from llem.results.tables.observation import NAN, Observation

# How far a completed run's tokens may be off the plan before its row says so.
TOKENS_RELATIVE = 1e-9


@dataclass(frozen=True, kw_only=True)
class Trained:
    """Tokens and distinct steps in a run's records, and which ranks are missing.

    `unique` are the tokens that no step before had read.
    """

    tokens: int
    unique: int
    steps: int
    reasons: tuple[str, ...]


def sum_tokens(attempts: Sequence[Attempt]) -> Trained:
    """Sum tokens over ranks and step numbers; a step counts in the last attempt with it."""
    reasons = []
    for attempt in attempts:
        ranks = attempt.ranks
        missing = attempt.expected_ranks - len(ranks.seen)
        if missing > 0:
            which = sorted(set(range(attempt.expected_ranks)) - set(ranks.seen))
            names = ", ".join(map(str, which[:8])) + (", ..." if len(which) > 8 else "")
            reasons.append(
                f"attempt {attempt.number}: {missing} of {attempt.expected_ranks} rank records "
                f"missing or unreadable (rank {names})"
            )
    # a later attempt that trains a step again takes the place of what was lost
    newest = [attempt.ranks for attempt in reversed(attempts)]
    steps, tokens, unique = (
        np.concatenate([getattr(ranks, name) for ranks in newest]) if newest else np.zeros(0, int)
        for name in ("steps", "tokens", "unique")
    )
    if len(newest) > 1:
        _, index = np.unique(steps, return_index=True)
        steps, tokens, unique = steps[index], tokens[index], unique[index]
    return Trained(
        tokens=int(tokens.sum()),
        unique=int(unique.sum()),
        steps=len(steps),
        reasons=tuple(reasons),
    )


def observe(
    run: Mapping[str, Any],
    attempts: Sequence[Attempt],
    trained: Trained,
    claims: Sequence[Sequence[Claim]],
    options: LateOptions,
) -> Observation:
    """The row of a planned run; `claims` are those of each attempt, after dividing."""
    planned = _planned(run)
    if not attempts:
        reason = "no attempt has left a record"
        return Observation(**planned, reason=reason, energy_reason=reason)
    chosen = next((a for a in reversed(attempts) if a.status == "completed"), attempts[-1])
    loss, loss_se, loss_reason = _loss(chosen)
    trunk_steps = chosen.end.trunk_steps if chosen.end is not None else 0
    before = trunk_steps * quotient(planned["tokens_planned"], planned["expected_steps"])
    planned["expected_steps"] -= trunk_steps
    tokens, token_reason = _tokens(
        chosen, attempts, trained.tokens, planned["tokens_planned"], before if trunk_steps else 0
    )
    own = tokens - before if trunk_steps else tokens
    unique = _unique(trained, own, before if trunk_steps else 0)
    flops_per_token = quotient(planned["flops_planned"], planned["tokens_planned"])
    flops = tokens * flops_per_token
    energy = energy_columns(attempts, claims, options)
    gpu_seconds = sum(a.duration_s * a.expected_ranks for a in attempts)
    # an attempt that was stopped before its first step has trained for no time
    stepped = [a for a in attempts if math.isfinite(a.ranks.span_s)]
    span_s = sum(a.ranks.span_s for a in stepped)
    busy_s = sum(a.ranks.span_s * a.expected_ranks for a in stepped)
    device_s = sum(a.duration_s * a.expected_devices for a in attempts)
    seen = sum(len(a.ranks.seen) for a in attempts)
    coverage = min(
        1.0,
        _share(seen, sum(a.expected_ranks for a in attempts)),
        _share(trained.steps, planned["expected_steps"]),
        _share(energy["device_seconds"], device_s),
    )
    reasons = [
        _status_reason(chosen),
        loss_reason,
        *trained.reasons,
        token_reason,
        *(f"attempt {a.number}: duration unknown" for a in attempts if math.isnan(a.duration_s)),
    ]
    planned |= {"expected_nodes": chosen.expected_nodes, "expected_ranks": chosen.expected_ranks}
    return Observation(
        **planned,
        **energy,
        **ratio_columns(attempts, claims, energy_j=energy["energy_j"], tokens=own, chosen=chosen),
        cost=cost_of(energy["energy_facility_j"], gpu_seconds, options),
        attempt=chosen.number,
        status=chosen.status,
        reason="; ".join(dict.fromkeys(r for r in reasons if r)),
        tokens=tokens,
        tokens_seen=float(trained.tokens),
        tokens_trunk=before if trunk_steps else 0.0,
        unique_tokens=unique,
        epochs=quotient(tokens, unique),
        flops=flops,
        loss=loss,
        loss_se=loss_se,
        duration_s=sum(a.duration_s for a in attempts),
        gpu_seconds=gpu_seconds,
        mfu=quotient(own * flops_per_token, busy_s * (options.peak_flops_per_gpu or NAN)),
        tokens_per_s=quotient(own, span_s),
        peak_memory_bytes=_peak_memory(attempts),
        nodes=chosen.nodes_seen,
        ranks=len(chosen.ranks.seen),
        coverage=coverage,
        steps_seen=trained.steps,
        expected_device_seconds=device_s,
        attempts=len(attempts),
    )


def _planned(run: Mapping[str, Any]) -> dict[str, Any]:
    """The columns that the plan alone knows."""
    layout = run.get("layout") or {}
    nodes = int(layout.get("nodes", 1))
    return {
        "run_id": str(run["run_id"]),
        "seed": run.get("seed"),
        "level": run.get("level"),
        "params": run.get("params"),
        "params_nonembedding": run.get("params_nonembedding"),
        "tokens_planned": float(run.get("tokens", NAN)),
        "flops_planned": float(run.get("flops", NAN)),
        "expected_steps": int(run.get("steps", 0)),
        "workload": str(run.get("workload", "training")),
        "rehearsal": str(run.get("rehearsal") or ""),
        "expected_nodes": nodes,
        "expected_ranks": nodes * int(layout.get("gpus_per_node", 1)),
    }


def cost_of(facility_j: float, gpu_seconds: float, options: LateOptions) -> float:
    costs = []
    if options.price_per_gpu_hour is not None:
        costs.append(options.price_per_gpu_hour * gpu_seconds / 3600)
    if options.price_per_kwh is not None:
        costs.append(options.price_per_kwh * facility_j / JOULES_PER_KWH)
    return sum(costs) if costs else NAN


def _peak_memory(attempts: Sequence[Attempt]) -> float:
    """The largest that an end record tells of; an attempt that was killed tells nothing."""
    told = [a.end.peak_memory_bytes for a in attempts if a.end is not None]
    return max((peak for peak in told if peak == peak), default=NAN)


def _status_reason(attempt: Attempt) -> str:
    if attempt.end is None:
        return f"attempt {attempt.number} has no end record: it was killed or still runs"
    if attempt.status == "completed":
        return attempt.end.reason
    return attempt.end.reason or f"attempt {attempt.number} {attempt.status}, with no reason given"


def _loss(attempt: Attempt) -> tuple[float, float, str]:
    """The completed attempt's evaluation at its last step; what others reached is no result."""
    end, ranks = attempt.end, attempt.ranks
    if end is None or attempt.status != "completed":
        return NAN, NAN, ""
    last = end.step if end.step is not None else end.steps
    if ranks.loss_step is None:
        if math.isfinite(end.loss):
            return end.loss, end.loss_se, "loss from end.json: rank 0's record holds no evaluation"
        return NAN, NAN, "no evaluation was recorded"
    if last is not None and ranks.loss_step != last:
        return NAN, NAN, f"last evaluation at step {ranks.loss_step}, the run ended at {last}"
    if not math.isfinite(ranks.loss):
        return NAN, NAN, f"the evaluation gave {ranks.loss}"
    return ranks.loss, ranks.loss_se, ""


def _unique(trained: Trained, own: float, before: float) -> float:
    """Tokens that were read for the first time, NaN where nobody knows: where records are missing,
    or where a branch begins to read again, which its trunk may have begun before it."""
    if not own == trained.tokens > 0 or (before and trained.unique < trained.tokens):
        return NAN
    return trained.unique + before


def _tokens(
    chosen: Attempt, attempts: Sequence[Attempt], seen: int, planned: float, trunk: float
) -> tuple[float, str]:
    """Tokens of the run: the records' sum, or end.json's where records are missing; with those of
    its trunk, which are in no record of its own."""
    told = chosen.end.tokens if chosen.end is not None else NAN
    completed = chosen.status == "completed"
    if any(len(a.ranks.seen) != a.expected_ranks for a in attempts):
        if completed and told == told:
            return told, "tokens from end.json"
        return NAN, "tokens unknown"
    found = float(seen) + trunk
    if completed and told == told and told != found:
        return found, f"end.json tells of {told:.0f} tokens, the ranks of {found:.0f}"
    if completed and abs(found - planned) > TOKENS_RELATIVE * planned:
        return found, f"{found:.0f} tokens, {planned:.0f} planned"
    return found, ""


def _share(seen: float, expected: float) -> float:
    """A part of what was expected: 0 where that is not known, 1 where nothing was expected."""
    if math.isnan(expected) or math.isnan(seen):
        return 0.0
    return seen / expected if expected > 0 else 1.0


def quotient(a: float, b: float) -> float:
    return a / b if b and not math.isnan(b) else NAN
