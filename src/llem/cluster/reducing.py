"""Reducing a campaign's records by an array of jobs; the last step stays where it is asked for.

Each array has a folder of its own beside the cache: its manifest and script, the parts of the cache
that its elements write, and their ends. What lies there is used by every later aggregation, so that
nothing which was reduced is lost, whoever is interrupted; a call that finds another's array at work
waits for it and leaves its runs to it.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llem._numerals import format_si
from llem.campaign.guards import check_script_path
from llem.cluster.disk.files import read_json, write_json, write_text
from llem.cluster.disk.folder import CampaignFolder
from llem.cluster.reducer import REDUCE_SCHEMA
from llem.cluster.render import REDUCE, job_name, render_reduce
from llem.cluster.scheduler import slurm
from llem.cluster.scheduler.causes import diagnose
from llem.cluster.scheduler.facts import ACTIVE, ElementState
from llem.cluster.state.logs import tail
from llem.errors import ClusterError, Fault, InputError, LlemError
from llem.planning import AnyPlan
from llem.results import CarbonSeries, carbon_told, deal, parts_of, reducer_version, unreduced

# So many bytes of records are worth a job of their own: some seconds of reading them.
ELEMENT_BYTES = 2_000_000_000
MOST_ELEMENTS = 64
# The parts are looked at, and the scheduler asked, less often the longer it takes.
POLL_S, LONGEST_POLL_S = 1.0, 15.0
# A folder that several nodes share may show a file to one of them some seconds late.
LINGER_S = 5.0


@dataclass
class Reducing:
    """An array of jobs at work in `place`; `lines` are those of the parts that were seen."""

    place: Path
    job_id: str
    slices: tuple[tuple[str, ...], ...]
    own: bool
    lines: dict[Path, int] = field(default_factory=dict)
    states: dict[int, ElementState] = field(default_factory=dict)

    def count(self) -> int:
        """How many runs its parts hold so far."""
        for part in self.place.glob("*.part"):
            if part not in self.lines:
                with suppress(OSError):
                    self.lines[part] = part.read_bytes().count(b"\n") - 1
        return sum(self.lines.values())

    def ends(self) -> dict[int, dict[str, Any]]:
        """What elements said at their ends."""
        found = {i: read_json(self.place / f"end-{i}.json") for i in range(len(self.slices))}
        return {index: end for index, end in found.items() if end}

    def active(self) -> bool:
        """Ask the scheduler whether any element waits or runs. Raises ClusterError."""
        held = slurm.query([self.job_id])
        self.states |= {e.index: e for e in held if e.index is not None}
        return any(element.meaning in ACTIVE for element in held)


def reduce_by_jobs(
    folder: CampaignFolder,
    plan: AnyPlan,
    *,
    cache: Path,
    carbon: CarbonSeries | None,
    elements: int | None = None,
    say: Callable[[str], None],
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Have every run that the cache does not hold reduced by jobs, and wait for them; returns what
    went wrong with elements, each with its cause and what to do. `elements` is how many jobs there
    are, by default by the bytes that there are to read.

    Runs that no job has reduced are left to whoever aggregates next, which is the caller. Where
    this is interrupted, the array that it has submitted is cancelled and its parts stay. Raises
    InputError where the site has no SLURM, ClusterError where nothing can be submitted.
    """
    if plan.site.executor != "slurm":
        raise InputError(
            "the call",
            [Fault("--slurm", f"the site {plan.site.name!r} has no SLURM", "leave it out")],
        )
    others = _earlier(cache, carbon)
    left, planned = unreduced(folder.root, cache=cache, carbon=carbon)
    busy = {run_id for array in others for slice_ in array.slices for run_id in slice_}
    runs = [run for run in left if run.run_id not in busy]
    arrays = others
    for array in others:
        say(f"job {array.job_id} of another call reduces {_runs(array)} runs: waiting for it")
    if runs:
        size = sum(run.bytes for run in runs)
        limits = plan.site.limits
        most = min(MOST_ELEMENTS, limits.array_size, limits.submit or MOST_ELEMENTS)
        slices = deal(runs, min(most, elements or -(-size // ELEMENT_BYTES)))
        array = _submit(folder, plan, cache, carbon, slices)
        say(
            f"job {array.job_id}: {len(runs)} runs ({format_si(size, 'B')}) in "
            f"{len(slices)} elements"
        )
        arrays = [*others, array]
    elif not others:
        say(f"no job is needed: all {planned} runs are reduced")
    try:
        _wait(arrays, done=planned - len(left), total=planned, say=say, progress=progress)
    except BaseException:
        for array in arrays:
            if array.own:
                # its only purpose was this call; what it has done is used by the next
                with suppress(LlemError):
                    slurm.cancel([array.job_id])
                say(f"job {array.job_id} is cancelled; what it has reduced is kept")
        raise
    return [text for array in arrays for text in _told(folder, plan, array)]


def cancel_arrays(cache: Path) -> list[str]:
    """Cancel the arrays that still work on the runs of this cache, whose calls they may be; their
    job ids. What they have reduced is kept. Raises ClusterError."""
    arrays = [_at_work(place) for place in sorted(parts_of(cache).glob("*"))]
    jobs = [array.job_id for array in arrays if array is not None]
    slurm.cancel(jobs)
    return jobs


def tidy(cache: Path) -> None:
    """Remove the folders of arrays whose parts are in the cache by now, and that do not work."""
    for place in parts_of(cache).glob("*"):
        with suppress(LlemError, OSError):
            # one without a job may be another call's, which submits it now
            begun = (place / "job.json").is_file() or time.time() - place.stat().st_mtime > 3600
            if begun and not any(place.glob("*.part")) and not _at_work(place):
                shutil.rmtree(place, ignore_errors=True)
    with suppress(OSError):
        parts_of(cache).rmdir()


def _runs(array: Reducing) -> int:
    return sum(map(len, array.slices))


def _earlier(cache: Path, carbon: CarbonSeries | None) -> list[Reducing]:
    """Arrays of other calls that still work, and on the same."""
    found = []
    for place in sorted(parts_of(cache).glob("*")):
        manifest = read_json(place / "manifest.json")
        same = (reducer_version(), carbon_told(carbon))
        if (manifest.get("reducer"), manifest.get("carbon")) == same and (here := _at_work(place)):
            found.append(here)
    return found


def _at_work(place: Path) -> Reducing | None:
    job, manifest = read_json(place / "job.json"), read_json(place / "manifest.json")
    if not job or manifest.get("schema") != REDUCE_SCHEMA:
        return None
    array = Reducing(place, str(job["job_id"]), tuple(map(tuple, manifest["slices"])), own=False)
    if len(array.ends()) == len(array.slices):
        return None
    return array if array.active() else None


def _submit(
    folder: CampaignFolder,
    plan: AnyPlan,
    cache: Path,
    carbon: CarbonSeries | None,
    slices: list[list[str]],
) -> Reducing:
    place = parts_of(cache) / f"{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}"
    try:
        check_script_path(str(folder.root.resolve()))
    except ValueError as error:
        raise InputError(
            str(folder.root), [Fault("DIR", str(error), "move the campaign")]
        ) from None
    folder.logs.mkdir(parents=True, exist_ok=True)
    place.mkdir(parents=True)
    manifest = place / "manifest.json"
    write_json(
        manifest,
        {
            "schema": REDUCE_SCHEMA,
            "reducer": reducer_version(),
            "carbon": carbon_told(carbon),
            "slices": slices,
        },
    )
    script = place / "reduce.sbatch"
    inside = manifest.relative_to(folder.root).as_posix()
    write_text(script, render_reduce(plan, manifest=inside, elements=len(slices)))
    try:
        job_id = slurm.submit_script(script.resolve(), cwd=folder.root)
    except ClusterError:
        shutil.rmtree(place, ignore_errors=True)
        raise
    write_json(place / "job.json", {"job_id": job_id})
    return Reducing(place, job_id, tuple(map(tuple, slices)), own=True)


def _wait(
    arrays: Iterable[Reducing],
    *,
    done: int,
    total: int,
    say: Callable[[str], None],
    progress: Callable[[int, int], None] | None,
) -> None:
    """Until no element of any of them works. A controller that does not answer is asked again, and
    what will not start by itself is told once."""
    for array in arrays:
        pause = POLL_S
        told: set[str] = set()
        before = done
        while True:
            # all ends are there: nobody need be asked
            over = len(array.ends()) == len(array.slices)
            with suppress(ClusterError):
                over = over or not array.active()
            stuck = {f"{e.reason}: {e.stuck}" for e in array.states.values() if e.stuck}
            for text in sorted(stuck - told):
                say(f"job {array.job_id} will not start by itself: {text}")
            told |= stuck
            done = min(total, before + array.count())
            if progress is not None:
                progress(done, total)
            if over:
                break
            time.sleep(pause)
            pause = min(LONGEST_POLL_S, 1.2 * pause)


def _told(folder: CampaignFolder, plan: AnyPlan, array: Reducing) -> list[str]:
    """What is to be known of elements that did not reduce all of their runs."""
    deadline = time.monotonic() + LINGER_S
    while len(ends := array.ends()) < len(array.slices) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    with suppress(ClusterError):
        array.active()
    found = []
    for index, slice_ in enumerate(array.slices):
        end = ends.get(index)
        if end is not None and not end["reason"]:
            continue
        where = f"element {index} of job {array.job_id}"
        log = folder.logs / f"{job_name(plan, REDUCE)}-{array.job_id}_{index}.log"
        if end is not None:
            why = " ".join(str(end["reason"]).split())
        elif not log.is_file():
            state = array.states.get(index)
            why = (
                f"left neither a log nor an end here ({state.state if state else 'forgotten'}): "
                "do nodes see this folder? it must lie on a filesystem that they share"
            )
        else:
            cause = diagnose(end={}, element=array.states.get(index), log=tail(log))
            advice = f"; {cause.advice}" if cause.retry == "fix" else ""
            why = f"{cause.name}: {cause.text}{advice}; see {log}"
        found.append(f"{where}, {len(slice_)} runs: {why}. What it has not reduced is reduced here")
    return found
