"""A rank that served a model, reduced: what of its time was what, and how its requests fared.

Its forward passes take the place of a training's steps, so that energy is divided among phases as
a training's is (`timeline`). All of its time is named: `prefill`, `decode` and `warmup` are forward
passes, `load` and `settle` what came before the measured window, and within it `idle` is when no
request was there to be served, `serve` when one was and no forward ran (its text became tokens, a
batch was put together).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llem.records import STEPS, Columns, Phase, RankRecord, RequestStatus
from llem.records.schema import SPANS
from llem.results.ranks.engine import Engine, engine_sums, engines_together
from llem.results.ranks.pool import Pool, pooled
from llem.results.ranks.timeline import IDLE_CODE, REST_CODE

Integers = NDArray[np.int64]
Table = NDArray[Any]

# Of what the measured window is made.
MEASURED = ("prefill", "decode", "serve", "idle")
BEFORE = (Phase.LOAD, Phase.WARMUP, Phase.SETTLE)
DONE = (RequestStatus.FINISHED, RequestStatus.STOPPED)
# Steps of several replicas have numbers of their own.
REPLICA_STEPS = 1 << 40


@dataclass(frozen=True, kw_only=True)
class Served:
    """The requests of one attempt. Tokens are those of requests that were done.

    `requests` came, `done` of them were served to the end. `span_ns` is from the first arrival to
    the last token, `window_ns` the measured window; of several replicas the longest. `ttft` is
    from a request's arrival to its first token, `latency` to its last, `gaps` the times between its
    tokens; `whole` are requests whose text came at once, between whose tokens no time is.
    `prefills` and `decodes` are forward passes, `sequences` the live rows of all decodes, `context`
    the tokens that these rows held; where passes are a server's own (`told_by_tokens`) they are
    what the times of its tokens tell. `prefill_ns` and `decode_ns` are how long passes took, all
    replicas' together. `attended` are pairs of a token and one that it attends to, over prompts and
    what was made of them, `attended_in` over prompts alone; `computed` and `computed_pairs` are the
    tokens and pairs that the passes computed: those of other beams, of wrong guesses, of texts
    computed again without a cache are among them. `stretch_ns` is the median of how long prefill or
    decode went on without the other. `engine` is what a server's engine told of its own steps.
    """

    replicas: int = 0
    requests: int = 0
    done: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    tokens_read: int = 0
    attended: int = 0
    attended_in: int = 0
    prefills: int = 0
    decodes: int = 0
    sequences: int = 0
    context: int = 0
    prefill_ns: int = 0
    decode_ns: int = 0
    told_by_tokens: bool = False
    computed: int = 0
    computed_pairs: int = 0
    whole: int = 0
    span_ns: int = 0
    window_ns: int = 0
    stretch_ns: int = 0
    engine: Engine = field(default_factory=Engine)
    ttft: Pool = field(default_factory=Pool)
    gaps: Pool = field(default_factory=Pool)
    latency: Pool = field(default_factory=Pool)
    reasons: tuple[str, ...] = ()


SUMMED = (
    "replicas", "requests", "done", "tokens_in", "tokens_out", "tokens_read", "attended",
    "attended_in", "prefills", "decodes", "sequences", "context", "prefill_ns", "decode_ns",
    "computed", "computed_pairs", "whole",
)  # fmt: skip
POOLS = ("ttft", "gaps", "latency")
LONGEST = ("span_ns", "window_ns", "stretch_ns")


def together(parts: Sequence[Served]) -> Served:
    """The replicas of a deployment as one."""
    if not parts:
        return Served()
    found: dict[str, Any] = {name: sum(getattr(part, name) for part in parts) for name in SUMMED}
    found |= {name: max(getattr(part, name) for part in parts) for name in LONGEST}
    found["told_by_tokens"] = any(part.told_by_tokens for part in parts)
    found |= {name: pooled(getattr(part, name) for part in parts) for name in POOLS}
    found["engine"] = engines_together([part.engine for part in parts])
    reasons = tuple(dict.fromkeys(reason for part in parts for reason in part.reasons))
    return Served(**found, reasons=reasons)


def as_training(record: RankRecord) -> RankRecord:
    """The record with its forward passes as steps and the time between them as spans; that of a
    training as it is."""
    if record.workload != "inference":
        return record
    forwards = Columns.of(record.forwards)
    forwards = forwards.take(np.argsort(forwards["t1_ns"], kind="stable"))
    steps = np.empty(len(forwards), STEPS)
    replica = int(record.meta.get("replica", 0))
    steps["step"] = replica * REPLICA_STEPS + np.arange(len(forwards))
    for name in ("t0_ns", "t1_ns", "e0_mj", "e1_mj", "phase"):
        steps[name] = forwards[name]
    # where several ranks hold one replica, the tokens are its first rank's
    own = forwards["tokens_out"] if len(record.requests) else 0
    steps["tokens_rank"] = steps["tokens_unique"] = own
    for name in ("loss", "grad_norm", "lr"):
        steps[name] = np.nan
    return replace(record, steps=steps, spans=_between(record, forwards))


def served_by(record: RankRecord) -> Served | None:
    """What a rank says of requests; None where another rank of its replica does."""
    if not len(record.requests):
        return None
    requests = record.requests
    requests = requests[np.argsort(requests["request"], kind="stable")]
    done = requests[np.isin(requests["status"], DONE) & (requests["t_last_ns"] > 0)]
    forwards = Columns.of(record.forwards)
    forwards = forwards.take(forwards["phase"] != Phase.WARMUP)
    before, after = done["tokens_in"], done["tokens_out"]
    decodes = forwards["phase"] == Phase.DECODE
    window = _window(record, forwards)
    reasons = []
    # Those of one token come at once, and stream all the same.
    whole = (done["t_first_ns"] == done["t_last_ns"]) & (after > 1) & (done["batch"] >= 0)
    gaps = _gaps(record, forwards.take(~np.isin(forwards["batch"], done["batch"][whole])))
    if len(gaps) != (expected := int(np.maximum(after - 1, 0)[~whole].sum())):
        lost = "times of tokens are missing" if len(gaps) < expected else "tokens of requests that "
        lost += "" if len(gaps) < expected else "were not done are among them"
        reasons.append(f"{len(gaps)} gaps between tokens, {expected} expected: {lost}")
    took: Integers = forwards["t1_ns"] - forwards["t0_ns"]
    passes = {
        "prefills": int((~decodes).sum()),
        "decodes": int(decodes.sum()),
        "sequences": int(forwards["live"][decodes].sum()),
        "context": int(forwards["context"][decodes].sum()),
        "prefill_ns": int(took[~decodes].sum()),
        "decode_ns": int(took[decodes].sum()),
    }
    return Served(
        replicas=1,
        requests=len(requests),
        done=len(done),
        tokens_in=int(before.sum()),
        tokens_out=int(after.sum()),
        tokens_read=int((before + np.maximum(after - 1, 0)).sum()),
        attended=int(_attended(before, np.maximum(after - 1, 0)).sum()),
        attended_in=int((before * (before + 1) // 2).sum()),
        computed=int(forwards["tokens_in"].sum()),
        computed_pairs=int(forwards["attended"].sum()),
        whole=int(whole.sum()),
        **(passes if len(forwards) else passes_by_tokens(record.tokens, done)),
        span_ns=int(done["t_last_ns"].max() - done["t_arrival_ns"].min()) if len(done) else 0,
        window_ns=window[1] - window[0],
        stretch_ns=_stretch_ns(forwards),
        engine=_engine(record),
        ttft=Pool.of(done["t_first_ns"] - done["t_arrival_ns"]),
        gaps=gaps,
        latency=Pool.of(done["t_last_ns"] - done["t_arrival_ns"]),
        reasons=tuple(reasons),
    )


def _engine(record: RankRecord) -> Engine:
    """By all requests that were sent; one that was never answered is there to the end."""
    requests = record.requests[record.requests["t_start_ns"] > 0]
    end = int(record.engine["t_ns"].max()) if len(record.engine) else 0
    left = np.where(requests["t_last_ns"] > 0, requests["t_last_ns"], end)
    return engine_sums(record.engine, sent_ns=requests["t_start_ns"], left_ns=left)


def _attended(before: Integers, after: Integers) -> Integers:
    """Pairs in causal attention: a prompt's n tokens see n(n+1)/2, the k-th after it n+k."""
    pairs: Integers = before * (before + 1) // 2 + after * before + after * (after + 1) // 2
    return pairs


def passes_by_tokens(tokens: Table, done: Table) -> dict[str, Any]:
    """Passes of a server that batches as it goes, by when the tokens of `done` requests came.

    Each sequence that is under way gets one token of a decoding pass: a token that came while c
    sequences were is a c-th of one. Prompts whose first tokens came together, less than half of a
    usual gap between tokens apart, were read in one pass.
    """
    tokens = tokens[np.isin(tokens["request"], done["request"])]
    later = tokens[tokens["index"] > 0]
    if not len(done) or not len(later):
        return {"told_by_tokens": bool(len(tokens)), "prefills": len(done) if len(tokens) else 0}
    order = np.argsort(done["request"], kind="stable")
    of = order[np.searchsorted(done["request"], later["request"], sorter=order)]
    first, last = np.sort(done["t_first_ns"]), np.sort(done["t_last_ns"])
    at: Integers = later["t_ns"]
    # under way: those that had a token before, and are not done before this one
    there = np.searchsorted(first, at, "left") - np.searchsorted(last, at, "left")
    # a piece of a stream may hold several tokens
    each = np.maximum(done["tokens_out"] - 1, 0) / np.maximum(
        np.bincount(of, minlength=len(done)), 1
    )
    held = done["tokens_in"][of] + 1 + later["index"] * each[of]
    gap = np.median(
        (done["t_last_ns"] - done["t_first_ns"]) / np.maximum(done["tokens_out"] - 1, 1)
    )
    return {
        "told_by_tokens": True,
        "prefills": 1 + int((np.diff(first) > gap / 2).sum()),
        "decodes": round(float((each[of] / np.maximum(there, 1)).sum())),
        "sequences": round(float(each[of].sum())),
        "context": round(float((each[of] * held).sum())),
    }


def _gaps(record: RankRecord, forwards: Columns) -> Pool:
    """The times between the tokens of each request."""
    if len(record.tokens):
        tokens = record.tokens[np.lexsort((record.tokens["index"], record.tokens["request"]))]
        same = tokens["request"][1:] == tokens["request"][:-1]
        return Pool.of(np.diff(tokens["t_ns"])[same])
    order = np.lexsort((forwards["t1_ns"], forwards["batch"]))
    batch, ends = forwards["batch"][order], forwards["t1_ns"][order]
    follows = np.zeros(len(order), dtype=bool)
    follows[1:] = batch[1:] == batch[:-1]
    follows &= forwards["phase"][order] == Phase.DECODE
    ns = np.diff(ends, prepend=ends[:1])
    # each live row of a batch that a forward gave a token had one from the forward before it;
    # further tokens of a forward (guesses that were right) come together with its first
    gave, live = forwards["tokens_out"][order], forwards["live"][order]
    first = np.minimum(gave, live)
    together = Pool.of(np.zeros(1, dtype=np.int64), np.array([int((gave - first).sum())]))
    return pooled([Pool.of(ns[follows], first[follows]), together])


def _stretch_ns(forwards: Columns) -> int:
    phase = forwards["phase"]
    if not len(phase):
        return 0
    new = np.flatnonzero(np.concatenate([[True], phase[1:] != phase[:-1]]))
    last = np.append(new[1:], len(phase)) - 1
    return int(np.median(forwards["t1_ns"][last] - forwards["t0_ns"][new]))


def _window(record: RankRecord, forwards: Columns) -> tuple[int, int]:
    """The measured window: its span, or where that was never written, what was measured."""
    spans = record.spans[record.spans["phase"] == Phase.SERVE]
    if len(spans):
        return int(spans["t0_ns"].min()), int(spans["t1_ns"].max())
    moments = [*forwards["t0_ns"][:1].tolist(), *forwards["t1_ns"][-1:].tolist()]
    for name in ("t_arrival_ns", "t_last_ns"):
        known = record.requests[name][record.requests[name] > 0]
        moments += [int(known.min()), int(known.max())] if len(known) else []
    return (min(moments), max(moments)) if moments else (0, 0)


def _between(record: RankRecord, forwards: Columns) -> Table:
    """Spans of all the time that no forward takes, cut by what it was.

    Within a batch the host's work between two forwards belongs to the later one.
    """
    bases = _bases(record, forwards.take(forwards["phase"] != Phase.WARMUP))
    if not bases:
        return np.empty(0, SPANS)
    begin, end = bases[0][0], bases[-1][1]
    starts, ends = forwards["t0_ns"], forwards["t1_ns"]
    apart = np.ones(len(starts), dtype=bool)
    apart[1:] = forwards["batch"][1:] != forwards["batch"][:-1]
    # a gap ends where a batch begins, and where all ends
    from_ns = np.concatenate([[begin], ends])[np.append(apart, True)]
    to_ns = np.concatenate([starts, [end]])[np.append(apart, True)]
    from_mj = np.concatenate([[np.nan], forwards["e1_mj"]])[np.append(apart, True)]
    to_mj = np.concatenate([forwards["e0_mj"], [np.nan]])[np.append(apart, True)]
    edges = np.array(sorted({t for base in bases for t in base[:2]}))
    first = np.array([base[0] for base in bases])
    rows = []
    for a, b, mj_a, mj_b in zip(
        from_ns.tolist(), to_ns.tolist(), from_mj.tolist(), to_mj.tolist(), strict=True
    ):
        if b <= a:
            continue
        inner = edges[np.searchsorted(edges, a, "right") : np.searchsorted(edges, b)].tolist()
        cuts = [a, *inner, b]
        for k, (t0, t1) in enumerate(pairwise(cuts)):
            place = int(np.searchsorted(first, t0, "right")) - 1
            inside = place >= 0 and t0 < bases[place][1]
            rows.append(
                (
                    0, t0, t1, mj_a if k == 0 else np.nan, mj_b if t1 == b else np.nan,
                    bases[place][2] if inside else REST_CODE,
                )
            )  # fmt: skip
    return np.array(rows, SPANS)


def _bases(record: RankRecord, measured: Columns) -> list[tuple[int, int, int]]:
    """What the rank's time was for, without overlap: (from, to, code) in order."""
    found = [
        (int(span["t0_ns"]), int(span["t1_ns"]), int(span["phase"]))
        for span in record.spans[np.isin(record.spans["phase"], BEFORE)]
    ]
    window = _window(record, measured)
    if window[1] > window[0]:
        found += _busy_and_idle(record, window)
    found.sort()
    at = found[0][0] if found else 0
    clean = []
    for t0, t1, code in found:
        t0 = max(t0, at)
        if t1 > t0:
            clean.append((t0, t1, code))
            at = t1
    return clean


def _busy_and_idle(record: RankRecord, window: tuple[int, int]) -> list[tuple[int, int, int]]:
    """The measured window by whether a request was there, arrived and not yet answered."""
    t0, t1 = window
    requests = record.requests
    if not len(requests):
        return [(t0, t1, int(Phase.SERVE))]
    arrived = requests["t_arrival_ns"]
    # one that was never answered is there to the end
    left = np.where(requests["t_last_ns"] > 0, requests["t_last_ns"], t1)
    order = np.argsort(arrived, kind="stable")
    arrived, left = arrived[order], np.maximum.accumulate(left[order])
    new = np.concatenate([[True], arrived[1:] > left[:-1]])
    begins = arrived[new]
    ends = left[np.append(np.flatnonzero(new)[1:], len(left)) - 1]
    found = []
    at = t0
    for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
        begin, end = min(max(begin, at), t1), min(end, t1)
        if begin > at:
            found.append((at, begin, IDLE_CODE))
        if end > begin:
            found.append((begin, end, int(Phase.SERVE)))
        at = max(at, end, begin)
    if at < t1:
        found.append((at, t1, IDLE_CODE))
    return found
