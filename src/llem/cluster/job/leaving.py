"""When a rank has to leave before its run's end, and how the job's script learns how it went.

jobs/leave/<job>-<restart>        the script's: the ranks are to write a checkpoint and leave
jobs/leave/<job>-<restart>.said   rank 0's: `started`, then `interrupted`, `again` or `failed`
jobs/leave/<step>.failed          made by the one rank that tells why the ranks did not meet
jobs/stop                         `llem cancel`: the whole campaign is to stop
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

from llem.cluster.disk.folder import CampaignFolder
from llem.cluster.scheduler.causes import STOP_REASONS

# A parallel file system is not asked after every step, and by one rank alone.
POLL_S = 0.5
# By this variable the script names its file.
FLAG = "LLEM_LEAVE_FILE"

Word = Literal["started", "interrupted", "again", "failed"]


class Leaving:
    """Why this rank must leave, once it must; asked after each step."""

    def __init__(
        self,
        folder: CampaignFolder,
        *,
        environ: dict[str, str] | os._Environ[str] = os.environ,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._stop_file = folder.stop_file
        self._leave = folder.leave
        flag = environ.get(FLAG)
        self._flag = Path(flag) if flag else None
        # By the wall clock, in seconds; none where the job has no limit.
        self._leave_at_s = float(environ.get("LLEM_LEAVE_AT") or "inf")
        self._parent = os.getppid() if "SLURM_JOB_ID" not in environ else None
        self._now_s = now_s
        self._next_look_s = 0.0
        self.reason: str | None = None
        self.looks = False
        self.later: Callable[[], bool] = lambda: False

    def catch_signals(
        self, numbers: Sequence[signal.Signals] = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    ) -> None:
        for number in numbers:
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: object) -> None:
        self.reason = self.reason or STOP_REASONS["signal"] + signal.Signals(number).name

    def why(self) -> str | None:
        """The reason to leave, if there is one by now. Costs next to nothing between two looks."""
        if self.reason is None and (now_s := self._now_s()) >= self._next_look_s:
            self._next_look_s = min(now_s + POLL_S, self._leave_at_s)
            if now_s >= self._leave_at_s:
                self.reason = STOP_REASONS["time-limit"]
            elif self._parent is not None and os.getppid() != self._parent:
                self.reason = STOP_REASONS["starter-gone"]
            elif self.looks:
                self.reason = self._look()
        return self.reason

    def _look(self) -> str | None:
        if self._stop_file.exists():
            return STOP_REASONS["asked-to-stop"]
        if self.later():
            return STOP_REASONS["superseded"]
        if self._flag is None:
            return None
        try:
            word = self._flag.read_text().strip()
        except OSError:
            return None
        # USR1 is sbatch's own warning of the time limit, which it gives to the script alone.
        return STOP_REASONS["time-limit"] if word == "USR1" else STOP_REASONS["signal"] + word

    def say(self, word: Word) -> None:
        """Tell the job's script; where nothing can be written it goes by the exit status alone."""
        if self._flag is not None:
            with suppress(OSError):
                self._flag.with_name(f"{self._flag.name}.said").write_text(f"{word}\n")

    def first_to_say_failed(self, step: str) -> bool:
        """Whether this rank is the one of its step that tells, for all, why they did not meet."""
        self._leave.mkdir(parents=True, exist_ok=True)
        try:
            os.close(os.open(self._leave / f"{step}.failed", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True
