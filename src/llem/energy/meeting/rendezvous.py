"""Where the processes of one node that measure together meet: whoever is first starts the sampler.

They find each other by the record's path, the node and the launch, in a folder of the user's own
on the node. A lock is held while a sampler is being started, and dies with who held it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from llem.energy.meeting.launch import Launch
from llem.energy.meeting.link import SamplerLink, SamplerProcess, start_sampler
from llem.energy.meeting.place import answers
from llem.energy.meters.held import CUDA_VARIABLE, INDEX_VARIABLES, NONE_HELD

# A child sampler that has nothing to record goes away by itself after so long.
LINGER_S = 5.0
# SLURM's signals to a step reach the sampler as well: it goes on for so long while somebody is
# still measuring, who may be writing a checkpoint.
PATIENT = ("--term-grace", "600")
# How long the first process of a node waits to hear which GPUs the others were given.
LISTS_S = 2.0


class Rendezvous:
    """The meeting place of one launch for one record."""

    def __init__(self, path: Path, launch: Launch) -> None:
        words = f"{path}|{launch.node}|{launch.key}|{launch.restart}"
        self.launch = launch
        self.folder = Path(tempfile.gettempdir()) / f"llem-{os.getuid()}"
        self._stem = hashlib.sha256(words.encode()).hexdigest()[:16]

    @property
    def socket_path(self) -> Path:
        return self.folder / f"{self._stem}.sock"

    @contextlib.contextmanager
    def first(self) -> Iterator[bool]:
        """Hold the lock; whether nobody has started the sampler yet. Raises OSError."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self.folder / f"{self._stem}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield not self.socket_path.exists() or not answers(self.socket_path)

    def start(
        self, *, interval_s: float, options: tuple[str, ...], environ: Mapping[str, str]
    ) -> SamplerProcess:
        """Start the sampler for all processes of this node. Raises OSError."""
        return start_sampler(
            self.socket_path,
            interval_s=interval_s,
            linger_s=LINGER_S,
            options=options,
            environ={**environ, **self._every_gpu(environ)},
        )

    def tell_gpus(self, environ: Mapping[str, str]) -> None:
        """Leave word which GPUs CUDA shows this process, for whoever starts the sampler."""
        if self._by_cuda_alone(environ):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            unfinished = self._list(self.launch.local_rank, ".tmp")
            unfinished.write_text(environ[CUDA_VARIABLE])
            unfinished.replace(self._list(self.launch.local_rank))

    def clear(self) -> None:
        """Take away what was left here; called when the last process has ended."""
        with contextlib.suppress(OSError):
            for path in self.folder.glob(f"{self._stem}.*"):
                if path != self.socket_path:
                    path.unlink(missing_ok=True)

    def link(self) -> SamplerLink:
        return SamplerLink(self.socket_path)

    def _every_gpu(self, environ: Mapping[str, str]) -> dict[str, str]:
        """The lists of all processes of this node as one, where each was given GPUs of its own."""
        if not self._by_cuda_alone(environ):
            return {}
        expected = self.launch.local_world or 1
        deadline = time.monotonic() + LISTS_S
        while len(lists := self._lists()) < expected and time.monotonic() < deadline:
            time.sleep(0.02)
        entries = [entry.strip() for text in lists for entry in text.split(",")]
        known = [entry for entry in entries if entry not in NONE_HELD]
        return {CUDA_VARIABLE: ",".join(dict.fromkeys(known))}

    def _by_cuda_alone(self, environ: Mapping[str, str]) -> bool:
        """Whether a process' own list of CUDA is all that says which GPUs are held."""
        return CUDA_VARIABLE in environ and not any(environ.get(name) for name in INDEX_VARIABLES)

    def _list(self, local_rank: int, suffix: str = "") -> Path:
        return self.folder / f"{self._stem}.gpus-{local_rank}{suffix}"

    def _lists(self) -> list[str]:
        found = []
        for path in sorted(self.folder.glob(f"{self._stem}.gpus-*")):
            if path.suffix != ".tmp":
                with contextlib.suppress(OSError):
                    found.append(path.read_text())
        return found
