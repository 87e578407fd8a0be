"""Many runs, kept by cell: seeds differ in a number and a name, so what they share is made once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, repeat
from typing import Any, overload

from llem.campaign.run import Run, edited, names_of


@dataclass(frozen=True)
class Replicates:
    """Runs that differ in their seed alone: the run of the first seed, and every seed."""

    run: Run
    seeds: Sequence[int]

    @cached_property
    def run_ids(self) -> tuple[str, ...]:
        """The name of each run, in the order of the seeds."""
        return names_of(self.run, self.seeds)

    def __len__(self) -> int:
        return len(self.seeds)

    def __iter__(self) -> Iterator[Run]:
        for seed, run_id in zip(self.seeds, self.run_ids, strict=True):
            run = self.with_seed(seed)
            # Where a cached property keeps its value: the name need not be hashed again.
            vars(run)["run_id"] = run_id
            yield run

    def with_seed(self, seed: int) -> Run:
        return self.run if seed == self.run.seed else replace(self.run, seed=seed)


class Runs(Sequence[Run]):
    """A sequence of runs as `replicates`; a `Run` is made when it is asked for.

    A plan of a hundred thousand runs has a few hundred cells: what is computed, compared or
    written for each of them is then done a few hundred times.
    """

    def __init__(self, replicates: Iterable[Replicates] = ()) -> None:
        self.replicates = tuple(r for r in replicates if len(r))

    @classmethod
    def of(cls, runs: Iterable[Run]) -> Runs:
        """Any runs, in their order; neighbours that differ in their seed alone are one cell."""
        if isinstance(runs, Runs):
            return runs
        found: list[tuple[Run, list[int]]] = []
        for run in runs:
            if found and replace(run, seed=found[-1][0].seed) == found[-1][0]:
                found[-1][1].append(run.seed)
            else:
                found.append((run, [run.seed]))
        return cls(Replicates(run, tuple(seeds)) for run, seeds in found)

    @classmethod
    def from_dicts(cls, items: Iterable[Mapping[str, Any]]) -> Runs:
        """What `Run.to_dict` gave for each. Raises ValueError where a name does not fit."""
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
            some = Replicates(Run.from_dict(first), tuple(seeds))
            for named, known in zip(run_ids, some.run_ids, strict=True):
                if named != known:
                    raise edited(named, known)
            made.append(some)
        return cls(made)

    @cached_property
    def run_ids(self) -> tuple[str, ...]:
        return tuple(chain.from_iterable(r.run_ids for r in self.replicates))

    def total(self, quantity: Callable[[Run], float]) -> float:
        """The exact sum (`math.fsum`) over all runs of what does not depend on the seed."""
        return math.fsum(
            chain.from_iterable(repeat(quantity(r.run), len(r)) for r in self.replicates)
        )

    def how_many(self, which: Callable[[Run], bool]) -> int:
        """How many runs have a property that does not depend on the seed."""
        return sum(len(r) for r in self.replicates if which(r.run))

    def __len__(self) -> int:
        return sum(len(r) for r in self.replicates)

    def __iter__(self) -> Iterator[Run]:
        return chain.from_iterable(self.replicates)

    @overload
    def __getitem__(self, index: int) -> Run: ...
    @overload
    def __getitem__(self, index: slice) -> Runs: ...
    def __getitem__(self, index: int | slice) -> Run | Runs:
        if isinstance(index, slice):
            return Runs.of(list(self)[index])
        left = index + len(self) if index < 0 else index
        for some in self.replicates if left >= 0 else ():
            if left < len(some):
                return some.with_seed(some.seeds[left])
            left -= len(some)
        raise IndexError(index)

    def __add__(self, others: Iterable[Run]) -> Runs:
        return Runs((*self.replicates, *Runs.of(others).replicates))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(self.run_ids)
