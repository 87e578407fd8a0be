"""An attempt's energy step by step, reduced at once: phases, blocks, nodes, the steady part."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from llem.results.energy.claim import Claim
from llem.results.ranks.ranks import Ranks
from llem.results.ranks.timeline import Timeline, stretches
from llem.results.ratio import Clusters, time_blocks
from llem.results.warmup import SteadyFrom, steady_by_energy

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


BLOCK_STEPS = 4096

NO_STEPS = SteadyFrom(reason="no steps were recorded")


@dataclass(frozen=True, kw_only=True)
class PhaseTime:
    """How long one phase took in an attempt, and what was trained in it.

    `stamped_j` is its energy by the ranks' own stamps, of those devices alone that have them;
    NaN where a stamp is missing.
    """

    duration_s: float
    steps: int = 0
    tokens: int = 0
    stamped_j: float = math.nan


@dataclass(frozen=True, kw_only=True)
class StepSums:
    """What an attempt's steps come to. Energies are of all its devices, undivided.

    `blocks` and `nodes` are clusters for an error; None where there are too few. `steady_j` and
    `steady_tokens` are sums from the step `steady.step` on. `stamped` are the devices that ranks
    stamped, as (boot id, UUID).
    """

    steady: SteadyFrom = NO_STEPS
    steady_j: float = math.nan
    steady_tokens: float = math.nan
    blocks: Clusters | None = None
    nodes: Clusters | None = None
    phases: Mapping[str, PhaseTime] = field(default_factory=dict)
    stamped: frozenset[tuple[str, str]] = frozenset()


def sum_steps(
    ranks: Ranks,
    claims: Sequence[Claim],
    lines: Mapping[str, Timeline],
    window_ns: tuple[int, int] | None,
) -> StepSums:
    """Reduce an attempt's steps. `claims` are the counted ones, with `steps_j` on the line of
    their host in `lines`; `window_ns` is on rank 0's clock."""
    line = _reference(ranks)
    if line is None or not len(line.step):
        return StepSums()
    tokens = _tokens_of(line.step, ranks)
    seconds: Floats = (line.t1_ns - line.t0_ns) / 1e9
    by_host: dict[str, Floats] = {}
    for claim in claims:
        on = lines.get(claim.boot_id)
        if claim.steps_j is None or on is None:
            joules: Floats = np.full(len(line.step), np.nan)
        else:
            joules = _on_steps(line.step, on.step, claim.steps_j)
        if claim.boot_id in by_host:
            by_host[claim.boot_id] += joules
        else:
            by_host[claim.boot_id] = joules.copy()
    every: Floats = sum(by_host.values(), np.zeros(len(line.step)))
    if not by_host:
        every = np.full(len(line.step), np.nan)
    ends_s: Floats = (line.t1_ns - line.t1_ns[0]) / 1e9
    steady = steady_by_energy(
        step=line.step, joules=every, tokens=tokens, seconds=seconds, ends_s=ends_s,
        temperature_c=_Hottest(line, claims, lines).at,
    )  # fmt: skip
    after = line.step >= steady.step if steady.step is not None else np.zeros(len(every), bool)
    known = bool(after.any())
    return StepSums(
        steady=steady,
        steady_j=float(every[after].sum()) if known else math.nan,
        steady_tokens=float(tokens[after].sum()) if known else math.nan,
        blocks=_blocks(every, tokens, seconds),
        nodes=_nodes(by_host, ranks),
        phases=_phases(line, tokens, ranks, window_ns),
        stamped=frozenset((r.boot_id, r.device) for r in ranks.ranks if r.stamped_j),
    )


def _reference(ranks: Ranks) -> Timeline | None:
    """Rank 0's line, or the first rank's that was read."""
    if ranks.reference is not None and ranks.reference.boot_id in ranks.lines:
        return ranks.lines[ranks.reference.boot_id]
    return next(iter(ranks.lines.values()), None)


def _tokens_of(steps: Integers, ranks: Ranks) -> Floats:
    if steps is ranks.steps or np.array_equal(steps, ranks.steps):
        return ranks.tokens.astype(float)
    return ranks.tokens[np.searchsorted(ranks.steps, steps)].astype(float)


class _Hottest:
    """The temperature of the hottest device at the ends of a line's steps, NaN where unknown.

    It is asked for windows that overlap, until one is steady: so it is found block by block.
    """

    def __init__(
        self, line: Timeline, claims: Sequence[Claim], lines: Mapping[str, Timeline]
    ) -> None:
        self._line = line
        self._on = [(c.celsius, lines[c.boot_id]) for c in claims
                    if c.celsius is not None and c.boot_id in lines]  # fmt: skip
        self._celsius: Floats = np.full(len(line.step), np.nan)
        self._known = 0

    def at(self, places: slice) -> Floats:
        """At these places of the line."""
        while self._known < places.stop:
            block = slice(self._known, self._known + BLOCK_STEPS)
            steps = self._line.step[block]
            for celsius, on in self._on:
                if on is self._line:
                    found = celsius.at(on.t1_ns[block])
                else:
                    found = _on_steps(steps, on.step, celsius.at(on.t1_ns))
                self._celsius[block] = np.fmax(self._celsius[block], found)
            self._known = block.stop
        return self._celsius[places]


def _on_steps(wanted: Integers, have: Integers, values: Floats) -> Floats:
    if np.array_equal(wanted, have):
        return values
    found = np.full(len(wanted), np.nan)
    _, left, right = np.intersect1d(wanted, have, return_indices=True)
    found[left] = values[right]
    return found


def _blocks(joules: Floats, tokens: Floats, seconds: Floats) -> Clusters | None:
    good = np.isfinite(joules)
    if not good.all():
        joules, tokens, seconds = joules[good], tokens[good], seconds[good]
    block_j, block_t, block_s = time_blocks(joules, tokens, seconds)
    if not len(block_j):
        return None
    return Clusters(joules=block_j, tokens=block_t, what=f"blocks of {block_s:.3g} s")


def _nodes(by_host: Mapping[str, Floats], ranks: Ranks) -> Clusters | None:
    tokens: dict[str, int] = defaultdict(int)
    for rank in ranks.ranks:
        tokens[rank.boot_id] += rank.tokens
    joules = {host: float(values.sum()) for host, values in by_host.items()}
    # Where ranks share tokens (model parallelism) a node is no cluster of its own.
    if set(joules) != set(tokens) or not all(tokens.values()):
        return None
    hosts = sorted(joules)
    return Clusters(
        joules=np.array([joules[h] for h in hosts]),
        tokens=np.array([float(tokens[h]) for h in hosts]),
        what="nodes",
    )


def _phases(
    line: Timeline, tokens: Floats, ranks: Ranks, window_ns: tuple[int, int] | None
) -> dict[str, PhaseTime]:
    window = window_ns or (int(line.first[0]), int(line.last[-1]))
    seconds: dict[str, float] = defaultdict(float)
    for part in stretches(line, window):
        seconds[part.phase] += (part.t1_ns - part.t0_ns) / 1e9
    steps: dict[str, int] = defaultdict(int)
    trained: dict[str, int] = defaultdict(int)
    # steps end in order, and a stretch holds those that end after its beginning: sums up to its
    # edges, which are exact since tokens are whole
    edges = np.append(np.searchsorted(line.t1_ns, line.first, side="right"), len(tokens))
    edges[0] = 0
    count = np.diff(edges)
    summed = np.diff(np.append(0.0, np.cumsum(tokens))[edges])
    for i in np.flatnonzero(count).tolist():
        kind = line.kind[i]
        steps[kind] += int(count[i])
        trained[kind] += round(float(summed[i]))
    stamped: dict[str, float] = {}
    for rank in ranks.ranks:
        for kind, joules in rank.stamped_j.items():
            stamped[kind] = stamped.get(kind, 0.0) + joules
    return {
        kind: PhaseTime(
            duration_s=seconds[kind],
            steps=steps[kind],
            tokens=trained[kind],
            stamped_j=stamped.get(kind, math.nan),
        )
        for kind in seconds
    }
