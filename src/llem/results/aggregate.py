"""Late aggregation: the records of a campaign, reduced to one row for each planned run.

Nothing is averaged on the way: joules and tokens are summed over ranks, devices and attempts, and
divided once. PUE, prices, carbon intensity and idle power come in here, so that they can be
changed without running anything again.

    energy_j       sum over attempts and non-overlapping devices of I(t1) - I(t0)
    tokens         sum over step numbers of the unique tokens of all ranks, taken from the last
                   attempt that holds the step: what was redone after a resume counts once
    flops          tokens x (the plan's FLOPs / the plan's tokens)
    loss           the evaluation at the last step of the attempt that completed
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llem.errors import Fault, InputError
from llem.results.attempt import Attempt, attempt_folders, read_attempt
from llem.results.claims import Claim, divide_shared, read_series, worst_quality
from llem.results.observation import NAN, Observation

JOULES_PER_KWH = 3.6e6

# How far a completed run's tokens may be off the plan before its row says so.
TOKENS_RELATIVE = 1e-9


@dataclass(frozen=True, kw_only=True)
class LateOptions:
    """What is applied late. Idle power in watts: one number for each device, or by UUID; without
    it the records' own baseline is used. None: not known, and what follows from it is NaN."""

    pue: float = 1.0
    idle_power_w: float | Mapping[str, float] | None = None
    price_per_kwh: float | None = None
    price_per_gpu_hour: float | None = None
    carbon_g_per_kwh: float | None = None
    peak_flops_per_gpu: float | None = None

    def __post_init__(self) -> None:
        if not self.pue >= 1.0:
            raise ValueError(f"pue {self.pue}: expected 1 or more")


@dataclass(frozen=True, kw_only=True)
class Aggregation:
    """One row for each planned run, in the plan's order, and every file that was not right."""

    observations: tuple[Observation, ...]
    problems: tuple[str, ...]
    options: LateOptions


def aggregate(
    campaign_dir: str | Path,
    *,
    pue: float = 1.0,
    idle_power_w: float | Mapping[str, float] | None = None,
    price_per_kwh: float | None = None,
    price_per_gpu_hour: float | None = None,
    carbon_g_per_kwh: float | None = None,
    peak_flops_per_gpu: float | None = None,
) -> Aggregation:
    """Reduce a campaign folder; reads files only, one record in memory at a time.

    Raises InputError where `plan.json` cannot be read; nothing else in the folder is fatal.
    """
    folder = Path(campaign_dir)
    plan = _read_plan(folder / "plan.json")
    options = LateOptions(
        pue=pue,
        idle_power_w=idle_power_w,
        price_per_kwh=price_per_kwh,
        price_per_gpu_hour=price_per_gpu_hour,
        carbon_g_per_kwh=carbon_g_per_kwh,
        peak_flops_per_gpu=peak_flops_per_gpu or _peak_flops(plan),
    )
    problems: list[str] = []
    planned = [dict(run) for run in plan["runs"]]
    attempts: list[list[Attempt]] = []
    for run in planned:
        read = [
            read_attempt(number, path, run=run)
            for number, path in attempt_folders(folder / "runs" / str(run["run_id"]))
        ]
        for attempt in read:
            problems += attempt.problems
            if not attempt.began:
                problems.append(f"{attempt.folder}: neither records nor an end record")
        attempts.append([attempt for attempt in read if attempt.began])
    problems += _unplanned(folder / "runs", {str(run["run_id"]) for run in planned})
    divided = iter(_divide([a.claims for of_run in attempts for a in of_run]))
    observations = []
    for run, of_run in zip(planned, attempts, strict=True):
        claims = [next(divided) for _ in of_run]
        observations.append(_observation(run, of_run, claims, options, problems))
    return Aggregation(observations=tuple(observations), problems=tuple(problems), options=options)


def _read_plan(path: Path) -> Mapping[str, Any]:
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(str(path), [error.strerror or str(error)]) from None
    except ValueError as error:
        raise InputError(str(path), [f"not JSON: {error}"]) from None
    runs = plan.get("runs") if isinstance(plan, dict) else None
    if not isinstance(runs, list) or not all(isinstance(r, dict) and "run_id" in r for r in runs):
        raise InputError(str(path), [Fault("runs", "expected a list of runs, each with a run_id")])
    return dict(plan)


def _peak_flops(plan: Mapping[str, Any]) -> float | None:
    site = plan.get("site")
    for part in ("device", "gpu"):
        found = (site.get(part) or {}).get("peak_flops") if isinstance(site, dict) else None
        if isinstance(found, (int, float)) and found > 0:
            return float(found)
    return None


def _unplanned(runs: Path, planned: set[str]) -> list[str]:
    found = sorted(runs.iterdir()) if runs.is_dir() else []
    return [f"{path}: not in the plan, left out" for path in found if path.name not in planned]


def _divide(groups: Sequence[Sequence[Claim]]) -> Iterator[list[Claim]]:
    """Divide what runs shared, over the whole campaign; grouped as they came."""
    flat = [claim for group in groups for claim in group]
    divided = iter(divide_shared(flat, read_series))
    for group in groups:
        yield [next(divided) for _ in group]


def _observation(
    run: Mapping[str, Any],
    attempts: Sequence[Attempt],
    claims: Sequence[Sequence[Claim]],
    options: LateOptions,
    problems: list[str],
) -> Observation:
    layout = run.get("layout") or {}
    nodes = int(layout.get("nodes", 1))
    base: dict[str, Any] = {
        "run_id": str(run["run_id"]),
        "seed": run.get("seed"),
        "level": run.get("level"),
        "params": run.get("params"),
        "params_nonembedding": run.get("params_nonembedding"),
        "tokens_planned": float(run.get("tokens", NAN)),
        "flops_planned": float(run.get("flops", NAN)),
        "expected_steps": int(run.get("steps", 0)),
        "workload": str(run.get("workload", "training")),
        "expected_nodes": nodes,
        "expected_ranks": nodes * int(layout.get("gpus_per_node", 1)),
    }
    if not attempts:
        reason = "no attempt has left a record"
        return Observation(**base, reason=reason, energy_reason=reason)
    chosen = next((a for a in reversed(attempts) if a.status == "completed"), attempts[-1])
    loss, loss_se, loss_reason = _loss(chosen)
    seen, seen_reasons = _tokens_seen(attempts)
    tokens, token_reasons = _tokens(chosen, attempts, seen)
    steps_seen = len(np.unique(np.concatenate([a.ranks.steps for a in attempts])))
    if chosen.status == "completed" and tokens == tokens:
        off = abs(tokens - base["tokens_planned"])
        if off > TOKENS_RELATIVE * base["tokens_planned"]:
            token_reasons.append(f"{tokens:.0f} tokens, {base['tokens_planned']:.0f} planned")
    duration_s = sum(a.duration_s for a in attempts)
    gpu_seconds = sum(a.duration_s * a.expected_ranks for a in attempts)
    flops = tokens * _divide_or_nan(base["flops_planned"], base["tokens_planned"])
    span_s = sum(a.ranks.span_s for a in attempts if a.ranks.seen)
    busy_s = sum(a.ranks.span_s * a.expected_ranks for a in attempts if a.ranks.seen)
    energy = _energy(attempts, claims, options)
    ranks_seen = sum(len(a.ranks.seen) for a in attempts)
    ranks_expected = sum(a.expected_ranks for a in attempts)
    expected_device_s = sum(a.duration_s * a.expected_devices for a in attempts)
    coverage = min(
        1.0,
        _ratio(ranks_seen, ranks_expected),
        _ratio(steps_seen, base["expected_steps"]),
        _ratio(energy["device_seconds"], expected_device_s),
    )
    reasons = [_status_reason(chosen), loss_reason, *seen_reasons, *token_reasons]
    base |= {"expected_nodes": chosen.expected_nodes, "expected_ranks": chosen.expected_ranks}
    gpu_cost = _times(options.price_per_gpu_hour, gpu_seconds / 3600)
    facility_j = energy["energy_j"] * options.pue
    power_cost = _times(options.price_per_kwh, facility_j / JOULES_PER_KWH)
    prices = [c for c in (gpu_cost, power_cost) if c is not None]
    carbon = _times(options.carbon_g_per_kwh, facility_j / JOULES_PER_KWH)
    return Observation(
        **base,
        **energy,
        attempt=chosen.number,
        status=chosen.status,
        reason="; ".join(dict.fromkeys(r for r in reasons if r)),
        tokens=tokens,
        tokens_seen=float(seen),
        flops=flops,
        loss=loss,
        loss_se=loss_se,
        energy_facility_j=facility_j,
        joules_per_token=_divide_or_nan(energy["energy_j"], tokens),
        cost=sum(prices) if prices else NAN,
        carbon_g=NAN if carbon is None else carbon,
        duration_s=duration_s,
        gpu_seconds=gpu_seconds,
        mfu=_divide_or_nan(flops, busy_s * (options.peak_flops_per_gpu or NAN)),
        tokens_per_s=_divide_or_nan(tokens, span_s),
        nodes=chosen.nodes_seen,
        ranks=len(chosen.ranks.seen),
        coverage=coverage,
        steps_seen=steps_seen,
        expected_device_seconds=expected_device_s,
        attempts=len(attempts),
    )


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


def _tokens_seen(attempts: Sequence[Attempt]) -> tuple[int, list[str]]:
    """Unique tokens in the records, each step number counted once, and which ranks are missing."""
    by_step: dict[int, int] = {}
    reasons = []
    for attempt in attempts:
        # a later attempt that trains a step again takes the place of what was lost
        ranks = attempt.ranks
        by_step.update(zip(ranks.steps.tolist(), ranks.tokens.tolist(), strict=True))
        missing = attempt.expected_ranks - len(ranks.seen)
        if missing > 0:
            which = sorted(set(range(attempt.expected_ranks)) - set(ranks.seen))
            names = ", ".join(map(str, which[:8])) + (", ..." if len(which) > 8 else "")
            reasons.append(
                f"attempt {attempt.number}: {missing} of {attempt.expected_ranks} rank records "
                f"missing or unreadable (rank {names})"
            )
    return sum(by_step.values()), reasons


def _tokens(chosen: Attempt, attempts: Sequence[Attempt], seen: int) -> tuple[float, list[str]]:
    """Unique tokens of the run: the records' sum, or end.json's where records are missing."""
    complete = all(len(a.ranks.seen) == a.expected_ranks for a in attempts)
    told = chosen.end.tokens if chosen.end is not None else NAN
    if complete:
        if chosen.status == "completed" and told == told and told != seen:
            return float(seen), [f"end.json tells of {told:.0f} tokens, the ranks of {seen}"]
        return float(seen), []
    if chosen.status == "completed" and told == told:
        return told, ["tokens from end.json"]
    return NAN, ["tokens unknown"]


def _energy(
    attempts: Sequence[Attempt], claims: Sequence[Sequence[Claim]], options: LateOptions
) -> dict[str, Any]:
    reasons: list[str] = []
    for attempt in attempts:
        before = f"attempt {attempt.number}: " if len(attempts) > 1 else ""
        reasons += [before + reason for reason in attempt.energy_reasons]
    unknown = bool(reasons)
    every = [claim for of_attempt in claims for claim in of_attempt]
    reasons += [claim.reason for claim in every if claim.reason]
    # NaN in any device makes the sum NaN: a part is never given for the whole
    gross = NAN if unknown or not every else sum(claim.energy_j for claim in every)
    idle = sum(_idle_w(claim, options) * claim.attributed_s for claim in every)
    return {
        "energy_j": gross,
        "energy_net_j": gross - idle,
        "energy_quality": worst_quality(every) if gross == gross else "none",
        "energy_reason": "; ".join(dict.fromkeys(reasons)),
        "energy_seen_j": sum(c.seen_j for c in every) if every else NAN,
        "devices": len({claim.key for claim in every}),
        "device_seconds": sum(claim.covered_s for claim in every),
    }


def _idle_w(claim: Claim, options: LateOptions) -> float:
    idle = options.idle_power_w
    if idle is None:
        return claim.idle_w
    return idle.get(claim.uuid, NAN) if isinstance(idle, Mapping) else float(idle)


def _ratio(seen: float, expected: float) -> float:
    """A share, 0 where nothing is known; 1 where nothing was expected."""
    if expected != expected or seen != seen:
        return 0.0
    return seen / expected if expected > 0 else 1.0


def _divide_or_nan(a: float, b: float) -> float:
    return a / b if b and b == b else NAN


def _times(price: float | None, amount: float) -> float | None:
    return None if price is None else price * amount
