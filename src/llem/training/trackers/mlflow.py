"""MLflow: a store of files in the campaign's folder, or the server that the user names."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llem.training.trackers.rows import EVALUATION_NAMES, STEP_NAMES, hyperparameters, scalars

# How an attempt's end is called there.
STATUSES = {"completed": "FINISHED", "interrupted": "KILLED"}
LONGEST_VALUE = 500


class Tracker:
    """A run of MLflow's for each attempt."""

    def __init__(
        self,
        *,
        folder: Path,
        say: Callable[[str], None],
        experiment: str | None = None,
        tracking_uri: str | None = None,
    ) -> None:
        # Newer versions ask for this before they write plain files.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow.entities import Metric, Param, RunTag
        from mlflow.tracking import MlflowClient

        self._metric, self._param, self._tag = Metric, Param, RunTag
        named = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        self._client = MlflowClient(tracking_uri=named or folder.absolute().as_uri())
        self._experiment = experiment
        self._run: str | None = None

    def on_start(self, run: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
        campaign = str(meta.get("campaign") or "llem")
        name = self._experiment or campaign
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        tags = {"llem.run_id": run["run_id"], "llem.campaign": campaign,
                "llem.attempt": str(meta.get("attempt", ""))}  # fmt: skip
        begun = self._client.create_run(experiment, run_name=run["run_id"], tags=tags)
        self._run = begun.info.run_id
        values = hyperparameters(run).items()
        params = [self._param(k, str(v)[:LONGEST_VALUE]) for k, v in values]
        self._client.log_batch(self._run, params=params)

    def on_step(self, row: Mapping[str, Any]) -> None:
        self._log(scalars(row, STEP_NAMES), step=row["step"])

    def on_evaluation(self, row: Mapping[str, Any]) -> None:
        self._log(scalars(row, EVALUATION_NAMES), step=row["step"])

    def on_end(self, outcome: Mapping[str, Any]) -> None:
        self._client.set_tag(self._run, "llem.status", outcome["status"])
        self._client.set_terminated(self._run, STATUSES.get(outcome["status"], "FAILED"))
        self._run = None

    def close(self) -> None:
        if self._run is not None:
            self._client.set_terminated(self._run, "FAILED")

    def _log(self, values: Mapping[str, float], *, step: int) -> None:
        now_ms = int(time.time() * 1000)
        metrics = [self._metric(k, v, now_ms, step) for k, v in values.items()]
        self._client.log_batch(self._run, metrics=metrics)
