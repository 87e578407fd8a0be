"""The files by which attempts at a run tell each other how they began and ended.

runs/<run_id>/attempt-<k>/begin.json   who began it, where its part of the job's log starts
                          end.json     how it ended; missing where its processes were killed
jobs/anew.json                         since when attempts count (`llem resubmit`)
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llem.campaign import AnyRun, Layout
from llem.cluster.disk.endings import cause_of_log
from llem.cluster.disk.files import finite_or_none, read_json, write_json
from llem.cluster.disk.folder import END_SCHEMA, CampaignFolder
from llem.cluster.scheduler.causes import cause_of_reason
from llem.cluster.scheduler.retry import Ending

BEGIN_SCHEMA = "llem-begin-1"
# What one attempt may leave in a log and still be read whole; of more, the end.
LOG_BYTES = 256 * 1024


def begin_attempt(
    folder: CampaignFolder,
    run: AnyRun,
    *,
    layout: Layout,
    log: str,
    meta: Mapping[str, Any],
    now_ns: Callable[[], int] = time.time_ns,
    wait: bool = True,
) -> Path:
    """Make the folder of the next attempt, with what a later one has to know of it."""
    attempt = folder.new_attempt(run.run_id)
    write_json(
        attempt / "begin.json",
        {
            "schema": BEGIN_SCHEMA,
            "run_id": run.run_id,
            "attempt": number_of(attempt),
            **meta,
            "started_ns": now_ns(),
            "layout": dict(vars(layout)),
            "log": log,
            "log_at": _size(folder.root / log) if log else 0,
        },
        wait=wait,
    )
    return attempt


def write_end(attempt: Path, run: AnyRun, values: Mapping[str, Any], *, wait: bool = True) -> bool:
    """The end record: written whole, last, and only once for an attempt; False where it was."""
    path = attempt / "end.json"
    if path.exists():
        return False
    head = {"schema": END_SCHEMA, "run_id": run.run_id, "attempt": number_of(attempt)}
    return write_json(path, finite_or_none({**head, **values}), wait=wait)


def read_endings(folder: CampaignFolder, run: AnyRun) -> list[Ending]:
    """How each attempt at a run ended, oldest first; call it when none of them is at work."""
    attempts = folder.attempts(run.run_id)
    saved = newest_step(folder.checkpoints(run.run_id))
    return [
        _read_ending(folder, attempt, attempts[i + 1] if i + 1 < len(attempts) else None, saved)
        for i, attempt in enumerate(attempts)
    ]


def _read_ending(
    folder: CampaignFolder, attempt: Path, following: Path | None, saved_step: int
) -> Ending:
    begin, end = read_json(attempt / "begin.json"), read_json(attempt / "end.json")
    progress = read_json(attempt / "progress.json")
    cause, reason = str(end.get("cause") or ""), str(end.get("reason") or "")
    if not end:
        cause, reason = "killed", "its processes were ended without a word"
    elif not cause:
        cause = cause_of_reason(reason) if end.get("status") == "interrupted" else "exception"
    if cause == "killed":
        # The survivors know only that a rank is gone; the log may know why.
        cause = cause_of_log(_log_part(folder, begin, following)) or "killed"
    start = end.get("start_step") or progress.get("start_step") or 0
    return Ending(
        number=number_of(attempt),
        cause=cause,
        reason=reason,
        layout=_layout(begin.get("layout")),
        start_step=int(start),
        saved_step=max(step_of(end.get("checkpoint")), 0 if following else saved_step),
        started_ns=int(begin.get("started_ns") or end.get("started_ns") or 0),
        given_up=str(end.get("given_up") or ""),
    )


def counts_since_ns(folder: CampaignFolder) -> int:
    """When the count of attempts began anew; 0 where it never did."""
    return int(read_json(folder.anew_file).get("time_ns") or 0)


def count_anew(folder: CampaignFolder) -> None:
    """A user asked for another try: earlier attempts do not count, and a failure is news again."""
    folder.notified("failed").unlink(missing_ok=True)
    write_json(folder.anew_file, {"time_ns": time.time_ns()})


def newest_step(checkpoints: Path) -> int:
    """The step of the newest checkpoint that has its proof; 0 where there is none."""
    return max(
        (step_of(path.parent) for path in checkpoints.glob("step-*/complete.json")), default=0
    )


def step_of(checkpoint: object) -> int:
    """The step in a checkpoint's name, `.../step-000000400`; 0 for none."""
    digits = Path(str(checkpoint or "")).name.removeprefix("step-")
    return int(digits) if digits.isdigit() else 0


def number_of(attempt: Path) -> int:
    return int(attempt.name.removeprefix("attempt-"))


def _layout(values: object) -> Layout | None:
    try:
        return Layout(**values) if isinstance(values, dict) else None
    except TypeError:
        return None


def _log_part(folder: CampaignFolder, begin: Mapping[str, Any], following: Path | None) -> str:
    """What the job's log says from this attempt's beginning to the following one's."""
    if not begin.get("log"):
        return ""
    after = read_json(following / "begin.json") if following is not None else {}
    end = int(after["log_at"]) if after.get("log") == begin["log"] else None
    try:
        with open(folder.root / begin["log"], "rb") as file:
            end = file.seek(0, os.SEEK_END) if end is None else end
            start = max(int(begin.get("log_at") or 0), end - LOG_BYTES)
            file.seek(start)
            return file.read(max(0, end - start)).decode("utf-8", "replace")
    except OSError:
        return ""


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
