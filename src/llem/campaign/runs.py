"""Many runs, kept by cell: seeds differ in a number and a name, so what they share is made once.

A cell of a study is a deployment, and its seeds are the cycles.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, repeat
from typing import Any, Generic, Protocol, Self, overload

from typing_extensions import TypeVar

from llem.campaign.run import Layout, Predicted, Run, edited
from llem.campaign.study.deployment import Serving


class AnyRun(Protocol):
    """What a run of any workload answers, and all that submitting and watching it needs."""

    @property
    def run_id(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def workload(self) -> str: ...
    @property
    def layout(self) -> Layout: ...
    @property
    def predicted(self) -> Predicted: ...
    @property
    def segments(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def level(self) -> int: ...
    @property
    def paths(self) -> tuple[str, ...]: ...
    @property
    def params(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    @property
    def flops(self) -> float: ...
    def names(self, seeds: Iterable[int]) -> tuple[str, ...]: ...
    def with_seed(self, seed: int) -> Self: ...
    def to_dict(self) -> dict[str, Any]: ...


R = TypeVar("R", bound=AnyRun, default=Run)


def run_from_dict(values: Mapping[str, Any]) -> Run | Serving:
    """Inverse of `to_dict` of a run of any workload. Raises ValueError where it was edited."""
    return (Serving if values["workload"] == "inference" else Run).from_dict(values)


@dataclass(frozen=True)
class Replicates(Generic[R]):
    """Runs that differ in their seed alone: the run of the first seed, and every seed."""

    run: R
    seeds: Sequence[int]

    @cached_property
    def run_ids(self) -> tuple[str, ...]:
        """The name of each run, in the order of the seeds."""
        return self.run.names(self.seeds)

    def __len__(self) -> int:
        return len(self.seeds)

    def __iter__(self) -> Iterator[R]:
        for seed, run_id in zip(self.seeds, self.run_ids, strict=True):
            run = self.run.with_seed(seed)
            # Where a cached property keeps its value: the name need not be hashed again.
            vars(run)["run_id"] = run_id
            yield run


class Runs(Sequence[R]):
    """A sequence of runs as `replicates`; a `Run` is made when it is asked for.

    A plan of a hundred thousand runs has a few hundred cells: what is computed, compared or
    written for each of them is then done a few hundred times.
    """

    def __init__(self, replicates: Iterable[Replicates[R]] = ()) -> None:
        self.replicates = tuple(r for r in replicates if len(r))

    @classmethod
    def of(cls, runs: Iterable[R]) -> Runs[R]:
        """Any runs, in their order; neighbours that differ in their seed alone are one cell."""
        if isinstance(runs, Runs):
            return runs
        found: list[tuple[R, list[int]]] = []
        for run in runs:
            if found and run.with_seed(found[-1][0].seed) == found[-1][0]:
                found[-1][1].append(run.seed)
            else:
                found.append((run, [run.seed]))
        return cls(Replicates(run, tuple(seeds)) for run, seeds in found)

    @classmethod
    def from_dicts(cls, items: Iterable[Mapping[str, Any]]) -> Runs[Any]:
        """What `to_dict` gave for each. Raises ValueError where a name does not fit."""
        found: list[tuple[Mapping[str, Any], list[int], list[str]]] = []
        for values in items:
            seed, run_id = values["seed"], values["run_id"]
            first = found[-1][0] if found else {}
            # Comparing is ten times faster than making a run of it.
            if {**values, "seed": first.get("seed"), "run_id": first.get("run_id")} == first:
                found[-1][1].append(seed)
                found[-1][2].append(run_id)
            else:
                found.append((values, [seed], [run_id]))
        made = []
        for first, seeds, run_ids in found:
            some: Replicates[Any] = Replicates(run_from_dict(first), tuple(seeds))
            for named, known in zip(run_ids, some.run_ids, strict=True):
                if named != known:
                    raise edited(named, known)
            made.append(some)
        return cls(made)

    @cached_property
    def run_ids(self) -> tuple[str, ...]:
        return tuple(chain.from_iterable(r.run_ids for r in self.replicates))

    def total(self, quantity: Callable[[R], float]) -> float:
        """The exact sum (`math.fsum`) over all runs of what does not depend on the seed."""
        return math.fsum(
            chain.from_iterable(repeat(quantity(r.run), len(r)) for r in self.replicates)
        )

    def how_many(self, which: Callable[[R], bool]) -> int:
        """How many runs have a property that does not depend on the seed."""
        return sum(len(r) for r in self.replicates if which(r.run))

    def __len__(self) -> int:
        return sum(len(r) for r in self.replicates)

    def __iter__(self) -> Iterator[R]:
        return chain.from_iterable(self.replicates)

    @overload
    def __getitem__(self, index: int) -> R: ...
    @overload
    def __getitem__(self, index: slice) -> Runs[R]: ...
    def __getitem__(self, index: int | slice) -> R | Runs[R]:
        if isinstance(index, slice):
            return Runs.of(list(self)[index])
        left = index + len(self) if index < 0 else index
        for some in self.replicates if left >= 0 else ():
            if left < len(some):
                return some.run.with_seed(some.seeds[left])
            left -= len(some)
        raise IndexError(index)

    def __add__(self, others: Iterable[R]) -> Runs[R]:
        return Runs((*self.replicates, *Runs.of(others).replicates))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(self.run_ids)
