"""Units to chunks of tokens: in this process, or by several whose results keep their order."""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llem._processes import end_with_parent
from llem.data.documents import Bad, Rules, Unit, read_unit
from llem.data.tokenizer import Encoder, Tokenizer
from llem.errors import Fault, LlemError

# Units that are handed out before the first of them is back, for each process.
_AHEAD = 2
# Faults of one unit that are told; all are counted.
MOST_FAULTS = 20


@dataclass(frozen=True)
class Work:
    """What every process needs to know: how to read, how to encode, into which ids and where.

    Each process appends what it encodes to a file of its own in `folder`: ids are most of what
    there is, and what need not pass through the process that leads is not held up there.
    """

    rules: Rules
    tokenizer: Tokenizer
    dtype: str
    folder: Path


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """The documents of a unit: where their ids stand one after the other, tokens and hash of each.

    `ids` is a file's name and the place in it. `hashes` are 64 bits of a blake2b of the text.
    `items` are the lines, rows or parts of a text that the unit had, `faults` the first of those
    that cannot be read. `broken` leaves the rest of a source unread, which no one may skip.
    """

    unit: Unit
    ids: tuple[str, int] = ("", 0)
    items: int = 0
    lengths: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    hashes: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    documents: dict[int, int] = field(default_factory=dict)
    text_bytes: int = 0
    empty: int = 0
    bad: int = 0
    faults: tuple[Bad, ...] = ()
    broken: Fault | None = None


class Reader:
    """Turns units into chunks; one for each process. Closed, its file is whole."""

    def __init__(self, work: Work) -> None:
        self._rules = work.rules
        self._encoder: Encoder = work.tokenizer.encoder(work.dtype)
        self._name = f"ids-{os.getpid()}"
        self._file = (work.folder / self._name).open("wb")

    def __call__(self, unit: Unit) -> Chunk:
        texts: list[bytes] = []
        faults: list[Bad] = []
        documents: dict[int, int] = {}
        items = empty = bad = 0
        # Without what was read for it: that need not travel back.
        named = replace(unit, content=None)
        try:
            for found in read_unit(unit, self._rules):
                items += 1
                if found is None:
                    continue
                if isinstance(found, Bad):
                    bad += 1
                    if bad <= MOST_FAULTS:
                        faults.append(found)
                elif not found.text:
                    empty += 1
                else:
                    texts.append(found.text)
                    documents[found.source] = documents.get(found.source, 0) + 1
        except (OSError, ValueError) as error:
            broken = Fault(unit.files[0].path, f"cannot be read: {error}")
            return Chunk(unit=named, broken=broken)
        if not unit.encode:
            return Chunk(unit=named, items=items, bad=bad, faults=tuple(faults))
        encoded = self._encoder.encode(texts)
        place = self._file.tell()
        self._file.write(encoded.ids)
        self._file.flush()
        digests = b"".join([blake2b(text, digest_size=8).digest() for text in texts])
        return Chunk(
            unit=named,
            ids=(self._name, place),
            items=items,
            lengths=np.array(encoded.lengths, dtype=np.int64),
            hashes=np.frombuffer(digests, dtype="<u8").astype(np.uint64),
            documents=documents,
            text_bytes=sum(map(len, texts)),
            empty=empty,
            bad=bad,
            faults=tuple(faults),
        )

    def close(self) -> None:
        self._file.close()


def chunks_of(units: Iterable[Unit], work: Work, *, workers: int) -> Generator[Chunk, None, None]:
    """A chunk for each unit, in order. Closing the iterator ends the processes."""
    if workers == 1:
        with closing(Reader(work)) as reader:
            yield from map(reader, units)
        return
    # A fork of a process with threads (a progress bar, Arrow's) may hang.
    pool = ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=_start, initargs=(work,)
    )
    try:
        waiting: deque[Future[Chunk]] = deque()
        for unit in units:
            waiting.append(pool.submit(_read, unit))
            if len(waiting) >= _AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise LlemError(
            "a worker process ended before its work did",
            remedy="too little memory? try fewer workers; a script that calls prepare_data with "
            "several needs `if __name__ == '__main__':` around the call",
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_reader: Any = None


def _start(work: Work) -> None:
    global _reader
    # Ctrl-C is for the process that writes; it ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    _reader = Reader(work)


def _read(unit: Unit) -> Chunk:
    chunk: Chunk = _reader(unit)
    return chunk
