"""Sealing many records at once, by several processes; also those of a campaign that is finished."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

from llem._processes import end_with_parent
from llem.errors import InputError, LlemError

if TYPE_CHECKING:
    from llem.cluster import CampaignFolder

PATTERNS = ("rank-*.h5", "node-*.h5")
# A login node is shared: more than this only where it is asked for.
MOST_JOBS = 4
# How long the job that finishes a campaign may seal; `llem seal` does what is left.
FINISH_S = 300.0

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class SealedFile:
    """What became of one record.

    `state`: `sealed` now, `before`, `left` since its writer may live (`reason` says why), `failed`;
    of a check: `right`, `open` (not sealed), `failed`. Sizes are 0 and `sha256` is '' where no
    seal was read.
    """

    path: Path
    state: str
    reason: str = ""
    sha256: str = ""
    bytes_before: int = 0
    bytes_after: int = 0


def seal_records(
    places: Sequence[Path],
    *,
    jobs: int | None = None,
    seconds: float | None = None,
    progress: Progress | None = None,
) -> list[SealedFile]:
    """Seal records: files, and all below folders. After `seconds` no further one is begun.

    Those that were not begun are not in the answer. `jobs` processes work, by default as many as
    this one may use processors, at most MOST_JOBS. Raises InputError where a place has no record.
    """
    return _each(_seal_one, records_in(places), jobs, seconds, progress)


def check_records(
    places: Sequence[Path], *, jobs: int | None = None, progress: Progress | None = None
) -> list[SealedFile]:
    """Compare sealed records with their seals, reading every byte."""
    return _each(_check_one, records_in(places), jobs, None, progress)


def seal_campaign(folder: CampaignFolder, *, progress: Progress | None = None) -> list[SealedFile]:
    """Seal what runs that completed have left, within FINISH_S seconds; others may be taken up."""
    completed = []
    for run in sorted(folder.runs.iterdir()) if folder.runs.is_dir() else []:
        end = folder.final_end(run.name)
        if end is not None and end["status"] == "completed":
            completed += [a for a in folder.attempts(run.name) if _records_below(a)]
    if not completed:
        return []
    found: list[SealedFile] = []

    # What was aggregated stays so: compressed records take twenty times as long to read.
    from llem.results import keep_sealed

    def seal() -> list[Path]:
        found.extend(seal_records(completed, seconds=FINISH_S, progress=progress))
        return [one.path for one in found if one.state == "sealed"]

    cache = folder.reductions_file
    if cache.is_file():
        keep_sealed(folder.root, cache, seal)
    else:
        seal()
    return found


def records_in(places: Iterable[Path]) -> list[Path]:
    """The records among and below `places`, each once. Raises InputError naming those without."""
    found: dict[Path, None] = {}
    for place in places:
        if not place.exists():
            raise InputError(str(place), ["there is no such file or folder"])
        below = _records_below(place) if place.is_dir() else [place]
        if not below:
            raise InputError(str(place), ["holds no record (rank-*.h5, node-*.h5)"])
        found.update(dict.fromkeys(below))
    return list(found)


def _records_below(folder: Path) -> list[Path]:
    return sorted(path for pattern in PATTERNS for path in folder.rglob(pattern))


def _each(
    work: Callable[[Path], SealedFile],
    paths: list[Path],
    jobs: int | None,
    seconds: float | None,
    progress: Progress | None,
) -> list[SealedFile]:
    deadline = None if seconds is None else time.monotonic() + seconds
    processes = min(len(paths), jobs or min(len(os.sched_getaffinity(0)), MOST_JOBS))
    found: list[SealedFile] = []

    def done(one: SealedFile) -> None:
        found.append(one)
        if progress is not None:
            progress(len(found), len(paths))

    if processes == 1:
        for path in paths:
            if deadline is not None and time.monotonic() > deadline:
                break
            done(work(path))
    else:
        _in_processes(work, paths, processes, deadline, done)
    return sorted(found, key=lambda one: one.path)


def _in_processes(
    work: Callable[[Path], SealedFile],
    paths: list[Path],
    processes: int,
    deadline: float | None,
    done: Callable[[SealedFile], None],
) -> None:
    # A fork of a process with threads (a progress bar) may hang.
    with ProcessPoolExecutor(
        processes, mp_context=get_context("spawn"), initializer=end_with_parent
    ) as pool:
        left = iter(paths)
        running: dict[Future[SealedFile], Path] = {}
        while True:
            while len(running) < 2 * processes and (
                deadline is None or time.monotonic() < deadline
            ):
                path = next(left, None)
                if path is None:
                    break
                try:
                    running[pool.submit(work, path)] = path
                except BrokenProcessPool:
                    done(SealedFile(path=path, state="failed", reason="a process was killed"))
            if not running:
                return
            ended, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in ended:
                path = running.pop(future)
                try:
                    done(future.result())
                except BrokenProcessPool:
                    done(SealedFile(path=path, state="failed", reason="a process was killed"))


def _seal_one(path: Path) -> SealedFile:
    from llem.records import RecordInUseError, seal

    try:
        sealed = seal(path, over=attempt_is_over(path.parent))
    except RecordInUseError as error:
        return SealedFile(path=path, state="left", reason=error.message)
    except LlemError as error:
        return SealedFile(path=path, state="failed", reason=error.message)
    return SealedFile(
        path=path,
        state="sealed" if sealed.fresh else "before",
        sha256=sealed.sha256,
        bytes_before=sealed.bytes_before,
        bytes_after=sealed.bytes_after,
    )


def _check_one(path: Path) -> SealedFile:
    from llem.records import check_seal, read_seal

    try:
        if read_seal(path) is None:
            return SealedFile(path=path, state="open", reason=f"{path}: not sealed")
        sealed = check_seal(path)
    except LlemError as error:
        return SealedFile(path=path, state="failed", reason=error.message)
    return SealedFile(
        path=path,
        state="right",
        sha256=sealed.sha256,
        bytes_before=sealed.bytes_before,
        bytes_after=sealed.bytes_after,
    )


def attempt_is_over(folder: Path) -> bool:
    """Whether an attempt's folder says that it has ended, or a later one has begun."""
    number = folder.name.removeprefix("attempt-")
    later = number.isdigit() and folder.with_name(f"attempt-{int(number) + 1}").exists()
    return later or (folder / "end.json").is_file()
