"""Reductions as text, for the cache and between processes: JSON, and nothing that could run.

Pickles would be shorter to write, but a campaign folder may be another user's, and reading a pickle
is running it. Here a value is a plain one, or one of the dataclasses named below:

    [..]                  a tuple                  {"d": [[key, value], ..]}   a mapping
    {"s": [..]}           a frozenset              {"p": ".."}                 a path
    {"a": [type, base64]} an array                 {"c": [name, [field, ..]]}  a dataclass
    {"r": n}              the n-th array of cuts again, which the claims of a node share

The run's folder stands as a mark in all texts, so that a campaign can be moved.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llem.results.attempt import Attempt
from llem.results.energy.claim import Claim, Pieces
from llem.results.ranks.endrecord import EndRecord
from llem.results.ranks.engine import Engine
from llem.results.ranks.pool import Pool
from llem.results.ranks.ranks import Ranks
from llem.results.ranks.served import Served
from llem.results.ranks.timeline import Cuts
from llem.results.ratio import Clusters
from llem.results.reducing.reduction import Reduction
from llem.results.rows.trained import Trained
from llem.results.steps import PhaseTime, StepSums
from llem.results.stragglers import RankRow
from llem.results.warmup import SteadyFrom

CLASSES: Mapping[str, type[Any]] = {
    kind.__name__: kind
    for kind in (
        Reduction, Attempt, EndRecord, Ranks, Trained, StepSums, PhaseTime, SteadyFrom, Clusters,
        Claim, Pieces, Cuts, RankRow, Served, Engine, Pool,
    )
}  # fmt: skip
_FIELDS = {name: tuple(f.name for f in fields(kind)) for name, kind in CLASSES.items()}
# No text of a record or of a path holds it: one line of text each, and paths have no NUL.
MARK = "\0"
NESTED = frozenset({str, list, dict})


class Unreadable(ValueError):
    """A text is none of `encode`'s."""


def encode(value: Any, *, place: Path) -> str:
    """One line of text; `place` is the run's folder."""
    shared: dict[int, int] = {}
    prefix = str(place)

    def of(value: Any) -> Any:
        if value is None or isinstance(value, (bool, int)):
            return value
        if isinstance(value, str):
            return value.replace(prefix, MARK) if prefix in value else value
        if isinstance(value, float):
            return float(value)
        if isinstance(value, np.ndarray):
            return {"a": [value.dtype.str, b64encode(value.tobytes()).decode()]}
        if isinstance(value, np.generic):
            return of(value.item())
        if isinstance(value, (tuple, list)):
            return [of(item) for item in value]
        if isinstance(value, Mapping):
            return {"d": [[of(key), of(item)] for key, item in value.items()]}
        if isinstance(value, frozenset):
            return {"s": [of(item) for item in sorted(value)]}
        if isinstance(value, Path):
            return {"p": of(str(value))}
        if is_dataclass(value):
            if isinstance(value, Cuts):
                if id(value) in shared:
                    return {"r": shared[id(value)]}
                shared[id(value)] = len(shared)
            name = type(value).__name__
            return {"c": [name, [of(getattr(value, field)) for field in _FIELDS[name]]]}
        raise TypeError(f"{type(value).__name__} cannot be stored")

    return json.dumps(of(value), separators=(",", ":"))


def decode(text: str | bytes, *, place: Path) -> Any:
    """The inverse of `encode`, of a run whose folder is now `place`. Raises Unreadable."""
    prefix = str(place)
    shared: list[Any] = []

    def plain(value: Any) -> Any:
        of = type(value)
        if of is str:
            return value.replace(MARK, prefix) if MARK in value else value
        if of is list:
            return tuple([plain(item) if type(item) in NESTED else item for item in value])
        if of is dict:
            [(kind, content)] = value.items()
            return kinds[kind](content)
        return value

    def made(content: Any) -> Any:
        name, values = content
        kind = CLASSES[name]
        # most values are numbers, which are what they are
        read = [plain(item) if type(item) in NESTED else item for item in values]
        found = kind(**dict(zip(_FIELDS[name], read, strict=True)))
        if kind is Cuts:
            shared.append(found)
        return found

    kinds: dict[str, Callable[[Any], Any]] = {
        "c": made,
        "a": lambda c: np.frombuffer(b64decode(c[1]), dtype=c[0]),
        "d": lambda c: {plain(key): plain(item) for key, item in c},
        "s": lambda c: frozenset(map(plain, c)),
        "p": lambda c: Path(plain(c)),
        "r": lambda c: shared[c],
    }
    try:
        return plain(json.loads(text))
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise Unreadable(f"{type(error).__name__}: {error}") from None
