"""The one error root of llem, and the way in which faults of an input are told.

LlemError                 the work failed                        exit status 1
├── InputError            the call or a file was wrong           exit status 2
├── UnavailableError      something that this needs is not here  exit status 1
└── ClusterError          the scheduler or a container refused   exit status 1

This module lies below the foundations: every folder may import it, and it imports nothing.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass


class LlemError(Exception):
    """Root of every error that llem raises on purpose; `remedy` says what to do about it."""

    exit_status = 1

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        if remedy:
            # A traceback shows it, in a script and in a notebook; the command line has `lines`.
            self.add_note(f"-> {remedy}")

    def lines(self) -> list[str]:
        """The error as a person should read it, one line an item."""
        return [self.message, *([f"  -> {self.remedy}"] if self.remedy else [])]


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong in an input: where it stands, what it is, and what to do."""

    path: str
    message: str
    hint: str | None = None

    def __str__(self) -> str:
        where = f"{self.path}: " if self.path else ""
        return f"{where}{self.message}" + (f" ({self.hint})" if self.hint else "")


class InputError(LlemError):
    """The user's file or call is wrong; carries every fault at once."""

    exit_status = 2

    def __init__(self, source: str, faults: Sequence[Fault | str]) -> None:
        self.source = source
        self.faults = tuple(f if isinstance(f, Fault) else Fault("", f) for f in faults)
        count = len(self.faults)
        super().__init__(f"{source}: {count} fault{'s' if count != 1 else ''}")

    def lines(self) -> list[str]:
        if len(self.faults) == 1:
            return [f"{self.source}: {self.faults[0]}"]
        return [f"{self.message}", *(f"  {fault}" for fault in self.faults)]

    def __str__(self) -> str:
        return "\n".join(self.lines())


class UnavailableError(LlemError):
    """Something that the call needs (a package, a program, a file) is not here."""


class ClusterError(LlemError):
    """The scheduler, a node or a container refused; the message quotes its own words."""


def run_named(word: str, names: Sequence[str], *, place: str, see: str, most: int) -> str:
    """The one of `names` that `word` names, whole or by how it begins.

    Raises InputError where there is none in that `place`, with the nearest or where to `see` them;
    and where there are several, with at `most` so many of them.
    """
    found = [word] if word in names else [n for n in names if word and n.startswith(word)]
    if len(found) == 1:
        return found[0]
    if not found:
        hint = did_you_mean(word, names) or see
        raise InputError("the call", [Fault("RUN", f"no run {word!r} in this {place}", hint)])
    shown = ", ".join(sorted(found)[:most])
    more = f" and {len(found) - most} more" if len(found) > most else ""
    text = f"{word!r} begins the names of {len(found)} runs"
    raise InputError("the call", [Fault("RUN", text, f"{shown}{more}")])


def typed(*words: object) -> str:
    """A command as it can be typed or pasted into a shell, whatever its paths hold."""
    return shlex.join(str(word) for word in words)


def did_you_mean(word: str, choices: Sequence[str]) -> str | None:
    """`did you mean 'x'?` for the nearest of `choices`, or None where none is near."""
    from difflib import get_close_matches

    near = get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else None
