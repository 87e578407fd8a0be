"""What submitting, watching and reading back need of a plan, whatever its workload."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from llem.campaign import AnyRun, Budget, Runs, Site
from llem.planning.arrays import ArrayJob
from llem.planning.hardware import Accelerator


class AnyPlan(Protocol):
    """A plan of trainings (`Plan`) or of deployments (`StudyPlan`)."""

    @property
    def campaign(self) -> Any:
        """The file's question: `name`, `energy`, `notify` and `trackers` are asked of it."""

    @property
    def site(self) -> Site: ...
    @property
    def budget(self) -> Budget: ...
    @property
    def runs(self) -> Runs[Any]: ...
    @property
    def arrays(self) -> Sequence[ArrayJob]: ...
    @property
    def warnings(self) -> tuple[str, ...]: ...
    @property
    def device(self) -> Accelerator: ...
    @property
    def rehearsal(self) -> Mapping[str, Any] | None: ...
    @property
    def digest(self) -> str: ...
    @property
    def totals(self) -> dict[str, float]: ...
    @property
    def by_id(self) -> Mapping[str, AnyRun]: ...
    def head(self) -> dict[str, Any]: ...
    def to_dict(self) -> dict[str, Any]: ...


def digest_of(runs: Runs[Any], arrays: Sequence[ArrayJob]) -> str:
    """Names a plan's content: the runs and how they are submitted."""
    text = json.dumps([runs.run_ids, [vars(a) for a in arrays]])
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
