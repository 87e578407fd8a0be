"""The logs of a campaign: which file holds a run's, and which part of it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llem.cluster.disk.folder import CampaignFolder
from llem.cluster.disk.ledger import Submitted
from llem.cluster.render import job_name
from llem.errors import run_named
from llem.planning import AnyPlan

# A rank says so when it begins a run; all until another run begins is this attempt's.
MARK = re.compile(r"^\S+ \S+ run (?P<run>[0-9a-f]{12}): attempt (?P<attempt>\d+)", re.MULTILINE)
TAIL_BYTES = 16 * 1024
# Of more candidates nobody reads the list.
CANDIDATES = 12


@dataclass(frozen=True)
class LogPart:
    """A part of a log file, in bytes: one attempt's where `attempt` is known, else the file's."""

    path: Path
    start: int
    end: int
    attempt: int | None = None

    def lines(self, last: int | None = None) -> list[str]:
        """Its lines, or the last of them."""
        with open(self.path, "rb") as file:
            file.seek(self.start)
            text = file.read(self.end - self.start).decode("utf-8", "replace")
        found = text.splitlines()
        return found[-last:] if last is not None else found


def find_run(plan: AnyPlan, word: str) -> tuple[str, str, int]:
    """(run id, array, element) of the run that `word` names, whole or by a prefix.

    Raises InputError where there is none, or more than one: then with the candidates.
    """
    places = {n: (a.name, i) for a in plan.arrays for i, e in enumerate(a.elements) for n in e}
    name = run_named(
        word, list(places), place="plan", see="see `llem status --runs`", most=CANDIDATES
    )
    return (name, *places[name])


def element_logs(
    folder: CampaignFolder,
    plan: AnyPlan,
    jobs: Mapping[str, Sequence[Submitted]],
    array: str,
    index: int,
) -> list[Path]:
    """The log files of an element that are there, oldest job first; of a local one, by rank."""
    if plan.site.executor == "local":
        found = folder.logs.glob(f"{array}-{index}-rank*.log")
        return sorted(found, key=lambda path: (len(path.name), path.name))
    paths = [job_log(folder, plan, array, job.job_id, index) for job in jobs.get(array, ())]
    return [path for path in paths if path.is_file()]


def job_log(folder: CampaignFolder, plan: AnyPlan, array: str, job_id: str, index: int) -> Path:
    """Where an element's job writes: sbatch's `%x-%A_%a.log`."""
    return folder.logs / f"{job_name(plan, array)}-{job_id}_{index}.log"


def parts_of(path: Path, run_id: str) -> list[LogPart]:
    """The parts of a log that attempts at a run wrote, oldest first."""
    marks = list(_marks(path))
    size = os.path.getsize(path)
    ends = [start for start, _, _ in marks[1:]] + [size] * bool(marks)
    return [
        LogPart(path, start, end, attempt)
        for (start, run, attempt), end in zip(marks, ends, strict=True)
        if run == run_id
    ]


def tail(path: Path, size: int = TAIL_BYTES) -> str:
    """The end of a file; empty where there is none."""
    try:
        with open(path, "rb") as file:
            length = file.seek(0, os.SEEK_END)
            file.seek(max(0, length - size))
            return file.read(size).decode("utf-8", "replace")
    except OSError:
        return ""


def own_tail(path: Path, run_id: str) -> str:
    """The end of a log as far as it is the last attempt's at this run; the whole end without marks.

    Nothing where another run of the element began after it: what follows is not its own.
    """
    text = tail(path)
    marks = list(MARK.finditer(text))
    mine = [i for i, mark in enumerate(marks) if mark["run"] == run_id]
    if not marks:
        return text
    if not mine:
        return "" if marks[0].start() == 0 else text[: marks[0].start()]
    last = mine[-1]
    end = marks[last + 1].start() if last + 1 < len(marks) else len(text)
    return text[marks[last].start() : end]


def _marks(path: Path) -> Iterator[tuple[int, str, int]]:
    """(offset, run id, attempt) of every mark of a log, a line at a time."""
    at = 0
    with open(path, "rb") as file:
        for line in file:
            if b": attempt " in line and (found := MARK.match(line.decode("utf-8", "replace"))):
                yield at, found["run"], int(found["attempt"])
            at += len(line)
