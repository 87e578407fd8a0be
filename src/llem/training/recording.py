"""A rank's record that never ends a training: where it cannot be written, measuring ends."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from llem.records import RecordWriteError, RecordWriter, rank_writer


class Recording:
    """The record of one rank in one attempt; `problem` says why it is incomplete, '' while whole.

    Raises FileExistsError where the record is there already: two ranks of one name.
    """

    def __init__(self, path: Path, *, meta: Mapping[str, Any], rank: int) -> None:
        self.problem = ""
        self._rank = rank
        self._writer: RecordWriter | None = None
        try:
            self._writer = rank_writer(path, meta=meta)
        except RecordWriteError as error:
            self._give_up(error)

    def append(self, table: str, row: tuple[Any, ...]) -> None:
        self._do(lambda writer: writer.append(table, row))

    def append_rows(self, table: str, rows: NDArray[Any]) -> None:
        self._do(lambda writer: writer.append_rows(table, rows))

    def event(self, code: str, text: str = "") -> None:
        self._do(lambda writer: writer.event(code, text))

    def stamp_clock(self, *, peer_offset_ns: float = math.nan, rtt_ns: float = math.nan) -> None:
        self._do(lambda w: w.stamp_clock(peer_offset_ns=peer_offset_ns, rtt_ns=rtt_ns))

    def flush(self) -> None:
        self._do(lambda writer: writer.flush())

    def close(self) -> None:
        self._do(lambda writer: writer.close())

    def _do(self, work: Callable[[RecordWriter], None]) -> None:
        if self._writer is None:
            return
        try:
            work(self._writer)
        except RecordWriteError as error:
            self._give_up(error)

    def _give_up(self, error: RecordWriteError) -> None:
        full = "No space left" in error.message or "quota" in error.message
        self.problem = f"record incomplete: {'disk full' if full else error.message}"
        self._writer = None
        print(f"llem: rank {self._rank}: {self.problem}; the training goes on", file=sys.stderr)
