"""A folder put to the test: does its file system keep what llem relies on?"""

from __future__ import annotations

import fcntl
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llem._numerals import format_si
from llem.cluster.check import FAIL, OK, WARN, Check
from llem.errors import LlemError

FSYNCS = 5
RENAMES = 100
# Every end record and checkpoint waits for one.
SLOW_FSYNC_S = 0.25
# Below the first a campaign may not end; below the second it will not begin.
LITTLE_BYTES, NO_BYTES = 5e9, 1e8
LITTLE_INODES = 10_000
# Home and the temporary folder hold caches and sockets, no records.
LITTLE_HOME_BYTES = 5e8
OTHER = "keep campaigns on another file system"


def probe(folder: Path) -> dict[str, Any]:
    """Facts of the nearest existing folder, as plain data; `error` alone where it takes no file."""
    place = next((p for p in (folder, *folder.resolve().parents) if p.is_dir()), Path.cwd())
    place = place.resolve()
    facts: dict[str, Any] = {"path": str(place), "type": file_system(str(place))}
    try:
        with tempfile.TemporaryDirectory(dir=place, prefix=".llem-doctor-") as name:
            scratch = Path(name)
            facts |= {
                "fsync_s": _fsync_s(scratch),
                "torn_renames": _torn_renames(scratch),
                "lock": _lock(scratch),
                "hdf5": _hdf5(scratch),
            }
    except OSError as error:
        facts["error"] = str(error)
    return facts | room(place)


def room(place: Path) -> dict[str, Any]:
    """Free bytes and inodes; inodes are None where the file system counts none."""
    try:
        told = os.statvfs(place)
    except OSError as error:
        return {"path": str(place), "room_error": str(error)}
    return {
        "path": str(place),
        "free_bytes": told.f_bavail * told.f_frsize,
        "free_inodes": told.f_favail if told.f_files else None,
    }


def file_system(path: str, mounts: str | None = None) -> str:
    """The type of the file system that holds `path`: `mounts` is /proc/self/mounts."""
    if mounts is None:
        try:
            mounts = Path("/proc/self/mounts").read_text()
        except OSError:
            return "unknown"
    best, found = "", "unknown"
    for line in mounts.splitlines():
        parts = line.split(" ")
        if len(parts) < 3:
            continue
        point = parts[1].replace("\\040", " ").rstrip("/")
        # Of two mounts on one point the later hides the earlier.
        if (path == point or path.startswith(f"{point}/")) and len(point) >= len(best):
            best, found = point, parts[2]
    return found


def place_rows(facts: Mapping[str, Any]) -> list[Check]:
    """What the facts of the campaigns' folder say."""
    where = f"{facts['path']} ({facts['type']})"
    if "error" in facts:
        text = f"{where}: {facts['error']}"
        return [Check("filesystem", FAIL, text, "choose a folder you can write")]
    took = facts["fsync_s"]
    rows = [
        Check("write, fsync, rename", OK, f"{took * 1e3:.1f} ms in {where}")
        if took < SLOW_FSYNC_S
        else Check(
            "write, fsync, rename", WARN, f"{took:.2f} s in {where}",
            "every checkpoint and end record waits for it: a scratch file system is faster",
        )
    ]  # fmt: skip
    if facts["torn_renames"]:
        text = f"{facts['torn_renames']} of {RENAMES} readers saw a file half replaced"
        rows.append(Check("rename", FAIL, text, OTHER))
    if facts["lock"] == "ok":
        rows.append(Check("locks", OK, "flock holds off a second holder"))
    else:
        remedy = f"Lustre needs the mount option flock, NFS its lock daemon; else {OTHER}"
        rows.append(Check("locks", FAIL, facts["lock"], remedy))
    if facts["hdf5"] == "ok":
        rows.append(Check("HDF5 records", OK, "written, read live, closed, read again"))
    elif facts["hdf5"].startswith("warn: "):
        rows.append(Check("HDF5 records", WARN, facts["hdf5"].removeprefix("warn: ")))
    else:
        rows.append(Check("HDF5 records", FAIL, facts["hdf5"], OTHER))
    return rows + room_rows("free space", facts)


def room_rows(
    name: str, facts: Mapping[str, Any], *, little: float = LITTLE_BYTES, none: float = NO_BYTES
) -> list[Check]:
    """Whether bytes and inodes will do; a quota is not seen by this."""
    if "room_error" in facts:
        return [Check(name, WARN, f"{facts['path']}: {facts['room_error']}")]
    free, inodes = facts["free_bytes"], facts["free_inodes"]
    seen = format_si(free, "B") + ("" if inodes is None else f" and {inodes:,} inodes")
    seen += f" in {facts['path']}"
    if free < none:
        return [Check(name, FAIL, seen, "make room, or use another file system")]
    if free < little or (inodes is not None and inodes < LITTLE_INODES):
        return [Check(name, WARN, seen, "make room: a run needs checkpoints and records")]
    return [Check(name, OK, seen)]


def _fsync_s(scratch: Path) -> float:
    """The median time of a small file written, synchronised and renamed, seconds."""
    took = []
    for number in range(FSYNCS):
        start = time.perf_counter()
        with open(scratch / "x", "wb") as file:
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch / "x", scratch / f"y{number}")
        took.append(time.perf_counter() - start)
    return statistics.median(took)


def _torn_renames(scratch: Path) -> int:
    """How often a reader found a file missing or half there while another replaced it."""
    target, text = scratch / "z", b"z" * 8192
    target.write_bytes(text)
    done = threading.Event()

    def replace() -> None:
        for number in range(RENAMES):
            partial = scratch / f"z{number}"
            partial.write_bytes(text)
            os.replace(partial, target)
        done.set()

    writer = threading.Thread(target=replace)
    writer.start()
    torn = 0
    while not done.is_set():
        try:
            torn += target.read_bytes() != text
        except OSError:
            torn += 1
    writer.join()
    return torn


def _lock(scratch: Path) -> str:
    with open(scratch / "lock", "w") as first, open(scratch / "lock", "w") as second:
        try:
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return f"flock is refused: {error}"
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return "ok"
        except OSError as error:
            return f"flock is refused: {error}"
    return "two holders of one lock at a time"


def _hdf5(scratch: Path) -> str:
    from llem.records import rank_writer, read_rank

    try:
        with rank_writer(scratch / "rank.h5", meta={"run_id": "doctor"}) as writer:
            writer.event("doctor")
            live = read_rank(scratch / "rank.h5")
        closed = read_rank(scratch / "rank.h5")
    except (LlemError, OSError, RuntimeError) as error:
        return str(error)
    if len(live.events) != 1 or not closed.closed:
        return "warn: a live record could not be read while it was written"
    return "ok"
