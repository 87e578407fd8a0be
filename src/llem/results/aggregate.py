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

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llem.errors import Fault, InputError
from llem.results.carbon import CarbonSeries
from llem.results.energy.claim import Claim
from llem.results.energy.claims import divide_shared, read_series
from llem.results.ranks.served import Served
from llem.results.reducing.encoding import decode, encode
from llem.results.reducing.reduction import Inputs, Reduction, inputs_of, sealed_since
from llem.results.reducing.stored import Store
from llem.results.reducing.workers import reduce_runs
from llem.results.rows.energy import LateOptions
from llem.results.rows.phases import DeviceRow, PhaseEnergy, device_rows, phase_energy
from llem.results.rows.served import ServedRow, observe_served
from llem.results.rows.trained import observe
from llem.results.stragglers import RankRow
from llem.results.tables.observation import Observation


@dataclass(frozen=True, kw_only=True)
class Aggregation:
    """One row for each planned run, in the plan's order, one for each phase, device and rank of
    its attempts, and every file that was not right.

    Runs that served a model have their rows in `served`, with the samples that percentiles over
    several runs are of in `samples`; those that trained one in `observations`.
    """

    observations: tuple[Observation, ...]
    phases: tuple[PhaseEnergy, ...]
    devices: tuple[DeviceRow, ...]
    ranks: tuple[RankRow, ...]
    problems: tuple[str, ...]
    options: LateOptions
    served: tuple[ServedRow, ...] = ()
    samples: tuple[Served, ...] = ()


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
    planned = planned_runs(plan)
    looked_ns = time.time_ns()
    inputs = [inputs_of(folder, run, carbon=options.carbon_series) for run in planned]
    with Store(Path(cache), folder) if cache is not None else nullcontext() as store:
        reductions = _reductions(
            folder, planned, inputs, options.carbon_series, store, looked_ns=looked_ns,
            workers=workers, progress=progress,
        )  # fmt: skip
        attempts = [attempt for reduction in reductions for attempt in reduction.attempts]
        flat = [claim for attempt in attempts for claim in attempt.claims]
        remember = None if store is None else _Divided(store, planned, inputs, looked_ns)
        divided = divide_shared(flat, read_series, remember=remember)
    for reduction in reductions:
        problems += reduction.problems
    problems += _unplanned(folder / "runs", {str(run["run_id"]) for run in planned})
    left = iter(divided)
    observations: list[Observation] = []
    served: list[tuple[ServedRow, Served]] = []
    phases: list[PhaseEnergy] = []
    devices: list[DeviceRow] = []
    for run, reduction in zip(planned, reductions, strict=True):
        of_run = reduction.attempts
        claims = [[next(left) for _ in attempt.claims] for attempt in of_run]
        if run.get("workload") == "inference":
            served.append(observe_served(run, of_run, claims, options))
        else:
            observations.append(observe(run, of_run, reduction.trained, claims, options))
        for attempt, own in zip(of_run, claims, strict=True):
            phases += phase_energy(str(run["run_id"]), attempt, own)
            devices += device_rows(str(run["run_id"]), attempt, own, options)
    problems += _unlike([*observations, *(row for row, _ in served)])
    if store is not None:
        problems += store.problems
    return Aggregation(
        observations=tuple(observations),
        phases=tuple(phases),
        devices=tuple(devices),
        ranks=tuple(row for a in attempts for row in a.rank_rows),
        problems=tuple(problems),
        options=options,
        served=tuple(row for row, _ in served),
        samples=tuple(samples for _, samples in served),
    )


def _reductions(
    folder: Path,
    planned: Sequence[Mapping[str, Any]],
    inputs: Sequence[Inputs],
    carbon: CarbonSeries | None,
    store: Store | None,
    *,
    looked_ns: int,
    workers: int | None,
    progress: Callable[[int, int], None] | None,
) -> list[Reduction]:
    """Each planned run's, in the plan's order."""
    ids = [str(run["run_id"]) for run in planned]
    found: list[Reduction | None] = [None] * len(planned)
    if store is not None:
        found = [
            store.find(Reduction, name, its.key) for name, its in zip(ids, inputs, strict=True)
        ]
    left = [index for index, known in enumerate(found) if known is None]
    done = len(planned) - len(left)
    runs = [planned[index] for index in left]
    size = sum(inputs[index].bytes for index in left)
    reduced = reduce_runs(folder, runs, carbon=carbon, workers=workers, total_bytes=size)
    for place, text in reduced:
        index = left[place]
        its = inputs[index]
        found[index] = decode(text, place=folder / "runs" / ids[index])
        if store is not None and unchanged(folder, planned[index], carbon, its):
            store.keep(ids[index], its.key, text, newest_ns=its.newest_ns, looked_ns=looked_ns)
        done += 1
        if progress is not None:
            progress(done, len(planned))
    return [reduction for reduction in found if reduction is not None]


class _Divided:
    """Claims on shared devices after dividing, which takes their samples once more, in the cache.

    A claim's part depends on its own run's files and on when others held the device.
    """

    def __init__(
        self,
        store: Store,
        planned: Sequence[Mapping[str, Any]],
        inputs: Sequence[Inputs],
        looked_ns: int,
    ) -> None:
        self._store = store
        self._looked_ns = looked_ns
        runs = (str(run["run_id"]) for run in planned)
        self._inputs = dict(zip(runs, inputs, strict=True))

    def __call__(self, claim: Claim, others: Sequence[Claim], divide: Callable[[], Claim]) -> Claim:
        run_id = claim.owner.partition("/")[0]
        its = self._inputs[run_id]
        name = "divided-" + _digest([claim.owner, claim.path.name, *claim.key])
        key = _digest([its.key, *((o.owner, o.t0_ns, o.t1_ns, o.part) for o in others)])
        found = self._store.find(Claim, run_id, key, name=name)
        if found is not None:
            return found
        found = divide()
        if found is not claim:
            place = self._store.folder / "runs" / run_id
            self._store.keep(
                name, key, encode(found, place=place),
                newest_ns=its.newest_ns, looked_ns=self._looked_ns,
            )  # fmt: skip
        return found


def _digest(content: object) -> str:
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()


def keep_sealed(
    campaign_dir: str | Path, cache: str | Path, seal: Callable[[], Collection[Path]]
) -> None:
    """Call `seal`, which gives the records that it has sealed, and let the cache go on to hold for
    runs of which nothing else has changed meanwhile: a sealed record says the same as before."""
    folder = Path(campaign_dir)
    planned = read_plan(folder / "plan.json")["runs"]
    before = {str(run["run_id"]): inputs_of(folder, run, carbon=None) for run in planned}
    sealed: dict[str, list[str]] = {}
    for path in seal():
        run_id, _, rest = path.relative_to(folder / "runs").as_posix().partition("/")
        sealed.setdefault(run_id, []).append(rest)
    new: dict[tuple[str, str], str] = {}
    for run in planned:
        run_id = str(run["run_id"])
        after = inputs_of(folder, run, carbon=None)
        if run_id in sealed and sealed_since(before[run_id], after, sealed[run_id]):
            new[run_id, before[run_id].files_key] = after.files_key

    def key_of(name: str, key: str) -> str:
        files, _, rest = key.partition(".")
        return f"{new.get((name, files), files)}.{rest}" if rest else key

    if new and Path(cache).is_file():
        with Store(Path(cache), folder) as store:
            store.rename(key_of)


def unchanged(
    folder: Path, run: Mapping[str, Any], carbon: CarbonSeries | None, before: Inputs
) -> bool:
    """Whether what a reduction depends on is still what it was before."""
    return inputs_of(folder, run, carbon=carbon).key == before.key


def planned_runs(plan: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The runs as they are reduced: each knows whether it was rehearsed."""
    rehearsal = (plan.get("rehearsal") or {}).get("law", "")
    return [{**run, "rehearsal": rehearsal} for run in plan["runs"]]


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


def _unlike(observations: Sequence[Observation | ServedRow]) -> list[str]:
    """Rows whose energies are of different things, and cannot be compared as they stand."""
    counts = Counter(o.energy_domains for o in observations if o.energy_j == o.energy_j)
    if len(counts) < 2:
        return []
    told = ", ".join(f"{count} of {domains}" for domains, count in counts.most_common())
    return [f"energy_j is not of the same domains in all rows: {told}"]


def _unplanned(runs: Path, planned: set[str]) -> list[str]:
    found = sorted(runs.iterdir()) if runs.is_dir() else []
    return [f"{path}: not in the plan, left out" for path in found if path.name not in planned]
