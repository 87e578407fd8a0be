"""Meters that fail: a counter that begins anew, a sampler that pauses, a device that falls silent.

One node in some attempts has one of them. What the records then tell of the energy is the
aggregator's to find out; the truth is known here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llem.rehearsal.course import Attempt
from llem.rehearsal.world import World

Kind = Literal["reset", "gap", "silent"]

# A sampler pauses for so long, seconds, but not for most of a window.
PAUSE_S, PAUSE_SHARE = (2.0, 60.0), 0.3


@dataclass(frozen=True)
class MeterFault:
    """What befalls the meters of an attempt's node `place`, at `at_s` of the campaign.

    `reset`: the counter of device `index` begins at zero. `gap`: no device is sampled until
    `until_s`. `silent`: device `index` answers no more.
    """

    kind: Kind
    place: int
    index: int
    at_s: float
    until_s: float

    @property
    def text(self) -> str:
        """In words, for whoever is watching."""
        if self.kind == "gap":
            return f"the sampler was away for {self.until_s - self.at_s:.1f} s"
        what = {"reset": "began at zero again", "silent": "answers no more"}[self.kind]
        return f"the energy counter of device {self.index} {what}"


def meter_fault(world: World, attempt: Attempt, place: int) -> MeterFault | None:
    """What befalls the meters of the attempt's node `place`, if anything does."""
    rng = world.rng(attempt.run, 8, attempt.number, place)
    lot, which, when, long = rng.random(4).tolist()
    if lot >= world.failures.meter:
        return None
    boards = attempt.boards[place]
    # The kernel's counter of a package goes on for as long as the node does.
    kinds: tuple[Kind, ...] = ("gap", "silent") if boards[0].package else ("reset", "gap", "silent")
    kind = kinds[int(rng.integers(len(kinds)))]
    at_s = attempt.t0_s + (0.1 + 0.8 * when) * attempt.window_s
    least, most = PAUSE_S
    away_s = min(least * (most / least) ** long, PAUSE_SHARE * attempt.window_s)
    until_s = min(at_s + away_s, attempt.t1_s) if kind == "gap" else attempt.t1_s
    return MeterFault(kind, place, int(which * len(boards)), at_s, until_s)
