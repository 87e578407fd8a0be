"""Small readings of the kernel's files, with the words for what went wrong."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from llem.energy.meters.meter import MeterError
from llem.records import host_meta

# Where /sys is bound elsewhere (a container that hides parts of it), this names the place.
SYSFS_VARIABLE = "LLEM_SYSFS"


def sysfs(environ: Mapping[str, str] = os.environ) -> Path:
    """The root of sysfs: /sys, or what LLEM_SYSFS names instead."""
    return Path(environ.get(SYSFS_VARIABLE) or "/sys")


def read_text(path: Path) -> str:
    """A small file, stripped. Raises MeterError in one line."""
    try:
        # A third of the time of Path.read_text, and this is done for every sample.
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(file, 4096).decode("utf-8", "replace").strip()
        finally:
            os.close(file)
    except OSError as error:
        raise MeterError(f"{path}: {error.strerror or error}") from None


def read_int(path: Path) -> int:
    """A small file that holds one integer. Raises MeterError in one line."""
    text = read_text(path)
    try:
        return int(text)
    except ValueError:
        raise MeterError(f"{path}: {text[:40]!r} is no integer") from None


def short_boot_id(boot_id: str | None = None) -> str:
    """Enough of a boot id, by default this machine's, to tell machines apart, in a name that HDF5
    and people can take."""
    return (boot_id or str(host_meta()["boot_id"]))[:18]


class SysfsMeter:
    """What meters share that read counters below one folder of sysfs, `place`."""

    place = ""

    def __init__(
        self,
        *,
        root: Path | None = None,
        environ: Mapping[str, str] = os.environ,
        boot_id: str | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`root` is where the counters are, else `<sysfs>/<place>`."""
        self._root = root or sysfs(environ) / self.place
        self._boot_id = boot_id
        self._monotonic = monotonic
        self._sleep = sleep
        # device -> its counter of energy, and where its power is read
        self._files: dict[str, tuple[Path, Path | None]] = {}

    def close(self) -> None:
        self._files.clear()
