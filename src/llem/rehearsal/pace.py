"""How fast a rehearsal is shown: evenly, or slower where the followed run does what passes quickly.

A campaign of days in a minute would show the loading of a model, an evaluation or a checkpoint for
less than a frame. These get seconds of the screen, and all else shares what is left of the show.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llem.records import Phase
from llem.rehearsal.course import Attempt
from llem.rehearsal.export import export_s

# Seconds on the screen: a start, an evaluation, a checkpoint, the export; so many of each at most.
START_S, EVALUATION_S, CHECKPOINT_S, EXPORT_S = 6.0, 2.0, 1.5, 6.0
START_MOST, SPAN_MOST = 2, 3
# All of them together take no more than this share of the show.
CLOSE_SHARE = 0.6


@dataclass(frozen=True)
class Pace:
    """Seconds of the campaign by seconds of the screen, both rising, straight between."""

    screen_s: tuple[float, ...]
    campaign_s: tuple[float, ...]

    @classmethod
    def even(cls, until_s: float, speed: float) -> Pace:
        """`speed` seconds of the campaign in each."""
        return cls((0.0, until_s / speed), (0.0, until_s))

    def at(self, screen_s: float) -> float:
        return float(np.interp(screen_s, self.screen_s, self.campaign_s))

    def when(self, campaign_s: float) -> float:
        """When this moment of the campaign is shown."""
        return float(np.interp(campaign_s, self.campaign_s, self.screen_s))

    def speed(self, screen_s: float) -> float:
        """Seconds of the campaign in each, now."""
        i = int(np.searchsorted(self.screen_s, screen_s, side="right")) - 1
        i = min(max(0, i), len(self.screen_s) - 2)
        took_s = self.screen_s[i + 1] - self.screen_s[i]
        return (self.campaign_s[i + 1] - self.campaign_s[i]) / took_s if took_s > 0 else 0.0


def close_ups(attempts: Sequence[Attempt], *, follow: str, until_s: float, show_s: float) -> Pace:
    """A show of about `show_s` up to `until_s`, that dwells on what the run `follow` does."""
    even = until_s / show_s
    wanted = [
        (t0_s, t1_s, screen_s)
        for t0_s, t1_s, screen_s in _moments([a for a in attempts if a.run.run_id == follow])
        if t1_s > t0_s and (t1_s - t0_s) / even < screen_s
    ]
    total_s = sum(screen_s for _, _, screen_s in wanted)
    shrink = min(1.0, CLOSE_SHARE * show_s / total_s) if total_s else 1.0
    rest_s = max(1e-9, until_s - sum(t1_s - t0_s for t0_s, t1_s, _ in wanted))
    rate = (show_s - shrink * total_s) / rest_s
    screen, campaign = [0.0], [0.0]
    for t0_s, t1_s, screen_s in sorted(wanted):
        screen += [screen[-1] + (t0_s - campaign[-1]) * rate]
        screen += [screen[-1] + shrink * screen_s]
        campaign += [t0_s, t1_s]
    screen.append(screen[-1] + (until_s - campaign[-1]) * rate)
    campaign.append(until_s)
    return Pace(tuple(screen), tuple(campaign))


def _moments(own: Sequence[Attempt]) -> list[tuple[float, float, float]]:
    """(from, to, seconds of the screen) of what is worth seeing; no two overlap."""
    found = []
    for a in own[:START_MOST]:
        found.append((a.t0_s, a.blocks[0].t0_s if a.blocks else a.t1_s, START_S))
    for phase, screen_s in ((Phase.EVALUATION, EVALUATION_S), (Phase.CHECKPOINT, CHECKPOINT_S)):
        spans = [b for a in own for b in a.blocks if b.phase == phase]
        chosen = {round(i) for i in np.linspace(0, len(spans) - 1, SPAN_MOST)} if spans else set()
        found += [(spans[i].t0_s, spans[i].t1_s, screen_s) for i in sorted(chosen)]
    found += [(a.t1_s, a.t1_s + export_s(a.run), EXPORT_S) for a in own if a.status == "completed"]
    return found
