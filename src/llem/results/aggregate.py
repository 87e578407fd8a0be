"""Late aggregation: the records of a campaign, reduced to one row for each planned run.

Nothing is averaged on the way: joules and tokens are summed over ranks, devices and attempts, and
divided once. PUE, prices, carbon intensity and idle power come in here, so that they can be
changed without running anything again.

    energy_j       sum over attempts and non-overlapping devices of I(t1) - I(t0)
    tokens         sum over step numbers of the tokens of all ranks, taken from the last
                   attempt that holds the step: what was redone after a resume counts once
    flops          tokens x (the plan's FLOPs / the plan's tokens)
    loss           the evaluation at the last step of the attempt that completed
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llem.errors import Fault, InputError
from llem.results.carbon import CarbonSeries
from llem.results.claims import Claim, divide_shared, read_series
from llem.results.encoding import decode
from llem.results.energy import LateOptions
from llem.results.observation import Observation
from llem.results.phases import DeviceRow, PhaseEnergy, device_rows, phase_energy
from llem.results.reduction import Inputs, Reduction, inputs_of
from llem.results.row import observe
from llem.results.stored import Store
from llem.results.workers import reduce_runs


@dataclass(frozen=True, kw_only=True)
class Aggregation:
    """One row for each planned run, in the plan's order, one for each phase and each device of
    its attempts, and every file that was not right."""

    observations: tuple[Observation, ...]
    phases: tuple[PhaseEnergy, ...]
    devices: tuple[DeviceRow, ...]
    problems: tuple[str, ...]
    options: LateOptions


def aggregate(
    campaign_dir: str | Path,
    *,
    pue: float = 1.0,
    idle_power_w: float | Mapping[str, float] | None = None,
    price_per_kwh: float | None = None,
    price_per_gpu_hour: float | None = None,
    carbon_g_per_kwh: float | CarbonSeries | None = None,
    peak_flops_per_gpu: float | None = None,
    workers: int | None = None,
    cache: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Aggregation:
    """Reduce a campaign folder; reads files only, one record of a process in memory at a time.

    `workers` processes reduce runs at once, by default as many as this one may use processors
    where there is enough to do. `cache` is a file that keeps reductions: runs whose files have not
    changed are not read again. Neither changes a byte of the result. `progress` is told how many
    runs are done, of all.

    Raises InputError where `plan.json` cannot be read; nothing else in the folder is fatal.
    """
    folder = Path(campaign_dir)
    plan = read_plan(folder / "plan.json")
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
    reductions = _reductions(
        folder, planned, options.carbon_series, workers=workers, cache=cache, progress=progress,
        problems=problems,
    )  # fmt: skip
    for reduction in reductions:
        problems += reduction.problems
    attempts = [reduction.attempts for reduction in reductions]
    problems += _unplanned(folder / "runs", {str(run["run_id"]) for run in planned})
    divided = iter(_divide([a.claims for of_run in attempts for a in of_run]))
    observations = []
    phases: list[PhaseEnergy] = []
    devices: list[DeviceRow] = []
    for run, reduction in zip(planned, reductions, strict=True):
        of_run = reduction.attempts
        claims = [next(divided) for _ in of_run]
        observations.append(observe(run, of_run, reduction.trained, claims, options))
        for attempt, own in zip(of_run, claims, strict=True):
            phases += phase_energy(str(run["run_id"]), attempt, own)
            devices += device_rows(str(run["run_id"]), attempt, own, options)
    problems += _unlike(observations)
    return Aggregation(
        observations=tuple(observations),
        phases=tuple(phases),
        devices=tuple(devices),
        problems=tuple(problems),
        options=options,
    )


def _reductions(
    folder: Path,
    planned: Sequence[Mapping[str, Any]],
    carbon: CarbonSeries | None,
    *,
    workers: int | None,
    cache: str | Path | None,
    progress: Callable[[int, int], None] | None,
    problems: list[str],
) -> list[Reduction]:
    """Each planned run's, in the plan's order; what was wrong with the cache is a problem."""
    found: list[Reduction | None] = [None] * len(planned)
    looked_ns = time.time_ns()
    inputs = [inputs_of(folder, run, carbon=carbon) for run in planned]
    done = 0
    with Store(Path(cache), folder) if cache is not None else nullcontext() as store:
        if store is not None:
            found = [
                store.find(str(run["run_id"]), its)
                for run, its in zip(planned, inputs, strict=True)
            ]
        left = [index for index, known in enumerate(found) if known is None]
        done = len(planned) - len(left)
        runs = [planned[index] for index in left]
        size = sum(inputs[index].bytes for index in left)
        reduced = reduce_runs(folder, runs, carbon=carbon, workers=workers, total_bytes=size)
        for place, text in reduced:
            index = left[place]
            run_id = str(planned[index]["run_id"])
            found[index] = decode(text, place=folder / "runs" / run_id)
            if store is not None and _unchanged(folder, planned[index], carbon, inputs[index]):
                store.keep(run_id, text, inputs[index], looked_ns=looked_ns)
            done += 1
            if progress is not None:
                progress(done, len(planned))
    if store is not None:
        problems += store.problems
    return [reduction for reduction in found if reduction is not None]


def _unchanged(
    folder: Path, run: Mapping[str, Any], carbon: CarbonSeries | None, before: Inputs
) -> bool:
    return inputs_of(folder, run, carbon=carbon).key == before.key


def read_plan(path: Path) -> Mapping[str, Any]:
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


def _unlike(observations: Sequence[Observation]) -> list[str]:
    """Rows whose energies are of different things, and cannot be compared as they stand."""
    counts = Counter(o.energy_domains for o in observations if o.energy_j == o.energy_j)
    if len(counts) < 2:
        return []
    told = ", ".join(f"{count} of {domains}" for domains, count in counts.most_common())
    return [f"energy_j is not of the same domains in all rows: {told}"]


def _unplanned(runs: Path, planned: set[str]) -> list[str]:
    found = sorted(runs.iterdir()) if runs.is_dir() else []
    return [f"{path}: not in the plan, left out" for path in found if path.name not in planned]


def _divide(groups: Sequence[Sequence[Claim]]) -> Iterator[list[Claim]]:
    """Divide what runs shared, over the whole campaign; grouped as they came."""
    flat = [claim for group in groups for claim in group]
    divided = iter(divide_shared(flat, read_series))
    for group in groups:
        yield [next(divided) for _ in group]
