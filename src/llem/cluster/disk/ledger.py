"""What was submitted of a campaign: `jobs/submitted.json`, and a submission under way.

Between sbatch's answer and the line on disk a process may die. So the intent is written first
(`jobs/submitting.json`), with a mark that goes into the job's comment; whoever finds an intent
later asks the scheduler for a job with that mark, and the job's own log for one that has ended and
is forgotten, before anything is submitted.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llem.cluster.disk.files import force_to_disk, write_json
from llem.cluster.disk.folder import CampaignFolder
from llem.cluster.scheduler import slurm
from llem.cluster.scheduler.facts import index_list, parse_indices


@dataclass(frozen=True)
class Submitted:
    """One job: some `elements` (indices) of an array; None for the job that fits at the end.

    `segment` is its place in a chain of jobs, from 0 on; `round` counts the times that elements
    were submitted again. `submitted_ns` is wall-clock time.
    """

    name: str
    job_id: str
    submitted_ns: int
    plan: str
    elements: tuple[int, ...] | None = None
    segment: int = 0
    round: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Its entry below its name: indices as text, so that a large array stays one short line."""
        entry = {**vars(self), "elements": self.elements and index_list(self.elements)}
        del entry["name"]
        return entry

    @classmethod
    def from_dict(cls, name: str, entry: Mapping[str, Any]) -> Submitted:
        elements = entry["elements"] and tuple(parse_indices(entry["elements"]))
        return cls(name=name, **{**entry, "elements": elements})


@dataclass
class Ledger:
    """All jobs of a campaign, oldest first. Written only by whoever holds the campaign.

    `lock` is the descriptor that holds it. sbatch inherits it: where this process dies, nobody
    looks for the job before sbatch has made it or given up.
    """

    folder: CampaignFolder
    jobs: list[Submitted] = field(default_factory=list)
    lock: int | None = None

    @classmethod
    def read(cls, folder: CampaignFolder, *, lock: int | None = None) -> Ledger:
        try:
            values = json.loads(folder.submitted_file.read_text())
        except FileNotFoundError:
            return cls(folder, lock=lock)
        jobs = [
            Submitted.from_dict(name, entry)
            for name, entries in values.items()
            for entry in entries
        ]
        return cls(folder, sorted(jobs, key=lambda job: job.submitted_ns), lock)

    @property
    def by_name(self) -> dict[str, list[Submitted]]:
        """The jobs of each array that has any, oldest first."""
        found: dict[str, list[Submitted]] = {}
        for job in self.jobs:
            found.setdefault(job.name, []).append(job)
        return found

    def of(self, name: str) -> list[Submitted]:
        """The jobs of one array, oldest first."""
        return self.by_name.get(name, [])

    def never_submitted(self, name: str, count: int, segment: int) -> list[int]:
        """Indices of an array of `count` elements that no job of that segment covers."""
        covered: set[int] = set()
        for job in self.of(name):
            if job.segment == segment and job.elements is not None:
                covered.update(job.elements)
        return [index for index in range(count) if index not in covered]

    def submit(
        self,
        name: str,
        *,
        job_name: str,
        plan: str,
        options: Sequence[str] = (),
        elements: Sequence[int] | None = None,
        segment: int = 0,
        round: int = 0,
    ) -> Submitted:
        """sbatch the script of `name`, once, whatever dies on the way. Raises ClusterError."""
        mark, now_ns = secrets.token_hex(6), time.time_ns()
        entry = {
            "plan": plan,
            "elements": None if elements is None else index_list(elements),
            "segment": segment,
            "round": round,
        }
        intent = {"name": name, "job_name": job_name, "mark": mark, "submitted_ns": now_ns}
        write_json(self._intent, {**intent, **entry})
        # `llem plan` does not wait for the disk: from here on a job rests on these.
        for path in (self.folder.script(name), self.folder.manifest(name)):
            if path.is_file():
                force_to_disk(path)
        script = self.folder.script(name).relative_to(self.folder.root)
        options = [*options, f"--comment=llem:{plan}:{name}:{mark}"]
        try:
            job_id = slurm.submit_script(
                script,
                cwd=self.folder.root,
                options=options,
                keep_open=() if self.lock is None else (self.lock,),
            )
        except slurm.Refused:
            # The scheduler's own word that there is no job.
            self._intent.unlink()
            raise
        return self._done(name, job_id, now_ns, entry)

    def recover(self) -> Submitted | None:
        """Finish a submission that was cut off: the job it made, if it made one.

        Raises ClusterError where the scheduler does not answer: then nobody can know.
        """
        try:
            intent: dict[str, Any] = json.loads(self._intent.read_text())
        except FileNotFoundError:
            return None
        entry = {key: intent[key] for key in ("plan", "elements", "segment", "round")}
        job_id = slurm.find_marked(intent["job_name"], intent["mark"]) or self._logged(
            intent["job_name"]
        )
        if job_id is None or any(job.job_id == job_id for job in self.jobs):
            self._intent.unlink()
            return None
        return self._done(intent["name"], job_id, intent["submitted_ns"], entry)

    @property
    def _intent(self) -> Path:
        return self.folder.jobs / "submitting.json"

    def _done(self, name: str, job_id: str, ns: int, entry: dict[str, Any]) -> Submitted:
        job = Submitted.from_dict(name, {**entry, "job_id": job_id, "submitted_ns": ns})
        self.jobs.append(job)
        values = {n: [known.to_dict() for known in jobs] for n, jobs in self.by_name.items()}
        write_json(self.folder.submitted_file, values)
        self._intent.unlink(missing_ok=True)
        return job

    def _logged(self, job_name: str) -> str | None:
        """A job of that name that wrote a log here and is in no line of the ledger."""
        known = {job.job_id for job in self.jobs}
        pattern = re.compile(re.escape(job_name) + r"-(\d+)(_\d+)?\.log")
        if not self.folder.logs.is_dir():
            return None
        for path in sorted(self.folder.logs.iterdir()):
            found = pattern.fullmatch(path.name)
            if found and found[1] not in known:
                return found[1]
        return None
