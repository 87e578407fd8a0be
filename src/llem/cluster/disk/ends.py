"""What the files of all runs of a campaign say, read at the price of the runs that are not final.

`jobs/ends.json` caches what final end records say. It is made from the runs' own files, brought up
to date as runs end, and safe to delete; a run's folder that is gone takes its line with it.
"""

from __future__ import annotations

import csv
import json
import math
import os
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llem.cluster.disk.files import read_json
from llem.cluster.disk.folder import FINAL, CampaignFolder, settling

ENDS_SCHEMA = "llem-ends-1"
# What is kept of an end record.
KEPT = ("status", "reason", "cause", "loss", "loss_se", "step", "started_ns", "ended_ns", "node")
# How long one call may read records for the energy of finished runs; the next call goes on.
ENERGY_S = 0.2
# The cache is written again when so large a share of its lines would be new.
WRITE_SHARE = 0.02


@dataclass(frozen=True)
class RunFiles:
    """What the files of one run say.

    `end` is the end record that settles the run, else its last one; `open_attempt` is the folder
    of a last attempt without one. `device_s` are device-seconds of the attempts that ended, and
    of killed ones as far as they gave signs of life. `energy_j` is None until it was read, and
    NaN where it cannot be known.
    """

    attempts: int = 0
    end: Mapping[str, Any] = field(default_factory=dict)
    open_attempt: Path | None = None
    begun_s: float | None = None
    progress: Mapping[str, Any] = field(default_factory=dict)
    device_s: float = 0.0
    energy_j: float | None = None

    @property
    def final(self) -> bool:
        return self.end.get("status") in FINAL


NOTHING = RunFiles()


@dataclass
class Ends:
    """The files of every run that has any, and causes that were read from logs before."""

    runs: dict[str, RunFiles] = field(default_factory=dict)
    causes: dict[str, list[str]] = field(default_factory=dict)
    new: int = 0
    lines: int = 0

    def of(self, run_id: str) -> RunFiles:
        return self.runs.get(run_id, NOTHING)

    def again(self, folder: CampaignFolder, run_id: str) -> RunFiles:
        """The files of a run once more, for it may have ended a moment ago."""
        files = self.runs[run_id] = _read_run(folder, run_id)
        self.new += files.final
        return files


def read_ends(folder: CampaignFolder, *, energy_s: float = 0.0) -> Ends:
    """Read what is new below `runs/`, and energies of finished runs for `energy_s` seconds."""
    found = _cached(folder)
    try:
        with os.scandir(folder.runs) as entries:
            there = {entry.name for entry in entries}
    except OSError:
        there = set()
    found.runs = {name: files for name, files in found.runs.items() if name in there}
    found.lines = len(found.runs)
    for name in there - found.runs.keys():
        files = _read_run(folder, name)
        if files.attempts:
            found.runs[name] = files
            found.new += files.final
    if energy_s > 0:
        _read_energies(folder, found, energy_s)
    return found


def write_ends(folder: CampaignFolder, ends: Ends) -> None:
    """Bring the cache up to date, where enough is new; a folder that cannot be written stays."""
    if ends.new <= WRITE_SHARE * ends.lines:
        return
    rows = {
        name: [
            files.attempts,
            round(files.device_s, 3),
            # A number that cannot be known is not asked for again: JSON's null is "not yet read".
            "unknown" if files.energy_j != files.energy_j else files.energy_j,
            {key: files.end[key] for key in KEPT if files.end.get(key) not in (None, "")},
        ]
        for name, files in ends.runs.items()
        if files.final
    }
    values = {"schema": ENDS_SCHEMA, "runs": rows, "causes": ends.causes}
    partial = folder.ends_file.with_name(f".ends.{os.getpid()}.partial")
    with suppress(OSError, ValueError):
        # No fsync: a torn cache is made anew.
        partial.write_text(json.dumps(values, separators=(",", ":"), allow_nan=False))
        os.replace(partial, folder.ends_file)
        ends.new = 0


def _cached(folder: CampaignFolder) -> Ends:
    try:
        values = json.loads(folder.ends_file.read_bytes())
        if values["schema"] != ENDS_SCHEMA:
            return Ends()
        runs = {
            name: RunFiles(
                attempts=attempts,
                end=end,
                device_s=device_s,
                energy_j=math.nan if energy_j == "unknown" else energy_j,
            )
            for name, (attempts, device_s, energy_j, end) in values["runs"].items()
        }
        return Ends(runs, dict(values["causes"]))
    except (OSError, ValueError, KeyError, TypeError):
        return Ends()


def _read_run(folder: CampaignFolder, run_id: str) -> RunFiles:
    """The attempts of one run: two small files for each, and no stat."""
    place = folder.run(run_id)
    try:
        names = os.listdir(place)
    except OSError:
        return NOTHING
    numbers = sorted(int(n[8:]) for n in names if n.startswith("attempt-") and n[8:].isdigit())
    attempts = [f"{place}/attempt-{number}" for number in numbers]
    ends: list[dict[str, Any]] = []
    device_s = 0.0
    energy_j: float | None = 0.0
    last_end: dict[str, Any] = {}
    begin: dict[str, Any] = {}
    progress: dict[str, Any] = {}
    for number, attempt in enumerate(attempts):
        last_end = read_json(f"{attempt}/end.json")
        if last_end:
            ends.append(last_end)
            device_s += _device_s(last_end.get("started_ns"), last_end.get("ended_ns"), last_end)
            energy = last_end.get("energy_j")
            energy_j = None if energy is None or energy_j is None else energy_j + float(energy)
            continue
        energy_j = None
        begin = read_json(f"{attempt}/begin.json")
        progress = read_json(f"{attempt}/progress.json")
        if number < len(attempts) - 1:
            device_s += _device_s(begin.get("started_ns"), progress.get("time_ns"), begin)
    if not attempts:
        return NOTHING
    still = not last_end
    return RunFiles(
        attempts=len(attempts),
        end=settling(ends) or (ends[-1] if ends else {}),
        open_attempt=Path(attempts[-1]) if still else None,
        begun_s=float(begin["started_ns"]) / 1e9 if still and begin.get("started_ns") else None,
        progress=progress if still else {},
        device_s=device_s,
        energy_j=energy_j if ends else None,
    )


def _device_s(start_ns: object, end_ns: object, values: Mapping[str, Any]) -> float:
    if not isinstance(start_ns, int) or not isinstance(end_ns, int):
        return 0.0
    return max(0.0, (end_ns - start_ns) / 1e9) * int(values.get("ranks") or 1)


def _read_energies(folder: CampaignFolder, ends: Ends, seconds: float) -> None:
    """Energies that no end record tells: from the last aggregation, then from the records."""
    deadline = time.monotonic() + seconds
    unread = [n for n, files in ends.runs.items() if files.final and files.energy_j is None]
    if not unread:
        return
    known = _aggregated(folder.results / "observations.csv")
    left = []
    for name in unread:
        attempts, energy_j = known.get(name, (0, math.nan))
        if attempts == ends.runs[name].attempts:
            _put(ends, name, energy_j)
        else:
            left.append(name)
    if not left:
        return
    from llem.errors import LlemError
    from llem.results import device_energies

    for name in left:
        if time.monotonic() > deadline:
            return
        try:
            _put(ends, name, device_energies(folder.run(name)).energy_j)
        except LlemError:
            _put(ends, name, math.nan)


def _put(ends: Ends, name: str, energy_j: float) -> None:
    ends.runs[name] = replace(ends.runs[name], energy_j=energy_j)
    ends.new += 1


def _aggregated(path: Path) -> dict[str, tuple[int, float]]:
    """run id -> (attempts, joules) of the last aggregation; empty where there was none."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return dict(_columns(csv.reader(file)))
    except (OSError, ValueError, KeyError, IndexError):
        return {}


def _columns(rows: Iterable[list[str]]) -> Iterable[tuple[str, tuple[int, float]]]:
    lines = iter(rows)
    head = next(lines, [])
    run, attempts, energy = (head.index(n) for n in ("run_id", "attempts", "energy_j"))
    for line in lines:
        yield line[run], (int(float(line[attempts] or 0)), float(line[energy] or "nan"))
