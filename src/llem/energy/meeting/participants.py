"""Who takes part in a record: the processes of one node that measure together.

The record begins with the first of them and ends with the last, so that one process samples for
all and each second of any of them is covered.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Participants:
    """By connection (its number) who is inside; by name who was seen at all.

    `expected` is how many there will be, None where nobody knows.
    """

    expected: int | None = 1
    inside: dict[int, str] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)

    def join(self, connection: int, name: str) -> None:
        self.inside[connection] = name
        self.seen.add(name)

    def leave(self, connection: int) -> str | None:
        """Take it out; its name, None where it was not inside."""
        return self.inside.pop(connection, None)

    @property
    def awaited(self) -> bool:
        """Whether somebody may still come who has not been seen yet."""
        return self.expected is None or len(self.seen) < self.expected

    @property
    def missing(self) -> str:
        """Who has not been seen, in words."""
        if self.expected is None:
            return "whether more would come was not known"
        return f"{self.expected - len(self.seen)} of {self.expected} processes here never began"
