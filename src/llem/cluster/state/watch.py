"""Waiting for a campaign: one question a poll, fewer of them the longer it runs."""

from __future__ import annotations

import time
from collections.abc import Callable

from llem.cluster.disk.folder import CampaignFolder
from llem.cluster.state.state import CampaignState, campaign_state
from llem.errors import UnavailableError
from llem.planning import AnyPlan

# A campaign of hours is not asked for every second: fewer questions, the longer it runs.
FIRST_POLL_S = 1.0
LONGEST_POLL_S = 30.0
# A controller that does not answer is left in peace for longer.
SLOWER_UNANSWERED = 2.0
# Of so few runs that are left, whether one has ended is seen on the disk, which is looked at so
# often: nobody waits half a minute for a campaign that is over, and the scheduler is not asked.
FEW = 16
LOOK_S = 1.0
AT_WORK = frozenset({"queued", "running"})


def wait(
    folder: CampaignFolder,
    plan: AnyPlan,
    *,
    watch: Callable[[CampaignState], None] | None = None,
    timeout_s: float | None = None,
    until: Callable[[CampaignState], bool] | None = None,
    first_poll_s: float = FIRST_POLL_S,
    longest_poll_s: float = LONGEST_POLL_S,
    sleep: Callable[[float], None] = time.sleep,
) -> CampaignState:
    """Poll until nothing works on the campaign any more; or until `timeout_s` or `until` ends it.

    A scheduler that does not answer (its controller restarts) is waited for. Raises
    UnavailableError where there is none on this machine.
    """
    pause = first_poll_s
    begun = time.monotonic()
    while True:
        state = campaign_state(folder, plan)
        if watch is not None:
            watch(state)
        if not state.active or (until is not None and until(state)):
            return state
        look = state.scheduler
        if look.absent:
            raise UnavailableError(look.problem, remedy="wait on a login node of the cluster")
        left_s = None if timeout_s is None else timeout_s - (time.monotonic() - begun)
        if left_s is not None and left_s <= 0:
            return state
        slower = SLOWER_UNANSWERED if look.problem else 1.0
        pause = min(1.2 * slower * pause, longest_poll_s * slower)
        if _over(folder, state, pause if left_s is None else min(pause, left_s), sleep=sleep):
            # What is left are the ends of jobs, and the one that fits.
            pause = first_poll_s


def _over(
    folder: CampaignFolder, state: CampaignState, pause_s: float, *, sleep: Callable[[float], None]
) -> bool:
    """Pause, where few runs are left no longer than until one of them ends; whether all have."""
    left = {run.run_id for run in state.runs if run.status in AT_WORK}
    if not 0 < len(left) <= FEW:
        sleep(pause_s)
        return False
    before = {run_id: _ends(folder, run_id) for run_id in left}
    ended: set[str] = set()
    while not ended and pause_s > 0:
        sleep(min(pause_s, LOOK_S))
        pause_s -= LOOK_S
        ended = {run_id for run_id in left if _ends(folder, run_id) > before[run_id]}
    return ended == left


def _ends(folder: CampaignFolder, run_id: str) -> int:
    return sum((attempt / "end.json").is_file() for attempt in folder.attempts(run_id))
