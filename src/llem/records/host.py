"""Which machine wrote a record: what lets a device be counted once and clocks be aligned."""

from __future__ import annotations

import os
import socket
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
PID_SPACE = Path("/proc/self/ns/pid")


def host_meta(*, boot_id: Path = BOOT_ID) -> dict[str, str | int]:
    """`host`, `boot_id`, `pid` and `pid_space`, for the meta of every record.

    Two host names with one boot id are one machine (containers, several daemons on one node):
    they share a monotonic clock and their devices. Without a boot id the host's name stands in.
    The process id is a number in `pid_space` alone, which a container may have for itself.
    """
    host = socket.gethostname()
    try:
        boot = boot_id.read_text().strip()
    except OSError:
        boot = ""
    return {
        "host": host,
        "boot_id": boot or f"host-{host}",
        "pid": os.getpid(),
        "pid_space": pid_space(),
    }


def pid_space() -> str:
    """The name of this process' PID namespace, '' where the kernel does not say."""
    try:
        return os.readlink(PID_SPACE)
    except OSError:
        return ""
