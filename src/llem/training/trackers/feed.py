"""Rank 0's side of a tracker: lines into a pipe that never blocks, and what comes back.

Down the pipe go `{"do": "on_start" | "on_step" | "on_evaluation" | "on_end", "run_id": ...,
"values": {...}}`, one a line; back come `{"done": k}` for each line, `{"say": text}` for a person,
and `{"error": text}`, after which the tracker is given up.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llem.campaign import Run
from llem.errors import LlemError
from llem.training.callbacks import Callback
from llem.training.outcome import Evaluated, Outcome, Progress

# A tracker that has not taken a line for so long is said to be behind.
BEHIND_S = 10.0
# What trackers may take to bring away what they hold, after the last run and when asked to leave.
LEAVE_S = 10.0
HASTE_S = 2.0
POLL_S = 0.02


class TrackerError(LlemError):
    """A tracker failed, or does not keep up."""


class Feed(Callback):
    """One tracker, in a process of its own.

    `spec` is {kind: options}, as the campaign names it; `folder` is where it may write.
    """

    def __init__(
        self,
        spec: Mapping[str, Any],
        *,
        folder: Path,
        python: str = sys.executable,
    ) -> None:
        self.kind = str(spec.get("class") or next(iter(spec)))
        self._problem = ""
        self._run_id = ""
        self._unsent = b""
        self._heard = b""
        self.dropped = 0
        # When each line that was sent and not answered yet was sent.
        self._under_way: list[float] = []
        self._process: subprocess.Popen[bytes] | None = None
        self.log = folder / f"{self.kind.replace(':', '.')}.log"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with open(self.log, "ab") as log:
                self._process = subprocess.Popen(
                    [python, "-m", "llem.training.trackers.child", json.dumps(spec), str(folder)],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, bufsize=0,
                    start_new_session=True,
                )  # fmt: skip
            assert self._process.stdin is not None and self._process.stdout is not None
            os.set_blocking(self._process.stdin.fileno(), False)
            os.set_blocking(self._process.stdout.fileno(), False)
        except OSError as error:
            self._problem = f"cannot be started: {error.strerror or error}"

    @property
    def name(self) -> str:
        return f"tracker {self.kind}"

    def on_start(self, run: Run, meta: Mapping[str, Any]) -> None:
        self._run_id, self.dropped = run.run_id, 0
        plain = json.loads(json.dumps(meta, default=str))
        self._send("on_start", {"run": run.to_dict(), "meta": plain})

    def on_step(self, progress: Progress) -> None:
        self._send("on_step", asdict(progress))

    def on_evaluation(self, evaluated: Evaluated) -> None:
        self._send("on_evaluation", evaluated)

    def on_end(self, outcome: Outcome) -> None:
        self._send("on_end", outcome.to_dict())
        self._hear()
        if self.dropped:
            raise TrackerError(f"{self.dropped} rows were dropped: it does not keep up")
        behind_s = time.monotonic() - self._under_way[0] if self._under_way else 0.0
        if behind_s > BEHIND_S:
            raise TrackerError(f"it has not answered for {behind_s:.0f} s")

    def finish(self) -> None:
        """Say that nothing follows, once what was said has left."""
        if self._process is None or self._process.stdin is None or self._process.stdin.closed:
            return
        with suppress(TrackerError):
            if self._unsent:
                self._push()
        if not self._unsent:
            self._process.stdin.close()

    def close(self, *, by: float) -> str:
        """Let it end by the monotonic time `by`, else end it; what is to be said of it, or ''."""
        process = self._process
        if process is None:
            return ""
        assert process.stdin is not None and process.stdout is not None
        said = ""
        while process.poll() is None and time.monotonic() < by:
            self.finish()
            time.sleep(POLL_S)
        process.stdin.close()
        told = self._problem
        with suppress(TrackerError):
            self._hear()
        if process.poll() is None:
            process.kill()
            process.wait()
            said = f"{self.name}: ended before it had brought everything away; see {self.log}"
        elif self._problem != told:
            said = f"{self.name}: {self._problem}"
        process.stdout.close()
        self._process = None
        self._problem = self._problem or "it was closed"
        return said

    def _send(self, method: str, values: Mapping[str, Any]) -> None:
        self._hear()
        if self._problem:
            raise TrackerError(self._problem)
        if self._unsent:
            self._push()
        if self._unsent:
            # The pipe is full: 64 kB, minutes of rows.
            self.dropped += 1
            return
        line = {"do": method, "run_id": self._run_id, "values": values}
        self._unsent = json.dumps(line).encode() + b"\n"
        self._under_way.append(time.monotonic())
        self._push()

    def _push(self) -> None:
        assert self._process is not None and self._process.stdin is not None
        try:
            sent = os.write(self._process.stdin.fileno(), self._unsent)
        except BlockingIOError:
            return
        except OSError:
            self._unsent = b""
            self._hear()
            self._problem = self._problem or f"its process has ended; see {self.log}"
            raise TrackerError(self._problem) from None
        self._unsent = self._unsent[sent:]

    def _hear(self) -> None:
        if self._process is None or self._process.stdout is None:
            return
        with suppress(BlockingIOError):
            while part := os.read(self._process.stdout.fileno(), 1 << 16):
                self._heard += part
        *lines, self._heard = self._heard.split(b"\n")
        for line in lines:
            answer = json.loads(line)
            if "done" in answer and self._under_way:
                self._under_way.pop(0)
            if "say" in answer:
                print(f"llem: {self.name}: {answer['say']}", flush=True)
            if "error" in answer:
                self._problem = answer["error"]


def start_trackers(specs: Sequence[Mapping[str, Any]], *, folder: Path) -> tuple[Feed, ...]:
    """Start a process for each tracker that the campaign names; they write below `folder`."""
    return tuple(Feed(spec, folder=folder) for spec in specs)


def close_all(feeds: Sequence[Feed], *, haste: bool = False) -> list[str]:
    """Let all end within one span of time; what is to be said of them."""
    by = time.monotonic() + (HASTE_S if haste else LEAVE_S)
    # All of them learn that it is over before the first is waited for.
    for feed in feeds:
        feed.finish()
    return [said for feed in feeds if (said := feed.close(by=by))]
