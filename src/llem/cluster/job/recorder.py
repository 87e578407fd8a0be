"""What a rank leaves of an attempt: its beginning, how far it is, its end, and lines in the log.

Rank 0 speaks for all; where a rank fails, it writes the attempt's end itself.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llem._numerals import format_count, format_si
from llem.campaign import AnyRun, Layout
from llem.cluster.disk.attempts import (
    begin_attempt,
    counts_since_ns,
    newest_step,
    number_of,
    read_endings,
    write_end,
)
from llem.cluster.disk.folder import FINAL, CampaignFolder
from llem.cluster.job.environment import job_meta, log_name, node_name
from llem.cluster.scheduler.causes import cause_of_reason
from llem.cluster.scheduler.retry import Ending, GiveUp, next_try
from llem.errors import LlemError

if TYPE_CHECKING:
    from llem.cluster.job.progress import ProgressFile
    from llem.serving import Served
    from llem.training import Outcome


@dataclass(frozen=True)
class Failure:
    """An exception that ended an attempt: its cause, and what the end record says of it."""

    cause: str
    error: BaseException

    @property
    def reason(self) -> str:
        return f"{type(self.error).__name__}: {self.error}"

    def to_dict(self) -> dict[str, Any]:
        kind = type(self.error)
        name = (
            kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
        )
        return {
            "status": "failed",
            "cause": self.cause,
            "reason": self.reason,
            "error": {"type": name, "message": str(self.error)},
        }


@dataclass(frozen=True)
class Window:
    """When an attempt trained: by the wall clock, and by the monotonic clock of the meters."""

    started_ns: int
    ended_ns: int
    t0_ns: int | None = None
    t1_ns: int | None = None


class Recorder:
    """Writes the records of attempts at an element's runs, for one rank of `ranks`."""

    def __init__(
        self, folder: CampaignFolder, *, hosts: Sequence[str], rank: int, ranks: int
    ) -> None:
        self.folder = folder
        self.hosts = hosts
        self.rank = rank
        self.ranks = ranks
        self.told: ProgressFile | None = None

    def begin(self, run: AnyRun, layout: Layout) -> Path:
        """Make the folder of the next attempt. Raises LlemError where that cannot be written."""
        self.told = None
        meta = {**job_meta(), "node": node_name(), "hosts": self.hosts}
        try:
            return begin_attempt(self.folder, run, layout=layout, log=log_name(), meta=meta)
        except OSError as error:
            place = self.folder.run(run.run_id)
            raise LlemError(
                f"{place}: no attempt can be begun: {error.strerror or error}"
            ) from error

    def give_up(self, run: AnyRun, chosen: GiveUp) -> None:
        """Say so in the log, and in the last attempt's record where its ranks could not."""
        log(f"run {run.run_id}: given up ({chosen.cause}): {chosen.reason}")
        last = self.folder.attempts(run.run_id)[-1]
        values = {"status": "failed", "cause": chosen.cause, "node": node_name()}
        write_end(last, run, {**values, "reason": chosen.reason, "given_up": chosen.reason})

    def progress(self, run: AnyRun, attempt: Path) -> ProgressFile:
        """What tells of an attempt's progress."""
        from llem.cluster.job.progress import ProgressFile

        self.told = ProgressFile(run.run_id, attempt, log=log)
        return self.told

    def end(
        self, attempt: Path, run: AnyRun, *, how: Outcome | Served | Failure, window: Window
    ) -> bool:
        """Write the attempt's end record; False, with a line in the log, where that fails."""
        from llem.records import host_meta

        if isinstance(how, Failure):
            last = self.told.last if self.told else None
            start_step = last.start_step if last else None
            values: dict[str, Any] = {**how.to_dict(), "start_step": start_step}
        else:
            cause = {"completed": "", "diverged": "diverged"}.get(how.status)
            cause = cause_of_reason(how.reason) if cause is None else cause
            values = {**how.to_dict(), "cause": cause}
        if values["status"] not in FINAL:
            values["given_up"] = self._given_up(attempt, run, values)
        host = host_meta()
        try:
            write_end(
                attempt,
                run,
                {
                    **values,
                    **asdict(window),
                    "hosts": self.hosts,
                    "node": node_name(),
                    "rank": self.rank,
                    "ranks": self.ranks,
                    "host": host["host"],
                    "boot_id": host["boot_id"],
                },
            )
        except OSError as error:
            log(
                f"run {run.run_id}: its end ({values['status']}) could not be written "
                f"to {attempt}: {error.strerror or error}"
            )
            return False
        return True

    def _given_up(self, attempt: Path, run: AnyRun, values: dict[str, Any]) -> str:
        """Why this attempt is the run's last by itself; '' where another one may follow."""
        before = [e for e in read_endings(self.folder, run) if e.number != number_of(attempt)]
        this = Ending(
            number=number_of(attempt),
            cause=values["cause"],
            reason=values["reason"],
            layout=run.layout,
            start_step=values.get("start_step") or 0,
            saved_step=newest_step(self.folder.checkpoints(run.run_id)),
            started_ns=time.time_ns(),
        )
        chosen = next_try(run, [*before, this], since_ns=counts_since_ns(self.folder))
        return chosen.reason if isinstance(chosen, GiveUp) else ""


def log(text: str) -> None:
    """A line in the element's log, with the wall time; ranks other than 0 keep silent."""
    # The log may lie on the disk that is full.
    with suppress(OSError):
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}", flush=True)


def told(how: Outcome | Served | Failure) -> str:
    """How a run ended, in a line."""
    if isinstance(how, Failure):
        return f"failed: {how.reason}"
    from llem.serving import Served

    unit = "request" if isinstance(how, Served) else "step"
    if how.status != "completed":
        return f"{how.status} at {unit} {how.step}: {how.reason}"
    if isinstance(how, Served):
        failed = f", {how.failed} of them failed" if how.failed else ""
        return (
            f"completed, {how.steps} requests{failed}, {format_count(how.tokens_out)} tokens out, "
            f"{format_si(how.tokens_per_s)} tokens/s"
        )
    return (
        f"completed, loss {how.loss:.4f} +- {how.loss_se:.4f}, "
        f"{format_si(how.tokens_per_s)} tokens/s"
    )
