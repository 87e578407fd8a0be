"""One row of what `llem doctor` tells."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

OK, WARN, FAIL = "ok", "warn", "fail"


@dataclass(frozen=True)
class Check:
    """What was looked at, `ok`, `warn` or `fail`, what was seen, what to do, and where."""

    name: str
    state: str
    seen: str
    remedy: str = ""
    where: str = "here"


def at(where: str, rows: Iterable[Check]) -> list[Check]:
    """The same rows, seen on another machine."""
    return [replace(row, where=where) for row in rows]
