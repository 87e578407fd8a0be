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
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llem.errors import Fault, InputError
from llem.results.attempt import Attempt, attempt_folders, read_attempt
from llem.results.carbon import CarbonSeries
from llem.results.claims import Claim, divide_shared, read_series
from llem.results.energy import LateOptions
from llem.results.observation import Observation
from llem.results.phases import DeviceRow, PhaseEnergy, device_rows, phase_energy
from llem.results.row import Trained, observe, sum_tokens


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
) -> Aggregation:
    """Reduce a campaign folder; reads files only, one record in memory at a time.

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
    rehearsal = (plan.get("rehearsal") or {}).get("law", "")
    planned = [{**run, "rehearsal": rehearsal} for run in plan["runs"]]
    attempts: list[list[Attempt]] = []
    trained: list[Trained] = []
    for run in planned:
        read = [
            read_attempt(number, path, run=run, carbon=options.carbon_series)
            for number, path in attempt_folders(folder / "runs" / str(run["run_id"]))
        ]
        for attempt in read:
            problems += attempt.problems
            if not attempt.began:
                problems.append(f"{attempt.folder}: neither records nor an end record")
        began = [attempt for attempt in read if attempt.began]
        trained.append(sum_tokens(began))
        # Whatever grows with a run's steps is reduced here: many runs stay small in memory.
        attempts.append([replace(a, ranks=a.ranks.without_steps()) for a in began])
    problems += _unplanned(folder / "runs", {str(run["run_id"]) for run in planned})
    divided = iter(_divide([a.claims for of_run in attempts for a in of_run]))
    observations = []
    phases: list[PhaseEnergy] = []
    devices: list[DeviceRow] = []
    for run, of_run, sums in zip(planned, attempts, trained, strict=True):
        claims = [next(divided) for _ in of_run]
        observations.append(observe(run, of_run, sums, claims, options))
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
