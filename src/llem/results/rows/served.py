"""One run of a served model as one row: what it cost and how fast it answered; late options."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from llem._numerals import format_duration
from llem.results.attempt import Attempt
from llem.results.energy.claim import Claim
from llem.results.energy.counter import COUNTER_PERIOD_S
from llem.results.energy.slowdown import slowed_columns
from llem.results.ranks.pool import Pool
from llem.results.ranks.served import MEASURED, Served, together
from llem.results.ranks.timeline import PHASES, Cuts
from llem.results.rows.energy import LateOptions, energy_columns
from llem.results.rows.engine import engine_columns
from llem.results.rows.phases import phase_energy
from llem.results.rows.trained import cost_of, quotient
from llem.results.tables.observation import NAN

PERCENTILES = (50, 90, 99)
# Columns of percentiles, and the pool each is of.
POOLED = {"ttft": "ttft", "itl": "gaps", "latency": "latency"}


@dataclass(frozen=True, kw_only=True)
class ServedRow:
    """What one planned run of a served model gave. Unknown numbers are NaN, and a reason says why.

    All of it is of the measured window of the attempt that completed, unless said otherwise; the
    window is from the first arrival to the last token, after loading, warm-up and settling.

    status            completed, interrupted, failed (the end record's word), unfinished, missing
    requests          that came, of expected_requests; requests_done were served to the end
    tokens_in/out     of the requests that were done
    energy_j          gross: prefill_j + decode_j + host_j (a request was there, no forward pass
                      ran) + idle_j (none was there)
    energy_net_j      less idle power x time, never clipped; idle_source says whose idle power
    energy_total_j    of all attempts, with loading, warm-up and what failed
    split_reason      why prefill_j and decode_j are not known, or are told apart by time alone
    j_per_token       energy_j / tokens_out; prefill_j_per_token is per token of a prompt,
                      decode_j_per_token per token after a request's first
    ttft_*            arrival to first token; itl_* between tokens, NaN where texts came whole (beam
                      search); latency_* arrival to last token
    tokens_per_s      tokens_out / span_s, from the first arrival to the last token
    batch_mean        live rows of a decoding forward pass; context_mean, tokens each holds
    layers, width, vocabulary   of the model, by the plan; kv_per_token: numbers that its KV cache
                      keeps of a token
    prefills, decodes forward passes; of a server, whose passes are its own, `passes_by` is
                      "tokens": told from when tokens came
    prefill_s, decode_s   how long passes took, all replicas' together; NaN where not recorded
    pairs_in          pairs of tokens that attend to each other in the prompts
    flops             forward FLOPs of prompts and tokens with attention; mfu is flops / (span_s x
                      ranks x peak). flops_computed are those of all that the passes computed in
                      live rows: all beams, wrong guesses, texts computed again without a cache
    wait_energy_j     as a training's, of all forward passes of the attempt
    slowed_s          device-seconds slowed by heat or supply, capped_s at the power limit, by the
                      devices' own word; NaN where none tells
    coverage          least of requests, ranks and device-seconds seen / expected
    """

    run_id: str
    deployment_id: str = ""
    cycle: int = 0
    attempt: int | None = None
    status: str = "missing"
    reason: str = ""
    model: str = ""
    backend: str = ""
    params: int | None = None
    params_nonembedding: int | None = None
    layers: int | None = None
    width: int | None = None
    vocabulary: int | None = None
    kv_per_token: int | None = None
    requests: int = 0
    requests_done: int = 0
    tokens_in: float = NAN
    tokens_out: float = NAN
    duration_s: float = NAN
    span_s: float = NAN
    energy_j: float = NAN
    energy_net_j: float = NAN
    energy_facility_j: float = NAN
    prefill_j: float = NAN
    decode_j: float = NAN
    host_j: float = NAN
    idle_j: float = NAN
    split_reason: str = ""
    energy_quality: str = "none"
    energy_reason: str = ""
    energy_domains: str = ""
    energy_seen_j: float = NAN
    energy_total_j: float = NAN
    idle_source: str = ""
    j_per_token: float = NAN
    j_per_request: float = NAN
    prefill_j_per_token: float = NAN
    decode_j_per_token: float = NAN
    ttft_p50_s: float = NAN
    ttft_p90_s: float = NAN
    ttft_p99_s: float = NAN
    itl_p50_s: float = NAN
    itl_p90_s: float = NAN
    itl_p99_s: float = NAN
    latency_p50_s: float = NAN
    latency_p90_s: float = NAN
    latency_p99_s: float = NAN
    tokens_per_s: float = NAN
    requests_per_s: float = NAN
    batch_mean: float = NAN
    context_mean: float = NAN
    prefills: int = 0
    decodes: int = 0
    passes_by: str = ""
    prefill_s: float = NAN
    decode_s: float = NAN
    pairs_in: float = NAN
    peak_memory_bytes: float = NAN
    peak_memory_window_bytes: float = NAN
    flops: float = NAN
    flops_computed: float = NAN
    mfu: float = NAN
    load_s: float = NAN
    cost: float = NAN
    carbon_g: float = NAN
    carbon_reason: str = ""
    gpu_seconds: float = NAN
    wait_energy_j: float = NAN
    slowed_s: float = NAN
    capped_s: float = NAN
    ranks: int = 0
    replicas: int = 0
    nodes: int = 0
    devices: int = 0
    device_seconds: float = 0.0
    device_coverage: float = 0.0
    coverage: float = 0.0
    attempts: int = 0
    expected_requests: int = 0
    expected_ranks: int = 0
    expected_nodes: int = 0
    workload: str = "inference"
    rehearsal: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)


# The columns that every study has; those of `settings` differ from study to study: what was asked
# of the run and, of a server that tells it, what its engine did (`engine.*`).
FIXED = tuple(f.name for f in fields(ServedRow) if f.name != "settings")


def observe_served(
    run: Mapping[str, Any],
    attempts: Sequence[Attempt],
    claims: Sequence[Sequence[Claim]],
    options: LateOptions,
) -> tuple[ServedRow, Served]:
    """The row of a planned run with the samples behind it; `claims` are each attempt's, divided."""
    planned = _planned(run)
    if not attempts:
        reason = "no attempt has left a record"
        settings = settings_of(run, {})
        return ServedRow(
            **planned, reason=reason, energy_reason=reason, settings=settings
        ), Served()
    chosen = next((a for a in reversed(attempts) if a.status == "completed"), attempts[-1])
    own = next(of for a, of in zip(attempts, claims, strict=True) if a is chosen)
    served = together(chosen.ranks.served)
    measured = [_measured(claim) for claim in own]
    whole = energy_columns(attempts, claims, options)
    energy = energy_columns([chosen], [measured], options)
    joules = energy["energy_j"]
    duration_s = served.window_ns / 1e9 or NAN
    span_s = served.span_ns / 1e9 or NAN
    flops = _flops(run, served)
    gpu_seconds = duration_s * chosen.expected_ranks
    peak = (options.peak_flops_per_gpu or NAN) * span_s * chosen.expected_ranks
    expected = planned["expected_requests"]
    tokens_in = float(served.tokens_in) if served.done else NAN
    tokens_out = float(served.tokens_out) if served.done else NAN
    split = _split(chosen, own, served)
    reasons = _reasons(chosen, served, expected)
    if math.isfinite(joules) and not math.isfinite(whole["energy_j"]):
        reasons.append(f"energy_total_j is not known: {whole['energy_reason']}")
    end = chosen.end
    settings = settings_of(run, end.effective if end is not None else {})
    row = ServedRow(
        **{**planned, "expected_ranks": chosen.expected_ranks,
           "expected_nodes": chosen.expected_nodes},
        **energy,
        **split,
        **slowed_columns(measured),
        **_percentiles(served),
        attempt=chosen.number,
        status=chosen.status,
        reason="; ".join(dict.fromkeys(r for r in reasons if r)),
        requests=served.requests,
        requests_done=served.done,
        tokens_in=tokens_in,
        tokens_out=tokens_out,
        duration_s=duration_s,
        span_s=span_s,
        energy_total_j=whole["energy_j"],
        j_per_token=quotient(joules, tokens_out),
        j_per_request=quotient(joules, served.done),
        prefill_j_per_token=quotient(split["prefill_j"], tokens_in),
        decode_j_per_token=quotient(split["decode_j"], tokens_out - served.done),
        tokens_per_s=quotient(tokens_out, span_s),
        requests_per_s=quotient(float(served.done), span_s),
        batch_mean=quotient(float(served.sequences), served.decodes),
        context_mean=quotient(float(served.context), served.sequences),
        prefills=served.prefills,
        decodes=served.decodes,
        passes_by=_passes_by(served),
        prefill_s=served.prefill_ns / 1e9 if served.prefill_ns else NAN,
        decode_s=served.decode_ns / 1e9 if served.prefill_ns else NAN,
        pairs_in=float(served.attended_in) if served.done else NAN,
        peak_memory_bytes=end.peak_memory_bytes if end is not None else NAN,
        peak_memory_window_bytes=end.peak_memory_window_bytes if end is not None else NAN,
        load_s=end.load_s if end is not None else NAN,
        flops=flops,
        flops_computed=_flops_computed(run, served),
        mfu=quotient(flops, peak),
        cost=cost_of(energy["energy_facility_j"], gpu_seconds, options),
        gpu_seconds=gpu_seconds,
        ranks=len(chosen.ranks.seen),
        replicas=served.replicas,
        nodes=chosen.nodes_seen,
        attempts=len(attempts),
        coverage=min(
            1.0,
            quotient(float(served.done), expected) if expected else 1.0,
            quotient(float(len(chosen.ranks.seen)), chosen.expected_ranks),
            min((c.coverage for c in measured), default=0.0),
        ),
        settings={
            **settings,
            **engine_columns(served.engine, batch_size=settings.get("effective.batch_size")),
        },
    )  # fmt: skip
    return row, served


def settings_of(run: Mapping[str, Any], effective: Mapping[str, Any]) -> dict[str, Any]:
    """What was asked of a run, by the keys of the campaign file, and `effective.*`, what became of
    it: the backend's own word over the plan's. None: not asked, or not known."""
    found: dict[str, Any] = {}
    for group, names in (
        ("layout", ("nodes", "gpus_per_node")),
        ("arrival", ("kind", "rate")),
        ("prompts", ("kind", "count", "input_tokens", "output_tokens")),
    ):
        values = run.get(group) or {}
        found |= {f"{group}.{name}": values.get(name) for name in names}
    found |= {f"options.{name}": value for name, value in (run.get("options") or {}).items()}
    known = {**(run.get("effective") or {}), **effective}
    found |= {f"effective.{name}": value for name, value in known.items()}
    return {name: _plain(value) for name, value in found.items()}


def _plain(value: Any) -> Any:
    """A number or a text: what a column can hold."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None or isinstance(value, (int, float, str)):
        return value
    return json.dumps(value, sort_keys=True)


def _planned(run: Mapping[str, Any]) -> dict[str, Any]:
    layout = run.get("layout") or {}
    nodes = int(layout.get("nodes", 1))
    model = run.get("model")
    return {
        "run_id": str(run["run_id"]),
        "deployment_id": str(run.get("deployment_id", "")),
        "cycle": int(run.get("seed", 0)),
        "model": str(model.get("name", "") if isinstance(model, Mapping) else model or ""),
        "backend": str(run.get("backend", "")),
        "params": run.get("params"),
        "params_nonembedding": run.get("params_nonembedding"),
        **_shape(model),
        "kv_per_token": _kv_per_token(model),
        "expected_requests": int((run.get("prompts") or {}).get("count", 0)),
        "expected_nodes": nodes,
        "expected_ranks": nodes * int(layout.get("gpus_per_node", 1)),
        "rehearsal": str(run.get("rehearsal") or ""),
    }


def _shape(model: Any) -> dict[str, int | None]:
    names = ("layers", "width", "vocabulary")
    known = model if isinstance(model, Mapping) else {}
    return {name: int(known[name]) if known.get(name) else None for name in names}


def _passes_by(served: Served) -> str:
    if served.told_by_tokens:
        return "tokens"
    return "records" if served.prefills else ""


def _kv_per_token(model: Any) -> int | None:
    """Keys and values of all layers."""
    try:
        return 2 * int(model["layers"]) * int(model["kv_heads"]) * int(model["head_size"])
    except (KeyError, TypeError):
        return None


def _measured(claim: Claim) -> Claim:
    """The part of a claim that lies in the measured window."""
    if claim.pieces is None:
        return replace(claim, energy_j=NAN)
    cuts = claim.pieces.cuts
    kept = np.isin(cuts.phase, [PHASES.index(name) for name in MEASURED])
    if not kept.any():
        reason = f"{claim.uuid}: no measured window in its samples"
        return replace(claim, energy_j=NAN, pieces=None, reason=reason)
    inside = Cuts(
        t0_ns=cuts.t0_ns[kept],
        t1_ns=cuts.t1_ns[kept],
        phase=cuts.phase[kept],
        carbon_g_per_kwh=cuts.carbon_g_per_kwh[kept],
    )
    joules = claim.pieces.energy_j[kept]
    share = float((inside.t1_ns - inside.t0_ns).sum()) / 1e9 / claim.duration_s
    total = float(joules.sum())
    return replace(
        claim,
        t0_ns=int(inside.t0_ns[0]),
        t1_ns=int(inside.t1_ns[-1]),
        pieces=replace(
            claim.pieces,
            cuts=inside,
            energy_j=joules,
            slowed_s=None if claim.pieces.slowed_s is None else claim.pieces.slowed_s[kept],
            capped_s=None if claim.pieces.capped_s is None else claim.pieces.capped_s[kept],
        ),
        # a claim whose energy is not known is not known in its parts either
        energy_j=total if math.isfinite(claim.energy_j) else NAN,
        undivided_j=total if math.isfinite(claim.energy_j) else NAN,
        seen_j=total,
        covered_s=claim.covered_s * share,
        attributed_s=claim.attributed_s * share,
    )


def _split(attempt: Attempt, claims: Sequence[Claim], served: Served) -> dict[str, Any]:
    """The measured energy by phase."""
    by_phase = {row.phase: row.energy_j for row in phase_energy("", attempt, claims)}
    known = any(math.isfinite(joules) for joules in by_phase.values())
    zero = 0.0 if known else NAN
    found = {
        "prefill_j": by_phase.get("prefill", zero),
        "decode_j": by_phase.get("decode", zero),
        "host_j": by_phase.get("serve", zero),
        "idle_j": by_phase.get("idle", zero),
    }
    reason = ""
    if served.told_by_tokens or not served.prefills:
        reason = "forward passes are the server's own: prefill and decode are not told apart"
    elif served.replicas > 1:
        reason = _mixed(attempt, claims, served)
    if reason:
        found |= {"prefill_j": NAN, "decode_j": NAN, "host_j": NAN}
    elif known and served.stretch_ns < COUNTER_PERIOD_S * 1e9:
        reason = (
            f"prefill and decode go on for {format_duration(served.stretch_ns / 1e9)} "
            "at a time, and a "
            f"counter tells no times under {COUNTER_PERIOD_S * 1e3:.0f} ms apart: divided by time"
        )
    return {**found, "split_reason": reason}


def _mixed(attempt: Attempt, claims: Sequence[Claim], served: Served) -> str:
    """Why the passes of replicas cannot be told apart on what was measured; empty where each device
    is one replica's own, whose passes then divide its energy."""
    used = attempt.ranks.device_uuids or frozenset()
    others = sorted({claim.uuid for claim in claims} - used)
    if not used or len(used) < len(attempt.ranks.seen):
        what = "share what was measured"
    elif others:
        what = f"do not compute on all that was measured ({', '.join(others)})"
    else:
        return ""
    return f"{served.replicas} replicas {what}, and decode while others prefill: not told apart"


def _percentiles(served: Served) -> dict[str, Any]:
    return {
        f"{name}_p{percent}_s": pool.percentile_s(percent)
        for name, pool in pools_of(served).items()
        for percent in PERCENTILES
    }


def pools_of(served: Served) -> dict[str, Pool]:
    """The samples that percentiles are of, by the name of their columns."""
    return {name: getattr(served, pool) for name, pool in POOLED.items()}


def _flops(run: Mapping[str, Any], served: Served) -> float:
    """Matrix products of all tokens that were read, and attention over those before them: two
    products of `head_size` for each head, layer and pair of tokens, a multiply-add counted as two.
    """
    return _forward_flops(run, served.tokens_read, served.attended) if served.done else NAN


def _flops_computed(run: Mapping[str, Any], served: Served) -> float:
    """The same of all that was computed; unknown where forward passes are a server's own."""
    if not served.computed:
        return NAN
    return _forward_flops(run, served.computed, served.computed_pairs)


def _forward_flops(run: Mapping[str, Any], tokens: int, pairs: int) -> float:
    model = run.get("model")
    if not isinstance(model, Mapping):
        return NAN
    try:
        pair = 4.0 * model["layers"] * model["heads"] * model["head_size"]
        return float(tokens * model["flops_per_token_forward"] + pairs * pair)
    except (KeyError, TypeError):
        return NAN


def _reasons(attempt: Attempt, served: Served, expected: int) -> list[str]:
    found = []
    if attempt.end is None:
        found.append(f"attempt {attempt.number} has no end record: it was killed or still runs")
    elif attempt.status == "completed":
        found.append(attempt.end.reason)
    else:
        told = f"attempt {attempt.number} {attempt.status}, with no reason given"
        found.append(attempt.end.reason or told)
    missing = attempt.expected_ranks - len(attempt.ranks.seen)
    if missing > 0:
        found.append(f"{missing} of {attempt.expected_ranks} rank records missing or unreadable")
    if expected and served.requests != expected:
        found.append(f"{served.requests} requests were seen, {expected} expected")
    if served.done != served.requests:
        found.append(f"{served.requests - served.done} of {served.requests} requests not done")
    return [*found, *served.reasons]
