"""The campaign folder: where each file of a campaign lies, and how a plan is written into it."""

from __future__ import annotations

import errno
import fcntl
import getpass
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from llem.cluster.disk.files import write_text
from llem.cluster.disk.plan_text import render_plan
from llem.errors import Fault, InputError, LlemError
from llem.planning import AnyPlan, Plan, plan_from_dict

END_SCHEMA = "llem-end-1"
# Statuses after which a run is not tried again by itself.
FINAL = frozenset({"completed", "diverged"})
# Exit status of ranks that left because they were asked to, with a checkpoint: EX_TEMPFAIL.
INTERRUPTED = 75
# How long another command's hold on a campaign is waited for by those that work on for hours, or
# that must not be turned away.
PATIENCE_S = 300.0
# How often a campaign that another process holds is tried again, by those who wait for it.
LOCK_POLL_S = 0.2


@dataclass(frozen=True)
class CampaignFolder:
    """Paths of one campaign; `root` is what the commands call DIR."""

    root: Path

    @property
    def plan_file(self) -> Path:
        return self.root / "plan.json"

    @property
    def plan_page(self) -> Path:
        return self.root / "plan.html"

    @property
    def jobs(self) -> Path:
        return self.root / "jobs"

    @property
    def logs(self) -> Path:
        return self.jobs / "logs"

    @property
    def submitted_file(self) -> Path:
        return self.jobs / "submitted.json"

    @property
    def states_file(self) -> Path:
        """What the scheduler said last; only the scheduler could say it again."""
        return self.jobs / "states.json"

    @property
    def ends_file(self) -> Path:
        """A cache of final end records: safe to delete."""
        return self.jobs / "ends.json"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def stop_file(self) -> Path:
        return self.jobs / "stop"

    @property
    def leave(self) -> Path:
        """Where scripts and ranks of jobs tell each other to leave, and how they left."""
        return self.jobs / "leave"

    @property
    def anew_file(self) -> Path:
        """When `llem resubmit` last asked for another try at runs that were given up."""
        return self.jobs / "anew.json"

    @property
    def rehearsal_file(self) -> Path:
        """Marks a folder that was rehearsed: nothing in it was trained or measured."""
        return self.root / "rehearsal.json"

    def notified(self, event: str) -> Path:
        """Marks that somebody was told of an event; without it the next one is told again."""
        return self.jobs / f"notified-{event}"

    @property
    def results(self) -> Path:
        return self.root / "results"

    @property
    def reductions_file(self) -> Path:
        """The cache of reductions; beside it lie the parts that jobs write."""
        return self.results / "reductions.cache"

    @property
    def tracking(self) -> Path:
        """What trackers write that have no server of their own, and their logs."""
        return self.root / "tracking"

    def run(self, run_id: str) -> Path:
        return self.runs / run_id

    def checkpoints(self, run_id: str) -> Path:
        return self.run(run_id) / "checkpoints"

    def manifest(self, array: str) -> Path:
        return self.jobs / f"{array}.jsonl"

    def script(self, array: str) -> Path:
        return self.jobs / f"{array}.sbatch"

    def attempts(self, run_id: str) -> list[Path]:
        """The attempts of a run, oldest first."""
        found = [p for p in self.run(run_id).glob("attempt-*") if p.name[8:].isdigit()]
        return sorted(found, key=lambda path: int(path.name[8:]))

    def new_attempt(self, run_id: str) -> Path:
        """Make the folder of the next attempt; two makers never get the same one."""
        number = int(self.attempts(run_id)[-1].name[8:]) + 1 if self.attempts(run_id) else 0
        while True:
            path = self.run(run_id) / f"attempt-{number}"
            try:
                path.mkdir(parents=True)
            except FileExistsError:
                number += 1
            else:
                return path

    def ends(self, run_id: str) -> list[dict[str, Any]]:
        """The end records of a run, oldest first; an attempt that was killed has none."""
        records = []
        for attempt in self.attempts(run_id):
            try:
                records.append(json.loads((attempt / "end.json").read_text()))
            except (OSError, ValueError):
                continue
        return records

    def final_end(self, run_id: str) -> dict[str, Any] | None:
        """The end record that settles the run, if there is one."""
        return settling(self.ends(run_id))

    def load_plan(self) -> AnyPlan:
        """Read plan.json. Raises InputError where DIR is not a campaign folder."""
        return plan_from_dict(self.plan_values())

    def load_trainings(self) -> Plan:
        """`load_plan` for what only trainings have. Raises InputError for a study too."""
        plan = self.load_plan()
        if not isinstance(plan, Plan):
            fault = Fault("", "holds a study of deployments: this is for campaigns of trainings")
            raise InputError(str(self.root), [fault])
        return plan

    def plan_values(self) -> dict[str, Any]:
        """plan.json as plain data. Raises InputError."""
        try:
            values = json.loads(self.plan_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(str(self.root), [self._no_plan()]) from None
        except NotADirectoryError:
            hint = "DIR is the folder that `llem plan` or `llem run` made of it"
            raise InputError(
                str(self.root), [Fault("", "a file, not a campaign folder", hint)]
            ) from None
        except (OSError, ValueError) as error:
            hint = "put it back, or `llem plan` the same campaign into this folder with --replace"
            raise InputError(
                str(self.plan_file), [Fault("", f"cannot be read: {error}", hint)]
            ) from None
        if not isinstance(values, dict):
            raise InputError(str(self.plan_file), ["not a plan"])
        return values

    def _no_plan(self) -> Fault:
        """What is wrong with a folder without plan.json, and what its jobs are, if it had one."""
        if not self.root.is_dir():
            return Fault("", "no such folder: not a campaign folder", "make one with `llem plan`")
        if not (self.runs.is_dir() or self.jobs.is_dir()):
            return Fault("", "no plan.json: not a campaign folder", "make one with `llem plan`")
        hint = "put it back, or `llem plan` the same campaign into this folder"
        try:
            jobs = json.loads(self.submitted_file.read_text())
            ids = list(dict.fromkeys(str(e["job_id"]) for every in jobs.values() for e in every))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            ids = []
        if ids:
            hint += f"; without it, `scancel {' '.join(ids)}` ends what was submitted"
        return Fault("", "its plan.json is gone", hint)

    def write_plan(
        self, plan: AnyPlan, files: Mapping[Path, str], *, replace: bool = False
    ) -> bool:
        """Write plan.json and the files of its arrays; False where all stood so already.

        Refuses to put a plan in the place of another one, whose records would lose their plan.
        """
        if not plan.rehearsal:
            self.refuse_rehearsed()
        if self.plan_file.is_file() and not replace:
            old = self.plan_values()
            if old.get("digest") != plan.digest:
                raise InputError(
                    str(self.root),
                    [Fault("plan.json", f"holds another plan ({old.get('digest')})",
                           "choose another --out, or --replace it")],
                )  # fmt: skip
        # The plan comes last, so that what it names is there where writing was cut off. It alone is
        # waited for: the rest follows from it, and is forced to disk when it is submitted.
        changed = False
        for path, text in files.items():
            changed = write_text(path, text, wait=False) or changed
        self.logs.mkdir(parents=True, exist_ok=True)
        return write_text(self.plan_file, render_plan(plan)) or changed

    def refuse_rehearsed(self, plan: AnyPlan | None = None) -> None:
        """Raise InputError where this campaign was rehearsed: it must not be run, nor go on."""
        if self.rehearsal_file.is_file() or (plan is not None and plan.rehearsal):
            fault = Fault("", "was rehearsed: no run of it was ever trained",
                          "`llem plan` the campaign into another folder")  # fmt: skip
            raise InputError(str(self.root), [fault])

    def ask_to_stop(self) -> None:
        """Tell what works on the campaign to stop, without waiting for whoever holds it."""
        self.refuse_rehearsed()
        try:
            self.jobs.mkdir(parents=True, exist_ok=True)
            self.stop_file.touch()
        except PermissionError:
            raise self._foreign() from None

    def _foreign(self) -> LlemError:
        return LlemError(
            f"{self.root} belongs to another user, who alone can act on it",
            remedy="`llem status` and `llem report` only read",
        )

    @contextmanager
    def locked(self, what: str, *, patience_s: float = 0.0) -> Iterator[int]:
        """Hold the campaign for `what`; the kernel lets go of it when the process dies.

        Yields the descriptor that holds it: a program that inherits it holds the campaign as well.
        Another holder is waited for as long as `patience_s`. Raises LlemError, and InputError where
        the campaign was only rehearsed.
        """
        self.refuse_rehearsed()
        self.jobs.mkdir(parents=True, exist_ok=True)
        try:
            lock = open(self.jobs / ".lock", "a+")  # noqa: SIM115 - closed by the `with` below
        except PermissionError:
            raise self._foreign() from None
        with lock as file:
            deadline = time.monotonic() + patience_s
            while not self._take(file):
                if time.monotonic() >= deadline:
                    file.seek(0)
                    holder = file.read().strip() or "another process"
                    raise LlemError(
                        f"{self.root} is in use by {holder}",
                        remedy="wait for it, or for an sbatch that it left behind, to end",
                    )
                time.sleep(LOCK_POLL_S)
            file.truncate(0)
            file.write(
                f"{what} of {getpass.getuser()}, process {os.getpid()} on {socket.gethostname()}"
            )
            file.flush()
            yield file.fileno()

    def _take(self, lock: IO[str]) -> bool:
        """Whether the lock is now this process's."""
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                return False
            raise LlemError(
                f"{self.root}: this filesystem locks no file ({error.strerror})",
                remedy="mount it with locks (Lustre: flock), or move the campaign",
            ) from None
        return True


def settling(ends: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The first of a run's end records that settles it, if one does."""
    return next((dict(end) for end in ends if end.get("status") in FINAL), None)
