"""Why an attempt ended, as the job itself can tell: pure readers of errors, reasons and logs.

A cause is a word of `causes.CAUSES`; it stands in an attempt's end record beside a `reason` in
words. What the scheduler says of a job is read elsewhere, into the same words.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from typing import Final

from llem.cluster.scheduler.causes import LOG_LINES

FULL_DISK = ("No space left on device", "Disk quota exceeded")
NO_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory",
             "CUBLAS_STATUS_ALLOC_FAILED")  # fmt: skip
# What the others say when a rank is gone.
LOST_PEER = ("Connection closed by peer", "Connection reset by peer", "Broken pipe",
             "remote process exited", "ncclRemoteError")  # fmt: skip
# Type names of torch's and Python's own errors, which need not be imported to be known.
MEMORY_ERRORS = frozenset({"MemoryError", "OutOfMemoryError"})
NETWORK_ERRORS = frozenset(
    {"RendezvousError", "DistNetworkError", "DistStoreError", "ConnectionError", "gaierror"}
)
REFUSALS = frozenset({"InputError", "UnavailableError"})

# What a part of a log can tell of an attempt that left no end record, the most telling first.
TOLD_BY_LOGS: Final = (
    "node-failure", "preempted", "time-limit", "out-of-memory", "disk-full", "rendezvous",
)  # fmt: skip


def cause_of_error(error: BaseException, *, starting: bool = False) -> str:
    """The cause that an exception (or one that it was raised from) stands for.

    `starting`: the ranks were still meeting, so that a lost connection is a failed rendezvous.
    """
    chain = list(_chain(error))
    names = {kind.__name__ for one in chain for kind in type(one).__mro__}
    texts = [str(one) for one in chain]
    if names & MEMORY_ERRORS or _said(texts, NO_MEMORY):
        return "out-of-memory"
    full = {errno.ENOSPC, errno.EDQUOT}
    if any(isinstance(one, OSError) and one.errno in full for one in chain):
        return "disk-full"
    if _said(texts, FULL_DISK):
        return "disk-full"
    if "RendezvousError" in names or (starting and names & NETWORK_ERRORS):
        return "rendezvous"
    if _said(texts, LOST_PEER):
        return "killed"
    return "refused" if names & REFUSALS else "exception"


def cause_of_log(text: str) -> str | None:
    """The cause that the part of a job's log tells which an attempt without an end left."""
    for cause in TOLD_BY_LOGS:
        if re.search("|".join(LOG_LINES[cause]), text, re.IGNORECASE | re.MULTILINE):
            return cause
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)


def _said(texts: list[str], words: tuple[str, ...]) -> bool:
    return any(word.lower() in text.lower() for text in texts for word in words)
