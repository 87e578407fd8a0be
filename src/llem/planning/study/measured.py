"""What a study that ran says of its site: pass times, start, power and memory, by backend."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median, stdev

from llem.campaign import Deployment
from llem.planning.hardware import (
    LEAST_ERROR,
    METERED_QUALITIES,
    MODEL_POWER_ERROR,
    SITE_ERROR,
    Accelerator,
    weighted_mean,
)
from llem.planning.study.cost import (
    batch_of,
    batch_passes,
    decode_pass,
    memory_of_serving,
    precision_of,
    weights_s,
    with_graphs,
)
from llem.planning.study.law import ServingLaw, Timed, fit_passes, law_of


@dataclass(frozen=True, kw_only=True)
class ServedRun:
    """What one completed run has shown; NaN for what was not measured.

    `span_s` is from the first arrival to the last token; `pass_s` the median time of a decoding
    pass, of `pass_rows` sequences with `pass_context` tokens each. `rest_s` is what the run took
    besides loading, warm-up and requests, in the `first` one of an element with the start of its
    backend. `energy_j` and `device_s` are of the whole attempt.
    """

    deployment: Deployment
    span_s: float
    pass_s: float = math.nan
    pass_rows: float = math.nan
    pass_context: float = math.nan
    load_s: float = math.nan
    rest_s: float = math.nan
    first: bool = False
    warmup_rounds: float = math.nan
    energy_j: float = math.nan
    device_s: float = math.nan
    energy_quality: str = ""
    peak_memory_bytes: float = math.nan


def laws_from_runs(
    runs: Sequence[ServedRun], device: Accelerator, *, source: str
) -> dict[str, ServingLaw]:
    """The law of every backend that served; `source` names the runs for who reads a plan."""
    by_backend: dict[str, list[ServedRun]] = {}
    for run in runs:
        by_backend.setdefault(run.deployment.backend, []).append(run)
    return {
        backend: law_from_runs(found, law_of(device, backend), device, source=source)
        for backend, found in by_backend.items()
    }


def law_from_runs(
    runs: Sequence[ServedRun], prior: ServingLaw, device: Accelerator, *, source: str
) -> ServingLaw:
    """`prior` with what runs of one backend have shown. Raises ValueError without a time."""
    fitted = fit_passes([timed for run in runs for timed in _timed(run)], prior)
    law = replace(
        fitted.law,
        time_error=fitted.error,
        source=f"measured: {source}, {fitted.groups} deployment{'s' if fitted.groups > 1 else ''}",
    )
    return _with_memory(_with_power(_with_start(law, runs), runs, source), runs, device)


def _timed(run: ServedRun) -> list[Timed]:
    """The times that say how long passes take. Where requests come one by one the window tells
    nothing, for it waits for them."""
    deployment = run.deployment
    how = (precision_of(deployment), with_graphs(deployment))
    group = deployment.deployment_id
    found = []
    if deployment.arrival.rate is None and run.span_s > 0:
        share = math.ceil(deployment.prompts.count / deployment.replicas)
        full, rest = divmod(share, batch_of(deployment))
        parts = [
            (work * times, *how)
            for size, times in ((batch_of(deployment), full), (rest, 1))
            if size and times
            for work in batch_passes(deployment, size)
        ]
        found.append(Timed(parts=tuple(parts), seconds=run.span_s, group=group))
    if run.pass_s > 0 and run.pass_rows > 0 and deployment.effective.get("kv_cache") is not False:
        work = decode_pass(deployment, run.pass_rows, run.pass_context)
        found.append(Timed(parts=((work, *how),), seconds=run.pass_s, group=group))
    return found


def _with_start(law: ServingLaw, runs: Sequence[ServedRun]) -> ServingLaw:
    """The start of the backend, what each run takes besides, and loading."""
    first = [r.rest_s for r in runs if r.first and r.rest_s >= 0]
    later = [r.rest_s for r in runs if not r.first and r.rest_s >= 0]
    load_s = median(later) if later else law.load_s
    start_s = max(0.0, median(first) - load_s) if first else law.start_s
    loads = [math.log(r.load_s / weights_s(r.deployment, law)) for r in runs if r.load_s > 0]
    load = law.load * math.exp(median(loads)) if loads else law.load
    rounds = [r.warmup_rounds for r in runs if r.warmup_rounds > 0]
    return replace(
        law, load_s=load_s, start_s=start_s, load=load,
        warmup_rounds=fmean(rounds) if rounds else law.warmup_rounds,
    )  # fmt: skip


def _with_power(law: ServingLaw, runs: Sequence[ServedRun], source: str) -> ServingLaw:
    known = [r for r in runs if r.energy_j > 0 and r.device_s > 0]
    watts, error = weighted_mean([(r.energy_j / r.device_s, r.device_s) for r in known])
    if not watts > 0:
        return law
    # How much one deployment's power differs from the mean of all, not how well that is known.
    differ = [math.log(r.energy_j / r.device_s / watts) for r in known]
    error = max(LEAST_ERROR, stdev(differ)) if len(differ) > 1 else SITE_ERROR
    metered = {r.energy_quality for r in known} <= METERED_QUALITIES
    return replace(
        law,
        power_w=watts,
        power_error=error if metered else max(MODEL_POWER_ERROR, error),
        power_source=f"{'measured' if metered else 'estimated by a model, not measured'}: {source}",
    )


def _with_memory(law: ServingLaw, runs: Sequence[ServedRun], device: Accelerator) -> ServingLaw:
    """Peaks beside what they were expected to be. Nothing is learnt of one deployment's alone."""
    by_id: Mapping[str, tuple[Deployment, float]] = {
        r.deployment.deployment_id: (r.deployment, r.peak_memory_bytes)
        for r in sorted(runs, key=lambda r: r.peak_memory_bytes)
        if r.peak_memory_bytes > 0
    }
    off = [
        math.log(peak / memory_of_serving(deployment, device).of_run)
        for deployment, peak in by_id.values()
    ]
    if len(off) < 2:
        return law
    # What an allocator keeps differs from run to run and size to size: never surer than the prior.
    error = max(law.memory_error, stdev(off))
    return replace(law, memory=math.exp(fmean(off)), memory_error=error)
