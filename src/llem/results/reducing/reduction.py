"""One run's records, reduced to what late options are applied to; the unit of work and of storage.

A reduction depends on the run's files, on what the plan says of the run, on the code here and in
`records`, and on a carbon series where one is given, since energy is cut by it. PUE, prices, idle
power and a carbon constant come later and change none.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from llem._resources import PACKAGE
from llem.results.attempt import Attempt, attempt_folders, read_attempt
from llem.results.carbon import CarbonSeries
from llem.results.rows.trained import Trained, sum_tokens


@dataclass(frozen=True, kw_only=True)
class Reduction:
    """The attempts that have begun, oldest first, without what grows with their steps."""

    run_id: str
    attempts: tuple[Attempt, ...]
    trained: Trained
    problems: tuple[str, ...]


def reduce_run(
    folder: Path, run: Mapping[str, Any], *, carbon: CarbonSeries | None = None
) -> Reduction:
    """Reduce one run of the campaign in `folder`; one node's samples are in memory at a time."""
    run_id = str(run["run_id"])
    problems: list[str] = []
    began: list[Attempt] = []
    for number, path in attempt_folders(folder / "runs" / run_id):
        attempt = read_attempt(number, path, run=run, carbon=carbon)
        problems += attempt.problems
        if attempt.began:
            began.append(attempt)
        else:
            problems.append(f"{path}: neither records nor an end record")
    return Reduction(
        run_id=run_id,
        attempts=tuple(replace(a, ranks=a.ranks.without_steps()) for a in began),
        trained=sum_tokens(began),
        problems=tuple(problems),
    )


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a reduction is of: `key` changes where any of it does. `files` are (path in the run's
    folder, bytes, nanoseconds of the last write)."""

    files: tuple[tuple[str, int, int], ...]
    rest: str

    @property
    def key(self) -> str:
        return f"{self.files_key}.{self.rest}"

    @property
    def files_key(self) -> str:
        return _digest(json.dumps(self.files))

    @property
    def bytes(self) -> int:
        return sum(size for _, size, _ in self.files)

    @property
    def newest_ns(self) -> int:
        return max((changed for _, _, changed in self.files), default=0)


def inputs_of(folder: Path, run: Mapping[str, Any], *, carbon: CarbonSeries | None) -> Inputs:
    """The files of a run by name, size and time, and the rest that its reduction depends on."""
    root = folder / "runs" / str(run["run_id"])
    files: list[tuple[str, int, int]] = []
    for _, path in attempt_folders(root):
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.endswith(".h5") or entry.name == "end.json":
                    found = _stat(entry)
                    files.append((f"{path.name}/{entry.name}", *found))
        files.append((path.name, 0, 0))
    told = json.dumps([run, _series_digest(carbon), reducer_version()], default=str)
    return Inputs(files=tuple(sorted(files)), rest=_digest(told))


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def sealed_since(before: Inputs, after: Inputs, sealed: Collection[str]) -> bool:
    """Whether files differ by nothing but having been sealed, which keeps their content and time.

    `sealed` are paths in the run's folder.
    """
    was = {name: found for name, *found in before.files}
    now = {name: found for name, *found in after.files}
    changed = {name for name in was.keys() | now.keys() if was.get(name) != now.get(name)}
    return changed <= set(sealed) and all(
        name in was and name in now and was[name][1] == now[name][1] for name in changed
    )


def _stat(entry: os.DirEntry[str]) -> tuple[int, int]:
    try:
        found = entry.stat()
    except OSError:
        return -1, -1  # a link to nothing: reading it says so
    return found.st_size, found.st_mtime_ns


def _series_digest(carbon: CarbonSeries | None) -> str:
    if carbon is None:
        return ""
    content = carbon.at_ns.tobytes() + carbon.g_per_kwh.tobytes()
    return hashlib.blake2b(content, digest_size=16).hexdigest()


@cache
def reducer_version() -> str:
    """A digest of the code that reduces: no one has to remember to count a version up."""
    import numpy as np

    digest = hashlib.blake2b(np.__version__.encode(), digest_size=16)
    folders = (PACKAGE / "results", PACKAGE / "records")
    sources = (f for folder in folders for f in folder.rglob("*") if f.suffix in (".py", ".c"))
    for source in sorted(sources):
        digest.update(source.relative_to(PACKAGE).as_posix().encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()
