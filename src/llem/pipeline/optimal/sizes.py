"""Which sizes of a user's model to train: a ladder found by looking at the model itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

from llem._numerals import format_flops
from llem.errors import Fault, InputError

if TYPE_CHECKING:
    from llem.training.samples.probe import Probe

SIZES = 5
LEAST_SIZES = 3
# Steps of the largest model at the lowest compute level, so that its schedule has room.
LEAST_STEPS = 64
# Steps of the smallest model at the highest: beyond, it would only see the same data again.
MOST_STEPS = 3000
LARGEST_VALUE = 1 << 16
# A ladder that is centred reaches so many times below and above the D/N that it is centred on.
AROUND = 30.0


@dataclass(frozen=True)
class Skipped:
    """A size that cannot be built, and what the model said."""

    value: int
    reason: str


@dataclass(frozen=True)
class Ladder:
    """The sizes to train, smallest first, and those that were passed over."""

    rungs: tuple[Probe, ...]
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = field(default=())


def ladder_of(values: Sequence[int], look: Callable[[int], Probe]) -> Ladder:
    """The sizes that a user asked for. Raises InputError with every one that cannot be trained."""
    rungs: list[Probe] = []
    faults: list[Fault] = []
    for value in sorted(set(values)):
        try:
            rungs.append(look(value))
        except InputError as error:
            faults += [Fault("sizes", f.message, f.hint) for f in error.faults]
    faults += _not_growing(rungs)
    if not faults and len(rungs) < LEAST_SIZES:
        text = f"{len(rungs)} sizes show no minimum: at least {LEAST_SIZES} are needed"
        faults.append(Fault("sizes", text, "give more, or leave them out"))
    if faults:
        raise InputError("find_optimal", faults)
    return Ladder(tuple(rungs), notes=_notes(rungs))


def find_ladder(
    look: Callable[[int], Probe],
    *,
    largest_flops: float,
    smallest_flops: float,
    batch: int,
    budget: float,
    count: int = SIZES,
    centre: float | None = None,
) -> Ladder:
    """Sizes for runs between two amounts of FLOPs, evenly spaced in the logarithm of N.

    Values 1, 2, 3, 4, 6, 8, 12 ... are looked at until a model is too large for LEAST_STEPS of the
    cheapest runs (`batch` tokens or samples each). With `centre`, a D/N, only those count that
    have it at the middle compute within AROUND to either side, or the `count` nearest. Raises
    InputError where there are too few.
    """
    found: list[Probe] = []
    skipped: list[Skipped] = []
    too_large: Probe | None = None
    for value in _nice():
        try:
            seen = look(value)
        except InputError as error:
            skipped.append(Skipped(value, error.faults[0].message))
            continue
        if seen.flops * batch * LEAST_STEPS > smallest_flops:
            too_large = seen
            break
        found.append(seen)
    # Found on the way up, before anything could be built: of no interest.
    if not found and too_large is None:
        text = f"no size up to {LARGEST_VALUE} can be built: {skipped[-1].reason}"
        raise InputError("find_optimal", [Fault("size", text)])
    faults = _not_growing(found)
    if faults:
        raise InputError("find_optimal", faults)
    if len(found) < LEAST_SIZES:
        raise InputError("find_optimal", [_too_dear(found, too_large, look, batch, smallest_flops,
                                                    budget)])  # fmt: skip
    worth = [p for p in found if p.flops * batch * MOST_STEPS >= largest_flops]
    chosen = worth if len(worth) >= count else found[-max(count, len(worth)) :]
    if centre is not None:
        chosen = _centred(found, math.sqrt(smallest_flops * largest_flops), centre, count)
    rungs = _spread(chosen, count)
    first = rungs[0].value
    return Ladder(tuple(rungs), tuple(s for s in skipped if s.value > first), _notes(rungs))


def _nice() -> Iterator[int]:
    yield 1
    value = 2
    while value <= LARGEST_VALUE:
        yield value
        if value + value // 2 <= LARGEST_VALUE:
            yield value + value // 2
        value *= 2


def data_per_parameter(rungs: Sequence[Probe], flops: float) -> float:
    """D/N in the middle of a ladder whose runs cost `flops` each: a geometric mean."""
    ratios = [math.log(_ratio(rung, flops)) for rung in rungs]
    return math.exp(math.fsum(ratios) / len(ratios))


def _ratio(rung: Probe, flops: float) -> float:
    return flops / rung.flops / rung.params


def _centred(found: Sequence[Probe], flops: float, centre: float, count: int) -> list[Probe]:
    def off(rung: Probe) -> float:
        return abs(math.log(_ratio(rung, flops) / centre))

    near = [rung for rung in found if off(rung) <= math.log(AROUND)]
    chosen = near if len(near) >= count else sorted(found, key=off)[:count]
    return sorted(chosen, key=lambda rung: rung.params)


def _spread(found: Sequence[Probe], count: int) -> list[Probe]:
    """`count` of them, the ends and what is nearest to even steps between."""
    if len(found) <= count:
        return list(found)
    low, high = math.log(found[0].params), math.log(found[-1].params)
    chosen: list[Probe] = []
    for place in range(count):
        wanted = low + (high - low) * place / (count - 1)
        rest = [p for p in found if p not in chosen]
        chosen.append(min(rest, key=lambda p: abs(math.log(p.params) - wanted)))
    return sorted(chosen, key=lambda p: p.params)


def _not_growing(rungs: Sequence[Probe]) -> list[Fault]:
    for small, large in pairwise(rungs):
        if large.params <= small.params:
            text = (
                f"it does not make the model larger: {small.params} parameters at {small.value}, "
                f"{large.params} at {large.value}"
            )
            return [Fault("size", text, "name the parameter that sets the width or the depth")]
    return []


def _too_dear(
    found: Sequence[Probe],
    too_large: Probe | None,
    look: Callable[[int], Probe],
    batch: int,
    smallest_flops: float,
    budget: float,
) -> Fault:
    text = (
        f"only {len(found)} size{'s' if len(found) != 1 else ''} of the model can be trained for "
        f"{LEAST_STEPS} steps of {batch} at each compute level"
    )
    if too_large is None:
        return Fault("budget", text, "give `sizes`")
    # Each further value of the ladder has about twice the FLOPs.
    ratio = too_large.flops * 2 ** (LEAST_SIZES - len(found) - 1) * batch * LEAST_STEPS
    hint = (
        f"raise it to about {format_flops(1.2 * budget * ratio / smallest_flops)} "
        "FLOP, or lower `batch`"
    )
    return Fault("budget", text, hint)


def _notes(rungs: Sequence[Probe]) -> tuple[str, ...]:
    notes = [p.note for p in rungs if p.note]
    if rungs and rungs[-1].unused:
        names = ", ".join(rungs[-1].unused[:3])
        notes.append(f"parameters that the loss does not depend on are counted in N: {names}")
    return tuple(dict.fromkeys(notes))
