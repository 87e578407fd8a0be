"""Whether a record may still be written: what must be known before anything takes its place.

A record that HDF5 has closed is over. One that is not closed was left by a killed writer, or is
being written. On the writer's own machine the kernel knows which: /proc tells what a process has
open. From another machine nothing is sure but time, so there the rule is

    the caller knows that its attempt is over, and nothing was written for QUIET_S, or
    nothing was written for ABANDONED_S

A sampler writes every two seconds. No lock is used: parallel file systems often have none, and
where the lock daemon of an NFS server hangs, a training would hang with it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llem.records.host import host_meta
from llem.records.unclosed import is_unclosed

# A rank may wait a minute for its peers before it is ended, a file server may be slow to tell.
QUIET_S = 300.0
# Longer than any step, evaluation or checkpoint between two rows of a rank.
ABANDONED_S = 86400.0

PROC = Path("/proc")


def still_written(
    path: Path,
    meta: Mapping[str, Any],
    *,
    over: bool,
    now_s: float,
    here: Mapping[str, Any] | None = None,
) -> str:
    """Why this record may still be written; '' where its writer is surely gone.

    `over`: the attempt that it is of has ended. `now_s` is by the file's own file system, whose
    clock need not be this machine's. `here` is what `host_meta` says of this process.
    """
    if not is_unclosed(path):
        return ""
    here = host_meta() if here is None else here
    pid = meta.get("pid")
    same = bool(here["pid_space"]) and all(
        meta.get(key) == here[key] for key in ("boot_id", "pid_space")
    )
    if same and isinstance(pid, int):
        return f"process {pid} on this machine has it open" if has_open(pid, path) else ""
    quiet_s = now_s - path.stat().st_mtime
    if quiet_s >= (QUIET_S if over else ABANDONED_S):
        return ""
    since = f"not closed, written {max(0.0, quiet_s):.0f} s ago on {meta.get('host') or 'a host'}"
    wanted = f"{QUIET_S:.0f} s" if over else f"{ABANDONED_S / 3600:.0f} h without an end record"
    return f"{since}; after {wanted} it counts as abandoned"


def has_open(pid: int, path: Path, *, proc: Path = PROC) -> bool:
    """Whether that process has this file open; true as well where it is there and will not say."""
    wanted = path.stat()
    folder = proc / str(pid) / "fd"
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return False
    except OSError:
        return (proc / str(pid)).exists()  # another user's, or one that is just ending
    for name in names:
        try:
            found = os.stat(folder / name)
        except OSError:
            continue
        if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
            return True
    return False
