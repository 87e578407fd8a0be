"""Telling someone, once for each event: a command with JSON on its input, or a webhook.

A hook that fails is a note for whoever looks, and never a failure of the campaign.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from llem.campaign.site import Notify
from llem.cluster.disk.folder import CampaignFolder
from llem.cluster.scheduler.gate import run_program
from llem.cluster.state.state import CampaignState
from llem.cluster.state.summary import gpu_hours_budget, gpu_hours_used, has_budget
from llem.errors import ClusterError, UnavailableError
from llem.planning import AnyPlan

NOTIFY_SCHEMA = "llem-notify-1"
BUDGET_SHARE = 0.8
HOOK_TIMEOUT_S = 20.0
# Statuses of runs that ended badly and that nothing works on any more; what is cancelled, unless by
# the user's own `llem cancel`, which is no news.
BAD = frozenset({"failed", "lost"})
CANCELLED = "cancelled"


@dataclass
class Notifier:
    """Called with every state that is seen; tells each event of a campaign once, whoever sees it.

    `note` gets a line where a hook failed. `over` is set by the job at the end, after which nothing
    works any more: what is not settled then has failed, though its job left no word.
    """

    folder: CampaignFolder
    plan: AnyPlan
    note: Callable[[str], None]
    over: bool = False
    hooks: Notify | None = field(init=False)

    def __post_init__(self) -> None:
        self.hooks = self.plan.campaign.notify or self.plan.site.notify

    def __call__(self, state: CampaignState) -> None:
        if self.hooks is None:
            return
        for event in events(self.plan, state, over=self.over):
            if event in self.hooks.events and self._first(event):
                self._tell(message(self.folder, self.plan, state, event))

    def _first(self, event: str) -> bool:
        """Whether this process is the first to see it: the marker is made once, or not at all."""
        try:
            marker = os.open(
                self.folder.notified(event), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644
            )
        except OSError:
            return False
        with os.fdopen(marker, "w") as file:
            file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')}\n")
        return True

    def _tell(self, body: dict[str, Any]) -> None:
        assert self.hooks is not None
        text = json.dumps(body, allow_nan=False)
        if self.hooks.command:
            try:
                run_program(self.hooks.command, cwd=self.folder.root, stdin=text,
                            timeout_s=HOOK_TIMEOUT_S)  # fmt: skip
            except (ClusterError, UnavailableError) as error:
                self.note(f"notification {body['event']!r}: {error.message}")
        if self.hooks.webhook is not None:
            try:
                post(self.hooks.webhook, text)
            except OSError as error:
                # Without the address: what follows its host is often a secret.
                self.note(f"notification {body['event']!r}: the webhook failed: {error}")


def events(plan: AnyPlan, state: CampaignState, *, over: bool = False) -> list[str]:
    """What a state calls for telling: done, failed (for good), budget."""
    found = []
    if state.settled:
        found.append("done")
    # The local executor tries again what may pass, for as long as it is at work.
    for_good = not (plan.site.executor == "local" and state.active)
    bad = BAD if state.told_to_stop else BAD | {CANCELLED}
    if (for_good and any(r.status in bad for r in state.runs)) or (over and not state.settled):
        found.append("failed")
    budget = gpu_hours_budget(plan) if has_budget(plan) else 0.0
    if budget > 0 and gpu_hours_used(state) >= BUDGET_SHARE * budget:
        found.append("budget")
    return found


def message(
    folder: CampaignFolder, plan: AnyPlan, state: CampaignState, event: str
) -> dict[str, Any]:
    """What is told: the event, and the campaign in figures."""
    causes = sorted({r.cause.name for r in state.runs if r.cause is not None})
    return {
        "schema": NOTIFY_SCHEMA,
        "event": event,
        "campaign": plan.campaign.name,
        "folder": str(folder.root.resolve()),
        "counts": state.counts,
        "causes": causes,
        "gpu_hours": round(gpu_hours_used(state), 4),
        "gpu_hours_budget": round(gpu_hours_budget(plan), 4),
        "time_s": round(state.now_s, 3),
    }


def post(address: str, text: str) -> None:
    """POST JSON, without following redirects. Raises OSError."""
    from http.client import HTTPException
    from urllib.error import HTTPError
    from urllib.request import HTTPRedirectHandler, Request, build_opener

    class _Stay(HTTPRedirectHandler):
        def redirect_request(self, *_: Any, **__: Any) -> None:
            return None

    request = Request(
        address,
        data=text.encode(),
        method="POST",
        headers={"Content-Type": "application/json", "User-Agent": "llem"},
    )
    try:
        with build_opener(_Stay).open(request, timeout=HOOK_TIMEOUT_S):
            pass
    except HTTPError as error:
        raise OSError(f"status {error.code}") from None
    except HTTPException as error:
        raise OSError(type(error).__name__) from None
