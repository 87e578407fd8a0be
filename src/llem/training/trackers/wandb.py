"""Weights & Biases; offline where there is no key or no way to its server."""

from __future__ import annotations

import netrc
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from llem.training.trackers.rows import EVALUATION_NAMES, STEP_NAMES, hyperparameters, scalars

SERVER = "https://api.wandb.ai"
CONNECT_S = 3.0


class Tracker:
    """One of its runs for each of llem's; a later attempt goes on in the same one."""

    def __init__(
        self,
        *,
        folder: Path,
        say: Callable[[str], None],
        project: str | None = None,
        entity: str | None = None,
        group: str | None = None,
        tags: Sequence[str] = (),
        mode: str | None = None,
    ) -> None:
        import wandb

        self._wandb = wandb
        self._folder = folder
        self._project, self._entity, self._group, self._tags = project, entity, group, tags
        why = "" if mode else offline_because(os.environ.get("WANDB_BASE_URL") or SERVER)
        self._mode = mode or ("offline" if why else "online")
        if why:
            say(f"offline, since {why}; later: wandb sync {folder}/wandb/offline-run-*")
        self._run: Any = None

    def on_start(self, run: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
        campaign = str(meta.get("campaign") or "llem")
        self._folder.mkdir(parents=True, exist_ok=True)
        self._run = self._wandb.init(
            project=self._project or campaign,
            entity=self._entity,
            group=self._group or campaign,
            tags=list(self._tags),
            id=f"{campaign}-{run['run_id']}",
            name=run["run_id"],
            resume="allow",
            reinit="finish_previous",
            dir=str(self._folder),
            mode=self._mode,
            config=hyperparameters(run),
            settings=self._wandb.Settings(
                silent=True, console="off", disable_git=True, save_code=False, x_disable_stats=True
            ),
        )

    def on_step(self, row: Mapping[str, Any]) -> None:
        self._run.log(scalars(row, STEP_NAMES), step=row["step"])

    def on_evaluation(self, row: Mapping[str, Any]) -> None:
        self._run.log(scalars(row, EVALUATION_NAMES), step=row["step"])

    def on_end(self, outcome: Mapping[str, Any]) -> None:
        self._run.summary.update({k: outcome[k] for k in ("status", "reason")})
        self._run.finish(exit_code=int(outcome["status"] != "completed"))
        self._run = None

    def close(self) -> None:
        if self._run is not None:
            self._run.finish(exit_code=1)


def offline_because(server: str) -> str:
    """Why nothing can be sent to `server`; '' where it can."""
    parts = urlsplit(server)
    host = parts.hostname or ""
    known = bool(os.environ.get("WANDB_API_KEY"))
    with suppress(OSError, netrc.NetrcParseError):
        known = known or netrc.netrc().authenticators(host) is not None
    if not known:
        return "there is no WANDB_API_KEY in the environment"
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((host, port), timeout=CONNECT_S).close()
    except OSError as error:
        return f"{host} cannot be reached ({error.strerror or error})"
    return ""
